"""`TokenEnv`: what the single environments share, `TextRLHF-v0` and `TextTurns-v0`.

The computation is in their cores; the vector environments are in `vector.py`.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from textrl.envs.attributes import (
    Observation,
    TokenAttributes,
    as_array,
    checked_options,
    observation_space,
    observe,
    row_info,
    step_infos,
)
from textrl.envs.texts import Stream
from textrl.envs.token_rows import TokenRows
from textrl.errors import UserError


class TokenEnv(TokenAttributes, gym.Env[Observation, np.int64]):
    """One row of tokens as a Gymnasium environment: the action is the next token."""

    metadata = {"render_modes": ["human", "ansi"], "render_fps": 4}

    def __init__(self, core: TokenRows, render_mode: str | None) -> None:
        """Make the spaces of a core of one row.

        Raises:
            UserError: the render mode is unknown.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode is {render_mode!r}; expected 'ansi', 'human' or None")
        self.core = core
        self.render_mode = render_mode
        # Gymnasium's Dict space is typed by its subspaces, Env by the observation's type.
        # a spaces.Dict, which Gymnasium types as Space[dict]
        self.observation_space = observation_space(core)  # type: ignore[assignment]
        self.action_space = spaces.Discrete(core.lm.vocab_size)
        self._stream: Stream | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; see the class docstring for options."""
        options = checked_options(options)
        chosen = self.core.chosen(options, 0) if options else None
        super().reset(seed=seed)
        self.core.shaping = "exact"  # a wrapper with another shaping sets it again after a reset
        if seed is not None or self._stream is None:
            self._stream = self.core.stream(self.np_random, self.core.config.group_size)
        self.core.start(0, self.core.drawn(self._stream, chosen))
        if self.render_mode == "human":
            print(f"\n{self.core.shown(0)}", end="", flush=True)
        return self._observation(), {name: of[0] for name, of in self.core.reset_infos().items()}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token; return observation, reward, terminated, truncated and info."""
        before = self.core.shown(0) if self.render_mode == "human" else ""
        token = np.atleast_1d(np.squeeze(as_array(action, "the action")))
        result = self.core.step(token, np.array([True]))
        info = row_info(step_infos(result, np.array([True])), 0)
        if self.render_mode == "human":
            print(self.core.shown(0)[len(before) :], end="", flush=True)
            if "score" in info:
                print(f"  [score {info['score']:.3g}]", flush=True)
        terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
        return self._observation(), float(result.rewards[0, 0]), terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """Return 1 for the tokens that are sensible next, int8 [V], as `action_space.sample` takes.

        The name is sb3-contrib's. Where the mask is 0, `step` refuses the token, except for ids
        beyond the tokenizer.
        """
        masks: np.ndarray = self.core.action_masks()[0]
        return masks

    def render(self) -> str | None:
        """Return the text so far, in render mode "ansi"."""
        return self.core.shown(0) if self.render_mode == "ansi" else None

    def _observation(self) -> Observation:
        return {name: array[0] for name, array in observe(self.core).items()}
