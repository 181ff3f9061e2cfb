"""Online DPO: sample from the environment, rank by its scores, train on best against worst.

The environment's rows come in groups of `samples_per_prompt` that share a prompt (its group_size).
The reference's log-probs arrive with the episodes, so each iteration costs one forward pass of the
reference, inside the environment.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from transformers import PreTrainedModel

from textrl.agents.base import AnyVectorEnv, Observation, TextEnv
from textrl.agents.collect import collect, concatenate
from textrl.agents.diagnostics import rollout_report
from textrl.agents.predict import next_tokens
from textrl.checkpoint import save_model, write_json
from textrl.config import OnlineDPOConfig
from textrl.errors import UserError
from textrl.logprobs import chunked_token_logprobs
from textrl.loop import Updater, make_accelerator, token_batches
from textrl.losses import dpo_loss
from textrl.metrics import StageProgress, log
from textrl.models import load_causal_lm, split_lm
from textrl.types import Rollout


class OnlineDPO:
    """DPO on the policy's own samples, ranked by the environment (2305.18290, 2402.04792)."""

    def __init__(
        self,
        policy: PreTrainedModel,
        venv: AnyVectorEnv,
        config: OnlineDPOConfig | None = None,
        *,
        logger: Logger | None = None,
    ) -> None:
        """Make the optimiser.

        Args:
            policy: trained in place; its tokenizer is the environment's.
            venv: a vector environment of `TextRLHF-v0` with group_size = samples_per_prompt.
            config: sizes and rates.
            logger: SB3's; by default one that prints nothing.

        Raises:
            UserError: sizes that do not fit the environment, or a policy that is the reference.
        """
        self.config = config or OnlineDPOConfig()
        self.env = TextEnv(venv)
        self._check(policy)
        self.policy, self.logger = policy.eval(), logger or Logger(folder=None, output_formats=[])
        self._lm = split_lm(policy)
        self._updater = Updater(
            [(policy, self.config.learning_rate)],
            accelerator=make_accelerator(policy.device),
            max_grad_norm=self.config.max_grad_norm,
        )
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self.env_steps = self.updates = 0
        venv.reset(seed=self.config.seed)

    def set_logger(self, logger: Logger) -> None:
        """Log to this logger from now on."""
        self.logger = logger

    def learn(self, total_timesteps: int, progress_bar: bool = False) -> Self:
        """Train for at least this many tokens more; one logger row an update."""
        start = self.env_steps
        with StageProgress("dpo", total_timesteps, shown=progress_bar) as progress:
            while self.env_steps < start + total_timesteps:

                def show(tokens: float, numbers: dict[str, float]) -> None:
                    done = self.env_steps - start + tokens
                    progress.show(min(total_timesteps, round(done)), numbers)

                self.iterate(show)
        return self

    def predict(
        self, observation: Observation, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Return the next token for an observation [L] or a batch of them [B L]."""
        temperature = self.env.temperature
        return next_tokens(self._lm, observation, temperature, self._generator, deterministic), None

    def save(self, path: str | Path) -> None:
        """Write the policy as a plain transformers checkpoint, the configuration beside it."""
        save_model(self.policy, self.env.tokenizer, path)
        content = {"agent": "online_dpo", "config": asdict(self.config)}
        write_json(Path(path) / "agent.json", content)

    @classmethod
    def load(cls, path: str | Path, venv: AnyVectorEnv) -> "OnlineDPO":
        """Return a saved agent in an environment; its optimiser starts afresh."""
        config = OnlineDPOConfig(**json.loads((Path(path) / "agent.json").read_text())["config"])
        return cls(load_causal_lm(path, dtype="float32"), venv, config)

    def sample_episodes(self) -> Rollout:
        """Return an iteration's episodes, groups of one prompt in consecutive rows."""
        batches = self.config.episodes_per_iteration // self.env.num_envs
        return concatenate([collect(self._lm, self.env, self._generator) for _ in range(batches)])

    def iterate(self, show: Callable[[float, dict[str, float]], None]) -> None:
        """Sample, rank, update; show(tokens done of this iteration, numbers) after each update."""
        began = time.monotonic()
        rollout = self.sample_episodes()
        report, tokens = rollout_report(rollout), int(rollout.mask.sum())
        best, worst = best_and_worst(rollout.scores, self.config.samples_per_prompt)
        total = self.config.num_epochs * len(best)
        done = 0
        for _ in range(self.config.num_epochs):
            order = torch.randperm(len(best), generator=self._generator)
            for chosen in order.split(self.config.minibatch_size):
                numbers = self._minibatch(rollout, best[chosen], worst[chosen])
                done, self.updates = done + len(chosen), self.updates + 1
                log(self.logger, self.updates, {f"train/{k}": v for k, v in numbers.items()})
                show(tokens * done / total, {n: numbers[n] for n in ("loss", "accuracy")})
        self.env_steps += tokens
        speed = {"time/tokens_per_second": tokens / (time.monotonic() - began)}
        log(self.logger, self.updates, report | speed | {"train/pairs": float(len(best))})

    def _minibatch(self, rollout: Rollout, best: Tensor, worst: Tensor) -> dict[str, float]:
        sums = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
        lengths = torch.maximum(rollout.lengths[best], rollout.lengths[worst]) * 2

        def losses() -> Iterable[Tensor]:
            for batch in token_batches(lengths.tolist(), self.config.micro_batch_tokens):
                pair_rows = torch.cat([best[batch], worst[batch]])
                part = rollout.rows(pair_rows)
                policy = self._sequence_logprobs(part).view(2, -1)
                reference = part.ref_logprobs.sum(1).view(2, -1)
                loss = dpo_loss(
                    policy[0],
                    policy[1],
                    reference[0],
                    reference[1],
                    beta=self.config.beta,
                    loss_type=self.config.loss_type,
                    label_smoothing=self.config.label_smoothing,
                )
                reward = self.config.beta * (policy - reference).detach()
                sums["loss"] += loss.sum().item() / len(best)
                sums["accuracy"] += float((reward[0] > reward[1]).sum()) / len(best)
                sums["margin"] += float((reward[0] - reward[1]).sum()) / len(best)
                yield loss.sum() / len(best)

        norm = self._updater.update(losses())
        return sums | {"grad_norm": norm}

    def _sequence_logprobs(self, part: Rollout) -> Tensor:
        """Return the completions' log-probs at the environment's temperature, nats, [B]."""
        ids = part.input_ids[:, : int(part.lengths.max())]
        hidden = self._lm.completion_hidden(ids, part.prompt_lengths, part.mask.shape[1])
        temperature = self.env.temperature
        return chunked_token_logprobs(
            hidden, self._lm.head, part.completion_ids, part.mask, temperature=temperature
        ).sum(1)

    def _check(self, policy: PreTrainedModel) -> None:
        self.env.check(policy, self.config.episodes_per_iteration)
        if self.env.group_size != self.config.samples_per_prompt:
            raise UserError(
                f"OnlineDPOConfig.samples_per_prompt is {self.config.samples_per_prompt}; expected "
                f"the environment's group_size {self.env.group_size} (make it with group_size=...)"
            )


def best_and_worst(scores: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the rows of each group's best and worst score; groups of equal scores are left out.

    >>> best_and_worst(torch.tensor([1.0, 3.0, 2.0, 2.0]), group_size=2)
    (tensor([1]), tensor([0]))
    """
    groups = scores.view(-1, group_size).nan_to_num(nan=-torch.inf)
    first = torch.arange(len(groups), device=scores.device) * group_size
    differs = groups.amax(1) > groups.amin(1)
    return (first + groups.argmax(1))[differs], (first + groups.argmin(1))[differs]
