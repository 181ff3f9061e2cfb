"""`reward_function` and `remote`: how a reward function is called, and with which texts.

An ordinary reward function needs no mark. One that is `dense` or sees a `group` says so, because
the environment has to call it at other times or with other texts; one that waits for another
machine says that it is `remote`, so that its calls run at the same time.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from textrl.bounds import NotNegative, Positive, check_fields
from textrl.errors import UserError

MARK = "textrl_reward_kind"
"""The attribute of a function that holds its kind."""
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The calls of a function that waits for another machine."""

    timeout: NotNegative[float] = 60.0
    """Seconds that one call may take; 0 is no limit."""
    retries: NotNegative[int] = 2
    """Number of further tries of a call that fails, after pauses of 1, 2, 4, ... seconds."""
    batch_size: Positive[int] = 1
    """Number of texts of one call."""
    at_once: Positive[int] = 16
    """Number of calls that run at the same time."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RewardKind:
    """How a reward function is called."""

    dense: bool = False
    """Whether it returns a list of numbers for each text, one a token."""
    group: bool = False
    """Whether each call has all completions of one prompt, and no others."""
    remote: Remote | None = None
    """How its calls are made where it waits for another machine."""


ORDINARY = RewardKind()


def reward_function(*, dense: bool = False, group: bool = False) -> Callable[[Function], Function]:
    """Mark a reward function (a decorator).

    Args:
        dense: The function has an argument `completion_ids`, the token ids of each completion, its
            end token among them. It returns one list of numbers for each, a number a token. The
            number of a token may depend on the prompt, on this token and on those before it; it is
            paid when the token is taken. The score of an episode is their sum.
        group: Each call has the completions of one prompt, `group_size` of them, and no others, so
            that they can be compared with one another.

    Raises:
        UserError: the function is asked for both, or cannot be marked.

    >>> @reward_function(group=True)
    ... def shorter(prompts, completions):
    ...     mean = sum(map(len, completions)) / len(completions)
    ...     return [float(len(text) < mean) for text in completions]
    >>> kind_of(shorter)
    RewardKind(dense=False, group=True, remote=None)
    """
    if dense and group:
        raise UserError(
            "a reward function is dense or compares a group, not both: tokens are paid at once, "
            "and a group is complete only at its end; make two functions, reward=[one, other]"
        )

    return _marking("reward_function", lambda kind: replace(kind, dense=dense, group=group))


def remote(
    function: Any = None,
    *,
    timeout: float = 60.0,
    retries: int = 2,
    batch_size: int = 1,
    at_once: int = 16,
) -> Any:
    """Mark a reward function that waits for another machine; it may be a coroutine.

    It is a decorator, `@remote` or `@remote(timeout=10.0)`.

    Its texts are cut into calls of `batch_size`, which run at the same time, and beside the other
    reward functions. What a function that compares a group gets in one call stays a group.

    Args:
        function: What `@remote` without parentheses marks.
        timeout: Seconds that one call may take; 0 is no limit. A coroutine that is late is
            cancelled; a function that is late keeps its thread until it returns.
        retries: Number of further tries of a call that fails, after pauses of 1, 2, 4, ... seconds.
        batch_size: Number of texts of one call.
        at_once: Number of calls that run at the same time, each in a thread of its own.

    Raises:
        UserError: a number is out of range, or the function cannot be marked.

    >>> @remote(timeout=5.0, retries=1)
    ... def asked(prompts, completions):
    ...     return [float(len(completion)) for completion in completions]
    >>> kind_of(asked).remote.timeout
    5.0
    """
    how = Remote(timeout=timeout, retries=retries, batch_size=batch_size, at_once=at_once)
    mark = _marking("remote", lambda kind: replace(kind, remote=how))
    return mark if function is None else mark(function)


def _marking(
    name: str, change: Callable[[RewardKind], RewardKind]
) -> Callable[[Function], Function]:
    """Return a decorator that changes the kind of a function; marks of others stay."""

    def marked(function: Function) -> Function:
        try:
            setattr(function, MARK, change(kind_of(function)))
        except AttributeError:
            raise UserError(
                f"{name} cannot mark {function!r}; mark a function that calls it"
            ) from None
        return function

    return marked


def _layers(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a function, what it wraps (`functools.partial` or another wrapper), and so on inwards.

    The last one is the `__call__` of the innermost one's class.
    """
    inner: Callable[..., Any] | None = function
    while inner is not None:
        function = inner
        yield function
        inner = getattr(function, "func", getattr(function, "__wrapped__", None))
    yield type(function).__call__


def is_coroutine(function: Callable[..., Any]) -> bool:
    """Return whether a call of the function returns something to await."""
    return any(inspect.iscoroutinefunction(layer) for layer in _layers(function))


def kind_of(function: Callable[..., Any]) -> RewardKind:
    """Return the kind of a reward function; without a mark it is an ordinary one.

    The mark may be on any of the function's wrappers, or on the `__call__` of an object's class.
    """
    marks = (getattr(layer, MARK) for layer in _layers(function) if hasattr(layer, MARK))
    return next(marks, ORDINARY)
