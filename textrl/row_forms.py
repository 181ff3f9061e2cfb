"""Rows in forms of other projects, which are refused with the line that converts them.

Standard library only. Called by `data.py`.
"""

from collections.abc import Mapping
from typing import Any

from textrl.errors import UserError

OURS = {"text", "messages", "prompt", "completion", "completions", "chosen", "rejected"}


def refuse_foreign(row: Mapping[str, Any], place: str) -> None:
    """Raise UserError for a row in Alpaca's or ShareGPT's form."""
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
