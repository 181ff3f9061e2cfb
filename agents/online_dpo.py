"""Online DPO: sample several completions per prompt, and train on the best against the worst.

The environment scores the samples. Its rows come in groups of `samples_per_prompt` that share a
prompt (the environment's `group_size`).
The reference's log-probs arrive with the episodes, so each iteration costs one forward pass of the
reference, inside the environment.
"""

from functools import partial

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from transformers import PreTrainedModel

from textrl.agents.base import AnyVectorEnv
from textrl.agents.rollout import Rollout
from textrl.agents.text_agent import TextAgent
from textrl.config import OnlineDPOConfig
from textrl.errors import UserError
from textrl.losses import dpo_loss
from textrl.updater import Numbers, Steps, update_report


class OnlineDPO(TextAgent):
    """DPO on the policy's own samples, ranked by the environment (2305.18290, 2402.04792)."""

    name = "online_dpo"
    config_class = OnlineDPOConfig
    config: OnlineDPOConfig
    compares_samples = True

    def __init__(
        self,
        policy: PreTrainedModel,
        venv: AnyVectorEnv,
        config: OnlineDPOConfig | None = None,
        *,
        logger: Logger | None = None,
    ) -> None:
        """Make the agent; the environment needs group_size = samples_per_prompt.

        Raises:
            UserError: a size does not fit the environment, or the policy is the reference itself.
        """
        super().__init__(policy, venv, config, logger=logger)
        if self.env.group_size != self.config.samples_per_prompt:
            raise UserError(
                f"OnlineDPOConfig.samples_per_prompt is {self.config.samples_per_prompt}; expected "
                f"the environment's group_size {self.env.group_size} (make it with group_size=...)"
            )

    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        """Train on the best against the worst completion of each group."""
        paid = self._paid(rollout)
        best, worst = best_and_worst(paid, self.config.samples_per_prompt)
        loss = partial(self._loss, rollout, paid, best, worst)
        batches = steps.over(
            lengths=2 * torch.maximum(rollout.lengths[best], rollout.lengths[worst]),
            weights=torch.ones(len(best)),
            minibatch_size=self.config.minibatch_size,
            num_epochs=self.config.num_epochs,
        )
        report = update_report([step.take(loss) for step in batches])
        return report | {"train/pairs": float(len(best))}

    def _paid(self, rollout: Rollout) -> Tensor:
        """Return the numbers that rank the samples, [B]: the score minus missing_eos_penalty."""
        return rollout.scores - self.env.missing_eos_penalty * ~rollout.ended_by_eos

    def _loss(
        self, rollout: Rollout, paid: Tensor, best: Tensor, worst: Tensor, pairs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean preference loss of some pairs, and numbers to log."""
        config = self.config
        rows = torch.cat([best[pairs], worst[pairs]])
        part = rollout.rows(rows)
        policy = self.logprobs(part).sum(1).view(2, -1)
        reference = part.ref_logprobs.sum(1).view(2, -1)
        lengths = part.mask.sum(1).view(2, -1)
        loss = dpo_loss(
            policy[0],
            policy[1],
            reference[0],
            reference[1],
            beta=config.beta,
            loss_type=config.loss_type,
            label_smoothing=self._label_smoothing(paid[rows]),
            chosen_lengths=lengths[0],
            rejected_lengths=lengths[1],
            kl=rollout.sequence_kl.mean(),
            simpo_margin=config.simpo_margin,
        ).mean()
        reward = config.beta * (policy - reference).detach()
        margin = reward[0] - reward[1]
        numbers = {"loss": loss, "accuracy": (margin > 0).float().mean(), "margin": margin.mean()}
        return loss, numbers

    def _label_smoothing(self, scores: Tensor) -> float | Tensor:
        """Return the probability that the worse completion of a pair is preferred.

        It is the configured number, or computed from the scores, [B].
        """
        if self.config.labels == "hard":
            return self.config.label_smoothing
        best, worst = scores.nan_to_num(nan=-torch.inf).view(2, -1)  # a truncated one ranks last
        return torch.sigmoid(worst - best)


def best_and_worst(scores: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the rows of each group's best and worst score, without groups of equal scores.

    >>> best_and_worst(torch.tensor([1.0, 3.0, 2.0, 2.0]), group_size=2)
    (tensor([1]), tensor([0]))
    """
    groups = scores.view(-1, group_size).nan_to_num(nan=-torch.inf)
    first = torch.arange(len(groups), device=scores.device) * group_size
    differs = groups.amax(1) > groups.amin(1)
    return (first + groups.argmax(1))[differs], (first + groups.argmin(1))[differs]
