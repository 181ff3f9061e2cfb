"""GRPO and Dr.GRPO: each completion against its group, two ways to weigh it."""

from functools import partial

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from transformers import PreTrainedModel

from textrl.advantages import grpo_advantages
from textrl.agents.base import AnyVectorEnv
from textrl.agents.diagnostics import ratio_report, update_report
from textrl.agents.policy_gradient import check_group, episode_returns, spread_over_tokens
from textrl.agents.text_agent import Numbers, TextAgent
from textrl.config import GRPOConfig
from textrl.losses import ppo_policy_loss
from textrl.types import Rollout


class GRPO(TextAgent):
    """Group-relative policy optimisation (2402.03300), and without its two biases (2503.20783).

        grpo      A_i = (R_i - mean) / std,   loss = mean over episodes of the mean over tokens
        dr_grpo   A_i =  R_i - mean,          loss = mean over episodes of sum over tokens / budget

    R is the score minus kl_coef times the sampled KL, as in all agents here. The paper puts a k3
    term in the loss instead, whose gradient is that of the other direction of the KL; so does its
    division by std, which changes from prompt to prompt, change the weight of a KL in the loss.
    """

    name = "grpo"
    config_class = GRPOConfig
    config: GRPOConfig

    def __init__(
        self,
        policy: PreTrainedModel,
        venv: AnyVectorEnv,
        config: GRPOConfig | None = None,
        *,
        logger: Logger | None = None,
    ) -> None:
        """Make the optimiser; the environment needs group_size >= 2.

        Raises:
            UserError: sizes that do not fit the environment, or a policy that is the reference.
        """
        super().__init__(policy, venv, config, logger=logger)
        check_group(self.env.group_size, "GRPO")

    def train_on(self, rollout: Rollout) -> Numbers:
        """Take num_epochs x minibatches of the clipped surrogate."""
        returns, lengths = episode_returns(rollout, self.env.kl_coef), rollout.mask.sum(1)
        scale = self.config.variant == "grpo"
        advantages = grpo_advantages(returns, self.env.group_size, scale=scale)
        budget = torch.full_like(lengths, self.env.max_completion_tokens)
        per_token = advantages / (lengths if scale else budget)
        rows = self.update(
            rollout.lengths,
            torch.ones(len(returns)),
            partial(self._loss, rollout, spread_over_tokens(per_token, rollout.mask)),
            minibatch_size=self.config.minibatch_size,
            num_epochs=self.config.num_epochs,
        )
        return update_report(rows)

    def _loss(
        self, rollout: Rollout, advantages: Tensor, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of some episodes, and what to log of it."""
        part, clip_range = rollout.rows(rows), self.config.clip_range
        logprobs = self.logprobs(part)
        token_mean = ppo_policy_loss(
            logprobs, part.logprobs, advantages[rows], part.mask, clip_range=clip_range
        )
        loss = token_mean * part.mask.sum() / len(rows)  # a sum over tokens, a mean over episodes
        return loss, {"policy_loss": loss} | ratio_report(logprobs, part, clip_range)
