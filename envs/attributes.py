"""What the single and the vector environment say of their task, for agents and wrappers."""

from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.allowed import AllowedTokens
from textrl.envs.core import TextCore
from textrl.envs.core_config import Shaping
from textrl.rewards import RewardModel


class TaskAttributes:
    """Attributes of an environment that are those of its core."""

    core: TextCore

    @property
    def kl_coef(self) -> float:
        """Score units per nat of the reward's reference half; settable while running."""
        return self.core.kl_coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        self.core.kl_coef = float(replace(self.core.config, kl_coef=value).kl_coef)  # checks it

    @property
    def shaping(self) -> Shaping:
        """What a token earns beside the score.

        "exact" is the reference's half of the KL, for agents that pay their own half; "potential"
        and "none" are for agents that pay none (`CandidateActions`).
        """
        return self.core.shaping

    @property
    def reference(self) -> PreTrainedModel:
        """The frozen reference model, for agents that want its whole distribution."""
        return self.core.reference

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts and completions."""
        return self.core.tokenizer

    @property
    def reward_model(self) -> RewardModel | None:
        """The frozen reward model, None where the reward is a plain function."""
        return self.core.reward_model

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return what episodes of these token ids would score, float64 [N], taking no step."""
        return self.core.score_tokens(prompts, completions)

    @property
    def allowed(self) -> AllowedTokens:
        """Which tokens may come next: no banned one, no end before min_completion_tokens."""
        return self.core.allowed

    @property
    def missing_eos_penalty(self) -> float:
        """Subtracted from the reward, not from the score, of an episode that the budget ended."""
        return self.core.config.missing_eos_penalty

    @property
    def on_length(self) -> str:
        """What the budget does to an episode: "score" or "truncate"."""
        return self.core.config.on_length

    @property
    def eos_token_id(self) -> int:
        """The tokenizer's end of a text, one of `end_token_ids`."""
        return self.core.eos_token_id

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends an episode: EOS first, then those that end a turn."""
        return self.core.end_token_ids

    @property
    def temperature(self) -> float:
        """The one temperature of sampling and of every log-prob."""
        return self.core.config.temperature

    @property
    def max_completion_tokens(self) -> int:
        """The token budget of an episode."""
        return self.core.config.max_completion_tokens

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt."""
        return self.core.config.max_prompt_tokens

    @property
    def group_size(self) -> int:
        """How often each prompt comes: in a row, or in consecutive rows of a vector."""
        return self.core.config.group_size
