"""What the single and the vector environment share: attributes, observations, reset options."""

from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from gymnasium import spaces
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.envs.core import TextCore
from textrl.envs.core_config import Shaping
from textrl.envs.token_space import TokenIds
from textrl.errors import UserError, shown
from textrl.logprobs import AllowedTokens
from textrl.rewards import RewardModel
from textrl.rows import is_conversation

Observation = dict[str, np.ndarray]


class TaskAttributes:
    """Attributes of an environment that it takes from its core."""

    core: TextCore

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
        """The tokenizer of prompts and completions."""
        return self.core.tokenizer

    @property
    def reward_model(self) -> RewardModel | None:
        """The frozen reward model, or None if the reward is a plain function."""
        return self.core.reward_model

    @property
    def task_digest(self) -> dict[str, str]:
        """What the rewards depend on beside the prompts, by name, to tell one task from another."""
        return self.core.digest

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return the scores that episodes of these token ids would get, float64 [N].

        The environment takes no step.
        """
        return self.core.score_tokens(prompts, completions)

    @property
    def allowed(self) -> AllowedTokens:
        """The tokens that may come next: no banned ones, no end before min_completion_tokens."""
        return self.core.allowed

    @property
    def missing_eos_penalty(self) -> float:
        """The penalty for an episode that the budget ended; the reward loses it, not the score."""
        return self.core.config.missing_eos_penalty

    @property
    def on_length(self) -> str:
        """What happens to an episode that reaches the token budget: "score" or "truncate"."""
        return self.core.config.on_length

    @property
    def eos_token_id(self) -> int:
        """The id of the tokenizer's EOS token, one of `end_token_ids`."""
        return self.core.eos_token_id

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends an episode: EOS first, then those that end a turn."""
        return self.core.end_token_ids

    @property
    def temperature(self) -> float:
        """The temperature for sampling and for all log-probs."""
        return self.core.config.temperature

    @property
    def max_completion_tokens(self) -> int:
        """The token budget of an episode."""
        return self.core.config.max_completion_tokens

    @property
    def max_prompt_tokens(self) -> int:
        """The maximum number of tokens in a prompt."""
        return self.core.config.max_prompt_tokens

    @property
    def group_size(self) -> int:
        """The number of episodes per prompt.

        They are consecutive episodes of a single environment, or consecutive rows of a vector one.
        """
        return self.core.config.group_size


def observation_space(core: TextCore) -> spaces.Dict:
    """Return the space of one row's observation."""
    size = (core.max_length,)
    return spaces.Dict(
        {
            "input_ids": TokenIds(0, core.lm.vocab_size - 1, size, np.int32),
            "attention_mask": spaces.Box(0, 1, size, np.int8),
            "prompt_length": spaces.Box(0, core.config.max_prompt_tokens, (1,), np.int32),
        }
    )


def observe(core: TextCore) -> Observation:
    """Return the observations of all rows as new arrays: [B L], [B L], [B 1]."""
    there = np.arange(core.max_length) < core.lengths[:, None]
    return {
        "input_ids": core.input_ids.copy(),
        "attention_mask": there.astype(np.int8),
        "prompt_length": core.prompt_lengths[:, None].astype(np.int32),
    }


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


def chosen_prompt(options: dict[str, Any], row: int) -> Any:
    """Return the prompt or the index that reset options select for a row.

    A vector environment takes a list with one entry per row, or one value for all rows.

    Raises:
        UserError: neither key is given, or both are.
    """
    if set(options) not in ({"prompt"}, {"index"}):
        raise UserError(f"reset options are 'prompt' or 'index', got {sorted(map(str, options))}")
    if "index" in options:
        index = options["index"]
        if isinstance(index, list | tuple) or (isinstance(index, np.ndarray) and index.ndim):
            index = index[row] if row < len(index) else index
        if not isinstance(index, Integral) or isinstance(index, bool):
            raise UserError(
                f"options['index'] is {shown(index)} for row {row}; expected a whole number"
            )
        return int(index)
    prompt = options["prompt"]
    if isinstance(prompt, str) or is_conversation(prompt):
        return prompt
    if not isinstance(prompt, list | tuple) or row >= len(prompt):
        raise UserError(
            f"options['prompt'] is {shown(prompt)}; expected a text, messages, or a list"
        )
    return prompt[row]


def render_row(core: TextCore, row: int) -> str:
    """Return a row's prompt and completion with a bar between them."""
    return f"{core.prompt_texts[row]}|{core.completion_text(row)}"
