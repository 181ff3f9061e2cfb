"""Random command lines: help or success, or one line and status 2; and nothing is ever deleted."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from inputs import ODD_TEXTS, fuzz, texts

from textrl.cli import main, parser
from textrl.cli.parser import COMMANDS

NAMES = sorted({f.name for _, kinds in COMMANDS.values() for kind in kinds for f in fields(kind)})
FLAGS = (
    "--resume",
    "--overwrite",
    "--log_table",
    "--help",
    "--version",
    "--print_config",
    "--over",
)
PLACES = (
    "run",
    "full",
    "d.jsonl",
    "no",
    "./run",
    "../x",
    "c.yaml",
    "sqlite:///no.db",
    "",
    "hub:a/b",
)
VALUES = ("1", "0", "-1", "1e6", "1e-3", "inf", "nan", "true", "none", "null", "[1, 2]", "{a: 1}")
values = st.one_of(st.sampled_from((*PLACES, *VALUES, *ODD_TEXTS[:20])), texts)
options = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(NAMES), values),
    st.builds("--{}={}".format, st.sampled_from(("model", "data", "output_dir")), values),
    st.sampled_from(FLAGS),
    st.builds("--{}".format, texts),
    st.builds("--config={}".format, st.sampled_from(PLACES)),
    values,
)
commands = st.one_of(
    st.sampled_from(
        [*COMMANDS, *COMMANDS, "collect backup", "ppo --agent rloo", "train", "", "pp"]
    ),
    texts,
)
lines = st.builds(
    lambda command, rest: [*command.split(" ", 1), *rest], commands, st.lists(options, max_size=6)
)
REQUIRED = {
    "sft": ["--model=no", "--data=d.jsonl", "--output_dir=run"],
    "reward": ["--model=no", "--data=d.jsonl", "--output_dir=run"],
    "dpo": ["--model=no", "--data=d.jsonl", "--output_dir=run"],
    "ppo": ["--model=no", "--prompts=d.jsonl", "--reward=no", "--output_dir=run"],
    "rloo": ["--model=no", "--prompts=d.jsonl", "--reward=a:b", "--output_dir=full"],
    "train": ["--agent=a:B", "--model=no", "--prompts=d.jsonl", "--reward=no", "--output_dir=run"],
    "generate": ["--model=no", "--prompts=d.jsonl"],
    "evaluate": ["--model=no", "--reference=no", "--reward=no", "--prompts=d.jsonl"],
    "push": ["--model=run", "--repo=ann/policy"],
    "export": ["--database=sqlite:///no.db"],
    "collect-backup": ["--database=sqlite:///no.db", "--output=b.db"],
}
early = st.sampled_from(sorted(REQUIRED)).flatmap(
    lambda name: st.builds(
        lambda rest: (
            [name, "--total_timesteps=1", *REQUIRED[name], *rest]
            if name in ("ppo", "rloo", "train")
            else [name, *REQUIRED[name], *rest]
        ),
        st.lists(options.filter(lambda o: not o.startswith("--model")), max_size=3),
    )
)


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in a folder with a finished run, a folder of somebody's files, data and a config."""
    folder = tmp_path_factory.mktemp("place")
    for name in (
        "run/config.yaml",
        "run/model.safetensors",
        "full/thesis.txt",
        "d.jsonl",
        "c.yaml",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("seed: 1\n" if name.endswith("yaml") else '{"prompt": "a"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        patch.setattr(parser, "make_parser", functools.cache(parser.make_parser))
        yield folder


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def ends_well(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command line: its status is 0, or 2 with one line about what is wrong."""
    capsys.readouterr()
    try:
        main(line)
        status: Any = 0
    except SystemExit as end:
        status = end.code
    written = capsys.readouterr().err
    assert status in (0, None, 2), (line, status, written)
    if status == 2:
        said = [part for part in written.splitlines() if part.startswith("textrl: ")]
        assert len(said) == 1, (line, written)
        assert said[0].startswith("textrl: error: "), line
        assert "Traceback" not in written


@fuzz(fast=40, long=3000, line=lines)
def test_a_line_is_parsed_or_refused(
    line: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "_find", lambda command: lambda *configs: None)
        ends_well(line, capsys)
    assert contents(place) == before


@fuzz(fast=6, long=1000, line=early)
def test_a_command_that_lacks_its_model_deletes_nothing(
    line: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place)
    ends_well(line, capsys)
    after = contents(place)
    assert before.items() <= after.items(), line
