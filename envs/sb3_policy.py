"""A causal language model as the policy of SB3's on-policy agents.

    model = PPO(CausalLMPolicy, TextVecEnv(venv), policy_kwargs={"model": lm}, gamma=1.0,
                rollout_buffer_class=EpisodeRolloutBuffer, learning_rate=1e-4)
    model.learn(100_000, callback=SubtractPolicyKL())

A2C, and TRPO of sb3-contrib, work the same way; MaskablePPO takes the classes of `sb3_masked.py`.
SB3's own classes are not modified. Rollouts read each token once (a KV cache per row). Updates read
each episode once (`EpisodeRolloutBuffer` returns whole episodes, and `evaluate_actions` takes the
states of all their positions from one pass). `SubtractPolicyKL` pays the agent's half of the KL.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from textrl.decoding import GrowingTexts
from textrl.envs.core_config import require_exact_shaping
from textrl.envs.sb3_buffer import require_no_discount
from textrl.envs.sb3_vec_env import TextVecEnv
from textrl.errors import UserError
from textrl.models import load_causal_lm, split_lm
from textrl.trainable import check_trainable

Observations = Tensor | dict[str, Tensor]
Masks = np.ndarray | Tensor | None


class NoFeatures(BaseFeaturesExtractor):
    """A placeholder for SB3's feature extractor: the language model reads the tokens itself."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        """Declare the smallest feature size that SB3 allows; no features are computed."""
        super().__init__(observation_space, features_dim=1)


class TokenPolicy(BasePolicy):
    """Actor and critic on one language model: its LM head, and a linear value head (initially 0).

    Nothing is re-initialised, dropout is off, and the optimiser gets the model and the value head.
    In a policy's bases this class must come before one of SB3's actor-critic classes.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        model: PreTrainedModel | str | Path | None = None,
        temperature: float = 1.0,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Make the policy; SB3 passes the first three arguments and use_sde.

        Args:
            observation_space: The observation space of TextRLHF-v0.
            action_space: The action space of TextRLHF-v0.
            lr_schedule: The learning-rate schedule, from SB3.
            model: A language model, of which a copy is trained, or the name of a checkpoint.
            temperature: The environment's temperature.
            use_sde: Must be False; SB3 itself refuses it for discrete actions.
            optimizer_class: The class of the optimiser for the model and the value head.
            optimizer_kwargs: Keyword arguments of the optimiser.

        Raises:
            UserError: the spaces are those of another environment, or there is no model.
        """
        if (
            not isinstance(observation_space, spaces.Dict)
            or "input_ids" not in observation_space.spaces
        ):
            raise UserError(f"{type(self).__name__} reads TextRLHF-v0, not {observation_space}")
        if model is None:
            raise UserError(
                f"{type(self).__name__} has no model; give a name or a live one: "
                f'policy_kwargs={{"model": ...}}'
            )
        loaded = load_causal_lm(model) if isinstance(model, str | Path) else copy.deepcopy(model)
        object.__setattr__(self, "_model", loaded)  # torch takes modules only after __init__
        self.temperature = temperature
        self.pays_kl = False  # set by SubtractPolicyKL while it trains
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,  # an argument of the actor-critic class that follows this one
            ortho_init=False,
            features_extractor_class=NoFeatures,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs or {"weight_decay": 0.0},
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Return the arguments of __init__, which SB3 saves beside the weights."""
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "model": self.model,
            "temperature": self.temperature,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    @property
    def q_net(self) -> nn.Module:
        """Refuse DQN, which reads this attribute.

        Raises:
            UserError: always, since this policy has no action values.
        """
        raise UserError(
            f'{type(self).__name__} has no action values; DQN takes "MlpPolicy" on '
            f'"TextRLHFCandidates-v0", or PPO or A2C this policy'
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Make the value head and the optimiser; called by SB3's constructor."""
        model: PreTrainedModel = self.__dict__.pop("_model")
        self.model = model.float().eval()
        check_trainable(self.model)
        self._lm = split_lm(self.model)
        self.value_head = nn.Linear(self._lm.state_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._growing = GrowingTexts(self._lm)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        trained += self.value_head.parameters()
        options = self.optimizer_kwargs | {"lr": lr_schedule(1)}
        self.optimizer = self.optimizer_class(trained, **options)

    def forward(
        self, obs: Observations, deterministic: bool = False, action_masks: Masks = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample actions while collecting; return actions [B], values [B 1] and log-probs [B].

        Raises:
            UserError: `SubtractPolicyKL` is not among the agent's callbacks.
        """
        if not self.pays_kl:
            raise UserError(
                f"{type(self).__name__} is trained with learn(..., callback=SubtractPolicyKL()), "
                f"which checks gamma and the environment and pays the policy's half of the KL"
            )
        states = self._states(obs)
        distribution = self._distribution(states, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._values(states), distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Observations, actions: Tensor, action_masks: Masks = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return values [N 1], log-probs [N] and entropies [N], with gradient."""
        states = self._states(obs)
        distribution = self._distribution(states, action_masks)
        entropy = distribution.entropy()
        assert entropy is not None
        return self._values(states), distribution.log_prob(actions), entropy

    def get_distribution(
        self, obs: Observations, action_masks: Masks = None
    ) -> CategoricalDistribution:
        """Return the distribution of the next token.

        Only TRPO calls this with gradients. It differentiates twice, which torch supports only with
        its plain attention.
        """
        if not torch.is_grad_enabled():
            return self._distribution(self._states(obs), action_masks)
        with sdpa_kernel(SDPBackend.MATH):
            return self._distribution(self._states(obs), action_masks)

    def predict_values(self, obs: Observations) -> Tensor:
        """Return values, [B 1], with gradient for the value head only.

        So an agent that trains its critic with this method (TRPO) does not change the model.
        """
        with torch.no_grad():
            states = self._states(obs)
        return self._values(states)

    def set_training_mode(self, mode: bool) -> None:
        """Keep eval mode: dropout would make the ratio of the first update differ from 1.

        Every agent calls this with True before an update, so the cached states are dropped here.
        (Torch does not notice the way in which TRPO writes weights.)
        """
        if mode:
            self._growing = GrowingTexts(self._lm)
        self.training = mode

    def _states(self, obs: Observations) -> Tensor:
        """Return the state after each observation.

        Without gradient it comes from the KV cache, with gradient from one pass.
        """
        assert isinstance(obs, dict)
        ids = obs["input_ids"].long()
        if "position" in obs:  # whole episodes, from EpisodeRolloutBuffer
            hidden = self._lm.hidden(ids[:, : int(obs["position"].max()) + 1])
            return hidden[obs["episode"].long(), obs["position"].long()]
        lengths = obs["attention_mask"].sum(1).long()
        if not torch.is_grad_enabled():
            return self._growing.states(ids, lengths)
        hidden = self._lm.hidden(ids[:, : int(lengths.max())])
        return hidden[torch.arange(len(ids), device=ids.device), lengths - 1]

    def _distribution(self, states: Tensor, action_masks: Masks) -> CategoricalDistribution:
        assert isinstance(self.action_space, spaces.Discrete)
        logits = self._lm.head(states).float() / self.temperature
        if action_masks is not None:
            allowed = torch.as_tensor(action_masks, device=logits.device).bool()
            logits = logits.masked_fill(~allowed.view_as(logits), torch.finfo(logits.dtype).min)
        return CategoricalDistribution(int(self.action_space.n)).proba_distribution(logits)

    def _values(self, states: Tensor) -> Tensor:
        values = self.value_head(states.float())
        assert isinstance(values, Tensor)
        return values


class CausalLMPolicy(TokenPolicy, ActorCriticPolicy):
    """The policy for SB3's PPO and A2C and for sb3-contrib's TRPO: see `TokenPolicy`."""


class SubtractPolicyKL(BaseCallback):
    """Pays the agent's half of the KL: subtracts kl_coef * log pi from every stored reward."""

    def _on_training_start(self) -> None:
        """Check that the agent and its environment fit this callback.

        Raises:
            UserError: the agent has no log-probs, gamma is not 1, the temperatures of policy and
                environment differ, something is normalised, the rows do not share one core, or the
                environment's shaping is not "exact".
        """
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise UserError(
                f"{type(self.model).__name__} acts without log-probs: leave SubtractPolicyKL out"
            )
        require_no_discount(self.model.gamma)
        env: Any = self.training_env
        while not isinstance(env, TextVecEnv):
            if isinstance(env, VecNormalize):
                raise UserError(
                    "leave VecNormalize out: token ids cannot be normalised, and rewards hold half "
                    "of the KL, whose other half would keep its scale"
                )
            if isinstance(env, VecFrameStack):
                raise UserError("leave VecFrameStack out: an observation holds the whole text")
            if not hasattr(env, "venv"):
                raise UserError(
                    f"{type(env).__name__} holds a model for every row; use "
                    f'TextVecEnv(gym.make_vec("TextRLHF-v0", ..., autoreset_mode="SameStep"))'
                )
            env = env.venv
        require_exact_shaping("SubtractPolicyKL", env.base.shaping)
        policy, temperature = self.model.policy, env.get_attr("temperature")[0]
        if isinstance(policy, TokenPolicy) and policy.temperature != temperature:
            raise UserError(
                f"the environment's temperature is {temperature}, the policy's "
                f"{policy.temperature}; "
                f'give policy_kwargs={{"temperature": {temperature}, ...}}'
            )
        if isinstance(policy, TokenPolicy):
            policy.pays_kl = True

    def _on_training_end(self) -> None:
        if isinstance(self.model.policy, TokenPolicy):
            self.model.policy.pays_kl = False

    def _on_step(self) -> bool:
        kl_coef = float(self.training_env.get_attr("kl_coef")[0])
        self.locals["rewards"] -= kl_coef * self.locals["log_probs"].cpu().numpy()
        return True
