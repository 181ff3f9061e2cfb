"""SB3's callbacks in `learn` of our agents, and `HeldoutEvaluation`, a callback of ours.

An iteration is SB3's rollout: `on_rollout_start`, then `on_step` for each step of the vector
environment (the first token of all rows, the second, ...), then `on_rollout_end`, then the update.
So `eval_freq=100` of SB3's EvalCallback means 100 such steps, as it does with an agent of SB3's.
The steps of a batch are told once its episodes are over; the policy is the same in all of them.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, EventCallback

from textrl.agents.base import AnyVectorEnv
from textrl.agents.collect import collect
from textrl.agents.rollout import Rollout, rollout_report
from textrl.agents.samples import samples_of
from textrl.agents.text_env import TextEnv
from textrl.callbacks import leaves
from textrl.durable import append_json_line, write_text
from textrl.errors import UserError
from textrl.generation import ModelSampler
from textrl.metrics import log, read_json_lines, read_progress
from textrl.models import split_lm
from textrl.paths import expanded

EVALUATION_SEED = 1234


class Stopped(Exception):
    """A callback has ended the training."""


class Callbacks:
    """The callback of one call of `learn`, and what it is told."""

    def __init__(self, agent: Any, callback: BaseCallback, total_timesteps: int) -> None:
        """Introduce agent and callback to each other."""
        self.agent, self.callback = agent, callback
        self._generator = torch.Generator().manual_seed(EVALUATION_SEED)
        with self._apart():
            callback.init_callback(agent)
            known = {"self": agent, "total_timesteps": agent.env_steps + total_timesteps}
            callback.on_training_start(known, {})

    def begin_rollout(self) -> None:
        """Tell of an iteration that begins; raise Stopped if a callback of ours has had enough."""
        with self._apart():
            self.callback.on_rollout_start()
        if any(isinstance(one, HeldoutEvaluation) and one.stops for one in leaves(self.callback)):
            raise Stopped

    def tell(self, batch: Rollout) -> None:
        """Tell of the steps of a batch; raise Stopped if the callback says so."""
        mask, lengths = batch.mask.cpu().numpy(), batch.mask.sum(1).cpu().numpy()
        rewards = batch.rewards.cpu().numpy().astype(np.float64)
        scores, returns = batch.scores.cpu().numpy(), rewards.sum(1)
        for t in range(mask.shape[1]):
            dones = lengths == t + 1
            infos: list[dict[str, Any]] = [{} for _ in dones]
            for row in dones.nonzero()[0]:
                episode = {"r": float(returns[row]), "l": int(lengths[row])}
                infos[row] = {"episode": episode, "score": float(scores[row])}
            self.agent.told += int(mask[:, t].sum())
            known = {"rewards": rewards[:, t], "dones": dones, "infos": infos, "rollout": batch}
            self.callback.update_locals(known)
            with self._apart():
                if not self.callback.on_step():
                    raise Stopped

    def end_rollout(self) -> None:
        """Tell that all episodes of an iteration are there."""
        with self._apart():
            self.callback.on_rollout_end()

    def end(self) -> None:
        """Tell that the training is over."""
        with self._apart():
            self.callback.on_training_end()

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Let a callback draw from other random numbers than the agent's training."""
        self.agent.acting = self._generator
        try:
            yield
        finally:
            self.agent.acting = None


class HeldoutEvaluation(BaseCallback):
    """Measures the policy on held-out prompts every few iterations (a callback for `learn`).

    Logged are `heldout/score`, `heldout/scores/NAME` of each of several rewards (one of weight 0 is
    an independent metric), `heldout/kl` in nats per sequence with `heldout/kl_error`,
    `heldout/length`, `heldout/entropy` and `heldout/eos_share`, at iteration 0, then every
    `every` iterations, and at the end. Each measurement has the same prompts and random numbers.

    In `train` of an SFT or DPO trainer an update counts as an iteration.
    """

    def __init__(
        self,
        venv: AnyVectorEnv,
        *,
        every: int = 10,
        keep_best: str | None = None,
        best_folder: str | Path | None = None,
        stop_at_kl: float | None = None,
        samples_file: str | Path | None = None,
        num_samples: int = 8,
    ) -> None:
        """Take the environment with the held-out prompts, a row for each episode.

        Args:
            venv: An environment with the reference of the agent's. It is used for nothing else.
            every: Number of iterations between two measurements.
            keep_best: Name of a logged number, such as "heldout/score"; the agent with the largest
                one is saved.
            best_folder: The folder where it is saved.
            stop_at_kl: The training ends at the first measurement with a larger KL, in nats per
                sequence.
            samples_file: A file (.jsonl) to which samples are added at each measurement.
            num_samples: Number of samples that are kept and shown in TensorBoard.

        Raises:
            UserError: a number is out of range, or only one of keep_best and best_folder is given.
        """
        super().__init__()
        if every < 1 or num_samples < 0:
            raise UserError(f"every is {every}, num_samples {num_samples}; expected 1, 0 or more")
        if (keep_best is None) != (best_folder is None):
            raise UserError("keep_best and best_folder belong together; give both or none")
        if stop_at_kl is not None and not stop_at_kl > 0:
            raise UserError(f"stop_at_kl is {stop_at_kl}; expected a positive number of nats")
        self.env, self.every, self.stop_at_kl = TextEnv(venv), every, stop_at_kl
        self.keep_best, self.best = keep_best, -math.inf
        self.best_folder = None if best_folder is None else expanded(best_folder)
        self.samples_file = None if samples_file is None else expanded(samples_file)
        self.num_samples = num_samples
        self.stops = False
        """Whether the training should end."""
        self._last: int | None = None  # the iteration of the last measurement

    def measure(self) -> dict[str, float]:
        """Return the measurement of the present policy; nothing is logged."""
        return self._report(self._episodes())

    def _init_callback(self) -> None:
        if isinstance(self.parent, EventCallback):
            raise UserError(
                f"{type(self.parent).__name__} tells its callback of no iterations, so that "
                f"nothing would be measured; give the HeldoutEvaluation to learn itself"
            )
        if getattr(self.model, "what", "policy") != "policy":
            raise UserError("a reward model says no texts; hold out pairs: heldout_share=0.1")

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        """Go on where a run was saved; its later measurements are made once more."""
        agent: Any = self.model
        folder = self.logger.get_dir()
        if agent.env_steps == 0 or folder is None:
            return
        rows = read_progress(Path(folder))
        known = [row[self.keep_best] for row in rows if self.keep_best in row]
        self.best = max([self.best, *known])
        if self.samples_file is not None and self.samples_file.exists():
            kept = read_json_lines(self.samples_file)
            lines = (json.dumps(row) + "\n" for row in kept if row["tokens"] < agent.env_steps)
            write_text(self.samples_file, "".join(lines))

    def _on_rollout_start(self) -> None:
        agent: Any = self.model
        if agent.iteration % self.every == 0:
            self._measure()

    def _on_training_end(self) -> None:
        self._measure()

    def _measure(self) -> None:
        agent: Any = self.model
        if self._last == agent.iteration:
            return
        self._last = agent.iteration
        episodes = self._episodes()
        numbers = self._report(episodes)
        if self.keep_best is not None and self.keep_best not in numbers:
            raise UserError(
                f"keep_best is {self.keep_best!r}, which is not measured; measured are "
                f"{', '.join(numbers)}"
            )
        self._keep_samples(episodes)
        log(self.logger, agent.env_steps, numbers)
        if self.keep_best is not None and numbers[self.keep_best] > self.best:
            self.best = numbers[self.keep_best]
            agent.save(self.best_folder)
        self.stops = self.stop_at_kl is not None and numbers["heldout/kl"] > self.stop_at_kl

    def _episodes(self) -> Rollout:
        agent: Any = self.model
        self.env.venv.reset(seed=EVALUATION_SEED)
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        if not hasattr(agent, "collect_in"):  # a trainer
            return collect(ModelSampler(split_lm(agent.model)), self.env, generator)
        self.env.kl_coef = agent.env.kl_coef  # it may be adapted
        with agent.autocast():
            episodes: Rollout = agent.collect_in(self.env, generator)
        return episodes

    def _report(self, episodes: Rollout) -> dict[str, float]:
        report = rollout_report(episodes, self.env.kl_coef, self.env.reward_names)
        left_out = ("rollout/env_return", "rollout/turns")
        return {
            name.replace("rollout/", "heldout/"): value
            for name, value in report.items()
            if name not in left_out
        }

    def _keep_samples(self, episodes: Rollout) -> None:
        """Add the first samples to the file, and show them in TensorBoard."""
        agent: Any = self.model
        first = torch.arange(len(episodes.mask))[: self.num_samples]
        rows = samples_of(episodes.rows(first), self.env, agent)
        if self.samples_file is not None:
            self.samples_file.parent.mkdir(parents=True, exist_ok=True)
            place = {"iteration": agent.iteration, "tokens": agent.env_steps}
            for row in rows:
                append_json_line(self.samples_file, place | row)
        if rows:
            cells = ["| score | KL | prompt | completion |", "|---|---|---|---|"]
            for row in rows:
                texts = (row[name].replace("|", "\\|") for name in ("prompt", "completion"))
                texts = (text.replace("\n", "<br>") for text in texts)
                cells.append(f"| {row['score']} | {row['kl']:.2f} | {' | '.join(texts)} |")
            only_tensorboard = ("stdout", "log", "json", "csv")
            self.logger.record("heldout/samples", "\n".join(cells), exclude=only_tensorboard)
