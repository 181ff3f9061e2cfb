"""RLOO: REINFORCE whose baseline is the mean return of the prompt's other samples."""

from functools import partial

from torch import Tensor

from textrl.advantages import rloo_advantages
from textrl.agents.policy_gradient import episode_returns, spread_over_tokens
from textrl.agents.rollout import Rollout, ratio_report
from textrl.agents.text_agent import TextAgent
from textrl.config import RLOOConfig
from textrl.losses import ppo_policy_loss
from textrl.updater import Numbers, Steps, update_report


class RLOO(TextAgent):
    """REINFORCE leave-one-out (2402.14740, section 2.2), with PPO's clipped ratio.

    A completion's advantage is its return minus the mean return of the others in its group. With
    one epoch and one minibatch the ratio is 1, and the gradient is that of the paper divided by the
    mean length of a completion: the loss here is a mean over tokens, as in PPO, and the paper's is
    a mean over episodes.
    """

    name = "rloo"
    config_class = RLOOConfig
    config: RLOOConfig
    compares_samples = True

    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        """Update the policy: num_epochs x minibatches of the clipped surrogate loss."""
        returns = episode_returns(rollout, self.env.kl_coef)
        advantages = rloo_advantages(returns, self.env.group_size)
        loss = partial(self._loss, rollout, spread_over_tokens(advantages, rollout.mask))
        batches = steps.over(
            lengths=rollout.lengths,
            weights=rollout.mask.sum(1),
            minibatch_size=self.config.minibatch_size,
            num_epochs=self.config.num_epochs,
        )
        return update_report([step.take(loss) for step in batches])

    def _loss(
        self, rollout: Rollout, advantages: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the token-mean loss of some episodes, and numbers to log."""
        part, clip_range = rollout.rows(rows), self.config.clip_range
        logprobs = self.logprobs(part)
        loss = ppo_policy_loss(
            logprobs, part.logprobs, advantages[rows], part.mask, clip_range=clip_range
        )
        return loss, {"policy_loss": loss} | ratio_report(logprobs, part, clip_range)
