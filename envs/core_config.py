"""The arguments of the single and of the vector environment, and their validation."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.envs.texts import PromptSource
from textrl.errors import UserError, did_you_mean
from textrl.rewards import Reward
from textrl.task_config import TaskConfig, TokensConfig

Shaping = Literal["exact", "none", "potential"]
"""The reward of a token in addition to the score; see `candidates.py`."""


@dataclass(frozen=True, kw_only=True)
class CoreConfig(TaskConfig):
    """The keyword arguments of `TextRLHFEnv` and `TextRLHFVectorEnv`, including `TaskConfig`'s."""

    reference: str | Path | PreTrainedModel | None = None
    """Folder or hub id of a causal language model, or a loaded model (which needs `tokenizer`). The
    reference is frozen. Without a reference, the task is the tiny built-in one."""
    reward: Reward | Sequence[Reward | tuple[Reward, float]] | None = None
    """Folder or hub id of a sequence classifier, a function `f(prompts, completions, **columns) ->
    list[float]`, or a list of these. A list has rewards or pairs of a reward and its weight."""
    prompts: PromptSource | None = None
    """File, or `hub:OWNER/NAME`, with a `prompt` column, or a list of strings, chats or dicts. The
    columns `tools` and `chat_template_kwargs` are passed to the chat template, all others to the
    reward functions."""
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    """Tokenizer of the policy and the reference; the default is the tokenizer of the reference."""
    device: str | torch.device | None = None
    """Device of the models; None uses the GPU if there is one, else the CPU."""
    dtype: str | torch.dtype = "auto"
    """Data type of the weights; "auto" is float32 on a CPU and the checkpoint's own type on a
    GPU."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, naming field, value and what was expected."""
        super().__post_init__()
        if self.reference is not None:
            for field in ("reward", "prompts"):
                if self.__dict__[field] is None:
                    raise UserError(
                        f"{field} is missing: a task has a reference, a reward, prompts"
                    )
            if isinstance(self.reference, torch.nn.Module) and self.tokenizer is None:
                raise UserError("tokenizer is missing: a live reference needs tokenizer=")


Config = TypeVar("Config", bound=TokensConfig)


def checked_arguments(config: type[Config], arguments: Mapping[str, Any], kind: type) -> Config:
    """Return the arguments of an environment of this kind as its configuration, checked.

    Raises:
        UserError: a value out of range, or a name that is no argument; the nearest one is given.
    """
    for name in arguments:
        if name not in config.__dataclass_fields__:
            hint = did_you_mean(name, inspect.signature(kind).parameters)
            raise UserError(f"{kind.__name__} has no argument {name!r}{hint}")
    return config(**arguments)


Constructor = TypeVar("Constructor", bound=Callable[..., None])


def takes_fields(config: type[TokensConfig]) -> Callable[[Constructor], Constructor]:
    """Show the fields of a configuration in a constructor's signature in place of **arguments."""

    def decorated(constructor: Constructor) -> Constructor:
        signature = inspect.signature(constructor)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for field in fields(config)
        ]
        shown = signature.replace(parameters=[*own, *added])
        constructor.__signature__ = shown  # type: ignore[attr-defined]  # inspect's own protocol
        return constructor

    return decorated


def require_exact_shaping(name: str, shaping: Shaping) -> None:
    """Refuse to pay a policy's half of the KL where the other half is not paid.

    Raises:
        UserError: the shaping is another one.
    """
    if shaping != "exact":
        raise UserError(
            f"{name} pays the policy's half of the KL, but shaping {shaping!r} leaves the "
            f'other unpaid: make the environment with shaping="exact", or leave {name} out'
        )
