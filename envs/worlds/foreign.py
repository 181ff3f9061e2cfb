"""What the adapters to other people's environments share: a space of all texts, order, isolation.

A package for text games was written for a process of its own: it draws from the global generators,
prints, and fetches data while it is imported. `Isolation` keeps all of that away from the caller.
"""

import io
import math
import random
import re
import string
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from textrl.errors import UserError, shown

LONGEST = 1_000_000
"""Length in characters above which a text of a foreign world is refused, never cut."""
SEEDS = 2**32
"""Number of seeds that numpy's global generator takes."""
_ONE_AT_A_TIME = threading.RLock()


class AnyText(spaces.Text):
    """Every text up to a length; a sample is a few printable characters.

    Gymnasium's `Text` lists its characters, but what another package writes, and what a model
    answers, may hold any of Unicode's.

    >>> "naïve ✓" in AnyText(), "" in AnyText(), "abc" in AnyText(2)
    (True, True, False)
    """

    def __init__(self, max_length: int = LONGEST, seed: int | np.random.Generator | None = None):
        super().__init__(max_length, min_length=0, charset=string.printable[:95], seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a few printable characters, or what Gymnasium draws under a mask."""
        if mask is not None or probability is not None:
            return super().sample(mask, probability)
        length = int(self.np_random.integers(1, min(16, self.max_length) + 1))
        return "".join(self.np_random.choice(self.character_list, size=length))

    def contains(self, x: Any) -> bool:
        """Return whether this is a text that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and self.max_length == other.max_length


class Isolation:
    """Calls of one world into a foreign package that leave the process as they found it.

    Within `with isolation():` the global generators of `random` and numpy are the world's own: a
    game depends on the seed of its reset and on its actions, whatever else draws in between, and
    the caller's generators are where they were. What is printed or warned of is dropped (unless
    `quiet=False`), and NLTK fetches nothing: data that is not on this machine is a `UserError`.
    These things belong to the whole process, so one world calls at a time; a call that hangs holds
    up the others. Other generators (`numpy.random.default_rng()`, torch's) are not touched.

    Args:
        who: The world, for messages.
        quiet: Whether what is printed or warned of is dropped.
    """

    def __init__(self, who: str, *, quiet: bool = True) -> None:
        self.who = who
        self.quiet = quiet
        with _ONE_AT_A_TIME, _kept_generators():
            _seed(0)
            self._generators = _states()

    @contextmanager
    def __call__(self, seed: int | None = None) -> Iterator[None]:
        """Isolate what is called within; with a seed, the world's generators begin anew there."""
        quiet = _silence() if self.quiet else nullcontext()
        with _ONE_AT_A_TIME, _kept_generators(), quiet, _no_downloads(self.who):
            _restore(self._generators)
            if seed is not None:
                _seed(seed)
            try:
                yield
            except LookupError as error:
                if type(error) is not LookupError:  # an IndexError or a KeyError is no missing data
                    raise
                raise UserError(_missing(self.who, _resource(str(error)))) from error
            finally:
                self._generators = _states()


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what foreign packages draw from


def _states() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _restore(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _silence() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _kept_generators() -> Iterator[None]:
    kept = _states()
    try:
        yield
    finally:
        _restore(kept)


@contextmanager
def _no_downloads(who: str) -> Iterator[None]:
    """Let `nltk.download` answer from what is on the disk alone."""
    with suppress(ImportError):
        import nltk

        def download(info_or_id: str | list[str] = "", *_: object, **__: object) -> bool:
            for name in [info_or_id] if isinstance(info_or_id, str) else info_or_id:
                if not _found(nltk, name):
                    raise UserError(_missing(who, name))
            return True

        real, nltk.download = nltk.download, download
        try:
            yield
        finally:
            nltk.download = real
        return
    yield


def _found(nltk: Any, name: str) -> bool:
    for kind in ("corpora", "taggers", "tokenizers"):
        with suppress(LookupError):
            nltk.data.find(f"{kind}/{name}")
            return True
    return False


def _missing(who: str, name: str) -> str:
    return (
        f"{who}: NLTK's data {name!r} is not on this machine, and nothing is fetched unasked: "
        f"python -m nltk.downloader {name}"
    )


def _resource(message: str) -> str:
    """Return the name in NLTK's own message, a page with a box around it."""
    found = re.search(r"nltk\.download\('([^']+)'\)", message)
    return found.group(1) if found else " ".join(message.split())[:200]


@contextmanager
def making(who: str) -> Iterator[None]:
    """Turn whatever a foreign constructor raises into one line that names the world."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if type(error) is LookupError:  # NLTK's, which `Isolation` explains
            raise
        raise UserError(f"{who} could not be made: {type(error).__name__}: {error}") from error


class ForeignWorld(gym.Env[str, str]):
    """A world around something foreign: the spaces, the order of calls, and checked replies.

    Args:
        who: The world, for messages: "GEM's game:Sudoku-v0-easy".
        quiet: Whether what the foreign code prints or warns of is dropped.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    render_mode: str | None = None

    def __init__(self, who: str, *, quiet: bool = True) -> None:
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.who = who
        self.isolated = Isolation(who, quiet=quiet)
        self._awaits = "reset() first"

    def begin(self, seed: int | None) -> int:
        """Return the seed of the new episode: the caller's, or the next of the world's own.

        A foreign game with no seed draws from the operating system, so every episode gets one.
        """
        gym.Env.reset(self, seed=seed)
        self._awaits = "reset() again: its reset failed"
        return int(self.np_random.integers(SEEDS)) if seed is None or seed >= SEEDS else seed

    def started(self, text: object, info: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the first observation and info of an episode, checked."""
        found = self._checked(text, "reset")
        self._awaits = ""
        return found, dict(info)

    def taken(self, text: object) -> str:
        """Return an action, unless it is no text or no episode runs."""
        if self._awaits:
            raise UserError(f"{self.who}: step() when no episode runs; call {self._awaits}")
        if not isinstance(text, str):
            kind = type(text).__name__
            raise UserError(f"{self.who}: an action of type {kind}, {shown(text)}; expected a str")
        return text

    def replied(
        self, text: object, reward: Any, terminated: bool, truncated: bool, info: Mapping[str, Any]
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return what a step returns, checked; an end that is both kinds is `terminated`.

        Such an end has been scored, and a learner that bootstraps at a truncation would count the
        value twice.
        """
        found = self._checked(text, "step")
        try:
            paid = float(reward)
        except (TypeError, ValueError):
            paid = math.nan
        if not math.isfinite(paid):
            raise UserError(f"{self.who}: a reward of {shown(reward)}; expected a finite number")
        if terminated or truncated:
            self._awaits = "reset(): the episode is over"
        return found, paid, bool(terminated), bool(truncated and not terminated), dict(info)

    def no_options(self, options: Mapping[str, Any] | None) -> None:
        """Refuse options that nothing would read."""
        if options:
            raise UserError(f"{self.who} takes no options; found {', '.join(map(str, options))}")

    def _checked(self, text: object, call: str) -> str:
        if not isinstance(text, str):
            kind = type(text).__name__
            raise UserError(f"{self.who}: {call} gave a {kind}, {shown(text)}; expected a text")
        if len(text) > LONGEST:
            raise UserError(
                f"{self.who}: {call} gave {len(text)} characters; expected at most {LONGEST}"
            )
        return text
