"""Rows of data with their places, common to label databases, files and lists of dicts.

This module needs the standard library only. Rows in the formats of other projects are refused with
a line of code that converts them. Files are read in `data.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from textrl.errors import UserError, did_you_mean

Row = dict[str, Any]
Kind = Literal["demonstrations", "rankings", "pairs", "prompts"]
"""The kind of rows to read from a label database; other sources have rows of one kind."""
CHAT_COLUMNS = ("tools", "chat_template_kwargs")
"""The columns, in addition to `prompt` or `messages`, that change how a chat is rendered."""
OURS = {"text", "messages", "prompt", "completion", "completions", "chosen", "rejected"}


@dataclass(frozen=True, kw_only=True)
class Records:
    """Rows of data, each with the place it came from, for error messages."""

    rows: list[Row]
    places: list[str]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def subset(self, indices: Iterable[int]) -> "Records":
        """Return some of the rows, in the order given."""
        chosen = list(indices)
        return Records(rows=[self.rows[i] for i in chosen], places=[self.places[i] for i in chosen])

    def columns_but(self, *left_out: str) -> dict[str, list[Any]]:
        """Return all columns except some, with None for a value that a row does not have."""
        names = sorted({name for row in self.rows for name in row} - set(left_out), key=str)
        return {name: [row.get(name) for row in self.rows] for name in names}

    def require(self, *columns: str) -> None:
        """Raise UserError naming place and column unless every row has these columns, not None."""
        for row, place in zip(self.rows, self.places, strict=True):
            for column in columns:
                if column in row and row[column] is None:
                    raise UserError(f"{place}: column {column!r} is empty; drop the row")
            missing = {name: did_you_mean(name, row) for name in columns if name not in row}
            if missing:  # a misspelt one is named first
                name = next((name for name, hint in missing.items() if hint), next(iter(missing)))
                found = sorted(map(str, row))
                raise UserError(
                    f"{place}: column {name!r} is missing{missing[name]}; found: {found}"
                )


def is_conversation(value: object) -> bool:
    """Return whether a value is chat messages: dicts with a role (a text) and content or calls."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict)
            and isinstance(turn.get("role"), str)
            and bool({"content", "tool_calls"} & set(turn))
            for turn in value
        )
    )


def refuse_foreign(row: Mapping[str, Any], place: str) -> None:
    """Raise UserError for a row in the format of Alpaca or ShareGPT."""
    if {"instruction", "output"} <= set(row) and not OURS & set(row):
        raise UserError(
            f"{place}: instruction and output are Alpaca's columns; convert each row to "
            '{"prompt": row["instruction"] + "\\n" + row.get("input", ""), '
            '"completion": row["output"]}'
        )
    for column in sorted(OURS & set(row)) or ["conversations"]:
        value = row.get(column)
        turns = value if isinstance(value, list) else [value]
        if turns and all(isinstance(t, Mapping) and {"from", "value"} <= set(t) for t in turns):
            raise UserError(
                f"{place}: column {column!r} holds from and value, as ShareGPT's do; convert each "
                f'turn to {{"role": {{"human": "user", "gpt": "assistant"}}.get(turn["from"], '
                f'turn["from"]), "content": turn["value"]}}, the column conversations to messages'
            )
