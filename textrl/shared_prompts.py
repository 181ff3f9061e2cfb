"""Pairs of whole chats, as many data sets have them: what both share, and what follows."""

from typing import Any

from textrl.data import Records
from textrl.rows import is_conversation


def with_shared_prompts(records: Records) -> Records:
    """Return pairs of whole chats as what they share, the prompt, and what follows in each.

    So with no column `prompt`, or one that is the text of the last shared message; any other row is
    as it was.
    """
    rows = [_with_shared_prompt(row) for row in records.rows]
    return Records(rows=rows, places=records.places)


def _with_shared_prompt(row: dict[str, Any]) -> dict[str, Any]:
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        return row
    if not (is_conversation(chosen) and is_conversation(rejected)):
        return row
    same, most = 0, min(len(chosen), len(rejected)) - 1  # a reply is left to each
    while same < most and chosen[same] == rejected[same]:
        same += 1
    if not same or (prompt and prompt != chosen[same - 1].get("content")):
        return row
    return row | {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}
