"""The README says what is true: its Python code runs, top to bottom, and the doctests hold."""

import contextlib
import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from pages import run_page

import textrl
from textrl.agents import PPO, OnlineDPO, OnlineDPOConfig, PPOConfig, make_agent, registered
from textrl.agents.collect import collect
from textrl.benchmark.agents import LANGUAGE_MODEL, STOCK
from textrl.config import DPOConfig, RewardConfig, SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.generation import ModelSampler
from textrl.metrics import open_logger, read_progress
from textrl.rewards import make_scorer
from textrl.task_ids import PROBES, TASKS
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer, reward_model_from

ROOT = Path(__file__).parent.parent


def test_each_block_of_the_readme_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(run_page("README.md")) >= 3
    assert (tmp_path / "runs/readme/critic.safetensors").exists()


def test_links_exist() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_page_about_turns_runs_and_its_ppo_learns(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(run_page("docs/turns.md")) == 4
    printed = capsys.readouterr().out
    assert printed.startswith("Guess my number from 1 to 20.\n\nhigher\n\n10 higher\n 0.0\n")
    before, after = map(float, re.findall(r"^\d\.\d+$", printed, re.M))
    assert before < 0.05
    assert after > 0.7
    assert (tmp_path / "runs/start/chat_template.jinja").exists()


def test_the_page_about_rewards_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with scoring_server() as port:
        made = run_page(
            "docs/rewards.md", lambda code: code.replace("localhost:8001", f"localhost:{port}")
        )
        assert len(made) == 4
        completions = ["a" * n for n in range(20)]
        scores = make_scorer(made[-1]["judge"])([""] * 20, completions, {})
    assert scores.tolist() == [float(n) for n in range(20)]
    assert capsys.readouterr().out == "1.0 0.0 1.0\n"


@contextlib.contextmanager
def scoring_server() -> Iterator[int]:
    """Serve the lengths of completions by HTTP; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"scores": [len(text) for text in asked["completions"]]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_page_about_runs_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("docs/runs.md")
    assert capsys.readouterr().out == "9\n"


def test_the_page_about_turns_says_what_is_there() -> None:
    """Its task ids are all of them, with their purposes, and its messages are in the sources."""
    page = (ROOT / "docs/turns.md").read_text()
    tasks = dict(re.findall(r"^\| `(TextRLHF/\w+-v0)` \| (.*?) \|", page, re.M))
    assert list(tasks) == list(TASKS)
    for name, purpose in tasks.items():
        assert name in PROBES or purpose == TASKS[name].purpose
    folders = (ROOT / "textrl", ROOT / "envs", ROOT / "agents")
    sources = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    plain = re.sub(r'"\s+f?"', "", sources)  # strings over several lines
    messages = re.findall(r"^\| `([^`/]+)` \|", page.partition("## What goes wrong")[2], re.M)
    assert len(messages) >= 9
    assert [message for message in messages if message not in plain] == []


def test_example_learns(learning) -> None:
    spec = importlib.util.spec_from_file_location("own_reward", ROOT / "examples/own_reward.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def gain(seed: int) -> float:
        before, after = example.main(iterations=12, seed=seed)
        return float(after - before)

    learning(gain, above=0.08)


def test_the_tutorials_agent_is_the_example_and_learns(
    tmp_path: Path, monkeypatch, learning
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "examples/own_agent.py").read_text()
    page = (ROOT / "docs/own_agent.md").read_text()
    assert f"```python\n{code}```" in page
    assert code.count("\n") <= 60
    run_page("docs/own_agent.md")
    venv = gym.make_vec("TextRLHF-v0", num_envs=64, max_completion_tokens=6, kl_coef=0.01)

    def score(agent: Any, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return float(
            np.mean(
                [
                    collect(ModelSampler(agent.lm), agent.env, generator).scores.mean()
                    for _ in range(4)
                ]
            )
        )

    def gain(seed: int) -> float:
        agent: Any = make_agent("mine", tiny_model(seed=seed), venv)
        before = score(agent, seed)
        agent.learn(15_000)
        return score(agent, seed) - before

    learning(gain, above=0.03)
    agent: Any = make_agent("mine", tiny_model(), venv)
    agent.save(tmp_path / "mine")
    assert (tmp_path / "mine/model.safetensors").exists()
    observation, _ = venv.reset(seed=0)
    assert agent.predict(observation, deterministic=True)[0].shape == (64,)


def test_the_tutorials_agents_have_these_names() -> None:
    page = (ROOT / "docs/own_agent.md").read_text()
    names = re.findall(r"`((?:sb3|mlp):\w+)`", page)
    assert {*names} == {f"sb3:{n}" for n in LANGUAGE_MODEL} | {f"mlp:{n}" for n in STOCK}
    first = re.findall(r"^\| (`ppo`.*?) \|", page, re.M)[0]
    ours = [name for name in registered() if not name.startswith("mine")]
    assert sorted(re.findall(r"`(\w+)`", first)) == ours


@pytest.mark.parametrize(
    ("mode", "tokens", "gain"),
    [
        pytest.param("SameStep", 10_000, 0.04, marks=pytest.mark.slow),
        pytest.param("SameStep", 30_000, 0.1, marks=pytest.mark.proof),
        pytest.param("NextStep", 30_000, 0.1, marks=pytest.mark.proof),
        pytest.param("Disabled", 30_000, 0.1, marks=pytest.mark.proof),
    ],
)
def test_the_single_file_ppo_learns_in_every_autoreset_mode(
    mode: str, tokens: int, gain: float
) -> None:
    command = [sys.executable, "examples/cleanrl_ppo.py", "--autoreset_mode", mode]
    command += ["--total_timesteps", str(tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    before, after = re.findall(r"\d\.\d+", done.stdout)
    assert float(after) > float(before) + gain


def test_every_logged_number_is_explained(tmp_path: Path, checkpoint: str) -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    explained = set(re.findall(r"`([a-z*]+/[a-z_]+)`", page))
    rows = [{"prompt": p, "chosen": "bcd", "rejected": "zz", "text": f"{p}b"} for p in "abcdefgh"]
    shared, half = (tiny_tokenizer(), rows), {"heldout_share": 0.5, "minibatch_size": 4}
    venv = gym.make_vec("TextRLHF-v0", num_envs=8, group_size=4, max_completion_tokens=4)
    SFTTrainer(
        tiny_model(), *shared, SFTConfig(**half), output_dir=tmp_path / "sft", shown=False
    ).train()
    DPOTrainer(
        tiny_model(), *shared, DPOConfig(**half), output_dir=tmp_path / "dpo", shown=False
    ).train()
    model = reward_model_from(checkpoint)
    RewardTrainer(
        model, *shared, RewardConfig(**half), output_dir=tmp_path / "reward", shown=False
    ).train()
    agents = [
        PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=8)),
        OnlineDPO(tiny_model(), venv, OnlineDPOConfig(episodes_per_iteration=8)),
    ]
    for index, agent in enumerate(agents):
        with open_logger(tmp_path / str(index)) as logger:
            agent.set_logger(logger)
            agent.learn(1)
    logged = {name for p in tmp_path.iterdir() for row in read_progress(p) for name in row}
    assert len(logged) > 30
    missing = {
        name
        for name in logged - {"time/step"}
        if name not in explained and f"*/{name.split('/')[1]}" not in explained
    }
    assert not missing
    real = {name.split("/")[1] for name in logged}
    assert {name for name in explained if name.split("/")[1] not in real} == set()


def modules() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(textrl.__path__, "textrl.")]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    failed, _ = doctest.testmod(module)
    assert failed == 0
