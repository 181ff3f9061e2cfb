"""Classes for sb3-contrib's MaskablePPO on a language model: masked tokens are never sampled.

    model = MaskablePPO(MaskableCausalLMPolicy, TextVecEnv(venv), policy_kwargs={"model": lm},
                        gamma=1.0, rollout_buffer_class=MaskableEpisodeRolloutBuffer)
    model.learn(100_000, callback=SubtractPolicyKL())

The masks are those of the environment's `action_masks()`. This is a separate module because
sb3-contrib is an optional dependency (the extra `contrib`).
"""

from sb3_contrib.common.maskable.buffers import (
    MaskableDictRolloutBuffer,
    MaskableDictRolloutBufferSamples,
)
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from textrl.envs.sb3_buffer import EpisodeRolloutBuffer, Segment
from textrl.envs.sb3_policy import TokenPolicy


class MaskableCausalLMPolicy(TokenPolicy, MaskableActorCriticPolicy):  # type: ignore[misc]  # masks
    """The policy for sb3-contrib's MaskablePPO: see `TokenPolicy`."""


# the two bases type `get` differently
class MaskableEpisodeRolloutBuffer(EpisodeRolloutBuffer, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """`EpisodeRolloutBuffer` with sb3-contrib's action mask of each step, float32 [V]."""

    def _samples(  # type: ignore[override]  # SB3's sample types are not related by inheritance
        self, segments: list[Segment]
    ) -> MaskableDictRolloutBufferSamples:
        masks = self.to_torch(self.action_masks[self._cells(segments)])
        return MaskableDictRolloutBufferSamples(*super()._samples(segments), masks)
