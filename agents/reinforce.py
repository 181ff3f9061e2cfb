"""REINFORCE: the plain policy gradient, a baseline for the other agents.

One iteration is one optimiser step on new episodes: no ratio, no clipping, one epoch.
"""

from functools import partial

from torch import Tensor

from textrl.advantages import rloo_advantages
from textrl.agents.policy_gradient import episode_returns, spread_over_tokens
from textrl.agents.rollout import Rollout, ratio_report
from textrl.agents.text_agent import TextAgent
from textrl.config import ReinforceConfig
from textrl.losses import reinforce_loss
from textrl.updater import Numbers, Steps, update_report


class Reinforce(TextAgent):
    """REINFORCE with the mean return of the iteration's other episodes as the baseline.

    Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", section 5.
    """

    name = "reinforce"
    config_class = ReinforceConfig
    config: ReinforceConfig

    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        """Take one optimiser step on all episodes together."""
        returns = episode_returns(rollout, self.env.kl_coef)
        advantages = rloo_advantages(returns, group_size=len(returns))
        loss = partial(self._loss, rollout, spread_over_tokens(advantages, rollout.mask))
        batches = steps.over(
            lengths=rollout.lengths,
            weights=rollout.mask.sum(1),
            minibatch_size=len(returns),
        )
        return update_report([step.take(loss) for step in batches])

    def _loss(
        self, rollout: Rollout, advantages: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        part = rollout.rows(rows)
        logprobs = self.logprobs(part)
        loss = reinforce_loss(logprobs, advantages[rows], part.mask)
        return loss, {"policy_loss": loss} | ratio_report(logprobs, part, clip_range=0.2)
