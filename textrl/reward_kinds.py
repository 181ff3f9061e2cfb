"""`reward_function`: what a reward function returns, and which texts it sees in one call.

An ordinary reward function needs no mark. One that is `dense` or sees a `group` says so, because
the environment has to call it at other times or with other texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from textrl.errors import UserError

MARK = "textrl_reward_kind"
"""The attribute of a function that holds its kind."""
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class RewardKind:
    """How a reward function is called."""

    dense: bool = False
    """Whether it returns a list of numbers for each text, one a token."""
    group: bool = False
    """Whether each call has all completions of one prompt, and no others."""


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
    RewardKind(dense=False, group=True)
    """
    if dense and group:
        raise UserError(
            "a reward function is dense or compares a group, not both: tokens are paid at once, "
            "and a group is complete only at its end; make two functions, reward=[one, other]"
        )

    def marked(function: Function) -> Function:
        try:
            setattr(function, MARK, RewardKind(dense=dense, group=group))
        except AttributeError:
            raise UserError(
                f"reward_function cannot mark {function!r}; mark a function that calls it"
            ) from None
        return function

    return marked


def kind_of(function: Callable[..., Any]) -> RewardKind:
    """Return the kind of a reward function; without a mark it is an ordinary one.

    The mark may be on the function of a `functools.partial` or of another wrapper, or on the
    `__call__` of an object's class.
    """
    while not hasattr(function, MARK):
        inner = getattr(function, "func", getattr(function, "__wrapped__", None))
        if inner is None:
            kind: RewardKind = getattr(type(function).__call__, MARK, ORDINARY)
            return kind
        function = inner
    found: RewardKind = getattr(function, MARK)
    return found
