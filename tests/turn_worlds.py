"""Worlds for the tests of turns: one that follows a script, one that answers anything."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

EOS = 2
"""The end token of the character tokenizer, whose letters begin at 3."""
MORE = ("more\n", 0.0, False, False, {})
DONE = ("end\n", 1.0, True, False, {})


class Script(gym.Env):
    """Answers the k-th turn with the k-th entry of a script, the last one again and again.

    An entry is what `step` returns, or a function of the turn that returns it. `calls` lists the
    resets (seed, options) and the turns, of all worlds with the same list.
    """

    observation_space = action_space = spaces.Text(1000, min_length=0)

    def __init__(self, script: Sequence[Any] = (MORE, DONE), first: Any = "go\n", calls=None):
        self.script, self.first = script, first
        self.calls = [] if calls is None else calls
        self.turns = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.calls.append((seed, options))
        self.turns = 0
        first = self.first(self) if callable(self.first) else self.first
        return first if isinstance(first, tuple) else (first, {"seed": seed})

    def step(self, action: str):
        self.calls.append(action)
        entry = self.script[min(self.turns, len(self.script) - 1)]
        self.turns += 1
        return entry(action) if callable(entry) else entry


class Babble(gym.Env):
    """Answers with random texts of a list, pays random rewards, ends at random."""

    observation_space = action_space = spaces.Text(100_000, min_length=0)

    def __init__(self, texts: Sequence[str], ends: float = 0.2, roles: Sequence[str] = ("user",)):
        self.texts, self.ends, self.roles = texts, ends, roles
        self.heard: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.heard = []
        return "Begin " + self._text().strip() + ".", {}

    def step(self, action: str):
        self.heard.append(action)
        rng = self.np_random
        terminated, truncated = rng.random(2) < (self.ends, self.ends / 2)
        info = {"role": self.roles[rng.integers(len(self.roles))]}
        return self._text(), float(rng.normal()), bool(terminated), bool(truncated), info

    def _text(self) -> str:
        return self.texts[self.np_random.integers(len(self.texts))]


def scripted(*script: Any, **arguments: Any) -> Callable[[], gym.Env]:
    """Return a maker of worlds that follow a script."""
    return partial(Script, script or (MORE, DONE), **arguments)


def babbling(*texts: str, **arguments: Any) -> Callable[[], gym.Env]:
    """Return a maker of worlds that answer these texts at random."""
    return partial(Babble, texts or ("yes\n", "a longer reply\n", "no, 13\n", "?"), **arguments)


SIZES = dict(max_prompt_tokens=64, max_completion_tokens=64, max_turn_tokens=4, kl_coef=0.1)


def single(world: Any, **settings: Any) -> gym.Env:
    return gym.make("TextTurns-v0", world=world, **SIZES | settings)


def vector(world: Any, rows: int = 4, **settings: Any) -> Any:
    return gym.make_vec("TextTurns-v0", num_envs=rows, world=world, **SIZES | settings)


def random_tokens(rng: np.random.Generator, rows: int, vocab: int = 103) -> np.ndarray:
    """Return a random token for each row, every fourth an end of the turn."""
    tokens = rng.integers(3, vocab, rows)
    tokens[rng.random(rows) < 0.25] = EOS
    return tokens


def random_turns(venv: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return random tokens of the running rows and their mask, to the turns' ends or not so far.

    Some of the rows wait.
    """
    room = venv.core.room()
    tokens = venv.action_masks()[0].nonzero()[0]
    actions = rng.choice(tokens, (venv.num_envs, max(1, int(room.max()))))
    counts = rng.integers(1, np.maximum(room, 1) + 1)
    waiting = rng.random(venv.num_envs) < 0.25
    counts[waiting | ~venv.core.running] = 0
    for row in range(venv.num_envs):
        ends = np.isin(actions[row, : counts[row]], venv.core.end_token_ids).nonzero()[0]
        counts[row] = ends[0] + 1 if len(ends) else counts[row]
        if counts[row] and rng.random() < 0.4:
            actions[row, counts[row] - 1] = venv.core.eos_token_id
    return actions, np.arange(actions.shape[1]) < counts[:, None]
