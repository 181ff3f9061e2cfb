"""Reading of rows from files, the hub and lists: JSON lines, JSON arrays, CSV, Parquet.

JSONL and CSV are read with the standard library, Parquet and `hub:OWNER/NAME` with the optional
`datasets`. A row that no tokenizer or template could take is refused with its place.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from textrl.errors import UserError, did_you_mean
from textrl.paths import expanded
from textrl.rows import CHAT_COLUMNS, Records, Row, is_conversation

TEXT_COLUMNS = {"text", "messages", "prompt", "completion", "chosen", "rejected", *CHAT_COLUMNS}
DEEPEST = 100
"""Lists and objects of a row lie in each other less deeply than this."""
HUB = "hub:"
"""How a source of rows begins that is looked up in the network; nothing else is."""


def read_file(source: str | Path) -> Records:
    """Return the rows of a file, by its extension."""
    if re.match(r"(https?|ftp|s3|gs|file)://", str(source)):
        raise UserError(f"{source} is an address; download it and give the file")
    path = expanded(source)
    stem, _, ending = path.name.lower().removesuffix(".gz").rpartition(".")
    ending = ending if stem else ""  # a file called json has none
    if ending in ("jsonl", "ndjson", "json", "csv", "tsv") and not path.exists():
        raise _missing(path)
    if ending in ("jsonl", "ndjson", "json"):
        return _read_json(path)
    if ending in ("csv", "tsv"):
        return _read_csv(path, "," if ending == "csv" else "\t")
    if ending != "parquet" and (path.is_file() or ending in ("txt", "xlsx", "zip")):
        raise UserError(
            f"{path}: files are read by their endings: .jsonl, .ndjson, .json, .csv, .tsv (each "
            f"also with .gz) and .parquet; rename or convert it"
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the file in it that holds the data")
    if not path.exists():
        raise _missing(path)
    return number_rows(
        _read_with_datasets(source, "parquet", data_files=escape(str(path))), str(path)
    )


def _missing(path: Path) -> UserError:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(
        f"{path}: no such file{did_you_mean(path.name, names)}; a data set of the hub is asked for "
        f"as {HUB}OWNER/NAME"
    )


def read_hub(source: str) -> Records:
    """Return the rows of a data set of the hub, which is looked up in the network."""
    name = source.removeprefix(HUB)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is None:
        raise UserError(f"{source}: a data set of the hub has an owner; write {HUB}OWNER/NAME")
    if expanded(name).exists():
        raise UserError(f"{source}: {name} is a folder here; give the file in it, without {HUB}")
    return number_rows(_read_with_datasets(source, name), source)


def refuse_unreadable(row: object, place: str) -> None:
    """Raise UserError if a row is nested too deeply, or a text in it has half a character."""
    level = [row]
    for _ in range(DEEPEST):
        for text in (value for value in level if isinstance(value, str)):
            _refuse_half_character(text, place)
        level = [part for value in level for part in _parts(value)]
        if not level:
            return
    raise UserError(f"{place}: lists or objects lie in each other {DEEPEST} deep; flatten the row")


def _parts(value: Any) -> Iterable[Any]:
    """Return the values directly inside a list or mapping, and the names of a mapping."""
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    if isinstance(value, list | tuple) or type(value).__name__ == "ndarray":
        return list(value)
    return ()


def _refuse_half_character(text: str, place: str) -> None:
    """Raise UserError if a text contains half of a surrogate pair, which no tokenizer accepts."""
    half = re.search("[\ud800-\udfff]", text)
    if half is not None:
        raise UserError(
            f"{place}: character {half.start() + 1} of a text is half a character "
            f"(U+{ord(half.group()):04X}, behind {text[: half.start()][-20:]!r}), as cut texts "
            f"have; remove it"
        )


def number_rows(rows: Iterable[Any], name: str) -> Records:
    """Return rows that are given as dicts, each with its number as its place."""
    if isinstance(rows, Mapping) or hasattr(rows, "columns"):
        raise UserError(
            f"the data are a {type(rows).__name__}; give rows: one split of a DatasetDict, "
            f"frame.to_dict('records') of a data frame"
        )
    if not isinstance(rows, Iterable):
        raise UserError(
            f"the data are {rows!r}; expected a file, hub:OWNER/NAME, or a list of dicts"
        )
    listed = list(rows)
    for index, row in enumerate(listed):
        if not isinstance(row, dict):
            raise UserError(f"{name} {index}: expected a dict, got {type(row).__name__}")
        refuse_unreadable(row, f"{name} {index}")  # before the recursion below
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
                return number_rows(array, f"{path}: row")
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


def _read_with_datasets(source: str | Path, *what: str, **options: str) -> Iterable[Row]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{source}: .jsonl and .csv are read directly; Parquet files and the hub need "
            f"`pip install 'textrl-gym[hub]'`"
        ) from error
    try:
        found: Iterable[Row] = datasets.load_dataset(*what, **options, split="train")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{source}: no data set there, or out of reach ({reason})") from error
    return found
