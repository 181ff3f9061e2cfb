"""`Submission`, one answer of a labeler: its fields and their validation.

This module uses neither database nor web. Ranks are in the order in which the labeler saw the
outputs; `Submission.unshuffled` converts them to the stored order.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

FLAGS = {
    "harmful": "harmful or offensive",
    "language": "not in the expected language",
    "unclear": "the prompt is unclear",
}
"""The flags that a labeler can set, with their wording on the page."""
MAX_OUTPUTS = 9
"""Maximum number of outputs of a task, since each has a number key."""
MAX_TEXT = 100_000
"""Maximum number of characters of a demonstration."""
MAX_REASON = 2_000
"""Maximum number of characters of the reason for a skip."""


class InvalidAnswerError(ValueError):
    """An invalid answer; the message is for the labeler."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A labeler's answer to a task: a ranking, a demonstration, or both; or a skip.

    Attributes:
        ranks: The rank of each output; 0 is best, equal ranks are ties. Length K, or None.
        demonstration: The desired completion, written by the labeler.
        rating: The rating of the best output, from 1 (bad) to 7 (best possible).
        flags: Keys of `FLAGS`.
        skip_reason: Why the labeler skipped the task; then ranks and demonstration are None.
        seconds: The time for which the labeler saw the task.
    """

    ranks: list[int] | None = None
    demonstration: str | None = None
    rating: int | None = None
    flags: list[str] | None = None
    skip_reason: str | None = None
    seconds: float = 0.0

    @property
    def is_skip(self) -> bool:
        """Whether the labeler skipped the task."""
        return self.skip_reason is not None

    def checked(self, num_outputs: int) -> "Submission":
        """Return the submission in its normal form: dense ranks, sorted flags, no blank texts.

        Raises:
            InvalidAnswerError: the submission is invalid; the message is for the labeler.
        """
        written = self.demonstration if (self.demonstration or "").strip() else None
        skip = None if self.skip_reason is None else self.skip_reason.strip()
        flags = sorted(set(self.flags or []))
        for text in (written, skip):
            if text is not None and not is_storable(text):
                raise InvalidAnswerError("the text holds characters that cannot be stored")
        if len(written or "") > MAX_TEXT:
            raise InvalidAnswerError(f"the demonstration is longer than {MAX_TEXT} characters")
        if unknown := [flag for flag in flags if flag not in FLAGS]:
            raise InvalidAnswerError(f"unknown flag {unknown[0]!r}; known: {', '.join(FLAGS)}")
        if self.rating is not None and not 1 <= self.rating <= 7:
            raise InvalidAnswerError("the rating is a whole number from 1 to 7")
        if skip is not None:
            if not skip:
                raise InvalidAnswerError("a skip needs a reason")
            if len(skip) > MAX_REASON:
                raise InvalidAnswerError(f"the reason is longer than {MAX_REASON} characters")
            return Submission(skip_reason=skip, flags=flags, seconds=self.seconds)
        ranks = dense_ranks(self.ranks, num_outputs) if num_outputs >= 2 else None
        if num_outputs < 2 and written is None:
            raise InvalidAnswerError("the task asks for a text, and there is none")
        if num_outputs == 0 and self.rating is not None:
            raise InvalidAnswerError("a rating is of the best output, and the task has none")
        return replace(self, ranks=ranks, demonstration=written, flags=flags, skip_reason=None)

    def unshuffled(self, shown_order: Sequence[int]) -> "Submission":
        """Return the submission with ranks in stored order.

        Args:
            shown_order: shown_order[i] is the stored index of the output shown at place i.

        >>> Submission(ranks=[0, 1, 2]).unshuffled([2, 0, 1]).ranks
        [1, 2, 0]
        """
        if self.ranks is None:
            return self
        stored = [0] * len(self.ranks)
        for place, index in enumerate(shown_order):
            stored[index] = self.ranks[place]
        return replace(self, ranks=stored)

    def shuffled(self, shown_order: Sequence[int]) -> "Submission":
        """Return the submission with ranks in shown order: the inverse of `unshuffled`."""
        if self.ranks is None:
            return self
        return replace(self, ranks=[self.ranks[index] for index in shown_order])

    def as_columns(self) -> dict[str, Any]:
        """Return the fields by name, as they are stored."""
        return asdict(self)


def dense_ranks(ranks: list[int] | None, num_outputs: int) -> list[int]:
    """Return the ranks without gaps, with the same order and ties.

    >>> dense_ranks([3, 0, 3], 3)
    [1, 0, 1]

    Raises:
        InvalidAnswerError: there are no ranks, not as many as outputs, or a negative rank.
    """
    if ranks is None or len(ranks) != num_outputs:
        raise InvalidAnswerError(
            f"expected a rank for each of the {num_outputs} outputs, got "
            f"{'none' if ranks is None else len(ranks)}"
        )
    if any(rank < 0 for rank in ranks):
        raise InvalidAnswerError("ranks are 0 (best) and above")
    order = sorted(set(ranks))
    return [order.index(rank) for rank in ranks]


def is_storable(text: str) -> bool:
    """Return whether a text is valid UTF-8 (no lone surrogate) without NUL, as PostgreSQL needs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text
