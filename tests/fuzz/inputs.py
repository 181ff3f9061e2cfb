"""How inputs are made, run and counted: two profiles, one decorator, and values of every kind.

The fast profile belongs to `make test` and is the same in every run. The long one
(`pytest tests/fuzz --hypothesis-profile=long`) draws from a fresh seed, which it prints.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from textrl.errors import UserError
from textrl.time_limit import time_limit

LONG = "long"
COUNT: Counter[str] = Counter()
"""Number of inputs that were tried, by the name of the test."""
HANGS_AFTER = 120.0
"""Seconds after which an input counts as a hang."""


def fuzz(*, fast: int, long: int, **strategies: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """Run a test on so many inputs in each profile, each within a time limit, and count them."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        is_long = settings.get_current_profile_name() == LONG

        @settings(
            max_examples=long if is_long else fast,
            derandomize=not is_long,
            database=None,
            deadline=None,
            print_blob=is_long,
            phases=[Phase.generate],  # inputs are small as they are, and shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        )
        @given(**strategies)
        @functools.wraps(test)
        def run(**arguments: Any) -> None:
            COUNT[test.__name__] += 1
            with time_limit(HANGS_AFTER):
                test(**{name: unfolded(value) for name, value in arguments.items()})

        return run

    return decorate


def attempt(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Return (True, what a call returns), or (False, its one line) where it raises UserError."""
    try:
        return True, call()
    except UserError as error:
        line = str(error)
    assert len(line.splitlines()) == 1, f"not one line: {line}"
    return False, line


@dataclass(frozen=True)
class Nested:
    """A place for a deep list or dict, which nobody could print when a test fails."""

    depth: int
    kind: type


def unfolded(value: Any) -> Any:
    """Return an input with its deep lists and dicts."""
    if isinstance(value, Nested):
        inside: Any = "x"
        for _ in range(value.depth):
            inside = [inside] if value.kind is list else {"a": inside}
        return inside
    if type(value) in (list, tuple):
        return type(value)(unfolded(part) for part in value)
    return {k: unfolded(v) for k, v in value.items()} if type(value) is dict else value


ODD_TEXTS = (
    *("", " ", "\n", "\r\n", "\0", "\ufeff", "\ud800", "a\udc00b", "\U0001f600", "e\u0301"),
    *("<eos>", "<bos>", "<pad>", "ab<eos>", "<eos>ab", "{{ 1 }}", "{% for %}", "=1+1", "@x"),
    *("null", "NaN", "inf", "1e999", "-0", "0x10", "true", "[1, 0]", "[", '{"a": 1}', "\u2028"),
    *("\x1b[2J", "../x", "~", "~nobody/x", "/", "a" * 3000, "9" * 5000, "[" * 2000),
)
letters = st.text("abcxyz", min_size=1, max_size=8)
"""Texts that the tiny tokenizer reads and writes back unchanged."""
texts = st.one_of(letters, st.sampled_from(ODD_TEXTS), st.text(max_size=20))
ODD_NUMBERS = (0, 1, -1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e39, 1e308)
numbers = st.one_of(
    st.sampled_from([*ODD_NUMBERS, math.nan, math.inf, -math.inf]),
    st.integers(),
    st.floats(),
    st.booleans(),
)
scalars = st.one_of(st.none(), numbers, texts)
deep = st.builds(
    Nested, st.sampled_from([90, 300, 600, 900, 10_000]), st.sampled_from([list, dict])
)
ROLES = ("user", "assistant", "system", "tool", "", "User", 3, None)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": st.one_of(letters, scalars)},
        optional={
            "tool_calls": st.sampled_from([[], None, [CALL], "f(x)", [3]]),
            "name": scalars,
            "reasoning_content": texts,
        },
    ),
    max_size=4,
)
json_values = st.one_of(
    st.recursive(
        scalars,
        lambda part: st.one_of(
            st.lists(part, max_size=4), st.dictionaries(st.text(max_size=5), part, max_size=3)
        ),
        max_leaves=8,
    ),
    messages,
    deep,
)
"""Whatever JSON can hold, and numbers that only Python's reader takes."""


class Odd:
    """An object of no use: whatever is done to it raises."""

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __repr__(self) -> str:
        return "Odd()"


python_values = st.one_of(
    json_values,
    st.binary(max_size=4),
    st.complex_numbers(),
    st.fractions(),
    st.decimals(),
    st.sampled_from([Odd(), object, print, (), (1, 2), {1}, range(3), ..., {1: 2}, {None: "a"}]),
)
"""Whatever Python code can pass."""


def same(first: Any, second: Any) -> bool:
    """Return whether two JSON values are equal, NaN counting as itself and True not as 1."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return first == second or (math.isnan(first) and math.isnan(second))
    return type(first) is type(second) and bool(first == second)


def skip_without(*modules: str) -> None:
    """Skip a file of tests where an optional package is missing."""
    for module in modules:
        pytest.importorskip(module)
