"""`textrl benchmark --task`: agents on a task id, whose score is the return of its world."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from textrl.benchmark import run as benchmark
from textrl.benchmark.agents import make_subject
from textrl.benchmark.config import BenchmarkConfig
from textrl.benchmark.task import Task, acting_measure
from textrl.cli import main
from textrl.envs import tiny_character_model, tiny_character_tokenizer
from textrl.errors import UserError


def small(**changes) -> BenchmarkConfig:
    settings = dict(
        task="TextRLHF/ProbeConstant-v0",
        agents="ppo",
        kl_coef=0.02,
        total_timesteps=4096,
        num_envs=64,
        episodes_per_iteration=256,
        learning_rate=4e-3,
        eval_episodes=128,
        threads=1,
    )
    return BenchmarkConfig(**(settings | changes))


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "sb3:PPO"])
def test_agents_learn_a_task_from_its_reference(name: str) -> None:
    subject = make_subject(name, Task(small()), seed=0)
    score, kl = subject.measure()
    assert score < 0.1
    assert kl == pytest.approx(0.0, abs=1e-4)
    subject.train(4096, 1, lambda: None)
    after, moved = subject.measure()
    assert moved is not None
    assert moved > 1
    assert after > 0.5


def test_stable_baselines_plays_several_turns() -> None:
    """The world's replies stand between its steps, and rollouts are as long as the own tokens."""
    config = small(task="TextRLHF/GuessNumber-v0", num_envs=16, episodes_per_iteration=16)
    task = Task(config)
    assert task.own_tokens == 18
    subject = make_subject("sb3:PPO", task, seed=0)
    assert subject.measure()[1] == pytest.approx(0.0, abs=1e-3)
    subject.train(300, 1, lambda: None)
    assert subject.tokens == 2 * 16 * 18


def test_an_agent_that_only_acts_gets_the_worlds_return() -> None:
    """What a player of the letter that the text names is paid, by the measure of outside agents."""
    task = Task(small(task="TextRLHF/ProbePrompt-v0"))
    venv = task.environment(heldout=True)

    def act(observation):
        return observation["input_ids"][:, 5], None  # <bos> s a y _ c

    assert acting_measure(venv, act)() == (1.0, None)


def test_the_policy_is_a_copy_of_the_reference(tmp_path: Path) -> None:
    task = Task(small())
    policy = task.policy()
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert torch.equal(policy.lm_head.weight, tiny_character_model().lm_head.weight)
    other = tiny_character_model()
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    other.save_pretrained(tmp_path)
    tiny_character_tokenizer().save_pretrained(tmp_path)
    task = Task(small(model=str(tmp_path)))
    for model in (task.policy(), task.environment().reference):
        assert torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_measurements_are_without_groups_and_repeat() -> None:
    task = Task(small(task="TextRLHF/ProbePrompt-v0"))
    heldout, training = task.environment(heldout=True), task.environment()
    assert (heldout.group_size, training.group_size) == (1, 4)
    prompts = training.reset(seed=0)[1]["prompt"].reshape(-1, 4)
    assert (prompts == prompts[:, :1]).all()
    assert len(np.unique(heldout.reset(seed=0)[1]["prompt"])) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "TextRLHF/GuesNumber-v0"}, "did you mean 'TextRLHF/GuessNumber-v0'"),
        ({"prompts": "a.jsonl"}, "prompts is 'a.jsonl'; expected nothing, as the task TextRLHF"),
        ({"reward": "folder"}, "reward is 'folder'; expected nothing"),
        ({"max_completion_tokens": 25}, "max_completion_tokens is 25; expected nothing"),
        ({"min_completion_tokens": 1}, "min_completion_tokens is 1; expected nothing"),
        ({"on_length": "truncate"}, "on_length is 'truncate'; expected nothing"),
    ],
)
def test_what_a_task_would_ignore_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_what_cannot_be_made_is_refused_at_once() -> None:
    benchmark.check(small(agents="mlp:DQN,random"))
    with pytest.raises(UserError, match="scores no text by itself"):
        benchmark.check(small(agents="ppo,best_of_n"))
    with pytest.raises(UserError, match="runs/demo/sft holds no model"):
        benchmark.check(small(task="TextRLHF/Reviews-v0"))


def test_the_command(tmp_path: Path, capsys) -> None:
    options = "--total_timesteps 300 --num_envs 16 --episodes_per_iteration 16 --seeds 1"
    main(
        ["benchmark", "--task", "TextRLHF/LetterCount-v0", "--agents", "rloo"]
        + [*options.split(), "--threads=1", "--evaluations=1", "--eval_episodes=16"]
        + ["--output_dir", str(tmp_path / "run")]
    )
    assert "| rloo | 1 |" in capsys.readouterr().out
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert found["config"]["task"] == "TextRLHF/LetterCount-v0"
    assert "max_completion_tokens" not in found["config"]  # the task has its own
    assert 0 <= found["rows"][0]["score"] <= 1
