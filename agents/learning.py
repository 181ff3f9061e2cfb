"""`Learning`: SB3's verb `learn` and its callbacks, for all our agents."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from stable_baselines3.common.logger import Logger

from textrl.agents.base import AnyVectorEnv, check_timesteps
from textrl.agents.callbacks import Callbacks, Stopped
from textrl.agents.text_env import TextEnv
from textrl.callbacks import MaybeCallback, as_callback
from textrl.metrics import StageProgress, log
from textrl.stopping import terminable
from textrl.updater import Numbers, Updater

Show = Callable[[float, int, Numbers], None]
"""(share of an iteration's work that is done, on how many tokens, numbers to show)."""


class Learning(ABC):
    """Trains in iterations, each of which collects episodes and then updates."""

    name: ClassVar[str]
    """In the registry and in agent.json."""
    logger: Logger
    env: TextEnv
    env_steps: int
    """The tokens of all iterations that are over."""
    told: int
    """The tokens of the present iteration that callbacks have been told of."""
    acting: torch.Generator | None = None
    """What `predict` draws from in place of the agent's own generator, while a callback runs."""
    callbacks: Callbacks | None = None
    """Those of the present call of `learn`."""
    _updater: Updater

    @abstractmethod
    def _iteration(self, show: Show, record: Callable[[Numbers], None]) -> Numbers:
        """Run one iteration."""

    @property
    def num_timesteps(self) -> int:
        """The tokens so far, by SB3's name; within an iteration those that were told."""
        return self.env_steps + self.told

    def get_env(self) -> AnyVectorEnv:
        """Return the environment, by SB3's name."""
        return self.env.venv

    def get_vec_normalize_env(self) -> None:
        """Return None: observations are tokens, and nothing normalises them (SB3's callbacks)."""
        return None

    def set_logger(self, logger: Logger) -> None:
        """Log to this logger from now on."""
        self.logger = logger

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
        after_iteration: Callable[[Numbers], None] = lambda numbers: None,
    ) -> Self:
        """Train for at least this many tokens more; one logger row an iteration.

        Args:
            total_timesteps: tokens; 0 trains nothing.
            callback: of SB3 or of ours, a list of them, or a function; see `callbacks.py`. One that
                returns False ends the training; the iteration is then as if it had not begun.
            progress_bar: show the tokens of the whole run; collecting and updating both move it.
            after_iteration: called with each iteration's numbers, to save now and then.

        Raises:
            UserError: total_timesteps or the callback is something else.
        """
        check_timesteps(total_timesteps)
        begin, end = self.env_steps, self.env_steps + total_timesteps
        given = as_callback(callback)
        if given is not None:
            self.callbacks = Callbacks(self, given, total_timesteps)
        stage = StageProgress(self.name, end, begin=begin, shown=progress_bar)
        try:
            with terminable(), stage as progress:
                while self.env_steps < end:
                    after_iteration(self._one(progress, end))
        except Stopped:
            pass
        finally:
            callbacks, self.callbacks, self.told = self.callbacks, None, 0
        if callbacks is not None:
            callbacks.end()
        self._updater.finish()
        return self

    def _one(self, progress: Any, end: int) -> Numbers:
        """Run one iteration of a call of `learn`."""
        start, self.told = self.env_steps, 0
        if self.callbacks is not None:
            self.callbacks.begin_rollout()

        def show(share: float, tokens: int, numbers: Numbers) -> None:
            progress.show(start + int(share * min(tokens, end - start)), numbers)

        return self._iteration(show, partial(log, self.logger, self.env_steps))
