"""Task attributes of the single and the vector environment, for agents and wrappers to read."""

from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.envs.core import TextCore
from textrl.envs.core_config import Shaping
from textrl.logprobs import AllowedTokens
from textrl.rewards import RewardModel


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
