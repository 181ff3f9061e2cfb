"""Guards of speed and memory: ratios in one process, never seconds; the bars leave room for noise.

docs/speed.md has the numbers on a quiet machine.
"""

import multiprocessing
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import sb3_speed
import switches_sampling
import switches_updates
import throughput
import throughput_switches as switches
import torch
from throughput_model import Cost, cost_of, make_model

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, PPOConfig
from textrl.benchmark.run import forget_peak_memory, peak_memory_mb
from textrl.memory import keep_freed_memory, release_memory

pytestmark = pytest.mark.proof


def ratio(work: Callable[[], object], other: Callable[[], object], pairs: int = 5) -> float:
    """Return how many times longer the other work takes, the median of pairs after one of each."""
    ratios = []
    for pair in range(pairs + 1):
        times = []
        for one in (work, other):
            began = time.monotonic()
            one()
            times.append(time.monotonic() - began)
        if pair:
            ratios.append(times[1] / times[0])
    return float(np.median(ratios))


@pytest.fixture(scope="module")
def setup() -> switches.Setup:
    keep_freed_memory()
    return switches.Setup("4m")


def test_flops_by_hand() -> None:
    cost = Cost(body=10, head=5, attention=3)
    # 2 tokens and 3 tokens: 2 * 10 * 5, the head at 4 positions: 2 * 5 * 4, attention: 2 * 3 * 13
    assert cost.forward([2, 3], counted=4) == 100 + 40 + 78
    model = make_model("4m")
    assert cost_of(model).body + cost_of(model).head == sum(p.numel() for p in model.parameters())


def test_stepping_keeps_up_with_a_bare_decode_loop() -> None:
    model = make_model("4m")
    works = dict(throughput.stepping(model, cost_of(model), 64, 64))  # 16 + 48 tokens
    steps = works["stepping, steps"][0]
    assert ratio(steps, works["stepping, bare decode loop"][0]) > 0.6
    assert ratio(steps, works["stepping, bare loop of transformers"][0]) > 0.6
    assert ratio(works["stepping, step_sequence"][0], steps) > 1.2  # both compute as much


def test_step_sequence_of_the_default_task_is_one_pass() -> None:
    venv = gym.make_vec(
        "TextRLHF-v0", num_envs=64, max_completion_tokens=48, autoreset_mode="Disabled"
    )
    actions = np.random.default_rng(0).integers(3, venv.single_action_space.n, size=(64, 48))

    def steps() -> None:
        venv.reset(seed=0)
        for column in actions.T:
            venv.step(column)

    def sequence() -> None:
        venv.reset(seed=0)
        venv.unwrapped.step_sequence(actions, np.ones_like(actions, dtype=bool))

    assert ratio(sequence, steps) > 4


def test_packing_pays(setup: switches.Setup) -> None:
    against_padding, against_passes, shared = switches_updates.packing(setup)
    for switch, bar in ((against_padding, 1.3), (against_passes, 1.03)):
        found = switches.compare(switch, pairs=5)
        assert found["ratio"] > bar, found
        assert found["relative_difference"] < 1e-4
    found = switches.compare(shared, pairs=5)  # against other tokens, with other losses
    assert found["ratio"] > 1.15, found


def test_the_head_runs_where_it_counts(setup: switches.Setup) -> None:
    for switch in switches_updates.head_where_it_counts(setup):
        found = switches.compare(switch, pairs=5)
        assert found["ratio"] > 0.9, found
        assert found["relative_difference"] < 1e-4


def test_the_reference_is_read_once(setup: switches.Setup) -> None:
    for switch in switches_updates.reference_once(setup):
        found = switches.compare(switch, pairs=5)
        assert found["ratio"] > 1.15, found
        assert found["relative_difference"] < 1e-4


@pytest.mark.parametrize(
    ("make", "bar"),
    [
        (switches_sampling.equal_prompts, 1.1),
        (switches_sampling.finished_rows, 1.3),
        (switches_sampling.ragged_prompts, 1.1),
        (switches_sampling.one_cache, 1.1),
    ],
)
def test_sampling_leaves_out_what_is_not_needed(
    make: Callable[[switches.Setup], switches.Switch], bar: float, setup: switches.Setup
) -> None:
    found = switches.compare(make(setup), pairs=5)
    assert found["ratio"] > bar, found
    assert found["relative_difference"] < 1e-4


def test_sb3_reads_each_prefix_once() -> None:
    rates = sb3_speed.speed(pairs=1)
    assert np.median(np.divide(rates["shared"], rates["naive"])) > 5


def update_peak(vocab_size: int, episodes: int, micro_batch_tokens: int) -> float:
    """Return the MB that a PPO update of 32-token episodes takes beyond what was held before."""
    torch.set_num_threads(2)
    model = make_model("4m", vocab_size)
    config = PPOConfig(
        episodes_per_iteration=episodes,
        minibatch_size=episodes,
        num_epochs=1,
        micro_batch_tokens=micro_batch_tokens,
    )
    policy = make_model("4m", vocab_size)
    agent = PPO(policy, throughput.environment(model, 32, episodes), config)
    rollout = agent.collect()
    agent.train_on(rollout, agent.steps())  # the optimiser's state is there from now on
    release_memory()
    forget_peak_memory()
    before = peak_memory_mb()
    agent.train_on(rollout, agent.steps())
    return peak_memory_mb() - before


def test_memory_of_an_update_is_linear_in_tokens_and_does_not_depend_on_the_vocabulary() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:  # fresh processes: no fragments of the last

        def peaks(vocab_size: int, episodes: list[int], micro_batch_tokens: int) -> list[float]:
            tasks = [(vocab_size, count, micro_batch_tokens) for count in episodes]
            return pool.starmap(update_peak, tasks, chunksize=1)

        one, two, four = peaks(4096, [128, 256, 512], 10**9)
        assert four - two < 2.5 * (two - one) + 20
        # 24 of 32 tokens count: 6,144 positions more are 805 MB of logits, and held whole they
        # would be there three times (logits, softmax, gradient); fragments of chunks are noise
        wide = peaks(32_768, [256, 512], 10**9)
        assert wide[1] - wide[0] < (four - two) + 800
        bounded = peaks(4096, [128, 512], 2048)
        assert bounded[1] - bounded[0] < 60
