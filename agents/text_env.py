"""`TextEnv`: everything that our agents need from a vector environment, in one class."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.adapters import check_apart
from textrl.agents.base import AnyVectorEnv, Observation
from textrl.errors import UserError
from textrl.logprobs import AllowedTokens
from textrl.rewards import RewardModel
from textrl.stopping import uninterrupted
from textrl.trainable import check_live, check_same_width, check_trainable


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What an environment paid for one completion per row."""

    rewards: np.ndarray
    """The reward of each token. Float64 [B T]."""
    ref_logprobs: np.ndarray
    """The reference's log-probs of the tokens, in nats. Float64 [B T]."""
    scores: np.ndarray
    """The score of each completion, NaN where it was truncated. Float64 [B]."""
    truncated: np.ndarray
    """Whether each episode was truncated. Bool [B]."""


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
        self.temperature = float(self._get("temperature"))
        self.max_completion_tokens = int(self._get("max_completion_tokens"))
        self.max_prompt_tokens = int(self._get("max_prompt_tokens"))
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
        """Let the environment take one completion per row, and return what it pays.

        It takes the actions in one call of `step_sequence` if it has that method, and otherwise
        step by step; the rewards are the same.

        Args:
            actions: The token ids. Shape [B T].
            mask: Bool, True up to each row's last action. Shape [B T].
        """
        if not hasattr(self.venv, "step_sequence"):  # a wrapped environment must see every step
            return _pay_step_by_step(self, actions, mask)
        rewards, infos = self.venv.step_sequence(actions, mask)
        return Paid(
            rewards=rewards,
            ref_logprobs=infos["ref_logprobs"],
            scores=infos["score"],
            truncated=infos["truncated"],
        )

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

    def task_digest(self) -> dict[str, str]:
        """Return what the rewards depend on, by name; nothing where the environment cannot say."""
        base = self.venv.unwrapped
        return dict(base.task_digest) if hasattr(base, "task_digest") else {}

    def _has(self, name: str) -> bool:
        """Return whether the first sub-environment of a SyncVectorEnv has this attribute."""
        base = self.venv.unwrapped
        return isinstance(base, SyncVectorEnv) and base.envs[0].has_wrapper_attr(name)


def _pay_step_by_step(env: TextEnv, actions: np.ndarray, mask: np.ndarray) -> Paid:
    """Take the actions step by step; finished rows keep stepping in an episode that is ignored.

    Unless the environment resets rows in the same step, the ignored episode gets a fixed prompt.
    Thus all rows of a group draw equally many prompts from their prompt streams.
    """
    rewards, ref_logprobs = np.zeros(mask.shape), np.zeros(mask.shape)
    scores = np.full(len(mask), np.nan)
    truncated_rows = np.zeros(len(mask), dtype=bool)
    same_step = env.venv.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP
    over = np.zeros(len(mask), dtype=bool)
    for t in range(mask.shape[1]):
        if over.any() and not same_step:
            env.venv.reset(options={"reset_mask": over, "index": 0})
        counts = mask[:, t]
        tokens = np.where(counts, actions[:, t], env.allowed.filler)
        observation, reward, terminated, truncated, infos = env.venv.step(tokens)
        if not isinstance(infos, dict):
            raise UserError(f"{env.venv} gives its infos in another form; leave that wrapper out")
        over = terminated | truncated
        rewards[counts, t] = reward[counts]
        ref_logprobs[counts, t] = _info(infos, "ref_logprob", over)[counts]
        ended = counts & terminated
        if ended.any():
            scores[ended] = _info(infos, "score", over)[ended]
        truncated_rows |= counts & truncated
        going_on = mask[:, t + 1] if t + 1 < mask.shape[1] else np.zeros_like(over)
        if (early := counts & over & going_on).any():
            raise UserError(
                f"a wrapper ended the episode of row {int(early.argmax())} after {t + 1} tokens, "
                f"but the agent samples whole completions: let the environment end them, by an end "
                f"token or max_completion_tokens"
            )
        _check_tokens(observation, tokens, counts & ~over)
        last = np.where(ended, scores, 0.0) - env.missing_eos_penalty * (
            ended & ~np.isin(tokens, env.end_token_ids)
        )
        _check_rewards(reward, env.kl_coef * ref_logprobs[:, t] + last, counts)
    return Paid(rewards=rewards, ref_logprobs=ref_logprobs, scores=scores, truncated=truncated_rows)


def _check_tokens(observation: Observation, tokens: np.ndarray, rows: np.ndarray) -> None:
    """Raise UserError if a row shows a different token from the one that the agent gave."""
    ends = np.asarray(observation["attention_mask"]).sum(1).astype(np.int64) - 1
    shown = np.asarray(observation["input_ids"])[np.arange(len(tokens)), ends]
    if (other := rows & (shown != tokens)).any():
        row = int(other.argmax())
        raise UserError(
            f"a wrapper took token {shown[row]} in row {row} where the agent gave {tokens[row]}, "
            f"so that it would learn of tokens never taken; leave that wrapper out"
        )


def _check_rewards(rewards: np.ndarray, expected: np.ndarray, rows: np.ndarray) -> None:
    """Raise UserError if a row's reward is not what the unwrapped environment pays."""
    far = np.abs(rewards - expected) > 1e-4 * (1 + np.abs(expected))
    if (other := rows & far).any():
        row = int(other.argmax())
        raise UserError(
            f"row {row} was paid {rewards[row]:.4g} where the environment pays "
            f"{expected[row]:.4g}: a wrapper that changes rewards changes half of the KL alone (or "
            f"the rows have settings of their own); change the reward function instead: "
            f"reward=[score, (bonus, 1.0)]"
        )


def _info(infos: dict[str, Any], name: str, over: np.ndarray) -> np.ndarray:
    """Return one entry of this step's infos, [B].

    With same-step autoreset, the entries of the rows that ended are in `final_info`.
    """
    values = np.array(infos.get(name, np.zeros(len(over))), dtype=np.float64)
    final = infos.get("final_info", {})
    if name in final:
        values[over] = np.asarray(final[name], dtype=np.float64)[over]
    return values


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
