"""Text environments for agents without a language model: a state vector in, one of k tokens out.

The observation is the frozen reference's last hidden state after the text so far. The action is the
rank of a token among the k likeliest tokens of the reference. So SB3's `PPO("MlpPolicy", ...)`,
A2C, DQN and sb3-contrib's QR-DQN train unmodified.

    agent = stable_baselines3.PPO("MlpPolicy", "textrl:TextRLHFCandidates-v0")
    env = CandidateActions(gym.make("TextRLHF-v0"), k=8)
    venv = VectorCandidateActions(gym.make_vec("TextRLHF-v0", num_envs=64, ...), k=8)

The argument `shaping` sets the reward of a token in addition to the score. It is needed because
such agents do not pay their own half of the KL, and TextRLHF-v0's half alone would reward them for
stopping (docs/adr/0007):

    "potential" the amount by which the token raises the score of the text so far. Over an episode
                these sum to its score (potential-based shaping: Ng, Harada, Russell 1999; the
                potential of an empty completion is 0). The scorer is called at every step.
    "none"      nothing: the reward is the score, paid at the last token. The scorer is called there
    "exact"     kl_coef log pi_ref(a|s), TextRLHF-v0's half: for an agent that pays the other half,
                - kl_coef log pi(a|s) (for SB3's on-policy agents `SubtractPolicyKL`)
"""

from numbers import Integral
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from textrl.envs.attributes import Infos, Observation, TextAttributes
from textrl.envs.core import TextCore
from textrl.envs.core_config import Shaping
from textrl.envs.text_rlhf import TextRLHFEnv
from textrl.envs.token_env import TokenEnv
from textrl.envs.token_rows import TokenRows
from textrl.envs.vector import TextRLHFVectorEnv, TokenVectorEnv
from textrl.errors import UserError, did_you_mean

CANDIDATES = 8
SHAPING: Shaping = "potential"
"""The default shaping of `TextRLHF-v0`; docs/adr/0007 has the measurements behind this choice."""
STATE_BOUND = 1e6
"""Bound of the observation space, which Gymnasium's checker requires; no real state is as large."""


class CandidateActions(
    gym.Wrapper[np.ndarray, np.int64, Observation, np.int64], RecordConstructorArgs
):
    """The single environment with a Box [H] observation and a Discrete(k) action.

    `info["token"]` is the token that was taken.
    """

    def __init__(
        self,
        env: gym.Env[Observation, np.int64],
        k: int = CANDIDATES,
        shaping: Shaping | None = None,
    ) -> None:
        """Wrap a `TextRLHF-v0` or `TextTurns-v0` environment.

        Args:
            env: The environment, from `gym.make`.
            k: The number of tokens among which an action chooses.
            shaping: The reward of a token in addition to the score (see the module); by default
                "potential", or "none" where a world pays for turns.

        Raises:
            UserError: it is another environment, the shaping is unknown, or fewer than k tokens are
                sensible.
        """
        RecordConstructorArgs.__init__(self, k=k, shaping=shaping)
        super().__init__(env)  # type: ignore[arg-type]  # Gymnasium's own types forget ObsType
        if not isinstance(env.unwrapped, TokenEnv):
            raise UserError(
                f"CandidateActions chooses tokens of TextRLHF-v0 or TextTurns-v0, got {env}"
            )
        if env.has_wrapper_attr("pays_policy_kl"):
            raise UserError(
                "PolicyKL pays a policy over all tokens its half of the KL; leave it out below "
                "CandidateActions"
            )
        self._core, self._k = env.unwrapped.core, k
        self._shaping = _prepare(self._core, k, shaping)
        self.observation_space, self.action_space = state_space(self._core), spaces.Discrete(k)
        self.candidates = np.zeros(k, dtype=np.int64)
        """The tokens that the actions stand for in the present state, [k]."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        try:
            _, info = self.env.reset(seed=seed, options=options)
        finally:  # the reset of the bare environment, failed or not, is for other agents
            self._core.shaping = self._shaping
        return self._look(), info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append the candidate of this rank."""
        rank = np.atleast_1d(np.squeeze(action))
        _check_ranks(rank, self._k, rows=1)
        token = self.candidates[rank[0]]
        _, reward, terminated, truncated, info = self.env.step(token)
        return self._look(), float(reward), terminated, truncated, info | {"token": int(token)}

    def action_masks(self) -> np.ndarray:
        """Return an int8 mask [k] of ones: every candidate may be taken."""
        return np.ones(self._k, dtype=np.int8)

    def _look(self) -> np.ndarray:
        states, tokens = look(self._core, self._k)
        self.candidates = tokens[0]
        state: np.ndarray = states[0]
        return state


class VectorCandidateActions(VectorWrapper):
    """`CandidateActions` for B rows on one batched core; goes into `TextVecEnv` too."""

    def __init__(
        self,
        env: VectorEnv[Observation, Any, np.ndarray],
        k: int = CANDIDATES,
        shaping: Shaping | None = None,
    ) -> None:
        """Wrap a `gym.make_vec` environment of `TextRLHF-v0` or `TextTurns-v0`.

        Raises:
            UserError: it is another environment, or fewer than k tokens are sensible.
        """
        super().__init__(env)
        if not isinstance(env, TokenVectorEnv):
            raise UserError(
                f'VectorCandidateActions needs gym.make_vec("TextRLHF-v0", ...) as it comes, '
                f"got {env}"
            )
        self._core, self._k = env.core, k
        self._shaping = _prepare(self._core, k, shaping)
        self.single_observation_space = state_space(self._core)
        self.single_action_space = spaces.Discrete(k)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.candidates = np.zeros((env.num_envs, k), dtype=np.int64)
        """The tokens that the actions stand for in the present states, [B k]."""

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, Infos]:
        """Begin an episode in every row, or in those of options["reset_mask"]."""
        try:
            _, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # lists too
        finally:  # the reset of the bare environment, failed or not, is for other agents
            self._core.shaping = self._shaping
        return self._look(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Append to every row its candidate of the given rank."""
        actions = np.asarray(actions)
        _check_ranks(actions, self._k, rows=self.num_envs)
        tokens = self.candidates[np.arange(self.num_envs), actions]
        _, rewards, terminated, truncated, infos = self.env.step(tokens)
        taken = {"token": tokens, "_token": infos["_ref_logprob"]}
        infos |= taken
        if "final_obs" in infos:
            over, final = infos["_final_obs"], infos["final_obs"]
            states = np.zeros(self.observation_space.shape or (), dtype=np.float32)
            lengths = final["attention_mask"][over].sum(1).astype(np.int64)
            states[over] = states_after(self._core, final["input_ids"][over], lengths)
            infos |= {"final_obs": states, "final_info": infos["final_info"] | taken}
        return self._look(), rewards, terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Return an int8 mask [B k] of ones: every candidate may be taken."""
        return np.ones((self.num_envs, self._k), dtype=np.int8)

    def _look(self) -> np.ndarray:
        states, self.candidates = look(self._core, self._k)
        return states


@torch.no_grad()
def look(core: TokenRows, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference's state after each row's text and its k likeliest sensible tokens.

    Shapes: float32 [B H], int64 [B k], the likeliest first.
    """
    states = core.current_states(core.lengths > 0)
    sensible = torch.as_tensor(core.action_masks(), device=states.device).bool()
    logits = core.lm.head(states).float()
    tokens = logits.masked_fill(~sensible, -torch.inf).topk(k).indices
    return states.float().cpu().numpy(), tokens.cpu().numpy()


@torch.no_grad()
def states_after(core: TokenRows, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the reference's state after texts [N L] of these lengths, float32 [N H]."""
    ids = torch.as_tensor(input_ids[:, : lengths.max()], device=core.lm.device).long()
    hidden = core.lm.hidden(ids)[torch.arange(len(ids)), torch.as_tensor(lengths) - 1]
    states: np.ndarray = hidden.float().cpu().numpy()
    return states


def state_space(core: TokenRows) -> spaces.Box:
    """Return the observation space of the reference's last hidden state."""
    return spaces.Box(-STATE_BOUND, STATE_BOUND, (core.lm.state_size,), np.float32)


def _prepare(core: TokenRows, k: int, shaping: Shaping | None) -> Shaping:
    """Check both settings, set the shaping of the core, and return it."""
    sensible = int(core.action_masks()[0].sum())
    if not isinstance(k, Integral) or not 2 <= k <= sensible:
        raise UserError(f"k is {k!r}; expected 2 to {sensible}, the tokens that may come first")
    one_turn = isinstance(core, TextCore)
    chosen: Shaping = (SHAPING if one_turn else "none") if shaping is None else shaping
    if chosen not in (known := get_args(Shaping)):
        raise UserError(f"shaping is {chosen!r}; expected one of {list(known)}")
    if chosen == "potential" and not one_turn:
        raise UserError(
            "shaping 'potential' scores a text before its end, and a world pays whole turns; use "
            "shaping='none'"
        )
    if core.needs_whole_groups:
        raise UserError(
            "candidates are chosen step by step, and a reward function compares a group, which is "
            "known only when all its rows are over; give a reward that scores each text"
        )
    core.shaping = chosen
    return chosen


def _check_ranks(actions: np.ndarray, k: int, rows: int) -> None:
    if actions.shape != (rows,):
        raise UserError(f"actions are {actions}; expected {rows} ranks, one a row")
    if not np.issubdtype(actions.dtype, np.integer) or actions.min() < 0 or actions.max() >= k:
        raise UserError(f"an action is the rank of a candidate, an integer in [0, {k}): {actions}")


def _check_settings(settings: dict[str, Any], shaping: Shaping) -> None:
    """Raise UserError for a kl_coef that has no effect with this shaping, or a misspelled setting.

    All other settings are checked by the environment that takes them.
    """
    if settings.get("kl_coef") and shaping != "exact":
        raise UserError(
            f"kl_coef is {settings['kl_coef']!r}, which shaping {shaping!r} does not pay: leave it "
            f'out, or write shaping="exact" for an agent that pays - kl_coef log pi(a|s) itself'
        )
    for name in settings:
        if hint := did_you_mean(name, ["shaping"]):
            raise UserError(f"there is no argument {name!r}{hint}")


class TextCandidatesEnv(TextAttributes, gym.Env[np.ndarray, np.int64]):
    """`TextRLHFCandidates-v0`: the text environment with Box [H] observations, Discrete(k) actions.

    It is equal to `CandidateActions(TextRLHFEnv(...))`, but has its own id, so that a script that
    takes only an id (CleanRL's, SB3's `PPO("MlpPolicy", id)`) can train in it.
    """

    metadata = TextRLHFEnv.metadata

    def __init__(
        self,
        k: int = CANDIDATES,
        shaping: Shaping = SHAPING,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        """Make the environment; without arguments, it is the tiny built-in task.

        Args:
            k: The number of tokens among which an action chooses.
            shaping: The reward of a token in addition to the score; see `CandidateActions`.
            render_mode: "ansi" or None.
            settings: The arguments of `TextRLHFEnv`; kl_coef only with shaping "exact".

        Raises:
            UserError: in the cases of `TextRLHFEnv` and of `CandidateActions`.
        """
        _check_settings(settings, shaping)
        self._inner = CandidateActions(
            TextRLHFEnv(render_mode=render_mode, **settings), k=k, shaping=shaping
        )
        self.core, self.render_mode = self._inner.unwrapped.core, render_mode  # type: ignore[attr-defined]
        self.observation_space = state_space(self.core)
        self.action_space = spaces.Discrete(k)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        return self._inner.reset(seed=seed, options=options)

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append the candidate of this rank."""
        return self._inner.step(action)

    def action_masks(self) -> np.ndarray:
        """Return a Bool mask [k] of True: every candidate may be taken."""
        return self._inner.action_masks()

    def render(self) -> str | None:
        """Return the prompt and the completion so far, in render mode "ansi"."""
        text: str | None = self._inner.render()  # type: ignore[assignment]  # ours renders text
        return text


def vector_candidates(
    num_envs: int = 1, k: int = CANDIDATES, shaping: Shaping = SHAPING, **settings: Any
) -> VectorCandidateActions:
    """Make the environment of `gym.make_vec("TextRLHFCandidates-v0")`.

    The settings are the arguments of `TextRLHFVectorEnv`.
    """
    _check_settings(settings, shaping)
    venv = TextRLHFVectorEnv(num_envs=num_envs, **settings)
    return VectorCandidateActions(venv, k=k, shaping=shaping)
