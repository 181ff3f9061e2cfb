"""`Worlds`: one world a row, their calls, and what is done where one of them fails."""

import math
import reprlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np

from textrl.data_files import refuse_unreadable
from textrl.envs.turns_config import TurnsConfig
from textrl.envs.world_texts import role_of
from textrl.envs.worlds.making import make_world
from textrl.errors import UserError, shown
from textrl.reward_calls import Cost
from textrl.stopping import Terminated
from textrl.time_limit import TooLongError, within


class WorldFailure(UserError):
    """A world raised, was late, or returned something else than an answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A world's answer to a turn."""

    text: str = ""
    role: str = "user"
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    failed: bool = False
    """Whether the world failed and failures are masked; then there is no answer."""


class Worlds:
    """The worlds of all rows.

    A call for several rows may fail at one of them when others have answered. Their answers are
    kept until the call is made again, so that no world takes a turn twice.
    """

    def __init__(self, num_rows: int, config: TurnsConfig) -> None:
        """Make a world for each row.

        Raises:
            UserError: there is no such world, or one world is given for several rows.
        """
        self.config = config
        world = config.world
        by_name = isinstance(world, str)
        self._made = isinstance(world, gym.Env) or not (by_name or callable(world))
        if self._made and num_rows > 1:
            raise UserError(
                f"world is one environment and there are {num_rows} rows; give its id, or a "
                f"function that makes one for each row"
            )
        self._worlds = [make_world(world, config.world_arguments) for _ in range(num_rows)]
        if len({id(one.unwrapped) for one in self._worlds}) < num_rows:
            raise UserError(
                "world returns one and the same world for several rows, which would play in each "
                "other's games; let it make a new one at each call"
            )
        spec = self._worlds[0].spec
        own_name = type(self._worlds[0].unwrapped).__name__ if spec is None else spec.id
        self.name = str(world) if by_name else own_name
        """The name of the world in messages."""
        self.cost = Cost()
        """What the calls of all worlds have cost."""
        self._kept: dict[int, tuple[str, Answer]] = {}

    def reset(self, row: int, seed: int | None, options: dict[str, Any]) -> tuple[str, Any]:
        """Begin an episode in a row's world; return its first text and its info.

        Raises:
            WorldFailure: the world failed.
        """
        self._kept.pop(row, None)
        place = f"row {row}, reset of {self.name} with seed {seed}"
        value = self._called(
            row, place, lambda: self._worlds[row].reset(seed=seed, options=options or None)
        )
        if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], str):
            raise WorldFailure(f"{place} returned {shown(value)}; expected (text, info)")
        _check_info(value[1], place)
        refuse_unreadable(value[0], place)
        if not value[0].strip():
            raise WorldFailure(f"{place} returned an empty text; a game begins with a text")
        return value[0], dict(value[1])

    def answers(self, turns: Mapping[int, str]) -> dict[int, Answer]:
        """Return the answers of some rows' worlds to the texts of their turns.

        Raises:
            WorldFailure: a world failed and failures are not masked.
            UserError: a world has answered another turn in a call that failed.
        """
        for row, text in turns.items():
            kept = self._kept.get(row)
            if kept is not None and kept[0] != text:
                raise UserError(
                    f"the world of row {row} has answered the turn {reprlib.repr(kept[0])} in a "
                    f"call that failed; take that turn again, or reset the row"
                )
            if kept is None:
                self._kept[row] = text, self._answer(row, text)
        return {row: self._kept[row][1] for row in turns}

    def settle(self, rows: list[int]) -> None:
        """Forget the answers that have been taken."""
        for row in rows:
            del self._kept[row]

    def close(self) -> None:
        """Close all worlds."""
        for world in self._worlds:
            world.close()

    def _answer(self, row: int, text: str) -> Answer:
        place = f"row {row}, step of {self.name} with {reprlib.repr(text)}"
        try:
            return _checked(self._called(row, place, lambda: self._worlds[row].step(text)), place)
        except WorldFailure:
            self.cost.failed()
            if self.config.on_world_error == "stop":
                raise
            return Answer(failed=True)

    def _called(self, row: int, place: str, call: Callable[[], Any]) -> Any:
        """Return what a world returns.

        Raises:
            WorldFailure: it raised, or is late; a world that is late is left alone and replaced.
        """
        seconds, began = self.config.world_timeout, time.perf_counter()
        try:
            return within(call, seconds) if seconds else call()
        except (KeyboardInterrupt, Terminated):
            raise
        except TooLongError as error:
            if not self._made:
                self._worlds[row] = make_world(self.config.world, self.config.world_arguments)
            raise WorldFailure(
                f"{place} took longer than world_timeout={seconds:g} s; reset the row, or raise "
                f"world_timeout"
            ) from error
        except BaseException as error:  # SystemExit too: it must not end a run as a success
            raise WorldFailure(f"{place} raised {type(error).__name__}: {error}") from error
        finally:
            self.cost.seconds += time.perf_counter() - began


def _checked(value: Any, place: str) -> Answer:
    """Return what a world's step returned as an answer.

    Raises:
        WorldFailure: it is something else; what was expected is named.
    """
    if not isinstance(value, tuple) or len(value) != 5:
        raise WorldFailure(
            f"{place} returned {shown(value)}; expected (text, reward, terminated, truncated, info)"
        )
    text, reward, terminated, truncated, info = value
    if not isinstance(text, str):
        raise WorldFailure(f"{place} returned the text {shown(text)}; expected a string")
    if not isinstance(reward, Real | np.bool_) or not _finite(reward):
        raise WorldFailure(f"{place} returned the reward {shown(reward)}; expected a finite number")
    for flag in (terminated, truncated):
        if not isinstance(flag, bool | np.bool_):
            raise WorldFailure(f"{place} returned the flag {shown(flag)}; expected True or False")
    _check_info(info, place)
    try:
        refuse_unreadable(text, place)
        role = role_of(info)
    except UserError as error:
        raise WorldFailure(str(error)) from error
    return Answer(
        text=text,
        role=role,
        reward=float(reward),
        terminated=bool(terminated),
        truncated=bool(truncated),
        info=dict(info),
    )


def _finite(number: Any) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:  # of a whole number
        return False


def _check_info(info: Any, place: str) -> None:
    if not isinstance(info, Mapping):
        raise WorldFailure(f"{place} returned the info {shown(info)}; expected a dict")
