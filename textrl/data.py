"""Loading of records from files, lists or data sets, and splitting of them by prompt.

JSONL and CSV are read with the standard library, Parquet and `hub:OWNER/NAME` with the optional
`datasets`. The columns are those of TRL (`text`, `messages`, `prompt`, `completion`, `chosen`,
`rejected`, `margin`) and of our rankings (`prompt`, `completions`, `ranks`). Other columns are
passed to reward functions. The URL of a label database (`textrl collect`) is a source as well. Next
to read: `encoding.py` (rows to ids); the demo's data are in `demo/reviews.py`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from textrl.data_files import HUB, number_rows, read_file, read_hub, refuse_unreadable
from textrl.errors import UserError, hide_password
from textrl.paths import expanded
from textrl.rows import Kind, Records, Row, refuse_foreign

Source = str | Path | Sequence[Row]
"""A source of rows: a .jsonl, .json, .csv, .tsv or .parquet file, a data set of the hub as
`hub:OWNER/NAME`, the URL of a label database, a list of dicts, or a `datasets.Dataset`."""


def load_records(source: Source, kind: Kind = "prompts") -> Records:
    """Return the rows of a file, hub data set, label database, list of dicts or `datasets.Dataset`.

    Args:
        source: The source of rows; see `Source`.
        kind: The kind of rows to read from a label database.

    Raises:
        UserError: the file is missing, empty or malformed (file and line are named), or a row is
            not a dict, or in Alpaca's or ShareGPT's form.
    """
    if isinstance(source, str) and re.match(r"(sqlite|postgres(ql)?)(\+\w+)?:", source):
        records = _read_labels(source, kind)
    elif isinstance(source, str) and source.startswith(HUB):
        records = read_hub(source)
    elif isinstance(source, str | Path):
        records = read_file(source)
    else:
        records = number_rows(source, "record")
    if not records.rows:
        raise UserError(f"{source if isinstance(source, str | Path) else 'the data'}: no records")
    for row, place in zip(records.rows, records.places, strict=True):
        refuse_unreadable(row, place)
        refuse_foreign(row, place)
    return records


def _read_labels(url: str, kind: Kind) -> Records:
    shown = hide_password(url)
    try:
        from textrl.labels.export import read
    except ImportError as error:
        raise UserError(
            f"{shown}: a label database needs `pip install 'textrl-gym[collect]'` ({error})"
        ) from error
    rows = read(url, kind)
    if not rows:
        raise UserError(f"{shown}: no {kind} there (yet)")
    return Records(rows=rows, places=[f"{kind} {index}" for index in range(len(rows))])


def prompt_key(row: Row) -> str:
    """Return a key that is the same for all rows with the same prompt.

    It is the prompt. Without a prompt, it is the words that chosen and rejected share at their
    start, or all but the last message of a chat, or else the whole row.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    key: Any = row
    if row.get("prompt"):
        key = row["prompt"]
    elif isinstance(row.get("messages"), list):
        key = row["messages"][:-1] or row
    elif isinstance(chosen, str | list) and isinstance(rejected, str | list):
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        shared = chosen[:same]
        if isinstance(shared, str):
            shared = shared[: max(shared.rfind(" "), shared.rfind("\n")) + 1]
        key = shared or row
    try:
        return json.dumps(key, sort_keys=True, default=str)
    except TypeError:  # names of several types in one dict, which have no order
        return repr(key)


def split_by_prompt(records: Records, heldout_share: float) -> tuple[Records, Records]:
    """Split the records into (train, held-out); all rows of a prompt are in the same part.

    The part depends only on a hash of the prompt, so that it stays the same when data are added.

    Raises:
        UserError: nothing is left to train on.
    """

    def heldout(row: Row) -> bool:
        digest = hashlib.sha256(prompt_key(row).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < heldout_share

    if heldout_share == 0:
        return records, records.subset([])
    sides = [heldout(row) for row in records.rows]
    if all(sides):
        raise UserError(f"heldout_share {heldout_share} leaves no prompt to train on; lower it")
    if not any(sides):
        count = len({prompt_key(row) for row in records.rows})
        raise UserError(
            f"heldout_share {heldout_share} holds out none of {count} prompts, each of which is "
            f"drawn by a hash of its own; raise it, or set it to 0"
        )
    return (
        records.subset(i for i, side in enumerate(sides) if not side),
        records.subset(i for i, side in enumerate(sides) if side),
    )


def refuse_existing(output: str | None) -> None:
    """Raise UserError if an output file exists already, or its extension is of another format."""
    if output is None:
        return
    if expanded(output).exists():
        raise UserError(f"{output} exists; name another file")
    if expanded(output).suffix.lower() not in (".jsonl", ".ndjson", ".json", ""):
        raise UserError(f"{output}: JSON lines are written; name a file that ends with .jsonl")


def write_lines(rows: Iterable[dict[str, Any]], output: str | None) -> None:
    """Write rows as JSON lines to a new file or the terminal."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    refuse_existing(output)
    if output is None:
        print(text, end="")
    else:
        target = expanded(output).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
