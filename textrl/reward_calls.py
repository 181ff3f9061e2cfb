"""Scores of texts: calls of reward functions, what they may return, failures, the weighted sum.

The results are checked: None, NaN, a wrong length or an exception is an error that names the
sample, never a silent 0. A call fails if the function raises, takes too long, or returns a number
that is not finite. It is tried again as often as `Patience` says, and then it stops the run, or its
samples are masked: their episodes are left out. A value of a wrong type or a wrong number of values
is a mistake in the function, and stops the run at once.
"""

import contextlib
import inspect
import math
import reprlib
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from textrl.chat import Chat
from textrl.errors import UserError
from textrl.stopping import Terminated
from textrl.time_limit import TooLongError, within

LARGEST = float(np.finfo(np.float32).max)
"""The largest allowed score; a larger one would be infinite in an agent's float32. A comparison
with it rejects NaN too."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What is done where a reward function fails."""

    timeout: float = 0.0
    """Seconds that one call may take; 0 is no limit."""
    retries: int = 0
    """Number of further tries, after pauses of 1, 2, 4, ... seconds."""
    on_error: Literal["stop", "mask"] = "stop"
    """Whether the last failure stops the run, or gives its samples NaN."""


class RewardFailure(UserError):
    """A call of a reward function failed, and another one may not."""

    def __init__(self, message: str, scores: np.ndarray | None = None) -> None:
        """Take the message, and the scores [B] where some are known, NaN for the others."""
        super().__init__(message)
        self.scores = scores


class TooSlow(RewardFailure):
    """A call of a reward function took longer than it may."""


@dataclass(frozen=True)
class PatientReward:
    """A reward function that may fail."""

    function: Callable[..., Any]
    name: str
    """The name of the function in messages."""
    patience: Patience

    def scores(
        self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]
    ) -> np.ndarray:
        """Return the scores, float64 [B]; NaN where the function failed and that is masked.

        Where a whole call raises, each sample is tried alone, so that one text that the function
        cannot take does not cost the others.

        Raises:
            UserError: The function failed, or returned something else than one number per sample.
        """
        try:
            return self._with_retries(prompts, completions, columns)
        except RewardFailure as failure:
            if self.patience.on_error == "stop":
                raise
            if failure.scores is not None:
                return failure.scores
            scores = np.full(len(prompts), np.nan)
            if isinstance(failure, TooSlow):
                return scores
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
                own = {name: [values[row]] for name, values in columns.items()}
                with contextlib.suppress(RewardFailure):
                    scores[row] = self._once([prompt], [completion], own)[0]
            return scores

    def _with_retries(
        self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]
    ) -> np.ndarray:
        for number in range(self.patience.retries):
            try:
                return self._once(prompts, completions, columns)
            except RewardFailure:
                time.sleep(2.0**number)
        return self._once(prompts, completions, columns)

    def _once(
        self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]
    ) -> np.ndarray:
        def call() -> Any:
            return called(self.function, prompts, completions, columns)

        batch = f"a batch of {len(prompts)} that starts with {_shorten(prompts[0], completions[0])}"
        timeout = self.patience.timeout
        try:
            values = within(call, timeout) if timeout else call()
        except (UserError, KeyboardInterrupt, Terminated):
            raise
        except TooLongError as error:
            raise TooSlow(
                f"reward function {self.name!r} took longer than reward_timeout={timeout:g} s on "
                f"{batch}"
            ) from error
        except BaseException as error:  # SystemExit too: it must not end the run as a success
            raise _raised(self.name, error, batch, columns) from error
        return checked(values, self.name, prompts, completions)


def _raised(
    name: str, error: BaseException, batch: str, columns: dict[str, list[Any]]
) -> RewardFailure:
    chats = "messages" in columns and isinstance(error, TypeError | AttributeError)
    hint = "; prompts and completions are texts, see textrl.rewards.conversational"
    return RewardFailure(
        f"reward function {name!r} raised {type(error).__name__}: {error} on {batch}"
        f"{hint if chats else ''}"
    )


def checked(values: Any, name: str, prompts: list[str], completions: list[str]) -> np.ndarray:
    """Return what a reward function returned as float64 [B].

    Raises:
        UserError: It is not one number per sample.
        RewardFailure: A number is not finite; the sample is named.
    """
    listed = _listed(values)
    if listed is None:
        raise UserError(
            f"reward function {name!r} returned {' '.join(reprlib.repr(values).split())}, "
            f"a {type(values).__name__}; expected a list of floats, one per completion"
        )
    if len(listed) != len(prompts):
        raise UserError(
            f"reward function {name!r} returned {len(listed)} numbers for {len(prompts)} texts"
        )
    scores = np.array([_number(value) for value in listed])
    wrong = np.isnan(scores).nonzero()[0]
    if len(wrong):
        row = int(wrong[0])
        raise RewardFailure(
            f"reward function {name!r} returned {reprlib.repr(listed[row])} for sample {row}, "
            f"{_shorten(prompts[row], completions[row])}; expected a finite number",
            scores,
        )
    return scores


def _listed(values: Any) -> list[Any] | None:
    """Return the parts of a list, an array or another row of values; None for anything else.

    NumPy would convert a string, or its characters, to numbers.
    """
    if isinstance(values, str | bytes | bytearray | Mapping | Set):
        return None
    try:
        return list(values) if isinstance(values, list | tuple) or np.ndim(values) == 1 else None
    except Exception:  # of an object that is no row, whatever it says
        return None


def _number(value: Any) -> float:
    """Return a score as a float, NaN for what is not a finite number."""
    try:
        number = math.nan if value is None else float(value)
    except Exception:  # a text, a number beyond all floats, an object with a rule of its own
        return math.nan
    return number if abs(number) <= LARGEST else math.nan


def called(
    function: Callable[..., Any],
    prompts: list[Any],
    completions: list[Any],
    columns: dict[str, list[Any]],
) -> Any:
    """Call a function by keyword if it has an argument `completions`, as in TRL; else by position.

    It gets the columns that its signature accepts. A column with the name of an argument for texts
    is not passed.
    """
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    extra = {name: c for name, c in columns.items() if everything or name in parameters}
    names = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    if "completions" not in names and "prompts" in names[1:]:
        raise UserError(
            f"a reward function of {', '.join(names)} gets the prompts first and the completions "
            f"second; call its arguments prompts and completions, in any order"
        )
    if "completions" not in parameters:
        extra.pop("prompts", None)
        extra.pop("completions", None)
        return function(prompts, completions, **extra)
    extra |= {"completions": completions}
    if everything or "prompts" in parameters:
        extra |= {"prompts": prompts}
    return function(**extra)


def _shorten(prompt: str, completion: str) -> str:
    return f"prompt {prompt[:60]!r}, completion {completion[:60]!r}"


class FrozenModel:
    """The base class of `RewardModel`: it renders chats itself, and its failures are no function's.

    It is here, below `rewards.py`, for `Scorer` to know one.
    """


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Named reward functions with weights; the score of a text is their weighted sum."""

    functions: tuple[Callable[..., Any], ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    patience: Patience = field(default_factory=Patience)
    """What is done where one of the functions fails."""

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        columns: dict[str, list[Any]],
        chats: list[Chat | None] | None = None,
    ) -> np.ndarray:
        """Return the weighted sum of all functions, float64 [B].

        Args:
            prompts: The prompts as texts.
            completions: The completions as texts.
            columns: The data set's other columns, by name.
            chats: The prompts that are messages, and None for those that are plain text.

        Returns: The sum for each sample; NaN where a function failed and failures are masked.

        Raises:
            UserError: a function failed, or did not return one number per sample.
        """
        total = np.zeros(len(prompts))
        chats = chats or [None] * len(prompts)
        if any(chats):
            messages = [None if chat is None else chat.messages for chat in chats]
            columns = columns | {"messages": messages}
        for function, name, weight in zip(self.functions, self.names, self.weights, strict=True):
            known = columns | {"chats": chats} if isinstance(function, FrozenModel) else columns
            if isinstance(function, FrozenModel):
                scores = _of_model(function, name, prompts, completions, known)
            else:
                reward = PatientReward(function, name, self.patience)
                scores = reward.scores(prompts, completions, known)
            total += weight * scores
        return total


def _of_model(
    model: Callable[..., Any],
    name: str,
    prompts: list[str],
    completions: list[str],
    columns: dict[str, list[Any]],
) -> np.ndarray:
    """Return a reward model's scores, whose failure is none of a function's and never masked."""
    try:
        scores = called(model, prompts, completions, columns)
    except UserError as error:
        raise UserError(f"reward model {name!r}: {error}") from error
    return checked(scores, name, prompts, completions)
