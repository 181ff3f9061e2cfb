"""The main job end to end in seconds: the real code on made-up reviews and a shrunken preset."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from textrl.demo import run as demo
from textrl.demo.config import DemoConfig
from textrl.demo.presets import PRESETS
from textrl.demo.reviews import Review
from textrl.errors import UserError
from textrl.evaluation import Sampled, best_of, best_of_kl, summarize
from textrl.metrics import read_progress

WORDS = ("good", "great", "fine", "fun", "bad", "dull", "awful", "weak")


def made_reviews() -> list[Review]:
    """Short texts whose ratings follow their words, as two raters would."""
    rng = np.random.default_rng(0)
    reviews = []
    for index in range(160):
        picked = rng.integers(8, size=8)
        rating = int(np.clip(round(4 - picked.mean()), -4, 4))
        text = " ".join(WORDS[i] for i in picked) + f" film {index}"
        reviews.append(Review(text=text, ratings=(rating, rating - 1)))
    return reviews


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_reviews", made_reviews)
    tiny = PRESETS["tiny"]
    preset = replace(
        tiny,
        max_completion_tokens=8,
        sft=replace(tiny.sft, num_epochs=1),
        reward_epochs=1,
        normalize_samples=16,
        ppo=replace(tiny.ppo, episodes_per_iteration=16, minibatch_size=16),
        ppo_timesteps=150,
        dpo=replace(tiny.dpo, episodes_per_iteration=32, num_epochs=1),
        eval_prompts=6,
    )
    monkeypatch.setitem(PRESETS, "tiny", preset)


def numbers(folder: Path) -> dict[str, object]:
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("seconds", "peak_memory_mb", "stage_seconds"):
        del summary[name]
    return summary


@pytest.mark.slow
def test_demo_leaves_everything_behind_and_repeats_itself(small, tmp_path, capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    demo.run(DemoConfig(output_dir=str(first), threads=1))
    printed = capsys.readouterr().out
    assert "best_of_16" in printed
    assert str(first / "report.html") in printed
    summary = json.loads((first / "summary.json").read_text())
    for name in ("sft", "ppo", "dpo", "best_of_16"):
        assert set(summary[name]) == {"score", "score_std", "kl", "length", "judge_positive"}
    assert summary["best_of_16"]["kl"] == pytest.approx(best_of_kl(16))
    assert 0 <= summary["reward_model"]["heldout_accuracy"] <= 1
    for name in ("sft", "ppo", "dpo"):
        AutoModelForCausalLM.from_pretrained(first / name)
    AutoModelForSequenceClassification.from_pretrained(first / "reward_model")
    assert (first / "ppo" / "critic.safetensors").exists()
    assert list((first / "ppo").glob("events.out.tfevents*"))
    page = (first / "report.html").read_text()
    assert "src=" not in page
    assert "<script" not in page
    assert page.count("<svg") == 9
    assert "log-ratio" in page
    assert "&plusmn;" in page
    assert "threads, cpu: " in page  # when, how and on what it ran
    assert "https:" not in page.replace("https://www.w3.org", "")

    demo.run(DemoConfig(output_dir=str(second), threads=1))
    assert numbers(first) == numbers(second)

    # an interrupted run goes on where it stopped, and ends in the same numbers
    (second / "evaluation" / "stage.json").unlink()
    (second / "dpo" / "stage.json").unlink()
    with pytest.raises(UserError, match="--resume"):
        demo.run(DemoConfig(output_dir=str(second), threads=1))
    before = (second / "ppo" / "stage.json").stat().st_mtime_ns
    demo.run(DemoConfig(output_dir=str(second), threads=1, resume=True))
    assert (second / "ppo" / "stage.json").stat().st_mtime_ns == before
    assert numbers(first) == numbers(second)


def test_best_of_by_hand() -> None:
    samples = Sampled(
        prompts=["a", "a", "b", "b"],
        completions=["1", "2", "3", "4"],
        token_ids=[[5], [5, 6], [7], [8]],
        logprobs=[[-1.0], [-1.0, -2.0], [-1.0], [-1.0]],
        ref_logprobs=[[-2.0], [-2.0, -2.0], [-1.0], [-1.0]],
        scores=[0.0, 1.0, 3.0, 2.0],
    )
    best = best_of(samples, 2)
    assert (best.completions, best.scores) == (["2", "3"], [1.0, 3.0])
    assert samples.kl.tolist() == [1.0, 1.0, 0.0, 0.0]
    found = summarize(samples, lambda prompts, completions: [0.0, 0.06, 0.05, 1.0])
    assert found == {
        "score": 1.5,
        "score_std": pytest.approx(np.std([0, 1, 3, 2])),
        "kl": 0.5,
        "length": 1.25,
        "judge_positive": 0.5,
    }
    # best of 2 of two equally likely outcomes: p = 3/4, KL = 3/4 log(3/2) + 1/4 log(1/2) < bound
    exact = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert exact < best_of_kl(2) == pytest.approx(np.log(2) - 0.5)


@pytest.mark.proof
def test_smollm2_and_minilm_in_a_short_form(monkeypatch, tmp_path) -> None:
    """The real models and ratings through every stage; the long form is in make proof."""
    preset = PRESETS["smollm2"]
    short = replace(
        preset,
        max_completion_tokens=8,
        sft_reviews=32,
        reward_reviews=256,
        normalize_samples=8,
        ppo=replace(preset.ppo, episodes_per_iteration=8, minibatch_size=8),
        ppo_timesteps=100,
        dpo=replace(preset.dpo, episodes_per_iteration=16, num_epochs=1),
        eval_prompts=2,
    )
    monkeypatch.setitem(PRESETS, "smollm2", short)
    train, heldout = demo.split_reviews(demo.load_reviews())
    monkeypatch.setattr(demo, "split_reviews", lambda reviews: (train, heldout[:100]))
    demo.run(DemoConfig(output_dir=str(tmp_path / "run"), preset="smollm2", threads=1))
    summary = numbers(tmp_path / "run")
    assert abs(summary["sft"]["kl"]) < 1e-3
    assert 0 < summary["ppo"]["kl"] < 5
    progress = read_progress(tmp_path / "run/ppo")
    assert progress[0]["train/first_ratio_error"] < 1e-3
