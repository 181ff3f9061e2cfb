"""A run whose weights or gradients are not finite ends with an error, not as if it had trained."""

import json
import math

import pytest
import torch
from transformers import PreTrainedModel

from textrl import cli
from textrl.agents import PPO
from textrl.checkpoint import save_model
from textrl.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from textrl.envs import TextRLHFVectorEnv, tiny_model, tiny_score, tiny_tokenizer
from textrl.errors import UserError
from textrl.loop import LossRose
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer, reward_model_from
from textrl.updater import LossSum

TEXTS = [{"text": "abc"}, {"text": "bcde"}, {"text": "fg"}, {"text": "hij"}]
PAIRS = [{"prompt": "a", "chosen": "bcd", "rejected": "zz"}] * 4


def spoiled(model: PreTrainedModel, value: float = math.nan) -> PreTrainedModel:
    """Return the model with one bad weight, in its last layer's norm."""
    model.get_parameter("model.norm.weight").data[3] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "ppo"])
def test_no_run_begins_with_a_weight_that_is_not_finite(kind, value, checkpoint: str) -> None:
    tokenizer = tiny_tokenizer()

    def run() -> None:
        if kind == "sft":
            model = spoiled(tiny_model(), value)
            SFTTrainer(model, tokenizer, TEXTS, SFTConfig(), shown=False).train()
        elif kind == "dpo":
            model = spoiled(tiny_model(), value)
            DPOTrainer(model, tokenizer, PAIRS, DPOConfig(), shown=False).train()
        elif kind == "reward":
            model = spoiled(reward_model_from(checkpoint), value)
            RewardTrainer(model, tokenizer, PAIRS, RewardConfig(), shown=False).train()
        else:
            venv = TextRLHFVectorEnv(
                num_envs=4,
                reference=tiny_model(),
                tokenizer=tokenizer,
                reward=tiny_score,
                prompts=["a"],
                autoreset_mode="Disabled",
            )
            PPO(spoiled(tiny_model(), value), venv, PPOConfig(episodes_per_iteration=4))

    with pytest.raises(UserError, match=r"model\.norm\.weight holds 1 NaN or infinite values of"):
        run()


def test_the_command_line_fails_and_saves_nothing(tmp_path, capsys) -> None:
    model = spoiled(tiny_model())
    model.save_pretrained(tmp_path / "bad")
    tiny_tokenizer().save_pretrained(tmp_path / "bad")
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, TEXTS)))
    paths = [f"--data={tmp_path / 'texts.jsonl'}", f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["sft", f"--model={tmp_path / 'bad'}", *paths])
    assert stop.value.code == 2
    assert "model.norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def spoiling(trainer: SFTTrainer, bad: set[int]) -> SFTTrainer:
    """Return the trainer with a loss of NaN in these updates (one micro-batch each)."""
    loss, calls = trainer._loss, iter(range(1000))

    def spoil(sequences) -> LossSum:
        found = loss(sequences)
        factor = math.nan if next(calls) in bad else 1.0
        return LossSum(loss=found.loss * factor, metrics=found.metrics)

    trainer._loss = spoil
    return trainer


def sft(folder) -> SFTTrainer:
    config = SFTConfig(minibatch_size=2, num_epochs=3)  # six updates
    return SFTTrainer(tiny_model(), tiny_tokenizer(), TEXTS, config, output_dir=folder, shown=False)


def test_a_skipped_update_in_the_middle_is_counted_in_the_log(tmp_path) -> None:
    spoiling(sft(tmp_path), {2}).train()
    rows = [json.loads(row) for row in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row["sft/skipped_updates"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({0, 1, 2, 3, 4, 5}, "5 updates in a row"),
        ({1, 4, 5}, "the last 2 updates, in 3 of 6"),
    ],
)
def test_a_run_that_ends_in_skipped_updates_has_failed(bad, message, tmp_path) -> None:
    with pytest.raises(UserError, match=message):
        spoiling(sft(tmp_path), bad).train()
    assert not (tmp_path / "model.safetensors").exists()


def test_an_agents_run_that_ends_in_skipped_updates_has_failed() -> None:
    venv = TextRLHFVectorEnv(
        num_envs=4,
        reference=tiny_model(),
        tokenizer=tiny_tokenizer(),
        reward=tiny_score,
        prompts=["a"],
        autoreset_mode="Disabled",
    )
    agent = PPO(
        tiny_model(), venv, PPOConfig(episodes_per_iteration=4, num_epochs=2, minibatch_size=4)
    )
    agent._actor_loss = lambda *rest: (
        agent.policy.lm_head.weight.sum() * math.nan,
        {"approx_kl": torch.tensor(0.0), "ratio_error": torch.tensor(0.0)},
    )
    with pytest.raises(UserError, match="the last 2 updates, in 2 of 2"):
        agent.learn(1)


def test_a_model_that_is_not_finite_is_not_saved(tmp_path) -> None:
    with pytest.raises(UserError, match=r"cannot be saved: model\.norm\.weight"):
        save_model(spoiled(tiny_model()), tiny_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_makes_things_worse_says_so() -> None:
    texts = [{"text": "abcdefghij"[: 2 + i % 8]} for i in range(16)]

    def train(learning_rate: float) -> None:
        config = SFTConfig(minibatch_size=2, learning_rate=learning_rate, num_epochs=3)
        SFTTrainer(tiny_model(), tiny_tokenizer(), texts, config, shown=False).train()

    with pytest.warns(LossRose, match=r"rose from 3.* to .*lower learning_rate"):
        train(1e2)
    train(1e-2)  # warnings are errors here
