"""SB3's callbacks in `train` of the trainers: told of every update, changing nothing."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EveryNTimesteps,
    ProgressBarCallback,
)
from transformers import AutoModelForCausalLM

from textrl.agents import HeldoutEvaluation
from textrl.config import DPOConfig, RewardConfig, SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.metrics import read_progress
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer, reward_model_from

ROWS = [{"prompt": p, "chosen": f"{p}cd", "rejected": "zz"} for p in "abcdefgh"]
SIZES: dict[str, Any] = {"minibatch_size": 2, "num_epochs": 2, "learning_rate": 1e-2}
UPDATES = 8


def make(stage: str, checkpoint: str, **settings: Any) -> Any:
    shared: dict[str, Any] = {"shown": False, **settings}
    if stage == "sft":
        rows = [{"text": row["prompt"] + row["chosen"]} for row in ROWS]
        return SFTTrainer(tiny_model(), tiny_tokenizer(), rows, SFTConfig(**SIZES), **shared)
    if stage == "dpo":
        return DPOTrainer(tiny_model(), tiny_tokenizer(), ROWS, DPOConfig(**SIZES), **shared)
    model = reward_model_from(checkpoint)
    return RewardTrainer(model, tiny_tokenizer(), ROWS, RewardConfig(**SIZES), **shared)


class Seen(BaseCallback):
    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.events: list[str] = []
        self.stop_after = stop_after

    def _on_training_start(self) -> None:
        self.events.append(f"start {self.locals['total_timesteps']}")

    def _on_rollout_start(self) -> None:
        self.events.append("before")

    def _on_step(self) -> bool:
        assert self.locals["numbers"]["loss"] > 0
        self.events.append(str(self.num_timesteps))
        return self.stop_after is None or self.n_calls < self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("after")

    def _on_training_end(self) -> None:
        self.events.append("end")


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_every_update_is_told_and_nothing_changes(stage: str, checkpoint: str) -> None:
    plain, told, seen = make(stage, checkpoint), make(stage, checkpoint), Seen()
    plain.train()
    assert plain.iteration == plain.num_timesteps == UPDATES  # counted without a callback too
    told.train(callback=seen)
    each = [event for n in range(1, UPDATES + 1) for event in ("before", str(n), "after")]
    assert seen.events == [f"start {UPDATES}", *each, "end"]
    for one, other in zip(plain.model.parameters(), told.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_callback_may_end_the_training(stage: str, checkpoint: str, tmp_path: Path) -> None:
    trainer, twin = make(stage, checkpoint, output_dir=tmp_path), make(stage, checkpoint)
    seen = Seen(stop_after=3)
    trainer.train(callback=seen)
    assert trainer.num_timesteps == trainer.iteration == 3
    assert trainer.get_env().num_envs == 1
    assert seen.events[-3:] == ["3", "after", "end"]
    losses: list[float] = []
    twin.train(
        callback=lambda known, others: losses.append(known["numbers"]["loss"]) or len(losses) < 3
    )
    for one, other in zip(trainer.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "model.safetensors").exists()  # the run is over, and saved as such
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())


def test_sb3s_own_callbacks(checkpoint: str, tmp_path: Path) -> None:
    noted: list[int] = []

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            noted.append(self.num_timesteps)
            return True

    saver = CheckpointCallback(save_freq=4, save_path=str(tmp_path), name_prefix="mid")
    trainer = make("sft", checkpoint)
    trainer.train(callback=[saver, EveryNTimesteps(3, Note())])
    assert noted == [3, 6]
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["mid_4_steps.zip", "mid_8_steps.zip"]
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "mid_8_steps.zip")
    for one, other in zip(last.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_sb3s_progress_bar(checkpoint: str) -> None:
    pytest.importorskip("tqdm")
    bar = ProgressBarCallback()
    make("dpo", checkpoint).train(callback=bar)
    assert (bar.pbar.n, bar.pbar.total) == (UPDATES, UPDATES)


def environment() -> Any:
    return gym.make_vec("TextRLHF-v0", num_envs=8, max_completion_tokens=4, reward=[long, end])


def long(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def end(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(text.endswith("d")) for text in completions]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_held_out_prompts_while_a_policy_is_trained(
    stage: str, checkpoint: str, tmp_path: Path
) -> None:
    heldout = HeldoutEvaluation(
        environment(),
        every=3,
        keep_best="heldout/kl",
        best_folder=tmp_path / "best",
        samples_file=tmp_path / "samples.jsonl",
    )
    trainer = make(stage, checkpoint, output_dir=tmp_path / "run")
    trainer.train(callback=heldout)
    rows = [row for row in read_progress(tmp_path / "run") if "heldout/score" in row]
    assert [row["time/step"] for row in rows] == [0, 3, 6, 8]
    assert rows[0]["heldout/kl"] == pytest.approx(0, abs=1e-5)  # the reference's own model
    assert rows[-1]["heldout/kl"] > 0.01
    assert {"heldout/scores/long", "heldout/scores/end"} <= rows[0].keys()
    samples = [*map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())]
    assert [row["iteration"] for row in samples[::8]] == [0, 3, 6, 8]
    assert {"kl", "reward"} <= samples[0]["by_token"][0].keys()
    assert (tmp_path / "best/model.safetensors").exists()
    twin = make(stage, checkpoint)
    twin.train()
    for one, other in zip(trainer.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_kl_ends_the_training(checkpoint: str) -> None:
    trainer = make("sft", checkpoint)
    trainer.train(callback=HeldoutEvaluation(environment(), every=2, stop_at_kl=1e-3))
    assert trainer.iteration == 2


def test_what_cannot_be_done_is_refused(checkpoint: str) -> None:
    with pytest.raises(UserError, match="a reward model says no texts"):
        make("reward", checkpoint).train(callback=HeldoutEvaluation(environment()))
    with pytest.raises(UserError, match=r"callback is 3; expected a callback of Stable-Baselines3"):
        make("sft", checkpoint).train(callback=3)
