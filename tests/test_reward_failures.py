"""Rewards that fail: they raise, hang, return NaN, or call sys.exit."""

import itertools
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

import textrl  # registers TextRLHF-v0
from textrl.agents import (
    PPO,
    RLOO,
    BestOfN,
    BestOfNConfig,
    PPOConfig,
    Reinforce,
    ReinforceConfig,
    RLOOConfig,
)
from textrl.envs import tiny_model
from textrl.errors import UserError
from textrl.reward_calls import Patience
from textrl.rewards import make_scorer
from textrl.stopping import Terminated

PROMPTS, COMPLETIONS = ["p"] * 4, ["a", "bb", "ccc", "dddd"]


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def failing(times: int, failure):
    """Return a reward function whose first calls fail."""
    calls = itertools.count(1)

    def reward(prompts, completions):
        if next(calls) <= times:
            return failure(completions)
        return lengths(prompts, completions)

    return reward


def raising(error: BaseException):
    def failure(completions):
        raise error

    return failure


FAILURES = {
    "exception": raising(ConnectionError("reset by peer")),
    "exit": raising(SystemExit(0)),
    "timeout of its own": raising(TimeoutError()),
    "nan": lambda completions: [float("nan")] * len(completions),
    "none": lambda completions: [None] * len(completions),
    "infinite in float32": lambda completions: [1e39] * len(completions),
}


def score(reward, **patience) -> np.ndarray:
    return make_scorer(reward, patience=Patience(**patience))(PROMPTS, COMPLETIONS, {})


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """Note the pauses between tries, and take none."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_tried_again_after_growing_pauses(failure, pauses) -> None:
    assert score(failing(3, failure), retries=3).tolist() == [1, 2, 3, 4]
    assert pauses == [1.0, 2.0, 4.0]
    with pytest.raises(UserError, match="reward function 'reward' "):
        score(failing(3, failure), retries=2)
    with pytest.raises(UserError, match="reward function 'reward' "):
        score(failing(1, failure))


def test_what_stops_the_run_is_no_failure_of_the_function() -> None:
    for error in (KeyboardInterrupt(), Terminated()):
        with pytest.raises(type(error)):
            score(failing(1, raising(error)), retries=5, on_error="mask", timeout=5.0)


@pytest.mark.parametrize("wrong", [{"a": 1.0}, "1234", [1.0], 3.0, {1.0, 2.0, 3.0, 4.0}])
def test_a_value_of_a_wrong_kind_is_a_mistake_and_not_tried_again(wrong, pauses) -> None:
    with pytest.raises(UserError, match="returned"):
        score(failing(1, lambda completions: wrong), retries=3, on_error="mask")
    assert pauses == []


def test_a_function_that_hangs_is_left_alone() -> None:
    released = threading.Event()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"took longer than reward_timeout=0\.05 s on a batch of 4"):
        score(failing(9, lambda completions: released.wait(60)), timeout=0.05)
    hung = score(failing(9, lambda completions: released.wait(60)), timeout=0.05, on_error="mask")
    assert np.isnan(hung).all()
    assert time.monotonic() - began < 30
    once = failing(1, lambda completions: released.wait(60))
    assert score(once, timeout=0.5, retries=1).tolist() == [1, 2, 3, 4]
    left = [thread for thread in threading.enumerate() if thread.name == "limited"]
    assert left
    assert all(thread.daemon for thread in left)  # they do not keep the process alive
    released.set()


def test_a_call_in_time_is_the_call_itself() -> None:
    seen = []

    def reward(prompts, completions):
        seen.append(torch.is_grad_enabled())
        return torch.tensor(lengths(prompts, completions))

    with torch.no_grad():
        assert score(reward, timeout=10.0).tolist() == [1, 2, 3, 4]
    assert seen == [False]  # as in the calling thread


def test_a_timeout_that_the_function_raises_is_no_lateness_of_it() -> None:
    def slow_on_three(prompts, completions):
        if "ccc" in completions:
            raise TimeoutError
        return lengths(prompts, completions)

    found = score(slow_on_three, on_error="mask", timeout=30.0)
    assert np.isnan(found).tolist() == [False, False, True, False]


def test_samples_that_cannot_be_scored_are_masked_alone() -> None:
    def picky(prompts, completions):
        if "ccc" in completions:
            raise ValueError("no ccc")
        return lengths(prompts, completions)

    found = score(picky, on_error="mask")
    assert np.isnan(found).tolist() == [False, False, True, False]
    assert found[[0, 1, 3]].tolist() == [1, 2, 4]

    def odd(prompts, completions):
        return [None if len(text) == 2 else float(len(text)) for text in completions]

    assert np.isnan(score(odd, on_error="mask")).tolist() == [False, True, False, False]

    def failing(prompts, completions):
        return [np.nan if len(text) == 2 else float(len(text)) for text in completions]

    both = make_scorer([lengths, (failing, 2.0)], patience=Patience(on_error="mask"))
    found = both(PROMPTS, COMPLETIONS, {})
    assert found[[0, 2, 3]].tolist() == [3, 9, 12]
    assert np.isnan(found[1])


def make_venv(reward, rows: int = 16, **options):
    settings = {"max_completion_tokens": 6, "group_size": 4, "kl_coef": 0.1, "seed": None}
    settings = {k: v for k, v in (settings | options).items() if k != "seed"}
    return gym.make_vec(
        "TextRLHF-v0",
        num_envs=rows,
        reference=tiny_model(),
        tokenizer=textrl.envs.tiny_tokenizer(),
        prompts=list("abcdefgh"),
        reward=reward,
        on_reward_error="mask",
        autoreset_mode="Disabled",
        **settings,
    )


def without_t(prompts: list[str], completions: list[str]) -> list[float | None]:
    """Fail on what begins with a t or a v, a few of the tiny model's texts in a hundred."""
    return [None if text[:1] in ("t", "v") else float(len(text)) for text in completions]


def test_a_masked_episode_ends_truncated_and_without_a_score() -> None:
    venv = make_venv(without_t)
    venv.reset(seed=0)
    letters = (
        venv.unwrapped.tokenizer("t").input_ids[-1],
        venv.unwrapped.tokenizer("u").input_ids[-1],
    )
    end = venv.unwrapped.eos_token_id
    first = np.array([letters[row % 2] for row in range(16)])
    mask = np.ones((16, 2), dtype=bool)
    actions = np.stack([first, np.full(16, end)], axis=1)
    rewards, infos = venv.unwrapped.step_sequence(actions, mask)
    failed = first == letters[0]
    assert (infos["truncated"] == failed).all()
    assert (infos["terminated"] == ~failed).all()
    assert (np.isnan(infos["score"]) == failed).all()
    assert set(infos["finish_reason"][failed]) == {"reward_error"}
    kl = 0.1 * infos["ref_logprobs"]
    assert np.allclose(rewards[failed], kl[failed])
    assert np.allclose(rewards[~failed].sum(1), kl[~failed].sum(1) + 1.0)


class Steps(gym.vector.VectorWrapper):
    """Leaves `step` alone of the environment."""


@pytest.mark.parametrize("wrap", [lambda venv: venv, Steps])
@pytest.mark.parametrize("kind", [PPO, RLOO])
def test_agents_leave_masked_episodes_out_of_everything(kind, wrap) -> None:
    config = PPOConfig if kind is PPO else RLOOConfig
    agent = kind(
        tiny_model(seed=3),
        wrap(make_venv(without_t, rows=32)),
        config(episodes_per_iteration=64, minibatch_size=16, learning_rate=1e-3),
    )
    numbers = agent.iterate()
    assert 1 <= numbers["rollout/masked"] <= 32
    if kind is RLOO:
        assert numbers["rollout/masked"] % 4 == 0  # whole groups
    assert all(np.isfinite(value) for value in numbers.values())
    rollout = agent.collect()
    assert len(rollout.scores) < 64
    assert not rollout.scores.isnan().any()
    assert not rollout.bootstrap_values.any()


def test_a_reward_that_mostly_fails_stops_the_run() -> None:
    def hopeless(prompts, completions):
        raise ConnectionError("no route to host")

    agent = RLOO(tiny_model(seed=3), make_venv(hopeless), RLOOConfig(episodes_per_iteration=16))
    with pytest.raises(
        UserError, match="the reward function or the world failed on 16 of 16 episodes"
    ):
        agent.iterate()
    assert agent.whole


def test_unmasked_runs_are_what_they_were() -> None:
    agents = [
        RLOO(
            tiny_model(seed=3), make_venv(lengths, **options), RLOOConfig(episodes_per_iteration=16)
        )
        for options in ({}, {"reward_timeout": 30.0, "reward_retries": 2})
    ]
    for agent in agents:
        agent.iterate()
    one, other = (agent.policy.lm_head.weight for agent in agents)
    assert torch.equal(one, other)


def test_a_sample_that_failed_is_never_the_best_of_n() -> None:
    calls = itertools.count()

    def first_fails(prompts, completions):
        begin = next(calls) == 0
        return [None if begin and row == 0 else -1.0 for row in range(len(completions))]

    venv = make_venv(first_fails, rows=1, group_size=1)
    agent = BestOfN(tiny_model(), venv, BestOfNConfig(n=4))
    venv.reset(seed=0)
    scored = agent._scores([[1, 3, 4], [1, 3, 5]], torch.tensor([2, 2]))
    assert scored.argmax() == 1
    with pytest.raises(UserError, match="failed on all samples"):
        BestOfN(tiny_model(), make_venv(lambda p, c: [None] * len(c)), BestOfNConfig(n=2)).predict(
            make_venv(lengths).reset(seed=0)[0]
        )


def test_too_few_episodes_are_left() -> None:
    calls = itertools.count()

    def one_fails(prompts, completions):
        return [None if next(calls) == 0 else 1.0 for _ in completions]

    agent = Reinforce(
        tiny_model(),
        make_venv(one_fails, rows=2, group_size=1),
        ReinforceConfig(episodes_per_iteration=2),
    )
    with pytest.raises(UserError, match="would be left out"):
        agent.iterate()
    assert agent.whole


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    def asks(prompts, completions, difficulty):
        return [0.0 for _ in completions]

    with pytest.raises(
        UserError, match=r"'difficulty'.*the columns of the prompts are \['answer'\]"
    ):
        make_scorer(asks)(["p"], ["c"], {"answer": ["a"]})
