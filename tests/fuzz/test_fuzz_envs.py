"""Random calls of the environments: each works or is refused, and a refused one changes nothing.

The calls that worked are replayed on a fresh environment, which must return the same.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from hypothesis import strategies as st
from inputs import Odd, fuzz, json_values, letters, python_values

from textrl.envs import TextRLHFEnv, TextRLHFVectorEnv, tiny_model, tiny_tokenizer
from textrl.errors import UserError

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()
ROWS, VOCABULARY, BUDGET = 3, 29, 4
MODES = ("NextStep", "SameStep", "Disabled")


def score(prompts: list[str], completions: list[str]) -> list[float]:
    """Return a number for each text, and fail where a completion begins with q or r."""
    if any(text.startswith("r") for text in completions):
        raise ConnectionError("no answer")
    return [math.nan if c.startswith("q") else len(c) + 0.25 for c in completions]


def arguments(on_error: str, least: int) -> dict[str, Any]:
    """Return what the single and the vector environment are made with."""
    return {
        "reference": MODEL,
        "tokenizer": TOKENIZER,
        "prompts": ["a", "bc", "xyz", "ab"],
        "reward": score,
        "max_completion_tokens": BUDGET,
        "max_prompt_tokens": 8,
        "on_reward_error": on_error,
        "min_completion_tokens": least,
    }


seeds = st.one_of(st.none(), st.integers(0, 5), st.sampled_from([-1, 2**70, 1.5, "1", [0, 1, 2]]))
prompts = st.one_of(letters, json_values, st.lists(letters, min_size=ROWS, max_size=ROWS))
resets = st.one_of(
    st.none(),
    st.fixed_dictionaries({"index": st.one_of(st.integers(-2, 6), json_values)}),
    st.fixed_dictionaries({"prompt": prompts}),
    st.fixed_dictionaries({"reset_mask": st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)}),
    st.fixed_dictionaries({"index": st.just([0, 1, 2]), "reset_mask": python_values}),
    python_values,
)
token = st.one_of(st.integers(1, VOCABULARY - 1), st.sampled_from([2, 2, 19, 20]))
tokens = st.lists(token, min_size=ROWS, max_size=ROWS)
ODD_ACTIONS = (
    *(None, [], [[1]], [1, [2]], "a", math.nan, -1, VOCABULARY, 10**30, True, Odd(), {}),
    *(torch.ones(ROWS, requires_grad=True), torch.ones(ROWS, dtype=torch.bfloat16)),
    *(np.float32([1] * ROWS), np.uint64([2**64 - 1] * ROWS), np.array(["a"] * ROWS)),
)
single_calls = st.one_of(
    st.tuples(st.just("reset"), seeds, resets),
    st.tuples(st.just("step"), token),
    st.tuples(st.just("step"), token),
    st.tuples(st.just("step"), st.one_of(st.sampled_from(ODD_ACTIONS), python_values)),
    st.tuples(st.sampled_from(["render", "action_masks", "close"])),
)
masks = st.one_of(
    st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS).map(
        lambda counts: [[place < count for place in range(3)] for count in counts]
    ),
    st.sampled_from([math.nan, None, 2, [[True] * 2] * ROWS, [[math.nan] * 3] * ROWS, [["a"] * 3]]),
    python_values,
)
sequences = st.lists(st.lists(token, min_size=3, max_size=3), min_size=ROWS, max_size=ROWS)
vector_calls = st.one_of(
    st.tuples(st.just("reset"), seeds, resets),
    st.tuples(st.just("step"), tokens),
    st.tuples(st.just("step"), tokens),
    st.tuples(st.just("step"), tokens),
    st.tuples(st.just("step"), st.one_of(st.sampled_from(ODD_ACTIONS), python_values)),
    st.tuples(st.just("step_sequence"), sequences, masks),
    st.tuples(st.just("step_sequence"), python_values, masks),
    st.tuples(st.sampled_from(["render", "action_masks", "close", "reset over"])),
)


def called(env: Any, call: tuple[Any, ...]) -> Any:
    """Make one call of an environment."""
    name, *rest = call
    if name == "reset":
        return env.reset(seed=rest[0], options=rest[1])
    if name == "reset over":
        over = env.unwrapped._ended.copy()
        return env.reset(options={"reset_mask": over})
    return getattr(env.unwrapped, name)(*rest) if name != "step" else env.step(*rest)


def equal(first: Any, second: Any) -> bool:
    """Return whether two results of a call are the same, bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, np.ndarray) and first.dtype.kind in "fc":
        return bool(np.allclose(first, second, rtol=0, atol=1e-6, equal_nan=True))
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first, second))
    if isinstance(first, float):
        return math.isclose(first, second, abs_tol=1e-6) or (first != first and second != second)
    return bool(first == second)


POOL: dict[Any, tuple[Any, Any]] = {}
"""Two environments of each kind, as making one takes longer than all calls: of the second, no call
was ever refused. A reset with a seed must make both as good as new."""


def replayed(kind: Any, make: Callable[[], Any], calls: list[tuple[Any, ...]]) -> None:
    """Make the calls; another environment gets those that worked and must answer alike."""
    env, fresh = POOL.pop(kind, None) or (make(), make())
    worked = []
    for call in [("reset", 3, None), *calls]:
        try:
            worked.append((call, called(env, call)))
        except UserError:
            pass
        except gym.error.Error:  # Gymnasium's own, as for a seed that is no number
            assert call[0] == "reset"
    for call, result in worked:
        again = called(fresh, call)
        assert equal(result, again), f"{call}: {result} became {again}"
    POOL[kind] = env, fresh  # not after a failure


options = {"on_error": st.sampled_from(["stop", "mask"]), "least": st.sampled_from([0, 0, 2])}


@fuzz(fast=12, long=2_000, calls=st.lists(single_calls, max_size=12), **options)
def test_one_episode_after_another(calls: list[Any], on_error: str, least: int) -> None:
    def make() -> TextRLHFEnv:
        return TextRLHFEnv(render_mode="ansi", **arguments(on_error, least))

    replayed((on_error, least), make, calls)


@fuzz(
    fast=20,
    long=3_000,
    calls=st.lists(vector_calls, max_size=12),
    mode=st.sampled_from(MODES),
    group=st.sampled_from([1, 1, ROWS]),
    **options,
)
def test_rows_of_episodes(
    calls: list[Any], mode: str, group: int, on_error: str, least: int
) -> None:
    def make() -> TextRLHFVectorEnv:
        return TextRLHFVectorEnv(
            ROWS,
            autoreset_mode=mode,
            render_mode="ansi",
            group_size=group,
            **arguments(on_error, least),
        )

    replayed((mode, group, on_error, least), make, calls)


@fuzz(fast=4, long=300, calls=st.lists(single_calls, max_size=8))
def test_within_gymnasiums_wrappers(calls: list[Any]) -> None:
    def make() -> Any:
        return gym.make(
            "TextRLHF-v0", render_mode="ansi", disable_env_checker=True, **arguments("stop", 0)
        )

    steps = [call for call in calls if call[0] in ("reset", "step")]
    replayed("made", make, steps)
