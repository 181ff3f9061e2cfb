"""The progress of `learn` is true: it covers collecting and updating, and ends when they do."""

from pathlib import Path

import gymnasium as gym
import pytest

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, RLOO, OnlineDPO, OnlineDPOConfig, PPOConfig, RLOOConfig, learning
from textrl.agents.text_agent import TextAgent
from textrl.envs import tiny_model
from textrl.metrics import StageProgress

SMALL = dict(episodes_per_iteration=32, minibatch_size=4)


def make(name: str) -> TextAgent:
    venv = gym.make_vec("TextRLHF-v0", num_envs=16, group_size=4, max_completion_tokens=4)
    if name == "ppo":
        return PPO(tiny_model(), venv, PPOConfig(**SMALL))
    if name == "rloo":
        return RLOO(tiny_model(), venv, RLOOConfig(**SMALL))
    return OnlineDPO(tiny_model(), venv, OnlineDPOConfig(**SMALL))


@pytest.mark.parametrize("tokens", [20, 200])
@pytest.mark.parametrize("name", ["ppo", "rloo", "online_dpo"])
def test_the_bar_reaches_its_end_with_the_last_update(
    name: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make(name)
    seen: list[tuple[str, int]] = []
    real_update = agent._updater.update
    begun: list[tuple[int, int]] = []

    class Recorded(StageProgress):
        def __init__(self, stage: str, total: int, *, begin: int = 0, shown: bool = True) -> None:
            begun.append((begin, total))
            super().__init__(stage, total, begin=begin, shown=shown)

        def show(self, done: int, numbers: object) -> None:
            seen.append(("show", done))

    def update(*arguments: object) -> float:
        seen.append(("update", seen[-1][1]))
        return real_update(*arguments)

    monkeypatch.setattr(learning, "StageProgress", Recorded)
    monkeypatch.setattr(agent._updater, "update", update)
    agent.learn(tokens)
    done = [value for _, value in seen]
    assert done == sorted(done)
    last = max(place for place, (what, _) in enumerate(seen) if what == "update")
    assert max(done[: last + 1]) < tokens  # an update is still to come
    assert done[-1] == tokens
    first = [what for what, _ in seen].index("update")
    assert first == 2  # two batches of episodes were collected, and shown
    assert 0 < done[0] <= done[first]
    agent.learn(tokens)
    begin, end = begun[1]
    assert (begin >= tokens, end - begin) == (True, tokens)


def test_a_resumed_stages_time_left_counts_its_own_work_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0])
    monkeypatch.setattr("textrl.metrics.time.monotonic", lambda: next(clock))
    StageProgress("ppo", 1000, begin=800).show(900, {"rollout/kl": -4.11e-8, "loss": 0.12345})
    assert capsys.readouterr().out == "[ppo] 900/1000  kl 0  loss 0.123  100 s left\n"


def test_a_run_shows_its_whole_length(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textrl.cli import main

    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n')
    Path("r.py").write_text("def f(prompts, completions):\n    return [1.0] * len(prompts)\n")
    totals = []

    class Recorded(StageProgress):
        def __init__(self, stage: str, total: int, *, begin: int = 0, shown: bool = True) -> None:
            totals.append((begin, total))
            super().__init__(stage, total, begin=begin, shown=shown)

    monkeypatch.setattr(learning, "StageProgress", Recorded)
    main(
        [*("ppo", f"--model={checkpoint}", "--prompts=prompts.jsonl", "--reward=r:f")]
        + ["--output_dir=run", "--total_timesteps=100", "--save_every=1", "--num_envs=8"]
        + ["--episodes_per_iteration=8", "--max_completion_tokens=4"]
    )
    assert totals == [(0, 100)]
