"""`TextEnv`: everything that our agents need from a vector environment, in one class."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.adapters import check_apart
from textrl.agents.base import AnyVectorEnv, Observation
from textrl.agents.rollout import Spent
from textrl.errors import UserError
from textrl.logprobs import AllowedTokens
from textrl.rewards import RewardModel
from textrl.stopping import uninterrupted
from textrl.trainable import check_live, check_same_width, check_trainable

FAILED = ("reward_error", "world_error")
"""Reasons for which an episode ends without a score and is left out."""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What an environment paid for some tokens of each row, and what it shows after them."""

    rewards: np.ndarray
    """The reward of each token. Float64 [B T]."""
    ref_logprobs: np.ndarray
    """The reference's log-probs of the tokens, in nats. Float64 [B T]."""
    scores: np.ndarray
    """The score of each episode that ended, NaN where it has none. Float64 [B]."""
    named_scores: np.ndarray
    """What each reward function said of each episode that ended, NaN where nothing. Float64 [B K],
    K functions."""
    ended: np.ndarray
    """Whether each episode ended. Bool [B]."""
    truncated: np.ndarray
    """Whether each episode was truncated. Bool [B]."""
    failed: np.ndarray
    """Whether the reward function or the world failed on it, and that is masked. Bool [B]."""
    input_ids: np.ndarray
    """The whole texts, with what the environment appended. Int32 [B L]."""
    lengths: np.ndarray
    """The number of tokens of each text. Int64 [B]."""


class TextEnv:
    """A vector environment seen through the Gymnasium interface, and its text attributes.

    The attributes are read from the vector environment itself where it has them (ours), else from
    its first sub-environment (a SyncVectorEnv of single ones).
    """

    def __init__(self, venv: AnyVectorEnv) -> None:
        """Keep an environment without changing it.

        Raises:
            UserError: it is not a vector environment of text, or it pays the agent's half of the
                KL.
        """
        if not isinstance(venv, VectorEnv):
            shown = " ".join(str(venv).split())[:80]
            raise UserError(
                f"an agent acts in a vector environment, got {shown}; make it with "
                f'gym.make_vec("TextRLHF-v0", num_envs=64, ...)'
            )
        self.venv = venv
        self.num_envs = venv.num_envs
        self.tokenizer: PreTrainedTokenizerBase = self._get("tokenizer")
        self.reference: PreTrainedModel = self._get("reference")
        self.reward_model: RewardModel | None = self._get("reward_model")
        self.needs_whole_groups = bool(self._get("needs_whole_groups"))
        self.reward_names: tuple[str, ...] = tuple(self._get("reward_names"))
        self.temperature = float(self._get("temperature"))
        self.max_completion_tokens = int(self._get("max_completion_tokens"))
        self.max_prompt_tokens = int(self._get("max_prompt_tokens"))
        self.max_turn_tokens = int(self._get("max_turn_tokens"))
        self.by_sequence = hasattr(venv, "step_sequence")
        """Whether a whole turn can be taken in one call; a wrapped environment has to see every
        step."""
        self.group_size = int(self._get("group_size"))
        self.allowed: AllowedTokens = self._get("allowed")
        self.on_length = str(self._get("on_length"))
        self.missing_eos_penalty = float(self._get("missing_eos_penalty"))
        self.eos_token_id = int(self._get("eos_token_id"))
        self.end_token_ids = tuple(int(token) for token in self._get("end_token_ids"))
        space = venv.single_observation_space
        if not isinstance(space, spaces.Dict):
            raise UserError(
                f"our agents read and choose tokens and pay their half of the KL to the reference; "
                f"use the environment without a wrapper that shows or pays another thing: {venv}"
            )
        if self._has("pays_policy_kl"):
            raise UserError(
                "PolicyKL pays the agent's half of the KL, which our agents pay themselves; leave "
                "the wrapper out"
            )

    @property
    def kl_coef(self) -> float:
        """The KL coefficient, in score units per nat."""
        return float(self._get("kl_coef"))

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        base = self.venv.unwrapped
        if hasattr(base, "kl_coef"):
            base.kl_coef = value
        else:
            assert isinstance(base, SyncVectorEnv)
            base.set_attr("kl_coef", [value] * self.num_envs)

    def pay(self, actions: np.ndarray, mask: np.ndarray) -> Paid:
        """Let the environment take a turn of some rows, or a part of it; return what it pays.

        Args:
            actions: The token ids. Shape [B T].
            mask: Bool, True up to each row's last action. Shape [B T].
        """
        rewards, infos = self.venv.step_sequence(actions, mask)  # type: ignore[attr-defined]  # by_sequence
        input_ids, lengths = observed_texts(infos["observation"])
        return Paid(
            rewards=rewards,
            ref_logprobs=infos["ref_logprobs"],
            scores=infos["score"],
            named_scores=self.named_scores(infos.get("scores")),
            ended=infos["terminated"] | infos["truncated"],
            truncated=infos["truncated"],
            failed=np.isin(infos["finish_reason"].astype(str), FAILED),
            input_ids=input_ids,
            lengths=lengths,
        )

    def named_scores(self, said: np.ndarray | None) -> np.ndarray:
        """Return the entries of `scores` in infos, object [B] of dicts or None, as [B K]."""
        rows: list[dict[str, float] | None] = [None] * self.num_envs if said is None else list(said)
        found = [[(row or {}).get(name, np.nan) for name in self.reward_names] for row in rows]
        return np.array(found, dtype=np.float64).reshape(self.num_envs, len(self.reward_names))

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return the scores that episodes of these token ids would get, float64 [N].

        The environment takes no step.
        """
        found: np.ndarray = self._get("score_tokens")(prompts, completions)
        return found

    def check_groups(self, agent: str) -> None:
        """Raise UserError unless several rows share each prompt."""
        if self.group_size < 2:
            raise UserError(
                f"{agent} compares several samples of one prompt, but the environment's group_size "
                f"is {self.group_size}; make it with group_size=4 (and num_envs a multiple of it)"
            )
        if isinstance(self.venv.unwrapped, SyncVectorEnv):
            raise UserError(
                f"{agent} compares several samples of one prompt, but the rows of a SyncVectorEnv "
                f'have prompts of their own; use gym.make_vec("TextRLHF-v0", ...) as it comes'
            )

    def check(self, policy: PreTrainedModel, episodes_per_iteration: int) -> None:
        """Raise UserError unless the policy can be trained here with this many episodes."""
        check_live(policy)
        if policy is self.reference:
            raise UserError(
                "the policy is the environment's frozen reference itself; train a copy "
                "(copy.deepcopy, or load it twice)"
            )
        check_apart(policy, self.reference)
        check_trainable(policy)
        check_same_width(policy, self.reference)
        if episodes_per_iteration % self.num_envs:
            raise UserError(
                f"episodes_per_iteration is {episodes_per_iteration}; expected a multiple of the "
                f"environment's {self.num_envs} rows"
            )

    def _get(self, name: str) -> Any:
        base = self.venv.unwrapped
        if hasattr(base, name):
            return getattr(base, name)
        if isinstance(base, SyncVectorEnv):  # its get_attr calls anything callable, e.g. a model
            first = base.envs[0]
            if first.has_wrapper_attr(name):
                return first.get_wrapper_attr(name)
        raise UserError(
            f"the environment has no {name!r}: text agents act in TextRLHF-v0, got {self.venv}"
        )

    def prompt_state(self) -> str | None:
        """Return where the prompt streams stand, as JSON; None where the environment has none."""
        base = self.venv.unwrapped
        return json.dumps(base.prompt_state()) if hasattr(base, "prompt_state") else None

    def load_prompt_state(self, state: str) -> None:
        """Continue the prompt streams from a state, where the environment has such streams.

        Raises:
            UserError: The state is of other prompts or of another number of rows.
        """
        base = self.venv.unwrapped
        if hasattr(base, "load_prompt_state"):
            base.load_prompt_state(json.loads(state))

    def costs(self) -> Spent:
        """Return what reward functions or worlds have cost; nothing where it is not known."""
        known = getattr(self.venv.unwrapped, "reward_costs", {})
        return {name: (cost.seconds, cost.failures) for name, cost in known.items()}

    def task_digest(self) -> dict[str, str]:
        """Return what the rewards depend on, by name; nothing where the environment cannot say."""
        base = self.venv.unwrapped
        return dict(base.task_digest) if hasattr(base, "task_digest") else {}

    def _has(self, name: str) -> bool:
        """Return whether the first sub-environment of a SyncVectorEnv has this attribute."""
        base = self.venv.unwrapped
        return isinstance(base, SyncVectorEnv) and base.envs[0].has_wrapper_attr(name)


def observed_texts(observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts of observations, [B L], and the number of tokens of each, [B]."""
    lengths = np.asarray(observation["attention_mask"]).sum(1).astype(np.int64)
    return np.asarray(observation["input_ids"]), lengths


@contextmanager
def undone_on_failure(
    generator: torch.Generator, env: TextEnv, unchanged: Callable[[], bool]
) -> Iterator[None]:
    """Set the random generator and the prompts back to the block's beginning if the block fails.

    Ctrl+C, SIGTERM, a reward function that fails and memory that runs out are failures. An
    environment whose prompts cannot be set back (a SyncVectorEnv) keeps them as they are.

    Args:
        generator: The agent's random generator.
        env: The environment.
        unchanged: Whether the weights are still those of the beginning, else nothing is undone.
    """
    state, prompts = generator.get_state(), env.prompt_state()
    try:
        yield
    except BaseException:
        if unchanged():
            with uninterrupted():  # a second Ctrl+C must not find half of it done
                generator.set_state(state)
                if prompts is not None:
                    env.load_prompt_state(prompts)
        raise
