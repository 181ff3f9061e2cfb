"""The arguments of `TextTurns-v0`, single and vector, and their validation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.bounds import NotNegative, Positive, require
from textrl.errors import UserError
from textrl.task_config import TokensConfig

World = str | Callable[..., Any] | gym.Env[str, str]
"""A registered id, a function that makes a world, or a world."""


@dataclass(frozen=True, kw_only=True)
class TurnsConfig(TokensConfig):
    """The keyword arguments of `TextTurnsEnv` and `TextTurnsVectorEnv`."""

    world: World = "textrl/GuessNumber-v0"
    """A world by its registered id (or `gem/ID`, `textarena/ID`, `reasoning_gym/NAME`, an http
    address), a function that returns a new world, or, for one row, a world itself."""
    world_arguments: Mapping[str, Any] | None = None
    """Arguments of the world's constructor."""
    world_timeout: NotNegative[float] = 0.0
    """Maximum number of seconds of one turn of the world; 0 means no limit."""
    on_world_error: Literal["stop", "mask"] = "stop"
    """What happens when a world raises, is late or returns something else than an answer. `stop` is
    an error that names the row; `mask` truncates the episode, which agents then leave out."""
    prompts: str | Path | Sequence[Any] | None = None
    """Rows of data, from a file, `hub:OWNER/NAME` or a list. The columns of an episode's row are
    options of the world's reset. Without them, the world alone decides how an episode begins."""
    reference: str | Path | PreTrainedModel | None = None
    """Folder or hub id of a causal language model, or a loaded model (which needs `tokenizer`). The
    reference is frozen. Without a reference, it is a tiny built-in model of characters."""
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    """Tokenizer of the policy and the reference; the default is the tokenizer of the reference."""
    device: str | torch.device | None = None
    """Device of the models; None uses the GPU if there is one, else the CPU."""
    dtype: str | torch.dtype = "auto"
    """Data type of the weights; "auto" is float32 on a CPU and the checkpoint's own type on a
    GPU."""
    max_completion_tokens: Positive[int] = 192
    """Maximum number of tokens after the first text: the policy's turns and the world's replies. An
    episode whose next reply has no room is truncated."""
    max_turn_tokens: Positive[int] = 16
    """Maximum number of tokens of one turn of the policy."""
    system_prompt: str | None = None
    """A system message before the world's first text; needs a chat template."""
    chat_template_kwargs: Mapping[str, Any] | None = None
    """Variables of the chat template."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, naming field, value and what was expected."""
        super().__post_init__()
        most = self.max_completion_tokens
        fits = self.max_turn_tokens <= most
        require(self, "max_turn_tokens", fits, f"at most max_completion_tokens, {most}")
        given = self.world_arguments
        require(self, "world_arguments", given is None or isinstance(given, Mapping), "a mapping")
        if isinstance(self.reference, torch.nn.Module) and self.tokenizer is None:
            raise UserError("tokenizer is missing: a live reference needs tokenizer=")
