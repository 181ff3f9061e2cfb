"""Files of any bytes and endings: read as what they say, or refused in one line."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from inputs import LONG, Nested, attempt, fuzz, json_values, same, scalars, texts, unfolded

from textrl.data import load_records
from textrl.envs import tiny_tokenizer
from textrl.envs.texts import load_prompts

NAMES = ("d.jsonl", "d.json", "d.ndjson", "d.csv", "d.tsv", "d.parquet", "d.jsonl.gz", "d.csv.gz")
OTHER_NAMES = ("d.txt", "d.JSONL", "d.zip", "d.xlsx", "d", "json", "csv", "text", ".jsonl", "d.gz")
MAGIC = (
    b"\x1f\x8b\x08",
    b"PK\x03\x04",
    b"PAR1",
    b"\x80\x04",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0\0",
)
ENDS = ("\n", "\r\n", "\r", "\n\n", " \n", "\u2028")
cells = st.one_of(texts, st.sampled_from(["", "1", "a,b", 'a"b', "a\nb", "[", "[1]", "\ufeff"]))
names = st.text("abcxyz", min_size=1, max_size=3)
objects = st.dictionaries(names, json_values, min_size=1, max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the one file of each input."""
    return tmp_path_factory.mktemp("files")


def read(folder: Path, name: str, content: bytes) -> tuple[bool, Any]:
    """Write a file, load it, and return what `attempt` says of it."""
    path = folder / name
    path.write_bytes(content)
    try:
        return attempt(lambda: load_records(path))
    finally:
        path.unlink()


@fuzz(
    fast=40, long=3_000, rows=st.lists(objects, min_size=1, max_size=4), end=st.sampled_from(ENDS)
)
def test_json_lines_are_what_json_says(folder: Path, rows: list[Any], end: str) -> None:
    try:
        lines = [json.dumps(row) for row in rows]
    except RecursionError:
        return
    taken, found = read(folder, "d.jsonl", end.join(lines).encode())
    if taken:
        assert len(found.rows) == len(rows)
        assert all(map(same, found.rows, rows))


@fuzz(fast=30, long=2_000, rows=st.lists(objects, min_size=1, max_size=4), packed=st.booleans())
def test_a_json_array_is_what_json_says(folder: Path, rows: list[Any], packed: bool) -> None:
    try:
        content = json.dumps(rows, ensure_ascii=False).encode(errors="surrogatepass")
    except RecursionError:
        return
    name, content = ("d.json.gz", gzip.compress(content)) if packed else ("d.json", content)
    taken, found = read(folder, name, content)
    if taken:
        assert len(found.rows) == len(rows)
        assert all(map(same, found.rows, rows))


@fuzz(
    fast=40,
    long=2_500,
    header=st.lists(names, min_size=1, max_size=3),
    rows=st.lists(st.lists(cells, min_size=1, max_size=3), max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    tabs=st.booleans(),
)
def test_csv_is_what_was_written(
    folder: Path, header: list[str], rows: list[list[str]], end: str, tabs: bool
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, delimiter="\t" if tabs else ",")
    writer.writerows([header, *rows])
    content = file.getvalue().encode(errors="surrogatepass")
    taken, found = read(folder, "d.tsv" if tabs else "d.csv", content)
    if taken:
        assert [[str(cell) for cell in row.values()] for row in found.rows] == rows
        assert all(list(row) == header for row in found.rows)


@fuzz(
    fast=60,
    long=3_000,
    name=st.sampled_from(NAMES + OTHER_NAMES),
    magic=st.sampled_from((b"", *MAGIC)),
    content=st.one_of(st.binary(max_size=60), st.builds(str.encode, st.text(max_size=60))),
)
def test_any_bytes_are_rows_or_one_line(
    folder: Path, name: str, magic: bytes, content: bytes
) -> None:
    taken, found = read(folder, name, magic + content)
    if taken:
        assert found.rows
    elif name != ".jsonl":
        assert str(folder) in found, found


@fuzz(fast=40, long=1_000, text=st.one_of(texts, st.text(st.characters(), max_size=30)))
def test_any_text_as_the_name_of_a_file(text: str) -> None:
    attempt(lambda: load_records(text))
    attempt(lambda: load_records(text + ".jsonl"))


@fuzz(
    fast=20,
    long=1_000,
    rows=st.lists(st.fixed_dictionaries({"prompt": scalars}), min_size=1, max_size=4),
)
def test_prompts_of_a_file(folder: Path, rows: list[Any]) -> None:
    path = folder / "p.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    taken, found = attempt(lambda: load_prompts(path, tiny_tokenizer(), 64))
    if taken:
        assert [prompt.text for prompt in found.prompts] == [row["prompt"] for row in rows]
    else:
        assert str(path) in found


@pytest.mark.parametrize("depth", [1000, 10_000, 100_000])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv"])
def test_nested_deeply(folder: Path, name: str, depth: int) -> None:
    inside = "[" * depth + "]" * depth
    head = "prompt\n" if name == "d.csv" else '{"prompt": '
    taken, found = read(folder, name, f"{head}{inside}{'' if name == 'd.csv' else '}'}".encode())
    assert taken == (name == "d.csv")  # where it is a text
    assert not taken or found.rows == [{"prompt": inside}]


@pytest.mark.skipif(settings.get_current_profile_name() != LONG, reason="takes seconds")
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv"])
def test_a_line_of_a_hundred_megabytes(folder: Path, name: str) -> None:
    text = "x" * 100_000_000
    content = f"text\n{text}\n" if name == "d.csv" else json.dumps({"text": text})
    taken, found = read(folder, name, content.encode())
    assert taken
    assert found.rows == [{"text": text}]
    cut = content.encode()[:50_000_000]
    assert read(folder, name, cut)[0] == (name == "d.csv")  # where any text is a cell


def test_parquet(folder: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    rows = [{"prompt": "a", "n": 1.5}, {"prompt": "b\0", "n": None}]
    path = folder / "d.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert load_records(path).rows == rows
    whole = path.read_bytes()
    for content in (whole[:-5], b"", b"PAR1", whole[:40] + b"\xff" * 8 + whole[48:]):
        taken, found = read(folder, "e.parquet", content)
        assert taken or str(folder) in found
    assert unfolded(Nested(2, list)) == [["x"]]
