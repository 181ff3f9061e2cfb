"""`--track`: what a tracker is told, with a stand-in (fast) and with the real packages (slow)."""

import json
import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from textrl.cli import main
from textrl.config import SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.metrics import read_progress
from textrl.trainers import SFTTrainer

SFT = ["sft", "--data", "texts.jsonl", "--output_dir", "out", "--minibatch_size", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"text": "abc"}\n' * 8)
    return tmp_path


class StandIn(types.ModuleType):
    """Notes what wandb or trackio would be told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    def init(self, **options: Any) -> None:
        self.begun.append(options)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.rows.append((step, numbers))

    def finish(self) -> None:
        self.ended += 1


def test_a_tracker_gets_each_row_and_the_settings(
    folder: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    main([*SFT, "--model", checkpoint, "--track", "wandb"])
    (begun,) = wandb.begun
    assert begun["project"] == "textrl"
    assert begun["name"].startswith("out-")
    assert begun["config"]["learning_rate"] == 1e-4
    assert begun["config"]["track"] == "wandb"
    rows = read_progress(folder / "out")
    assert [step for step, _ in wandb.rows] == [row["time/step"] for row in rows] == [1, 2, 3, 4]
    for (_, sent), row in zip(wandb.rows, rows, strict=True):
        assert {name: pytest.approx(value) for name, value in sent.items()} == row
    assert wandb.ended == 1


def test_a_run_that_goes_on_is_the_same_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    rows = [{"text": "abc"}] * 8

    def trainer() -> SFTTrainer:
        config = SFTConfig(minibatch_size=2, save_every=1)
        return SFTTrainer(
            tiny_model(), tiny_tokenizer(), rows, config, output_dir="run", shown=False
        )

    def stop(known: dict[str, Any], others: dict[str, Any]) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer().train(callback=stop, track="wandb")
    trainer().train(resume=True, track="wandb")
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    with pytest.raises(UserError, match="wandb follows the metrics of a run folder"):
        SFTTrainer(tiny_model(), tiny_tokenizer(), rows, shown=False).train(track="wandb")


def test_what_is_missing_is_named(
    folder: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(SystemExit):
        main([*SFT, "--model", checkpoint, "--track", "trackio"])
    assert "pip install 'textrl-gym[trackio]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_real_wandb_offline(folder: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    main([*SFT, "--model", checkpoint, "--track", "wandb"])
    (record,) = (folder / "out/wandb").glob("offline-run-*/*.wandb")
    assert b"sft/loss" in record.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_real_trackio(folder: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="needs the extra trackio")
    import subprocess

    monkeypatch.setenv("TRACKIO_DIR", str(folder / "kept"))  # read when the package is imported
    command = [sys.executable, "-m", "textrl", *SFT, "--model", checkpoint, "--track", "trackio"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(folder / "kept/textrl.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [1, 2, 3, 4]
    kept = [row["sft/loss"] for row in read_progress(folder / "out")]
    assert [json.loads(text)["sft/loss"] for _, text in rows] == pytest.approx(kept)
