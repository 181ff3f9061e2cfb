"""What all our agents share: a policy in a text environment, SB3's verbs, the minibatch loop.

An agent is a subclass that says in `train_on` what it does with an iteration's episodes; its file
holds the whole algorithm. Here are `learn`, `predict`, `save`, `load` and the optimiser steps.
"""

import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from transformers import PreTrainedModel

from textrl.agents.base import AnyVectorEnv, Observation, State
from textrl.agents.collect import collect
from textrl.agents.critic import Critic
from textrl.agents.learning import Learning, Show
from textrl.agents.predict import next_tokens
from textrl.agents.rollout import (
    Rollout,
    Spent,
    Targets,
    check_groups,
    concatenate,
    cost_report,
    flat_groups,
    rollout_report,
    without_masked,
)
from textrl.agents.saving import read_policy, restore, write_agent
from textrl.agents.text_env import TextEnv, undone_on_failure
from textrl.bounds import checked_config
from textrl.config import AgentConfig
from textrl.durable import save_files
from textrl.engine import make_accelerator, one_process
from textrl.generation import ModelSampler, Sampler
from textrl.masking import masked_mean
from textrl.models import split_lm
from textrl.packing import filled_batches
from textrl.paths import expanded
from textrl.policy import Evaluation, PolicyModule, ReferenceStates, ValueHead
from textrl.precision import autocast, pick_precision
from textrl.stopping import uninterrupted
from textrl.updater import Numbers, OutOfMemory, Steps, Updater

PROBE = 8
"""Episodes on which sampling and update are held against each other."""
AGREEMENT = 1e-5
"""Mean distance of their log-probs, nats per token, up to which those of sampling are used: 2e-7
(4M parameters) to 4e-6 (135M) was measured in float32, 1e-3 to 4e-2 in bfloat16."""


class TextAgent(Learning):
    """A language model that learns in a text environment; `train_on` is the algorithm."""

    config_class: ClassVar[type[AgentConfig]]
    """Its fields' defaults are the agent's."""
    compares_samples: ClassVar[bool] = False
    """Whether it needs several rows of the environment to share each prompt (group_size >= 2)."""
    config: AgentConfig

    def __init__(
        self,
        policy: PreTrainedModel,
        venv: AnyVectorEnv,
        config: AgentConfig | None = None,
        *,
        logger: Logger | None = None,
        critic: ValueHead | Critic | None = None,
        critic_learning_rate: float | None = None,
    ) -> None:
        """Make the optimiser; dropout goes off.

        Args:
            policy: trained in place; its tokenizer is the environment's.
            venv: a vector environment of `TextRLHF-v0`.
            config: sizes and rates.
            logger: SB3's; by default one that prints nothing.
            critic: trained beside the policy.
            critic_learning_rate: the critic's; None is the policy's.

        Raises:
            UserError: sizes that do not fit the environment, a policy that is the reference, or
                another agent's configuration.
        """
        self.config = checked_config(self, config, self.config_class)
        self.env = TextEnv(venv)
        self.env.check(policy, self.config.episodes_per_iteration)
        if self.compares_samples:
            self.env.check_groups(type(self).__name__)
        self.policy, self.lm = policy.eval(), split_lm(policy)
        head = critic if isinstance(critic, ValueHead) else None
        self.module = PolicyModule(self.lm, head)
        self.sampler: Sampler = ModelSampler(self.lm, observe=head)
        self.logger = logger or Logger(folder=None, output_formats=[])
        self.iteration = self.env_steps = self.told = 0
        rate = self.config.learning_rate
        self._updater = Updater(
            [(policy, rate), *([(critic.eval(), critic_learning_rate or rate)] if critic else [])],
            accelerator=one_process(make_accelerator(policy.device), type(self).__name__),
            betas=(self.config.adam_beta1, self.config.adam_beta2),
            max_grad_norm=self.config.max_grad_norm,
        )
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._collect_share = 0.5
        self.whole = True  # whether the weights are those between two iterations
        venv.reset(seed=self.config.seed)

    @abstractmethod
    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        """Update the policy from an iteration's episodes; return what to log.

        Args:
            rollout: the episodes.
            steps: makes the optimiser steps.
        """

    def iterate(self, show: Show = lambda share, tokens, numbers: None) -> Numbers:
        """Run one iteration (collect, update) and return its numbers; `learn` logs them.

        Args:
            show: called after each batch of episodes and each optimiser step.
        """
        return self._iteration(show, lambda numbers: None)

    def _iteration(self, show: Show, record: Callable[[Numbers], None]) -> Numbers:
        """Run one iteration; a stop before its update undoes it, a later one waits for its end."""
        began, costs, iteration = time.monotonic(), self.env.costs(), self.iteration
        updates = self._updater.updates
        with ExitStack() as stack:
            undone = undone_on_failure(
                self._generator, self.env, lambda: self.whole and self.iteration == iteration
            )
            stack.enter_context(undone)
            with self.autocast():
                collected = self.collect(lambda tokens: show(self._collect_share, tokens, {}))
                rollout = self._with_agreeing_logprobs(collected)
            between, tokens, kl_coef = time.monotonic(), int(rollout.mask.sum()), self.env.kl_coef
            report = rollout_report(rollout, kl_coef, self.env.reward_names)
            episodes = {name: report[name] for name in ("rollout/score", "rollout/kl")}
            stack.enter_context(uninterrupted())

            def show_step(share: float, step: Numbers) -> None:
                fit = {name: step[name] for name in ("loss", "accuracy") if name in step}
                done = self._collect_share + (1 - self._collect_share) * share
                show(done, tokens, episodes | fit)

            self.whole = False
            learning_rate = self._updater.scale_learning_rates(self._learning_rate_factor())
            try:
                update = self.train_on(rollout, self.steps(show_step))
            except OutOfMemory:  # before the first step nothing has changed
                self.whole = self._updater.updates == updates
                raise
            self.iteration += 1
            self.env_steps += tokens
            self.whole = True
            show(1.0, tokens, episodes)
            ended = time.monotonic()
            self._collect_share = (between - began) / (ended - began)  # about the next one's too
            numbers = {
                **report,
                **update,
                **self._groups_and_costs(rollout, costs),
                "rollout/kl_coef": kl_coef,
                "rollout/masked": self.config.episodes_per_iteration - len(rollout.scores),
                "train/learning_rate": learning_rate,
                "train/skipped_updates": float(self._updater.skipped),
                "time/collect_seconds": between - began,
                "time/update_seconds": ended - between,
                "time/tokens_per_second": tokens / (ended - began),
                "time/iteration": self.iteration,
            }
            record(numbers)
        return numbers

    def _groups_and_costs(self, rollout: Rollout, before: Spent) -> Numbers:
        """Return the share of groups without a spread, if they are compared, and rewards' cost."""
        costs = {"rollout/episodes": float(len(rollout.scores))}
        costs |= cost_report(before, self.env.costs())
        if not self.compares_samples:
            return costs
        return {"rollout/flat_groups": flat_groups(rollout.scores, self.env.group_size)} | costs

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass, see `textrl.precision.autocast`."""
        precision = pick_precision(self.config.precision, self.policy, self.policy.device)
        return autocast(precision, self.policy.device)

    def collect(self, show: Callable[[int], None] = lambda tokens: None) -> Rollout:
        """Return an iteration's episodes, groups of one prompt in consecutive rows.

        Args:
            show: gets the tokens collected so far after each batch.
        """
        batches: list[Rollout] = []
        tokens = 0
        while len(batches) < self.config.episodes_per_iteration // self.env.num_envs:
            batches.append(self.collect_batch())
            if self.callbacks is not None:
                self.callbacks.tell(batches[-1])
            tokens += int(batches[-1].mask.sum())
            show(tokens)
        if self.callbacks is not None:
            self.callbacks.end_rollout()
        rollout = concatenate(batches)
        if self.compares_samples:
            check_groups(rollout, self.env.group_size, type(self).__name__)
        compared = self.env.group_size if self.compares_samples else 1
        return without_masked(rollout, compared)

    def collect_batch(self) -> Rollout:
        """Return one finished episode of every row of the environment."""
        return self.collect_in(self.env, self._generator)

    def collect_in(self, env: TextEnv, generator: torch.Generator) -> Rollout:
        """Return one finished episode of every row of an environment, with this policy."""
        return collect(self.sampler, env, generator)

    def credit(self, rollout: Rollout) -> Targets | None:
        """Return advantages and returns of episodes, not whitened; None without a critic."""
        return None

    def steps(self, show: Callable[[float, Numbers], None] = lambda share, step: None) -> Steps:
        """Return what makes the optimiser steps of an iteration; `show` follows them."""
        return Steps(
            updater=self._updater,
            generator=self._generator,
            micro_batch_tokens=self.config.micro_batch_tokens,
            autocast=self.autocast,
            show=show,
        )

    def logprobs(self, part: Rollout) -> Tensor:
        """Return the completions' log-probs under the present policy, in nats, [B T]."""
        return self.evaluate(part).logprobs

    def evaluate(
        self, part: Rollout, *, entropies: bool = False, reference: ReferenceStates | None = None
    ) -> Evaluation:
        """Return what an update needs of some episodes, see `PolicyModule.forward`."""
        found: Evaluation = self.module(
            part.input_ids,
            part.positions,
            part.mask,
            temperature=self.env.temperature,
            allowed=self.env.allowed,
            entropies=entropies,
            reference=reference,
        )
        return found

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State]:
        """Return the next token for an observation [L] or a batch of them [B L], and the state.

        SB3's signature, for its `evaluate_policy`; an agent of ours has no state.
        """
        generator = self.acting or self._generator
        settings = self.env.temperature, generator, deterministic, self.env.allowed
        return next_tokens(self.lm, observation, *settings), state

    def save(self, path: str | Path) -> None:
        """Write the policy as a plain transformers checkpoint, the agent's state beside it.

        `agent.json` holds the configuration, `trainer_state/` what `load` needs to resume exactly,
        `critic.safetensors` PPO's critic, `adapter/` the adapter that was merged. A crash at any
        moment leaves the files of the save before or all of the new ones.
        """
        save_files(expanded(path), self.write)

    def write(self, folder: Path) -> None:
        """Write the files of a save to a fresh folder; `save` replaces those of an earlier save."""
        write_agent(self, folder)

    @classmethod
    def load(cls, path: str | Path, venv: AnyVectorEnv, *, logger: Logger | None = None) -> Self:
        """Return a saved agent in an environment; learning goes on bit for bit.

        The prompts of a SyncVectorEnv start afresh, and with a warning those of an environment with
        other rows or prompts.

        Raises:
            UserError: the folder holds no agent of this kind, or not its state.
        """
        policy, config = read_policy(cls, expanded(path), venv)
        agent = cls(policy, venv, config, logger=logger)
        restore(agent, expanded(path))
        return agent

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the weights."""
        return {
            "counters": [self.iteration, self.env_steps],
            "generator": self._generator.get_state(),
            "kl_coef": self.env.kl_coef,
            **self._updater.state(),
        }

    def task_digest(self) -> dict[str, str]:
        """Return what the numbers depend on beside the configuration, by name; see `saving.py`."""
        return self.env.task_digest()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.iteration, self.env_steps = state["counters"]
        self._generator.set_state(state["generator"])
        self._updater.load(state)

    @torch.no_grad()
    def _with_agreeing_logprobs(self, rollout: Rollout) -> Rollout:
        """Return the episodes with log-probs that the update's kernels agree with.

        Those of sampling are kept where they do, else (as in bfloat16) computed once more: the
        ratio of the first update must be 1. A few episodes tell.
        """
        some = rollout.rows(torch.arange(min(PROBE, len(rollout.scores))))
        if float(masked_mean((self.logprobs(some) - some.logprobs).abs(), some.mask)) < AGREEMENT:
            return rollout
        logprobs = torch.zeros_like(rollout.logprobs)
        for rows in filled_batches(rollout.lengths.tolist(), self.config.micro_batch_tokens):
            logprobs[rows] = self.logprobs(rollout.rows(torch.tensor(rows)))
        return replace(rollout, logprobs=logprobs)

    def _learning_rate_factor(self) -> float:
        """Return what the learning rate is multiplied by: 1, or falling to 0 over the tokens."""
        if self.config.decay_timesteps is None:
            return 1.0
        return max(0.0, 1 - self.env_steps / self.config.decay_timesteps)
