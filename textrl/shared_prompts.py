"""Splitting of preference pairs of whole chats into their common prompt and the two completions."""

from typing import Any

from textrl.errors import UserError
from textrl.rows import Records, is_conversation

LONG_PROMPT = 20
"""Minimum characters of a prompt for which a completion that begins with it counts as repeating
it."""


def with_shared_prompts(records: Records, *, texts: bool = False) -> Records:
    """Split pairs of whole chats into the prompt, which both share, and the two completions.

    A row is split if it has no column `prompt`, or if that column is the text of the last shared
    message or the shared messages. Any other row is unchanged.

    Args:
        records: The pairs.
        texts: Whether to split plain texts without a prompt too, at the first word that differs.

    Raises:
        UserError: both texts of a pair begin with their whole prompt, which would be read twice.
    """
    rows = []
    for row, place in zip(records.rows, records.places, strict=True):
        prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
        if isinstance(chosen, str) and isinstance(rejected, str):
            if isinstance(prompt, str) and len(prompt) >= LONG_PROMPT:
                if chosen.startswith(prompt) and rejected.startswith(prompt):
                    raise UserError(
                        f"{place}: chosen and rejected both begin with the prompt, which would "
                        f"stand twice; leave it out of them"
                    )
            elif texts and prompt is None:
                row = _with_shared_words(row, chosen, rejected)
        rows.append(_with_shared_prompt(row))
    return Records(rows=rows, places=records.places)


def _with_shared_words(row: dict[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
    same = [one == other for one, other in zip(chosen, rejected, strict=False)]
    shared = chosen[: same.index(False) if False in same else len(same)]
    cut = max(shared.rfind(space) for space in " \n\t")
    if cut <= 0:
        return row
    return row | {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def _with_shared_prompt(row: dict[str, Any]) -> dict[str, Any]:
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        return row
    if not (is_conversation(chosen) and is_conversation(rejected)):
        return row
    same, most = 0, min(len(chosen), len(rejected)) - 1  # both keep at least one message
    while same < most and chosen[same] == rejected[same]:
        same += 1
    if not same or (prompt and prompt not in (chosen[same - 1].get("content"), chosen[:same])):
        return row
    return row | {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}
