"""The type of a row of data, common to label databases, files and lists of dicts.

This module needs the standard library only. Rows in the formats of other projects are refused with
a line of code that converts them. Files are read in `data.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from textrl.errors import UserError

Row = dict[str, Any]
Kind = Literal["demonstrations", "rankings", "pairs", "prompts"]
"""The kind of rows to read from a label database; other sources have rows of one kind."""
CHAT_COLUMNS = ("tools", "chat_template_kwargs")
"""The columns, in addition to `prompt` or `messages`, that change how a chat is rendered."""
OURS = {"text", "messages", "prompt", "completion", "completions", "chosen", "rejected"}


def is_conversation(value: object) -> bool:
    """Return whether a value is chat messages: dicts with a role and content or tool calls."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict)
            and "role" in turn
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
