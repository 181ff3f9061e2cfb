"""Loading of records from files, lists or data sets, and splitting of them by prompt.

JSONL and CSV are read with the standard library, Parquet and hub names with the optional
`datasets`. The columns are those of TRL (`text`, `messages`, `prompt`, `completion`, `chosen`,
`rejected`, `margin`) and of our rankings (`prompt`, `completions`, `ranks`). Other columns are
passed to reward functions. The URL of a label database (`textrl collect`) is a source as well. Next
to read: `encoding.py` (rows to ids); the demo's data are in `demo/reviews.py`.
"""

import codecs
import contextlib
import csv
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textrl.errors import UserError, did_you_mean, hide_password
from textrl.paths import expanded, local_or_hub
from textrl.rows import CHAT_COLUMNS, Kind, Row, is_conversation, refuse_foreign

TEXT_COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", *CHAT_COLUMNS}
Source = str | Path | Sequence[Row]
"""A source of rows: a .jsonl, .json, .csv, .tsv or .parquet file, a hub name, the URL of a label
database, a list of dicts, or a `datasets.Dataset`."""


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
        names = sorted({name for row in self.rows for name in row} - set(left_out))
        return {name: [row.get(name) for row in self.rows] for name in names}

    def require(self, *columns: str) -> None:
        """Raise UserError naming place and column unless every row has these columns, not None."""
        for row, place in zip(self.rows, self.places, strict=True):
            for column in columns:
                if column in row and row[column] is None:
                    raise UserError(f"{place}: column {column!r} is empty; drop the row")
                if column not in row:
                    hint, found = did_you_mean(column, row), sorted(map(str, row))
                    raise UserError(f"{place}: column {column!r} is missing{hint}; found: {found}")


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
    elif isinstance(source, str | Path):
        records = _read_file(source)
    else:
        records = _number_rows(source, "record")
    if not records.rows:
        raise UserError(f"{source if isinstance(source, str | Path) else 'the data'}: no records")
    for row, place in zip(records.rows, records.places, strict=True):
        _refuse_half_characters(row, place)
        refuse_foreign(row, place)
    return records


def _read_file(source: str | Path) -> Records:
    """Return the rows of a file, by its extension, or of a data set of the hub."""
    if re.match(r"(https?|ftp|s3|gs|file)://", str(source)):
        raise UserError(f"{source} is an address; download it and give the file")
    path = expanded(source)
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if ending in ("jsonl", "ndjson", "json"):
        return _read_json(path)
    if ending in ("csv", "tsv"):
        return _read_csv(path, "," if ending == "csv" else "\t")
    if ending != "parquet" and (path.is_file() or ending in ("txt", "xlsx", "zip")):
        raise UserError(
            f"{path}: files are read by their endings: .jsonl, .ndjson, .json, .csv, .tsv (each "
            f"also with .gz) and .parquet; rename or convert it"
        )
    return _number_rows(_read_with_datasets(local_or_hub(source)), str(source))


def _refuse_half_characters(value: object, place: str) -> None:
    """Raise UserError if a text contains half of a surrogate pair, which no tokenizer accepts."""
    if isinstance(value, str):
        half = re.search("[\ud800-\udfff]", value)
        if half is not None:
            raise UserError(
                f"{place}: character {half.start() + 1} of a text is half a character "
                f"(U+{ord(half.group()):04X}, behind {value[: half.start()][-20:]!r}), as cut "
                f"texts have; remove it"
            )
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            _refuse_half_characters(part, place)


def _number_rows(rows: Iterable[Any], name: str) -> Records:
    if isinstance(rows, Mapping) or hasattr(rows, "columns"):
        raise UserError(
            f"the data are a {type(rows).__name__}; give rows: one split of a DatasetDict, "
            f"frame.to_dict('records') of a data frame"
        )
    if not isinstance(rows, Iterable):
        raise UserError(f"the data are {rows!r}; expected a file, a hub name, or a list of dicts")
    listed = list(rows)
    for index, row in enumerate(listed):
        if not isinstance(row, dict):
            raise UserError(f"{name} {index}: expected a dict, got {type(row).__name__}")
        listed[index] = {column: _as_lists(value, column) for column, value in row.items()}
    return Records(rows=listed, places=[f"{name} {index}" for index in range(len(listed))])


def _as_lists(value: Any, column: str) -> Any:
    """Return arrays and tuples (from data frames) as lists, and NaN (a missing text) as None."""
    if isinstance(value, float) and math.isnan(value) and column in TEXT_COLUMNS:
        return None
    if isinstance(value, tuple) or type(value).__name__ == "ndarray":
        value = list(value)
    if isinstance(value, list):
        return [_as_lists(part, "") for part in value]
    if isinstance(value, dict):
        return {name: _as_lists(part, "") for name, part in value.items()}
    return value


def _open(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel, PowerShell
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text[:1000]:  # UTF-16 without its mark, UTF-32
            raise UserError(f"{path}: not UTF-8 (it holds zero bytes); save it as UTF-8")
        return text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {error.encoding.upper()} at byte {error.start}") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error


def _read_json(path: Path) -> Records:
    """Return the rows of JSON lines, or of one JSON array."""
    text = _open(path)
    if text.lstrip().startswith("["):
        # if it is not an array, the error about the line is more helpful
        with contextlib.suppress(ValueError, RecursionError):
            array = json.loads(text)
            if "\n" in text.strip() or all(isinstance(row, dict) for row in array):
                return _number_rows(array, f"{path}: row")
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not JSON ({error.msg}, column {error.colno})"
            ) from error
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep lists
            raise UserError(f"{path}:{number}: cannot be read ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected an object, got {type(row).__name__}")
        rows.append(row)
        places.append(f"{path}:{number}")
    return Records(rows=rows, places=places)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _read_csv(path: Path, delimiter: str) -> Records:
    csv.field_size_limit(2**31 - 1)  # Python's default of 131,072 characters is too low for texts
    text = io.StringIO(_open(path), newline="")
    reader = csv.DictReader(text, strict=True, delimiter=delimiter)
    rows, places = [], []
    try:
        header = list(reader.fieldnames or [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise UserError(f"{path}:1: two columns are called {twice[0]!r}; rename one")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(
                    f"{place}: expected {len(reader.fieldnames or [])} fields as in the header"
                )
            rows.append({name: _chat_cell(value) for name, value in row.items()})
            places.append(place)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from error
    return Records(rows=rows, places=places)


def _chat_cell(value: Any) -> Any:
    """Return the messages that a CSV cell holds as JSON, and any other cell unchanged."""
    if value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            return found if is_conversation(found) else value
    return value


def _read_with_datasets(name: str) -> Iterable[Row]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{name}: .jsonl and .csv are read directly; Parquet files and hub names need "
            f"`pip install 'textrl-gym[hub]'`"
        ) from error
    try:
        found: Iterable[Row]
        if name.endswith(".parquet"):
            found = datasets.load_dataset("parquet", data_files=name, split="train")
        else:
            found = datasets.load_dataset(name, split="train")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: no data set there, or out of reach ({reason})") from error
    return found


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
    return json.dumps(key, sort_keys=True, default=str)


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
        raise UserError(f"heldout_share {heldout_share} holds out no prompt; raise it, or leave it")
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
