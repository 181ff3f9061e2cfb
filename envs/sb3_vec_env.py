"""`TextVecEnv`: the vector environment behind Stable-Baselines3's interface.

`TextVecEnv(gym.make_vec("TextRLHF-v0", num_envs=64, autoreset_mode="SameStep"))` can be used
wherever SB3 and sb3-contrib take a `VecEnv`. One forward pass of one reference steps all rows;
nothing is copied per row.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from textrl.envs.attributes import Observation
from textrl.envs.candidates import VectorCandidateActions
from textrl.envs.vector import TokenVectorEnv
from textrl.errors import UserError, did_you_mean

Indices = int | Iterable[int] | None
Batch = Observation | np.ndarray
"""Observations of all rows: texts, or states from `VectorCandidateActions`."""


class TextVecEnv(VecEnv):
    """A `TextRLHF-v0` or `TextTurns-v0` vector environment behind SB3's interface.

    A row's info has the entries of the single environment's info. At the end of an episode it also
    has `terminal_observation`, `TimeLimit.truncated` (in TextRLHF-v0 True only with
    on_length="truncate": a scored text has no value after it) and Monitor's `episode` (return,
    length, seconds); `reset_infos` then has what the reset of the next one tells.
    """

    def __init__(self, venv: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """Wrap a vector environment.

        Args:
            venv: An environment from `gym.make_vec("TextRLHF-v0", autoreset_mode="SameStep", ...)`
                or of `TextTurns-v0`, bare or in `VectorCandidateActions`.

        Raises:
            UserError: it is another environment, has another wrapper, or another autoreset mode.
        """
        if not isinstance(venv, TokenVectorEnv | VectorCandidateActions):
            raise UserError(
                f'TextVecEnv needs gym.make_vec("TextRLHF-v0", ...) as it comes (one batched core '
                f"for all rows), got {venv}"
            )
        self.base: TokenVectorEnv = venv.unwrapped  # type: ignore[assignment]  # checked above
        if self.base.needs_whole_groups:
            raise UserError(
                "agents of SB3 act step by step, and a reward function compares a group, which is "
                "known only when all its rows are over; give a reward that scores each text"
            )
        if self.base.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise UserError(
                f"SB3 resets a row in the step that ends it; make the environment with "
                f'autoreset_mode="SameStep" (it has {self.base.autoreset_mode.value!r})'
            )
        self.venv = venv
        self._actions = np.zeros(venv.num_envs, dtype=np.int64)
        self._returns = np.zeros(venv.num_envs)
        self._steps = np.zeros(venv.num_envs, dtype=np.int64)
        self._began = time.monotonic()
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)

    def reset(self) -> Batch:
        """Begin an episode in every row, with the seeds and options set before."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        options: dict[str, Any] = {}
        if any(self._options):
            first = self._options[0]
            if any(row.keys() != first.keys() for row in self._options):
                raise UserError("reset options are for all rows or for none: give each row one")
            options = {name: [row[name] for row in self._options] for name in first}
        observation, infos = self.venv.reset(seed=seeds, options=options)
        self.reset_infos = self._rows(infos)
        self._returns[:] = self._steps[:] = 0
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Batch, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Append one token to every row; an ended row shows its next episode's prompt."""
        observation, rewards, terminated, truncated, infos = self.venv.step(self._actions)
        dones = terminated | truncated
        self._returns += rewards
        self._steps += 1
        rows = self._rows(infos)
        if dones.any():
            final, last = infos["final_obs"], self._rows(infos["final_info"])
            begun = self.base.core.reset_infos()
            for row in dones.nonzero()[0].tolist():
                self.reset_infos[row] = {name: values[row] for name, values in begun.items()}
                length, seconds = int(self._steps[row]), time.monotonic() - self._began
                rows[row] = last[row] | {
                    "terminal_observation": _row_of(final, row),
                    "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
                    "episode": {
                        "r": float(self._returns[row]),
                        "l": length,
                        "t": round(seconds, 6),
                    },
                }
            self._returns[dones] = self._steps[dones] = 0
        return observation, rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the vector environment."""
        self.venv.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of the vector environment, once per row (the same for all rows)."""
        return [getattr(self._owner(attr_name), attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the vector environment; all rows share it."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise UserError(f"all rows share {attr_name!r}: set it for all of them (indices=None)")
        owner = self._owner(attr_name)
        if not hasattr(owner, attr_name):
            hint = did_you_mean(attr_name, (name for name in dir(owner) if name[0] != "_"))
            raise UserError(f"the environment has no attribute {attr_name!r} to set{hint}")
        try:
            setattr(owner, attr_name, value)
        except AttributeError as error:  # a property without a setter
            raise UserError(f"{attr_name!r} is set where the environment is made") from error

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment once; return each row's part of the result."""
        method = getattr(self._owner(method_name), method_name)
        result = method(*method_args, **method_kwargs)
        per_row = isinstance(result, np.ndarray | Sequence) and len(result) == self.num_envs
        return [result[row] if per_row else result for row in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Return False for every wrapper except Monitor, whose numbers are in the infos."""
        monitored = wrapper_class.__name__ == "Monitor"
        return [monitored for _ in self._get_indices(indices)]

    def _owner(self, name: str) -> Any:
        """Return the wrapper if it has this attribute, else the environment itself."""
        return self.venv if hasattr(self.venv, name) else self.base

    def _rows(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """Return Gymnasium's vector infos as one dict per row."""
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for name, values in infos.items():
            if name.startswith(("_", "final_")):
                continue
            for row in np.asarray(infos[f"_{name}"]).nonzero()[0].tolist():
                rows[row][name] = values[row]
        return rows


def _row_of(batch: Batch, row: int) -> Batch:
    if isinstance(batch, dict):
        return {name: array[row] for name, array in batch.items()}
    state: np.ndarray = batch[row]
    return state
