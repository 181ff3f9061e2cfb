"""Calls of one reward function: what it may return, failures, further tries.

The results are checked: NaN, a wrong length or an exception is an error that names the sample,
never a silent 0. A call fails if the function raises, takes too long, or returns a number
that is not finite. It is tried again as often as `Patience` says, and then it stops the run, or its
samples are masked: their episodes are left out. A value of a wrong type or a wrong number of values
is a mistake in the function, and stops the run at once. Next to read: `scorer.py` (several
functions and their weighted sum).
"""

import inspect
import math
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from textrl.errors import UserError
from textrl.reward_kinds import RewardKind, kind_of
from textrl.stopping import Terminated
from textrl.time_limit import TooLongError, the_loop, together, within

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


Numbers = list[np.ndarray | None]
"""What a reward function said of each text: one number, or, if it is dense, one a token (float64
[1] or [n]); NaN where it failed and that is masked; None for a text that it does not score."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts that are to be scored, and what else reward functions may ask for."""

    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]
    """Other columns of the data set, and `messages` of chats."""
    completion_ids: list[list[int]] | None = None
    """The token ids of the completions, where they are known."""

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.prompts)

    def part(self, rows: Sequence[int]) -> "Texts":
        """Return some of the texts."""
        ids = self.completion_ids
        return Texts(
            prompts=[self.prompts[row] for row in rows],
            completions=[self.completions[row] for row in rows],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
            completion_ids=None if ids is None else [ids[row] for row in rows],
        )

    def shown(self, row: int) -> str:
        """Return a text, shortened, for messages."""
        return f"prompt {self.prompts[row][:60]!r}, completion {self.completions[row][:60]!r}"


class Cost:
    """What the calls of a reward function, or of all worlds, have cost since the beginning."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds = 0.0
        self._failures: list[None] = []  # threads may append at the same time

    @property
    def failures(self) -> int:
        """The number of calls that failed."""
        return len(self._failures)

    def failed(self) -> None:
        """Count a call that failed, in any thread."""
        self._failures.append(None)


class RewardFailure(UserError):
    """A call of a reward function failed, and another one may not."""

    def __init__(self, message: str, numbers: Numbers | None = None) -> None:
        """Take the message, and the numbers where some are known, NaN for the others."""
        super().__init__(message)
        self.numbers = numbers


class TooSlow(RewardFailure):
    """A call of a reward function took longer than it may."""


@dataclass(frozen=True)
class PatientReward:
    """A reward function that may fail."""

    function: Callable[..., Any]
    name: str
    """The name of the function in messages."""
    patience: Patience
    kind: RewardKind
    optional: bool
    """Whether it may return None for a text that it does not score."""
    cost: Cost
    """What its calls have cost."""

    def numbers(self, texts: Texts, group_size: int = 1) -> Numbers:
        """Return what the function says of each text.

        Where a whole call raises, each text is tried alone, so that one that the function cannot
        take does not cost the others. A function that compares a group is called once a group, a
        remote one with some texts at a time, in calls that run at the same time.

        Raises:
            UserError: The function failed, or returned something else than it should.
        """
        kind = self.kind
        if kind.dense and texts.completion_ids is None:
            raise UserError(
                f"reward function {self.name!r} is dense, and there are no tokens here, only texts"
            )
        size = len(texts) if kind.remote is None else kind.remote.batch_size
        if kind.group:
            self._check_groups(len(texts), group_size)
            size = group_size
        parts = [
            texts.part(range(first, min(first + size, len(texts))))
            for first in range(0, len(texts), max(size, 1))
        ]
        calls = [partial(self._masked, part, alone=not kind.group) for part in parts]
        if kind.remote is None:
            return [number for call in calls for number in call()]
        return [number for found in together(calls, kind.remote.at_once) for number in found]

    def _check_groups(self, num_texts: int, group_size: int) -> None:
        if group_size < 2:
            raise UserError(
                f"reward function {self.name!r} compares the completions of a prompt, and here "
                f"each prompt has one; make the environment with group_size=4"
            )
        if num_texts % group_size:
            raise UserError(
                f"reward function {self.name!r} compares {group_size} completions of each prompt, "
                f"and {num_texts} texts are no whole groups"
            )

    def _masked(self, texts: Texts, *, alone: bool) -> Numbers:
        """Return the numbers of one call, NaN where it failed and failures are masked."""
        try:
            return self._with_retries(texts)
        except RewardFailure as failure:
            if self.patience.on_error == "stop":
                raise
            if failure.numbers is not None and alone:
                return failure.numbers
            found: Numbers = [self._failed(texts, row) for row in range(len(texts))]
            if alone and len(texts) > 1 and not isinstance(failure, TooSlow):
                for row in range(len(texts)):
                    try:
                        found[row] = self._once(texts.part([row]))[0]
                    except RewardFailure as error:
                        gone = isinstance(error.__cause__, OSError)
                        own = isinstance(error.__cause__, TimeoutError)  # the function's
                        if isinstance(error, TooSlow) or (gone and not own):
                            break  # a server is gone: the others would wait for it too
            return found

    def _failed(self, texts: Texts, row: int) -> np.ndarray:
        dense, ids = self.kind.dense, texts.completion_ids
        return np.full(len(ids[row]) if dense and ids is not None else 1, np.nan)

    def _with_retries(self, texts: Texts) -> Numbers:
        for number in range(self.patience.retries):
            try:
                return self._once(texts)
            except RewardFailure:
                time.sleep(2.0**number)
        return self._once(texts)

    def _once(self, texts: Texts) -> Numbers:
        """Return what one call says; a failure is counted."""
        try:
            return self._call(texts)
        except RewardFailure:
            self.cost.failed()
            raise

    def _call(self, texts: Texts) -> Numbers:
        def call() -> Any:
            return called(self.function, texts)

        batch = f"a batch of {len(texts)} that starts with {texts.shown(0)}"
        timeout = self.patience.timeout
        limit = "reward_timeout" if self.kind.remote is None else "the timeout of @remote"
        try:
            values = within(call, timeout) if timeout else call()
            if inspect.isawaitable(values):
                values = the_loop().result(values, timeout)
        except (UserError, KeyboardInterrupt, Terminated):
            raise
        except TooLongError as error:
            raise TooSlow(
                f"reward function {self.name!r} took longer than {limit}={timeout:g} s on {batch}"
            ) from error
        except BaseException as error:  # SystemExit too: it must not end the run as a success
            raise _raised(self.name, error, batch, texts) from error
        return checked(values, self.name, texts, self.kind, optional=self.optional)


def _raised(name: str, error: BaseException, batch: str, texts: Texts) -> RewardFailure:
    hint = ""
    if isinstance(error, TypeError) and "required" in str(error):  # a column that is not there
        hint = f"; the columns of the prompts are {sorted(texts.columns)}"
    elif "messages" in texts.columns and isinstance(error, TypeError | AttributeError):
        hint = "; prompts and completions are texts, see textrl.rewards.conversational"
    return RewardFailure(
        f"reward function {name!r} raised {type(error).__name__}: {error} on {batch}{hint}"
    )


def checked(
    values: Any, name: str, texts: Texts, kind: RewardKind, *, optional: bool = False
) -> Numbers:
    """Return what a reward function returned as numbers.

    Raises:
        UserError: It is not one number per text; or, of a dense function, one per token.
        RewardFailure: A number is not finite; the sample is named.
    """
    listed = _listed(values)
    if listed is None:
        each = "lists, one per completion" if kind.dense else "floats, one per completion"
        raise UserError(
            f"reward function {name!r} returned {_brief(values)}, "
            f"a {type(values).__name__}; expected a list of {each}"
        )
    if len(listed) != len(texts):
        raise UserError(
            f"reward function {name!r} returned {len(listed)} numbers for {len(texts)} texts"
        )
    if kind.dense:
        numbers: Numbers = [_of_tokens(value, name, texts, i) for i, value in enumerate(listed)]
    else:
        numbers = [
            None if value is None and optional else np.array([_number(value)]) for value in listed
        ]
    wrong = [
        row for row, found in enumerate(numbers) if found is not None and np.isnan(found).any()
    ]
    if wrong:
        row = wrong[0]
        hint = ""
        if not kind.dense and _listed(listed[row]) is not None:
            hint = (
                "; a function that returns a number a token is marked @reward_function(dense=True)"
            )
        raise RewardFailure(
            f"reward function {name!r} returned {reprlib.repr(listed[row])} for sample {row}, "
            f"{texts.shown(row)}; expected {'finite numbers' if kind.dense else 'a finite number'}"
            f"{hint}",
            numbers,
        )
    return numbers


def _of_tokens(values: Any, name: str, texts: Texts, row: int) -> np.ndarray:
    """Return the numbers of a text's tokens, NaN for what is not a finite number, float64 [n]."""
    assert texts.completion_ids is not None
    listed, tokens = _listed(values), len(texts.completion_ids[row])
    if listed is None or len(listed) != tokens:
        said = _brief(values) if listed is None else f"{len(listed)} numbers"
        raise UserError(
            f"reward function {name!r} is dense and returned {said} for sample {row}, "
            f"{texts.shown(row)}; expected a list of {tokens} numbers, one a token"
        )
    return np.array([_number(value) for value in listed])


def _brief(values: Any) -> str:
    return " ".join(reprlib.repr(values).split())


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


def called(function: Callable[..., Any], texts: Texts) -> Any:
    """Call a function by keyword if it has an argument `completions`, as in TRL; else by position.

    It gets the columns that its signature accepts. A column with the name of an argument for texts
    is not passed. `completion_ids` are passed to a function that names them.
    """
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    extra: dict[str, Any] = {
        name: values for name, values in texts.columns.items() if everything or name in parameters
    }
    names = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    if "completions" not in names and "prompts" in names[1:]:
        raise UserError(
            f"a reward function of {', '.join(names)} gets the prompts first and the completions "
            f"second; call its arguments prompts and completions, in any order"
        )
    takes_ids = "completion_ids" in names or (everything and kind_of(function).dense)
    if takes_ids and texts.completion_ids is not None:
        extra["completion_ids"] = [list(ids) for ids in texts.completion_ids]
    if "completions" not in parameters:
        extra.pop("prompts", None)
        extra.pop("completions", None)
        return function(texts.prompts, texts.completions, **extra)
    extra |= {"completions": texts.completions}
    if everything or "prompts" in parameters:
        extra |= {"prompts": texts.prompts}
    return function(**extra)
