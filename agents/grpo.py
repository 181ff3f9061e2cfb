"""GRPO and Dr.GRPO: agents whose baseline is the mean return of a group with the same prompt."""

from functools import partial

import torch
from torch import Tensor

from textrl.advantages import grpo_advantages
from textrl.agents.policy_gradient import episode_returns, spread_over_tokens
from textrl.agents.rollout import Rollout, ratio_report
from textrl.agents.text_agent import TextAgent
from textrl.config import GRPOConfig
from textrl.losses import ppo_policy_loss
from textrl.updater import Numbers, Steps, update_report


class GRPO(TextAgent):
    """Group-relative policy optimisation (2402.03300), or without its two biases (2503.20783).

        grpo      A_i = (R_i - mean) / std,   loss = mean over episodes of the mean over tokens
        dr_grpo   A_i =  R_i - mean,          loss = mean over episodes of sum over tokens / budget

    R is the score minus kl_coef times the sampled KL, as in all agents here. So grpo divides by the
    standard deviation of both together, and a group of equal scores still learns from its KL
    (ADR 4). Logged numbers about the ratio are means over tokens within a micro-batch, and means
    over episodes across micro-batches.
    """

    name = "grpo"
    config_class = GRPOConfig
    config: GRPOConfig
    compares_samples = True

    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        """Update the policy: num_epochs x minibatches of the clipped surrogate loss."""
        returns, paper = episode_returns(rollout, self.env.kl_coef), self.config.variant == "grpo"
        advantages = grpo_advantages(returns, self.env.group_size, scale=paper)
        lengths = rollout.mask.sum(1)
        divisors = lengths if paper else torch.full_like(lengths, self.env.max_completion_tokens)
        loss = partial(self._loss, rollout, advantages, divisors)
        batches = steps.over(
            lengths=rollout.lengths,
            weights=torch.ones(len(returns)),
            minibatch_size=self.config.minibatch_size,
            num_epochs=self.config.num_epochs,
        )
        return update_report([step.take(loss) for step in batches])

    def _loss(
        self, rollout: Rollout, advantages: Tensor, divisors: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean over episodes of (sum over tokens / divisor), and numbers to log."""
        part, clip_range = rollout.rows(rows), self.config.clip_range
        logprobs = self.logprobs(part)
        per_token = spread_over_tokens(advantages[rows] / divisors[rows], part.mask)
        token_mean = ppo_policy_loss(
            logprobs, part.logprobs, per_token, part.mask, clip_range=clip_range
        )
        loss = token_mean * part.mask.sum() / len(rows)
        return loss, {"policy_loss": loss} | ratio_report(logprobs, part, clip_range)
