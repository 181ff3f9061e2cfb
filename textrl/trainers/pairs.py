"""Preference data as encoded pairs: two completions of a prompt, or single ones with labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from textrl.chat import prompt_of
from textrl.encoding import continuation
from textrl.errors import UserError
from textrl.loss_names import loss_weights
from textrl.rows import Records
from textrl.types import Sequence

UNPAIRED_LOSSES = {"kto", "apo_zero"}
"""The losses that are a sum of one term of each completion."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A preference pair: both completions, each encoded after the prompt."""

    chosen: Sequence
    rejected: Sequence
    certainty: float = 1.0
    """The share of raters who preferred the chosen completion."""

    @property
    def num_tokens(self) -> int:
        """The number of tokens of both sequences."""
        return len(self.chosen.ids) + len(self.rejected.ids)


def paired(
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    loss_type: str | dict[str, float],
    limit: int,
    ends: Iterable[int],
) -> list[Pair]:
    """Return the pairs of rows with `prompt`, `chosen`, `rejected`, and perhaps `certainty`.

    Raises:
        UserError: a column is missing or empty, or a pair's completions are the same tokens.
    """
    records.require("prompt", "chosen", "rejected")
    for row, place in zip(records.rows, records.places, strict=True):
        if row.get("margin") not in (None, ""):
            raise UserError(f"{place}: DPO has no margin (a reward model has); leave it out")
    sides = {
        side: [
            continuation(tokenizer, prompt_of(row, place), row[side], place, limit, ends)
            for row, place in zip(records.rows, records.places, strict=True)
        ]
        for side in ("chosen", "rejected")
    }
    for chosen, rejected, place in zip(*sides.values(), records.places, strict=True):
        if chosen.ids == rejected.ids:
            raise UserError(
                f"{place}: chosen and rejected are the same {len(chosen.ids)} tokens within "
                f"max_length {limit}; raise it, or drop the row if their texts are the same"
            )
    certainties = [
        _certainty(row.get("certainty"), place)
        for row, place in zip(records.rows, records.places, strict=True)
    ]
    return [
        Pair(chosen=c, rejected=r, certainty=share)
        for c, r, share in zip(sides["chosen"], sides["rejected"], certainties, strict=True)
    ]


def is_unpaired(records: Records) -> bool:
    """Return whether the rows have one completion each, with a label, and no pairs."""
    return bool(records.rows) and all(
        {"completion", "label"} <= set(row) and "chosen" not in row for row in records.rows
    )


def unpaired(
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    loss_type: str | dict[str, float],
    limit: int,
    ends: Iterable[int],
) -> list[Pair]:
    """Return pairs of rows with `prompt`, `completion` and `label` (TRL's unpaired preferences).

    A good completion and a bad one, mostly of different prompts, make a pair, which only losses
    that add a term of each allow. If there are fewer of one kind, those are repeated, so that both
    kinds have the same weight.

    Raises:
        UserError: the loss compares the two, a label is not true or false, or one kind is missing.
    """
    if not records.rows:  # nothing is held out
        return []
    if not set(loss_weights(loss_type)) <= UNPAIRED_LOSSES:
        raise UserError(
            f"loss_type {loss_type!r} compares two completions, and the rows have one each with a "
            f"label; take the loss kto or apo_zero, or give chosen and rejected"
        )
    records.require("prompt", "completion", "label")
    sides: dict[bool, list[Sequence]] = {True: [], False: []}
    for row, place in zip(records.rows, records.places, strict=True):
        if row.get("certainty") not in (None, ""):
            raise UserError(f"{place}: a certainty is of a pair; leave it out of rows with a label")
        label = row["label"]
        if label not in (True, False, "True", "False", "true", "false"):
            raise UserError(f"{place}: label is {label!r}; expected true (good) or false")
        sequence = continuation(
            tokenizer, prompt_of(row, place), row["completion"], place, limit, ends
        )
        sides[label in (True, "True", "true")].append(sequence)
    good, bad = sides[True], sides[False]
    if not good or not bad:
        raise UserError(
            f"all {len(good or bad)} labels are {bool(good)}; {loss_type} needs completions of "
            f"both kinds (in the held-out part too)"
        )
    return [
        Pair(chosen=good[i % len(good)], rejected=bad[i % len(bad)])
        for i in range(max(len(good), len(bad)))
    ]


def _certainty(value: Any, place: str) -> float:
    """Return a row's certainty, 1 by default."""
    if value in (None, ""):
        return 1.0
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{place}: certainty is {value!r}; expected a share in [0, 1]")
    return share
