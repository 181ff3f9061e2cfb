"""Reward functions that wait: calls at the same time, in order, with their own limits; costs."""

import asyncio
import copy
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch

from textrl.agents import PPO, PPOConfig
from textrl.agents.rollout import cost_report
from textrl.envs import tiny_model
from textrl.errors import UserError
from textrl.reward_kinds import RewardKind, kind_of
from textrl.rewards import Patience, make_scorer, remote, reward_function
from textrl.time_limit import together

PROMPTS = ["p"] * 8
COMPLETIONS = ["a" * n for n in range(1, 9)]
RIGHT = [float(n) for n in range(1, 9)]


def scores(reward: Any, **patience: Any) -> list[float]:
    return make_scorer(reward, patience=Patience(**patience))(PROMPTS, COMPLETIONS, {}).tolist()


def test_remote_calls_run_at_the_same_time_and_keep_their_order() -> None:
    meeting = threading.Barrier(4)

    @remote(batch_size=2, at_once=4, timeout=30.0)
    def asked(prompts: list[str], completions: list[str]) -> list[float]:
        meeting.wait(timeout=20)  # passes only if all four calls are under way
        assert len(prompts) == 2
        time.sleep(0.05 / len(completions[0]))  # later ones answer first
        return [float(len(text)) for text in completions]

    assert scores(asked) == RIGHT


def test_no_more_calls_at_once_than_asked_for() -> None:
    running, most, lock = 0, 0, threading.Lock()

    @remote(at_once=3)
    def asked(prompts: list[str], completions: list[str]) -> list[float]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return [float(len(text)) for text in completions]

    assert scores(asked) == RIGHT
    assert most == 3


def test_coroutines_run_beside_one_another() -> None:
    meeting = threading.Barrier(3)

    def waiting(factor: float) -> Callable[..., Any]:
        async def asked(prompts: list[str], completions: list[str]) -> list[float]:
            await asyncio.to_thread(meeting.wait, 20)
            return [factor * len(text) for text in completions]

        return asked

    def ordinary(prompts: list[str], completions: list[str]) -> list[float]:
        meeting.wait(timeout=20)
        return [100.0 for _ in completions]

    found = scores([waiting(1.0), ordinary, (waiting(0.1), 10.0)])
    assert found == pytest.approx([100 + 2 * n for n in RIGHT])


def test_a_coroutine_works_within_a_running_loop() -> None:
    async def asked(prompts: list[str], completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    async def notebook() -> list[float]:
        return scores(asked)

    assert asyncio.run(notebook()) == RIGHT


def test_a_remote_coroutine_is_cut_into_calls() -> None:
    sizes: list[int] = []

    @remote(batch_size=3)
    async def asked(prompts: list[str], completions: list[str]) -> list[float]:
        sizes.append(len(prompts))
        return [float(len(text)) for text in completions]

    assert scores(asked) == RIGHT
    assert sorted(sizes) == [2, 3, 3]


def test_own_limits_hold_in_place_of_the_environments() -> None:
    @remote(timeout=0.1, retries=0)
    def late(prompts: list[str], completions: list[str]) -> list[float]:
        if completions[0] == "aaa":
            time.sleep(1.0)
        return [float(len(text)) for text in completions]

    with pytest.raises(UserError, match=r"'late' took longer than the timeout of @remote=0\.1 s"):
        scores(late, timeout=30.0, retries=5)
    masked = scores(late, on_error="mask")
    assert masked[2] != masked[2]
    assert masked[:2] + masked[3:] == RIGHT[:2] + RIGHT[3:]


def test_only_the_call_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textrl.reward_calls.time.sleep", lambda seconds: None)
    asked: list[str] = []

    @remote(retries=1)
    def flaky(prompts: list[str], completions: list[str]) -> list[float]:
        asked.append(completions[0])
        if completions[0] == "aa" and asked.count("aa") == 1:
            raise ConnectionError("gone")
        return [float(len(text)) for text in completions]

    scorer = make_scorer(flaky)
    assert scorer(PROMPTS, COMPLETIONS, {}).tolist() == RIGHT
    assert sorted(asked) == sorted([*COMPLETIONS, "aa"])
    assert scorer.costs[0].failures == 1


def test_a_group_stays_whole() -> None:
    @remote(at_once=2)
    @reward_function(group=True)
    def compared(prompts: list[str], completions: list[str]) -> list[float]:
        assert len(completions) == 4
        return [float(len(text) - len(completions[0])) for text in completions]

    kind = kind_of(compared)
    assert (kind.group, kind.remote is not None) == (True, True)
    from textrl.reward_calls import Texts

    texts = Texts(prompts=PROMPTS, completions=COMPLETIONS, columns={})
    found = make_scorer(compared).scores(texts, group_size=4)
    assert found.total.tolist() == [0.0, 1.0, 2.0, 3.0] * 2


def test_marks_keep_one_another_in_both_orders() -> None:
    def function(prompts: list[str], completions: list[str]) -> list[float]:
        return []

    marked = reward_function(dense=True)(remote(timeout=3.0)(function))
    assert kind_of(marked).dense
    assert kind_of(marked).remote is not None
    assert kind_of(lambda prompts, completions: []) == RewardKind()
    with pytest.raises(UserError, match=r"Remote\.batch_size is 0; expected a positive number"):
        remote(batch_size=0)


def test_after_a_failure_no_call_begins() -> None:
    begun: list[int] = []

    def call(number: int) -> Callable[[], int]:
        def work() -> int:
            begun.append(number)
            if number == 1:
                raise ValueError("1")
            time.sleep(0.2)
            return number

        return work

    began = time.monotonic()
    with pytest.raises(ValueError, match="1"):
        together([call(n) for n in range(20)], 2)
    assert time.monotonic() - began < 0.15  # it does not wait for the others
    time.sleep(0.5)
    assert len(begun) <= 3
    assert together([], 4) == []
    with torch.no_grad():
        assert together([torch.is_grad_enabled], 1) == [False]


def test_ctrl_c_ends_the_calls() -> None:
    begun: list[int] = []

    def call() -> None:
        begun.append(1)
        time.sleep(0.1)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together([call] * 20, 2, interrupted)
    time.sleep(0.4)
    assert len(begun) <= 4


def test_ordinary_functions_stay_in_the_main_thread() -> None:
    threads: dict[str, threading.Thread] = {}

    def ordinary(prompts: list[str], completions: list[str]) -> list[float]:
        threads["ordinary"] = threading.current_thread()
        return [0.0] * len(prompts)

    @remote
    def asked(prompts: list[str], completions: list[str]) -> list[float]:
        threads["remote"] = threading.current_thread()
        return [float(len(text)) for text in completions]

    assert scores([ordinary, asked]) == RIGHT
    assert threads["ordinary"] is threading.main_thread()
    assert threads["remote"] is not threading.main_thread()


def test_coroutines_share_a_loop_and_are_cancelled_when_late() -> None:
    lock, ended = asyncio.Lock(), threading.Event()

    async def client(prompts: list[str], completions: list[str]) -> list[float]:
        async with lock:  # as an HTTP client, it belongs to the loop of its first use
            await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert scores(client) == scores(client) == RIGHT

    @remote(timeout=0.1, retries=0, batch_size=8)
    async def late(prompts: list[str], completions: list[str]) -> list[float]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.set()
            raise
        return []

    with pytest.raises(UserError, match=r"the timeout of @remote=0\.1 s"):
        scores(late)
    assert ended.wait(5)


def test_a_server_that_is_gone_is_not_asked_for_each_text() -> None:
    asked: list[int] = []

    @remote(retries=0, batch_size=8)
    def gone(prompts: list[str], completions: list[str]) -> list[float]:
        asked.append(len(prompts))
        raise ConnectionRefusedError("no server")

    assert all(score != score for score in scores(gone, on_error="mask"))
    assert asked == [8, 1]


def test_scorers_can_be_copied() -> None:
    def length(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    assert copy.deepcopy(make_scorer(length))(PROMPTS, COMPLETIONS, {}).tolist() == RIGHT


def test_the_log_says_what_rewards_cost() -> None:
    def slow(prompts: list[str], completions: list[str]) -> list[float]:
        time.sleep(0.2)
        return [float(len(text)) for text in completions]

    def fast(prompts: list[str], completions: list[str]) -> list[float]:
        if len(prompts) > 1:
            raise ValueError("one at a time")
        return [0.0]

    venv = gym.make_vec(
        "TextRLHF-v0", num_envs=4, reward=[slow, (fast, 1.0)], on_reward_error="mask"
    )
    agent = PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=8, minibatch_size=4))
    numbers = agent.iterate()
    assert 0.4 <= numbers["time/reward_seconds/slow"] <= numbers["time/collect_seconds"]
    both = numbers["time/reward_seconds/slow"] + numbers["time/reward_seconds/fast"]
    assert both <= numbers["time/reward_seconds"] < both + 0.1
    assert numbers["rollout/reward_failures"] == 2  # the calls with all rows, one a batch
    assert agent.iterate()["rollout/reward_failures"] == 2  # of this iteration alone


def test_the_report_of_costs_is_a_difference() -> None:
    report = cost_report({"": (1.0, 0), "a": (1.0, 2)}, {"": (3.5, 0), "a": (3.5, 2)})
    assert report == {"time/reward_seconds": 2.5, "rollout/reward_failures": 0.0}
    assert cost_report({}, {}) == {}
