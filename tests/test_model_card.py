"""The model card of a run: what hubs read, what people read, and whose file it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from textrl.cli import main
from textrl.cli.model_card import card, write_card
from textrl.cli.push import MARK
from textrl.doctor.records import read_record

MACHINE = {
    "command": "textrl ppo --model org/base --reward rm",
    "commit": "abc",
    "began": "2026-11-28T10:00:00+00:00",
    "versions": {"textrl-gym": "0.1.0", "transformers": "5.24.0"},
}


def run(folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {
            "time/step": 100 * n,
            "time/iteration": n,
            "rollout/score": 0.25 * n,
            "rollout/kl": 0.1 * n,
        }
        for n in range(9)
    ]
    (folder / "progress.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": "org/base", "reward": "a|b"} | settings)
    )
    (folder / "machine.json").write_text(json.dumps(MACHINE))
    return folder


def test_the_card_says_what_the_model_is_made_of(tmp_path: Path) -> None:
    text = card(read_record(run(tmp_path / "mine")))
    head = yaml.safe_load(text.split("---")[1])
    assert head == {
        "library_name": "transformers",
        "tags": ["textrl", "rlhf", "ppo"],
        "base_model": "org/base",
    }
    assert "# mine\n" in text
    assert "| base model | org/base |" in text
    assert "| reward | a\\|b |" in text
    points = "0 (0), 0.25 (1), 0.5 (2), 0.75 (3), 1.25 (5), 1.5 (6), 1.75 (7), 2 (8)"
    assert f"| rollout/score (at iteration) | {points} |" in text
    assert "run: nothing wrong found in 9 iterations" in text
    assert "```sh\ntextrl ppo --model org/base --reward rm\n```" in text


def test_a_folder_is_no_base_of_a_hub(tmp_path: Path) -> None:
    text = card(read_record(run(tmp_path / "mine", model=str(tmp_path))))
    assert "base_model" not in text


def test_a_card_that_somebody_wrote_is_kept(tmp_path: Path) -> None:
    record = read_record(run(tmp_path / "mine"))
    write_card(record)
    first = (tmp_path / "mine/README.md").read_text()
    assert MARK in first
    write_card(record)  # its own is written anew
    (tmp_path / "mine/README.md").write_text("mine")
    write_card(record)
    assert (tmp_path / "mine/README.md").read_text() == "mine"


def test_a_command_leaves_a_card_without_passwords(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"text": "abc"}\n' * 4)
    command = ["sft", "--model", checkpoint, "--data", "texts.jsonl", "--output_dir", "out"]
    secret = "postgresql://ann:secret@host/labels"
    people = [f"collect:{secret}?wait=60", "collect:postgresql://ann@host/l?password=secret&wait=1"]
    monkeypatch.setattr("sys.argv", ["textrl", *command, f"--also={secret}", secret, *people])
    main(command)
    text = Path("out/README.md").read_text()
    assert "Trained by `textrl sft`" in text
    assert "| data | texts.jsonl |" in text
    for path in Path("out").glob("*.*"):
        assert "secret" not in path.read_text(errors="replace"), path
