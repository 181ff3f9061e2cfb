"""Whatever a reward function returns: the numbers that Python makes of it, or one line."""

import math
from collections import deque
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from inputs import attempt, fuzz, letters, numbers, python_values, scalars

from textrl.envs import TextRLHFVectorEnv, tiny_model, tiny_tokenizer
from textrl.rewards import make_scorer

LARGEST = float(np.finfo(np.float32).max)
MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()


class Lazy:
    """A list that is read by its positions."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.values[index]


class Labelled(list[Any]):
    """A column whose brackets take labels and not positions, as a pandas Series' do."""

    def __getitem__(self, index: Any) -> Any:
        raise KeyError(index)


def array(values: list[Any]) -> Any:
    """Return an array of whatever type NumPy finds."""
    try:
        return np.array(values)
    except (ValueError, OverflowError):
        return np.array(values, dtype=object)


def tensor(values: list[Any]) -> Any:
    """Return a tensor, or the list where torch takes none."""
    try:
        return torch.tensor(values)
    except Exception:
        return values


def half(values: list[Any]) -> Any:
    """Return a bfloat16 tensor that wants a gradient, or the list where torch takes none."""
    try:
        return torch.tensor(values, dtype=torch.bfloat16).requires_grad_()
    except Exception:
        return values


FORMS = (
    list,
    tuple,
    array,
    tensor,
    half,
    deque,
    Lazy,
    Labelled,
    iter,
    set,
    str,
    repr,
    lambda v: [v],
)
mixed = st.lists(st.one_of(numbers, scalars, python_values), max_size=4)
returned = st.one_of(
    python_values,
    mixed,
    st.tuples(st.sampled_from(FORMS), st.lists(numbers, max_size=4)),
    st.tuples(st.sampled_from(FORMS), mixed),
)


def made(value: Any) -> Any:
    """Return a drawn value in its drawn form; a set or a tuple cannot hold everything."""
    if isinstance(value, tuple) and len(value) == 2 and callable(value[0]):
        try:
            return value[0](value[1])
        except Exception:
            return value[1]
    return value


@fuzz(fast=100, long=8_000, drawn=returned, count=st.integers(1, 4), mask=st.booleans())
def test_a_scorer_takes_numbers_only(drawn: Any, count: int, mask: bool) -> None:
    value = made(drawn)
    scorer = make_scorer(lambda prompts, completions: value)
    taken, scores = attempt(lambda: scorer(["a"] * count, ["b"] * count, {}))
    if taken:
        expected = [float(x) for x in value]
        assert scores.tolist() == expected
        assert all(abs(x) <= LARGEST for x in expected)
        assert len(scores) == count
        assert not isinstance(value, dict | set | str | bytes)
    elif isinstance(value, list) and len(value) == count:
        real = [type(x) in (int, float) and abs(x) <= LARGEST and x == x for x in value]
        assert not all(real), "refused, though it is right"


@fuzz(fast=8, long=600, drawn=returned, word=letters, on_error=st.sampled_from(["stop", "mask"]))
def test_an_environment_pays_what_was_returned(drawn: Any, word: str, on_error: str) -> None:
    value = made(drawn)
    venv = TextRLHFVectorEnv(
        2,
        reference=MODEL,
        tokenizer=TOKENIZER,
        prompts=[word],
        reward=lambda prompts, completions: value,
        kl_coef=0.0,
        on_reward_error=on_error,
        autoreset_mode="Disabled",
    )
    venv.reset(seed=0)
    ends = np.array([TOKENIZER.eos_token_id] * 2)
    taken, result = attempt(lambda: venv.step(ends))
    if not taken:
        return
    _, rewards, terminated, truncated, infos = result
    assert (terminated | truncated).all()
    for row in range(2):
        if terminated[row]:
            paid = float(list(value)[row])
            assert rewards[row] == paid == infos["score"][row]
        else:
            assert on_error == "mask"
            assert rewards[row] == 0
            assert math.isnan(infos["score"][row]) if "score" in infos else True
