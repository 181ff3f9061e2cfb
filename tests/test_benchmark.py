"""`textrl benchmark`: any agent by name, failures reported, finished cells kept."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from textrl.agents import register
from textrl.benchmark import run as benchmark
from textrl.benchmark.agents import importable, make_subject
from textrl.benchmark.config import BenchmarkConfig
from textrl.benchmark.task import Task, acting_measure, model_measure
from textrl.cli import main
from textrl.envs import tiny_model
from textrl.errors import UserError

OUTSIDE = '''
import numpy as np


class Ending:
    """Ends every text at once; learns nothing."""

    def __init__(self, policy, venv):
        self.eos = venv.eos_token_id

    def learn(self, total_timesteps, progress_bar=False):
        return self

    def predict(self, observation, deterministic=False):
        return np.full(len(observation["input_ids"]), self.eos), None

    def save(self, path):
        pass


def broken(policy, venv):
    raise ValueError("cannot be made")


def killed(policy, venv):
    import os

    os.kill(os.getpid(), 9)
'''


def small(**kwargs) -> BenchmarkConfig:
    settings = dict(
        agents="ppo",
        max_completion_tokens=5,
        total_timesteps=600,
        seeds=1,
        num_envs=16,
        episodes_per_iteration=32,
        learning_rate=3e-3,
        evaluations=2,
        eval_episodes=32,
        threads=1,
    )
    return BenchmarkConfig(**(settings | kwargs))


@pytest.mark.parametrize(
    "name",
    [
        *("ppo", "rloo", "online_dpo", "best_of_n"),
        *("sb3:A2C", "sb3:MaskablePPO", "mlp:PPO", "mlp:DQN", "reference", "random"),
    ],
)
def test_every_family_learns_and_is_measured(name: str) -> None:
    subject = make_subject(name, Task(small()), seed=0)
    score, kl = subject.measure()
    assert (score, kl) == subject.measure() or name in ("best_of_n", "random", "mlp:PPO")
    assert 0 <= score <= 1
    assert kl is not None
    if name in ("ppo", "rloo", "online_dpo", "sb3:A2C", "sb3:MaskablePPO", "reference"):
        assert kl == pytest.approx(0.0, abs=1e-3)
    else:
        assert kl > 0.1
    calls = []
    subject.train(200, 2, lambda: calls.append(subject.tokens))
    assert len(calls) == 2
    if subject.trains:
        assert 100 <= calls[0] <= calls[1] <= 400
        assert calls[1] >= 200
    else:
        assert calls == [0, 0]


def test_one_measurement_both_ways() -> None:
    """A language model measured whole, and as any agent that acts: the same in expectation."""
    task = Task(small(eval_episodes=1024))
    policy = tiny_model()
    with torch.no_grad():
        policy.lm_head.weight.mul_(10)
    generator = torch.Generator().manual_seed(0)

    def act(observation):
        ids = torch.as_tensor(observation["input_ids"]).long()
        lengths = torch.as_tensor(observation["attention_mask"]).sum(1)
        with torch.no_grad():
            logits = policy(input_ids=ids).logits[torch.arange(len(ids)), lengths - 1]
        logprobs = logits.log_softmax(-1)
        actions = torch.multinomial(logprobs.exp(), 1, generator=generator)
        return actions[:, 0].numpy(), logprobs.gather(1, actions)[:, 0].numpy()

    score, kl = model_measure(task.environment(heldout=True), lambda: policy)()
    acted_score, acted_kl = acting_measure(task.environment(heldout=True), act)()
    assert kl is not None
    assert acted_kl is not None
    assert kl > 0.2
    assert acted_kl == pytest.approx(kl, rel=0.05)
    assert acted_score == pytest.approx(score, abs=0.02)


@pytest.mark.proof
@pytest.mark.parametrize(
    "name", ["ppo", "rloo", "sb3:PPO", "sb3:A2C", "mlp:PPO", "mlp:A2C", "mlp:DQN"]
)
def test_agents_learn_with_the_benchmarks_own_settings(name: str) -> None:
    """The letters task; with learning rates of 0 the same bar is missed."""

    def gain(rate: float, mlp_rate: float) -> float:
        config = small(
            agents=name,
            max_completion_tokens=8,
            num_envs=64,
            episodes_per_iteration=256,
            total_timesteps=40_000,
            kl_coef=0.003,
            learning_rate=rate,
            mlp_learning_rate=mlp_rate,
            eval_episodes=512,
        )
        subject = make_subject(name, Task(config), seed=0)
        before = subject.measure()[0]
        subject.train(config.total_timesteps, 2, lambda: None)
        return subject.measure()[0] - before

    bar = 0.02 if name.endswith("A2C") else 0.05  # A2C takes 40 steps where PPO takes 160
    assert gain(3e-3, 1e-3) > bar
    assert gain(1e-12, 1e-12) < bar


def test_both_families_are_measured_on_the_same_prompts() -> None:
    """The task's prompts limit the score, so other prompts would be another task."""
    task, seen = Task(small()), []
    venv = task.environment(heldout=True)
    start = venv.core.start

    def watch(row, prompt):
        seen.append(prompt)
        start(row, prompt)

    venv.core.start = watch
    model_measure(venv, task.policy)()
    by_model, seen[:] = list(seen), []

    def ends(observation):
        return np.full(venv.num_envs, venv.eos_token_id), None

    acting_measure(venv, ends)()
    assert seen[: 2 * venv.num_envs] == by_model


def test_a_registered_agent_has_a_name_elsewhere() -> None:
    register("mine_for_a_test", Fraction)
    assert importable("mine_for_a_test") == "fractions:Fraction"
    assert importable("ppo") == "ppo"
    assert importable("sb3:PPO") == "sb3:PPO"


def test_cells_of_other_settings_do_not_count() -> None:
    one, other = small(agents="ppo"), small(agents="ppo", total_timesteps=700)
    assert benchmark.settings_digest(one) != benchmark.settings_digest(other)
    more = small(agents="ppo,rloo", seeds=3)
    assert benchmark.settings_digest(one) == benchmark.settings_digest(more)


@pytest.mark.slow
def test_failures_are_reported_and_finished_cells_kept(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside.py").write_text(OUTSIDE)
    names = "mlp:A2C,outside:broken,outside:killed,outside:Ending"
    command = ["benchmark", "--agents", names, "--output_dir", "run", "--num_envs=16"]
    command += ["--episodes_per_iteration=32", "--max_completion_tokens=5", "--seeds=1"]
    command += ["--total_timesteps=400", "--evaluations=2", "--eval_episodes=32", "--threads=1"]
    with pytest.raises(SystemExit, match="1"):
        main(command)
    out = capfd.readouterr().out
    assert "outside:broken, seed 0 failed: ValueError: cannot be made" in out
    assert "outside:killed, seed 0 failed: its process was killed" in out
    assert "| outside:broken | 0, 1 failed | - |" in out
    rows = {r["agent"]: r for r in json.loads(Path("run/results.json").read_text())["rows"]}
    assert rows["outside:Ending"]["score"] == 0.0
    assert rows["outside:Ending"]["kl"] is None
    assert len(rows["mlp:A2C"]["curve"]) == 3
    assert 100 < rows["mlp:A2C"]["peak_memory_mb"] < 2000
    assert rows["mlp:A2C"]["tokens_per_second"] > 10
    assert Path("run/curves.png").stat().st_size > 10_000
    first = Path("run/cells.jsonl").read_text().splitlines()
    with Path("run/cells.jsonl").open("a") as file:
        file.write('{"agent": "cut o')
    command[2] += ",reference"
    with pytest.raises(SystemExit, match="1"):
        main([*command, "--resume"])
    capfd.readouterr()
    second = Path("run/cells.jsonl").read_text().splitlines()
    assert [json.loads(line)["agent"] for line in second[len(first) + 1 :]] == [
        "outside:broken",
        "outside:killed",
        "reference",
    ]
    assert json.loads(second[-1])["tokens_per_second"] is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pppo", "no agent named 'pppo' .did you mean 'ppo'"),
        ("sb3:DQN", r"no agent named 'sb3:DQN'.*known: sb3"),
        ("mlp:TRPO", "no agent named 'mlp:TRPO'"),
        ("no_such_module:Agent", "cannot be imported"),
    ],
)
def test_unknown_names_are_explained_before_anything_runs(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.check(small(agents=f"reference,{name}"))


def test_mistakes_in_the_configuration() -> None:
    with pytest.raises(UserError, match="model, prompts and reward together"):
        small(model="somewhere")
    with pytest.raises(UserError, match="a multiple of num_envs 16"):
        small(episodes_per_iteration=40)
    with pytest.raises(UserError, match="a multiple of group_size 4"):
        small(num_envs=2, episodes_per_iteration=4)
    assert small(agents="ppo, rloo,ppo").agent_names() == ["ppo", "rloo"]


def test_the_table_says_what_failed() -> None:
    row = {"agent": "a", "seed": 0, "score": 1.0, "kl": None, "tokens_per_second": None}
    shown = benchmark.table(
        [row | {"peak_memory_mb": 10.0}, {"agent": "a", "seed": 1, "error": "x"}]
    )
    assert "| a | 1, 1 failed | 1.000 (1.000 to 1.000) | - | - | 10 |" in shown
