"""The vector environments: many rows on one batched core, `gym.make_vec("TextRLHF-v0")` among them.

`TokenVectorEnv` is what it shares with `TextTurns-v0` (`text_turns.py`): seeds, groups, the three
autoreset modes, `step_sequence`.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from textrl.envs.attributes import (
    Infos,
    Observation,
    TextAttributes,
    TokenAttributes,
    as_array,
    as_flags,
    checked_options,
    merged,
    observation_space,
    observe,
    step_infos,
)
from textrl.envs.core import TextCore
from textrl.envs.core_config import CoreConfig, checked_arguments, takes_fields
from textrl.envs.texts import Stream
from textrl.envs.token_rows import TokenRows
from textrl.errors import UserError, did_you_mean, shown


class TokenVectorEnv(TokenAttributes, VectorEnv[Observation, np.ndarray, np.ndarray]):
    """B rows of tokens as a Gymnasium vector environment: an action is the next token of a row."""

    metadata = {
        "render_modes": ["ansi"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self, core: TokenRows, render_mode: str | None, autoreset_mode: str | AutoresetMode
    ) -> None:
        """Make the spaces of a core."""
        self.core = core
        self.num_envs, self.render_mode = core.num_rows, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = observation_space(core)
        self.single_action_space = spaces.Discrete(core.lm.vocab_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._streams: list[Stream] = []
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._unbegun: dict[int, UserError] = {}
        """Why the next episode of a row could not begin; the next step says so."""

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, Infos]:
        """Begin an episode in every row, or in those of options["reset_mask"].

        Args:
            seed: The seed; row i is seeded with seed + i, or with seed[i] of a list.
            options: A dict with "reset_mask" (Bool [B]), and what chooses the episode in the single
                environment (a list with one entry per row, or one value for all rows).
        """
        self.core.shaping = "exact"  # a wrapper with another shaping sets it again after a reset
        choice = checked_options(options)
        everything = np.ones(self.num_envs, dtype=bool)
        rows = as_array(choice.pop("reset_mask", everything), "options['reset_mask']")
        if rows.shape != (self.num_envs,) or rows.dtype != bool:
            raise UserError(
                f"options['reset_mask'] is {shown(rows)}; expected {self.num_envs} flags"
            )
        listed = rows.nonzero()[0].tolist() if choice else []
        chosen = {row: self.core.chosen(choice, row) for row in listed}
        if not self._streams:
            self._seed_streams(None, np.ones(self.num_envs, dtype=bool))
        if seed is not None:
            self._seed_streams(seed, rows)
        draws = [self.core.draws(chosen.get(row)) for row in range(self.num_envs)]
        self._align_groups(rows & draws)
        for row in rows.nonzero()[0].tolist():
            self.core.start(row, self.core.drawn(self._streams[row], chosen.get(row)))
            self._unbegun.pop(row, None)
        self._ended &= ~rows
        return observe(self.core), self._reset_infos(rows)

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Append one token to every row; return float64 rewards [B] and Bool flags [B]."""
        self._require_begun()
        actions = as_array(actions, "actions")
        restarting = self._ended.copy()
        if self.autoreset_mode is AutoresetMode.DISABLED and restarting.any():
            raise UserError(
                f"row {int(restarting.argmax())} is over: reset it with "
                f"options={{'reset_mask': ...}} before stepping on"
            )
        result = self.core.step(actions, ~restarting)
        infos: Infos = {}
        if restarting.any():  # NEXT_STEP: this step of an ended row only resets it
            infos = self._restart(restarting)  # no sooner: a refused step changes nothing
        infos = merged(infos, step_infos(result, ~restarting))
        self._ended = result.terminated | result.truncated
        observation = observe(self.core)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            over = self._ended.copy()
            infos |= {"final_obs": observation, "_final_obs": over}
            infos |= {"final_info": step_infos(result, over), "_final_info": over}
            infos = merged(infos, self._restart(over))
            observation = observe(self.core)
        rewards = result.rewards[:, 0]
        return observation, rewards, result.terminated, result.truncated, infos

    def step_sequence(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, Infos]:
        """Take T actions per row in one teacher-forced pass; return the same as T calls of `step`.

        Each row must be in an episode, so rows that are over must be reset first, in every
        autoreset mode. A row may stop anywhere up to an end token or the budget.

        Args:
            actions: Token ids. Shape [B T].
            mask: Bool, True up to each row's last action. Shape [B T].

        Returns: rewards, float64 [B T], 0 where the mask is False; and infos with `ref_logprobs`
            [B T], `score` [B] (NaN unless the episode ended with a score), `finish_reason` [B]
            (None while the episode goes on), `terminated`, `truncated` [B], the `observation` after
            the last actions, and what else the last step of each row has in its info.

        Raises:
            UserError: no sequence of steps could produce these shapes, ids or masks.
        """
        self._require_begun()
        result = self.core.step_sequence(as_array(actions, "actions"), as_flags(mask, "mask"))
        self._ended |= result.terminated | result.truncated
        infos = {
            "ref_logprobs": result.ref_logprobs,
            "score": result.score,
            "finish_reason": result.finish_reason,
            "terminated": result.terminated,
            "truncated": result.truncated,
            "observation": observe(self.core),
            **{
                name: np.where(rows, values, np.array(None)) if values.dtype == object else values
                for name, (values, rows) in result.extras.items()
            },
        }
        return result.rewards, infos

    def action_masks(self) -> np.ndarray:
        """Return 1 for the tokens that are sensible next, int8 [B V]; see `TokenEnv`."""
        return self.core.action_masks()

    def render(self) -> tuple[str, ...] | None:
        """Return each row's text so far, in render mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        return tuple(self.core.shown(row) for row in range(self.num_envs))

    def prompt_state(self) -> dict[str, Any]:
        """Return the position of each row's prompt stream, JSON-able, for an exact resume."""
        streams = [stream.state() for stream in self._streams]
        return {"streams": streams, "prompts": self.core.prompts_digest}

    def load_prompt_state(self, state: dict[str, Any]) -> None:
        """Continue the prompt streams from a state.

        Raises:
            UserError: the state is from other prompts or another number of rows.
        """
        if len(state["streams"]) != self.num_envs:
            raise UserError(
                f"the prompts were drawn for {len(state['streams'])} rows, and the environment has "
                f"{self.num_envs}; make it with num_envs={len(state['streams'])}"
            )
        if state["prompts"] != self.core.prompts_digest:
            raise UserError(
                "the environment has other prompts or columns than those that were drawn from; "
                "give the same"
            )
        self._seed_streams(0, np.ones(self.num_envs, dtype=bool))
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.load(saved)

    def _seed_streams(self, seed: int | Sequence[int | None] | None, rows: np.ndarray) -> None:
        """Seed the prompt streams of some rows; a row whose seed is None keeps its stream."""
        if seed is None:
            seed = int(seeding.np_random(None)[0].integers(2**31))
        seed = seed.tolist() if isinstance(seed, np.ndarray) else seed
        if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
            seeds = [None if value is None else _checked_seed(value) for value in seed]
        else:
            first = _checked_seed(seed)
            seeds = [first + row for row in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds for {self.num_envs} rows")
        streams = self._streams or [self.core.stream(np.random.default_rng())] * self.num_envs
        self._streams = list(streams)
        for row in rows.nonzero()[0].tolist():
            leader = seeds[row - row % self.group_size]
            if leader is not None:
                rng = seeding.np_random(leader)[0]
                self._streams[row] = self.core.stream(rng)

    def _align_groups(self, rows: np.ndarray) -> None:
        """Move all rows of each group that is reset as a whole to the position of its furthest row.

        This is needed because with autoreset a row with short texts draws more prompts than the
        others.
        """
        if self.group_size == 1:
            return
        for first in range(0, self.num_envs, self.group_size):
            group = self._streams[first : first + self.group_size]
            furthest = max(group, key=lambda stream: stream.drawn)
            if rows[first : first + self.group_size].all():
                for stream in group:
                    if stream.drawn < furthest.drawn:
                        stream.load(furthest.state())

    def _restart(self, rows: np.ndarray) -> Infos:
        """Begin new episodes in rows that are over; where one cannot begin, the next step says so.

        This step has been taken by the other rows, which must not lose it.
        """
        begun = rows.copy()
        for row in rows.nonzero()[0].tolist():
            try:
                self.core.start(row, self.core.drawn(self._streams[row], None))
            except UserError as error:
                self._unbegun[row], begun[row] = error, False
        self._ended &= ~rows
        return self._reset_infos(begun)

    def _require_begun(self) -> None:
        """Raise UserError if an episode could not begin after the step before."""
        for row, error in self._unbegun.items():
            raise UserError(
                f"{error}; no new episode has begun in row {row}, and nothing else is lost: go on "
                f"with reset(options={{'reset_mask': ...}}) of this row, or of all"
            ) from error

    def _reset_infos(self, rows: np.ndarray) -> Infos:
        infos: Infos = {}
        for name, values in self.core.reset_infos().items():
            column = np.full(self.num_envs, None, dtype=object)
            for row in rows.nonzero()[0]:
                column[row] = values[row]
            infos |= {name: column, f"_{name}": rows}
        return infos


class TextRLHFVectorEnv(TextAttributes, TokenVectorEnv):
    """B episodes of `TextRLHFEnv` at once: one reference, one scorer, one forward pass per step.

    Row i of `reset(seed=s)` is equal to the single environment with seed s + i. With `group_size`
    G, each G consecutive rows are a group that is seeded like its first row, so that its rows have
    the same prompt. This holds at each reset of the whole group, even if its rows had different
    numbers of episodes in between.

    `autoreset_mode` is Gymnasium's: "NextStep" (default), "SameStep" (`final_obs` and `final_info`
    in infos) or "Disabled" (`reset(options={"reset_mask": rows})`).
    """

    core: TextCore

    @takes_fields(CoreConfig)
    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ) -> None:
        """Make the environment.

        Args:
            num_envs: Number of rows, a multiple of group_size.
            render_mode: "ansi" or None.
            autoreset_mode: Gymnasium's autoreset mode; see the class docstring.
            arguments: The fields of `CoreConfig`, which explains them.

        Raises:
            UserError: an argument is unknown or out of range, or a model or prompt does not load.
        """
        config = checked_arguments(CoreConfig, arguments, type(self))
        check_rows(num_envs, config.group_size, render_mode, autoreset_mode)
        super().__init__(TextCore(num_envs, config), render_mode, autoreset_mode)


def check_rows(num_envs: Any, group_size: int, render_mode: Any, autoreset_mode: Any) -> None:
    """Raise UserError for an argument out of range that only the vector environment has."""
    if not isinstance(num_envs, Integral) or isinstance(num_envs, bool) or num_envs < 1:
        raise UserError(f"num_envs is {num_envs!r}; expected a positive number of rows")
    if num_envs % group_size:
        raise UserError(
            f"num_envs {num_envs} must be a multiple of group_size {group_size}: rows of one group "
            f"share a prompt"
        )
    if render_mode not in (None, "ansi"):
        raise UserError(f"render_mode is {render_mode!r}; a vector environment has 'ansi' or None")
    modes = [mode.value for mode in AutoresetMode]
    if autoreset_mode not in [*AutoresetMode, *modes]:
        hint = did_you_mean(str(autoreset_mode), modes)
        raise UserError(f"autoreset_mode is {autoreset_mode!r}; expected one of {modes}{hint}")


def _checked_seed(value: Any) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 0:
        raise UserError(f"seed is {shown(value)}; expected a whole number, 0 or more")
    return int(value)
