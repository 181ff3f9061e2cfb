"""`Scorer`: several reward functions, each by its name, and their weighted sum."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from textrl.chat import Chat
from textrl.errors import UserError
from textrl.reward_calls import (
    Cost,
    Numbers,
    Patience,
    PatientReward,
    RewardFailure,
    Texts,
)
from textrl.reward_kinds import RewardKind, is_coroutine
from textrl.time_limit import together


class FrozenModel:
    """The base class of `RewardModel`: it renders chats itself, and its failures are no function's.

    It is here, below `rewards.py`, for `Scorer` to know one.
    """


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of B texts."""

    total: np.ndarray
    """The weighted sum; NaN where a function failed and failures are masked. Float64 [B]."""
    named: dict[str, np.ndarray]
    """What each function said, without its weight; a dense one's sum; NaN where it said nothing.
    Float64 [B]."""
    tokens: list[np.ndarray]
    """The weighted sum of the dense functions' numbers, one a token; empty without dense ones."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Named reward functions with weights; the score of a text is their weighted sum."""

    functions: tuple[Callable[..., Any], ...]
    names: tuple[str, ...]
    kinds: tuple[RewardKind, ...]
    """How each function is called."""
    weights: tuple[float, ...]
    """A function of weight 0 is a metric: it is recorded, and nothing depends on it."""
    patience: Patience = field(default_factory=Patience)
    """What is done where one of the functions fails; a remote one knows its own times."""
    costs: tuple[Cost, ...] = ()
    """What the calls of each function have cost."""
    whole: Cost = field(default_factory=Cost)
    """The time that they took together, where some run at the same time; no failures."""
    waits: tuple[bool, ...] = ()
    """Whether each function waits for something, so that it runs beside the others."""

    def __post_init__(self) -> None:
        """Begin to count the costs, and see which functions wait."""
        object.__setattr__(self, "costs", tuple(Cost() for _ in self.functions))
        parts = zip(self.functions, self.kinds, strict=True)
        waits = tuple(kind.remote is not None or is_coroutine(function) for function, kind in parts)
        object.__setattr__(self, "waits", waits)

    @property
    def has_dense(self) -> bool:
        """Whether a function returns a number a token."""
        return any(kind.dense for kind in self.kinds)

    @property
    def has_groups(self) -> bool:
        """Whether a function compares the completions of a prompt."""
        return any(kind.group for kind in self.kinds)

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        columns: dict[str, list[Any]],
        chats: list[Chat | None] | None = None,
    ) -> np.ndarray:
        """Return the weighted sum of all functions, float64 [B]; see `scores`."""
        texts = Texts(prompts=prompts, completions=completions, columns=columns)
        return self.scores(texts, chats).total

    def scores(
        self,
        texts: Texts,
        chats: list[Chat | None] | None = None,
        *,
        group_size: int = 1,
        dense: bool | None = None,
    ) -> Scores:
        """Return the scores of texts.

        Args:
            texts: The texts.
            chats: The prompts that are messages, and None for those that are plain text.
            group_size: Number of consecutive texts that have the same prompt.
            dense: Whether to call the dense functions, or the others; None for both.

        Raises:
            UserError: a function failed, or returned something else than numbers.
        """
        if chats is not None and any(chats):
            messages = [None if chat is None else chat.messages for chat in chats]
            texts = _with(texts, messages=messages)
        total, named = np.zeros(len(texts.prompts)), {}
        scored = np.zeros(len(texts.prompts), dtype=bool)
        tokens = [np.zeros(0) for _ in range(len(texts.prompts))]
        asked = [i for i, k in enumerate(self.kinds) if dense is None or k.dense is dense]
        began = time.perf_counter()
        found = self._of_all(asked, texts, chats, group_size)
        self.whole.seconds += time.perf_counter() - began
        for index, numbers in found.items():
            name, weight = self.names[index], self.weights[index]
            said = np.array([np.nan if found is None else found.sum() for found in numbers])
            there = np.array([found is not None for found in numbers], dtype=bool)
            named[name] = said
            if weight:  # that of a metric, NaN perhaps, does not count
                scored |= there
                total += np.where(there, weight * said, 0.0)
            if self.kinds[index].dense:
                tokens = [_sum(a, b, weight) for a, b in zip(tokens, numbers, strict=True)]
        pays_tokens = any(k.dense and w for k, w in zip(self.kinds, self.weights, strict=True))
        if dense is None or (dense is False and not pays_tokens):
            total = self._without_unscored(total, scored, texts)
        return Scores(total=total, named=named, tokens=tokens)

    def _of_all(
        self, asked: list[int], texts: Texts, chats: list[Chat | None] | None, group_size: int
    ) -> dict[int, Numbers]:
        """Return what some functions say of the texts; those that wait run beside the others."""
        said: dict[int, Numbers] = {}

        def ask(index: int) -> None:
            said[index] = self._numbers(index, texts, chats, group_size)

        def ask_the_others() -> None:
            for index in asked:
                if not self.waits[index]:
                    ask(index)

        waiting = [partial(ask, index) for index in asked if self.waits[index]]
        if waiting:
            together(waiting, len(waiting), ask_the_others)
        else:
            ask_the_others()
        return {index: said[index] for index in asked}

    def _numbers(
        self,
        index: int,
        texts: Texts,
        chats: list[Chat | None] | None,
        group_size: int,
    ) -> Numbers:
        """Return what one function says of the texts."""
        function, name, cost = self.functions[index], self.names[index], self.costs[index]
        began = time.perf_counter()
        try:
            if isinstance(function, FrozenModel):
                return _of_model(function, name, texts, chats)
            kind, optional, patience = self.kinds[index], len(self.functions) > 1, self.patience
            if kind.remote is not None:
                times = kind.remote
                patience = replace(patience, timeout=times.timeout, retries=times.retries)
            reward = PatientReward(function, name, patience, kind, optional, cost)
            return reward.numbers(texts, group_size)
        finally:
            cost.seconds += time.perf_counter() - began

    def _without_unscored(self, total: np.ndarray, scored: np.ndarray, texts: Texts) -> np.ndarray:
        """Return the sums, NaN where every function returned None, which is a failure."""
        if scored.all() or not any(self.weights):
            return total
        if self.patience.on_error == "stop":
            row = int((~scored).argmax())
            raise RewardFailure(
                f"no reward scored sample {row}, {texts.shown(row)}: all functions returned None"
            )
        return np.where(scored, total, np.nan)


def _with(texts: Texts, **columns: list[Any]) -> Texts:
    return Texts(
        prompts=texts.prompts,
        completions=texts.completions,
        columns=texts.columns | columns,
        completion_ids=texts.completion_ids,
    )


def _of_model(model: Any, name: str, texts: Texts, chats: list[Chat | None] | None) -> Numbers:
    """Return a reward model's scores, whose failure is none of a function's and never masked."""
    try:
        scores = np.array(model(texts.prompts, texts.completions, chats=chats), dtype=np.float64)
    except UserError as error:
        raise UserError(f"reward model {name!r}: {error}") from error
    if not np.isfinite(scores).all():
        row = int((~np.isfinite(scores)).argmax())
        raise RewardFailure(
            f"reward model {name!r} returned {scores[row]} for sample {row}, {texts.shown(row)}; "
            f"expected a finite number"
        )
    return list(scores[:, None])


def by_row(found: list[tuple[np.ndarray, Scores]], names: tuple[str, ...], rows: int) -> np.ndarray:
    """Return what each function said of each row, by name, object [rows] of dicts.

    Args:
        found: Rows and the scores of their texts.
        names: The names of the functions, in order.
        rows: B.
    """
    said: list[dict[str, float]] = [{} for _ in range(rows)]
    for where, scores in found:
        for name, values in scores.named.items():
            for row, value in zip(where, values.tolist(), strict=True):
                said[row][name] = value
    result = np.full(rows, None, dtype=object)
    for row, own in enumerate(said):
        if own:
            result[row] = {name: own[name] for name in names if name in own}
    return result


def _sum(known: np.ndarray, more: np.ndarray | None, weight: float) -> np.ndarray:
    """Return numbers, of which there may be none yet, and weight times those of a function."""
    assert more is not None  # a dense function says something of every text
    weighted = weight * more if weight else np.zeros(len(more))  # that of a metric may be NaN
    return weighted if len(known) == 0 else known + weighted
