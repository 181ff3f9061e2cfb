"""A row of data: what a label database, a file and a list of dicts have in common.

Standard library only. Rows in forms of other projects are refused with the line that converts
them. Files are read in `data.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from textrl.errors import UserError

Row = dict[str, Any]
Kind = Literal["demonstrations", "rankings", "pairs", "prompts"]
"""What is read from a label database; other sources hold rows of one kind."""
CHAT_COLUMNS = ("tools", "chat_template_kwargs")
"""The columns beside `prompt` or `messages` that change how a chat is written."""
OURS = {"text", "messages", "prompt", "completion", "completions", "chosen", "rejected"}


def is_conversation(value: object) -> bool:
    """Say whether a column holds chat messages: dicts with a role and content or tool calls."""
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
