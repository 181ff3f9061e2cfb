"""What single and vector environments share: attributes, observations, infos, reset options."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.envs.core import TextCore
from textrl.envs.core_config import Shaping
from textrl.envs.step_result import StepResult
from textrl.envs.token_rows import TokenRows
from textrl.envs.token_space import TokenIds
from textrl.errors import UserError, shown
from textrl.logprobs import AllowedTokens
from textrl.reward_calls import Cost
from textrl.rewards import RewardModel

Observation = dict[str, np.ndarray]
Infos = dict[str, Any]


class TokenAttributes:
    """Attributes of an environment over tokens, which it takes from its core."""

    core: TokenRows

    @property
    def kl_coef(self) -> float:
        """The KL coefficient, in score units per nat; it may be set while the environment runs."""
        return self.core.kl_coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        self.core.kl_coef = float(replace(self.core.config, kl_coef=value).kl_coef)  # checks it

    @property
    def shaping(self) -> Shaping:
        """The reward of a token in addition to the score.

        "exact" is the reference's half of the KL, for agents that pay their own half. "potential"
        and "none" are for agents that pay no KL (`CandidateActions`).
        """
        return self.core.shaping

    @property
    def reference(self) -> PreTrainedModel:
        """The frozen reference model, for agents that need its whole distribution."""
        return self.core.reference

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all texts."""
        return self.core.tokenizer

    @property
    def task_digest(self) -> dict[str, str]:
        """What the rewards depend on beside the prompts, by name, to tell one task from another."""
        return self.core.digest

    @property
    def allowed(self) -> AllowedTokens:
        """The tokens that may come next: no banned ones, no end before min_completion_tokens."""
        return self.core.allowed

    @property
    def eos_token_id(self) -> int:
        """The id of the tokenizer's EOS token, one of `end_token_ids`."""
        return self.core.eos_token_id

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a turn: EOS first, then those that end a turn of chats."""
        return self.core.end_token_ids

    @property
    def temperature(self) -> float:
        """The temperature for sampling and for all log-probs."""
        return self.core.temperature

    @property
    def max_turn_tokens(self) -> int:
        """The token budget of a turn."""
        return self.core.turn_budget

    @property
    def max_completion_tokens(self) -> int:
        """The token budget of an episode: of everything after the prompt."""
        return self.core.config.max_completion_tokens

    @property
    def max_prompt_tokens(self) -> int:
        """The maximum number of tokens in a prompt."""
        return self.core.config.max_prompt_tokens

    @property
    def needs_whole_groups(self) -> bool:
        """Whether rewards compare a group, so that all its rows have to end in one call."""
        return self.core.needs_whole_groups

    @property
    def reward_costs(self) -> dict[str, Cost]:
        """What the calls of each reward function, or all of them (""), have cost, by name."""
        return self.core.reward_costs

    @property
    def group_size(self) -> int:
        """The number of episodes per prompt.

        They are consecutive episodes of a single environment, or consecutive rows of a vector one.
        """
        return self.core.config.group_size


class TextAttributes(TokenAttributes):
    """Attributes of `TextRLHF-v0`, whose episodes are one turn with a score."""

    core: TextCore

    @property
    def reward_model(self) -> RewardModel | None:
        """The frozen reward model, or None if the reward is a plain function."""
        return self.core.reward_model

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The names of the reward functions."""
        return self.core.reward_names

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return the scores that episodes of these token ids would get, float64 [N].

        The environment takes no step. `group_size` consecutive ones have the same prompt.
        """
        return self.core.score_tokens(prompts, completions)

    @property
    def missing_eos_penalty(self) -> float:
        """The penalty for an episode that the budget ended; the reward loses it, not the score."""
        return self.core.config.missing_eos_penalty

    @property
    def on_length(self) -> str:
        """What happens to an episode that reaches the token budget: "score" or "truncate"."""
        return self.core.config.on_length


def observation_space(core: TokenRows) -> spaces.Dict:
    """Return the space of one row's observation."""
    size = (core.max_length,)
    return spaces.Dict(
        {
            "input_ids": TokenIds(0, core.lm.vocab_size - 1, size, np.int32),
            "attention_mask": spaces.Box(0, 1, size, np.int8),
            "prompt_length": spaces.Box(0, core.config.max_prompt_tokens, (1,), np.int32),
        }
    )


def observe(core: TokenRows) -> Observation:
    """Return the observations of all rows as new arrays: [B L], [B L], [B 1]."""
    there = np.arange(core.max_length) < core.lengths[:, None]
    return {
        "input_ids": core.input_ids.copy(),
        "attention_mask": there.astype(np.int8),
        "prompt_length": core.prompt_lengths[:, None].astype(np.int32),
    }


def step_infos(result: StepResult, stepped: np.ndarray) -> Infos:
    """Return Gymnasium's vector infos of one step: for each key an array [B] and its mask.

    Args:
        result: The result of the step.
        stepped: The rows that it is told of. Bool [B].
    """
    infos: Infos = {"ref_logprob": result.ref_logprobs[:, 0], "_ref_logprob": stepped}
    ended = (result.terminated | result.truncated) & stepped
    if ended.any():
        infos |= {"score": result.score, "_score": ~np.isnan(result.score) & ended}
        infos |= {"finish_reason": result.finish_reason, "_finish_reason": ended}
    for name, (values, rows) in result.extras.items():
        if (rows & stepped).any():
            infos |= {name: values, f"_{name}": rows & stepped}
    return infos


def merged(infos: Infos, later: Infos) -> Infos:
    """Return vector infos with those of other rows; where a row has both, the later one counts."""
    both = infos | later
    for name in infos.keys() & later.keys():
        if not name.startswith("_"):
            rows = later[f"_{name}"]
            both[name] = np.where(rows, later[name], infos[name])
            both[f"_{name}"] = rows | infos[f"_{name}"]
    return both


def row_info(infos: Infos, row: int) -> dict[str, Any]:
    """Return one row's entries of vector infos, with plain Python numbers."""
    found = {}
    for name, values in infos.items():
        if not name.startswith("_") and infos[f"_{name}"][row]:
            value = values[row]
            found[name] = value.item() if isinstance(value, np.generic) else value
    return found


def as_array(values: Any, name: str) -> np.ndarray:
    """Return what a caller gave as an array.

    Raises:
        UserError: it is none, such as a list of lists of different lengths.
    """
    try:
        return np.asarray(values)
    except Exception as error:  # of an object that has a rule of its own
        raise UserError(f"{name} are no array: {error}") from error


def as_flags(values: Any, name: str) -> np.ndarray:
    """Return what a caller gave as an array of True and False, or of 1 and 0.

    Raises:
        UserError: it holds something else, of which NumPy would take everything for True.
    """
    flags = as_array(values, name)
    if flags.dtype.kind not in "biuf":
        raise UserError(f"{name} holds {flags.dtype}; give True and False")
    if not np.isin(flags, (0, 1)).all():
        raise UserError(f"{name} holds other numbers than 0 and 1; give True and False")
    return flags.astype(bool)


def checked_options(options: Any) -> dict[str, Any]:
    """Return a copy of the options of a reset, which are a mapping or None."""
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"reset options are {shown(options)}; expected a mapping or None")
    return dict(options or {})
