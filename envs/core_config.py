"""The arguments of the environments, the single and the vector one alike, and their check."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.envs.prompts import PromptSource
from textrl.errors import UserError, did_you_mean
from textrl.rewards import Reward
from textrl.task_config import TaskConfig

Shaping = Literal["exact", "none", "potential"]
"""What a token earns beside the score; see `candidates.py`."""


@dataclass(frozen=True, kw_only=True)
class CoreConfig(TaskConfig):
    """The keyword arguments of `TextRLHFEnv` and `TextRLHFVectorEnv`; those of `TaskConfig` too."""

    reference: str | Path | PreTrainedModel | None = None
    """Folder or hub id of a causal language model, or a live model (with `tokenizer`). It is
    frozen. Without one, the task is the tiny built-in one."""
    reward: Reward | Sequence[Reward | tuple[Reward, float]] | None = None
    """Folder or hub id of a sequence classifier, a function
    `f(prompts, completions, **columns) -> list[float]`, or a list of these, each alone or with a
    weight."""
    prompts: PromptSource | None = None
    """File or hub name with a `prompt` column, or a list of strings, chats or dicts; the columns
    `tools` and `chat_template_kwargs` reach the chat template, others the reward functions."""
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    """Tokenizer of the policy and the reference; by default the reference's own."""
    device: str | torch.device | None = None
    """Device of the models; None is the GPU if there is one."""
    dtype: str | torch.dtype = "auto"
    """Number format of the models; "auto" is float32 on a CPU, the checkpoint's on a GPU."""

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


def core_config(arguments: Mapping[str, Any], kind: type) -> CoreConfig:
    """Return the arguments of an environment of this kind, checked.

    Raises:
        UserError: a value out of range, or a name that is no argument; the nearest one is given.
    """
    for name in arguments:
        if name not in CoreConfig.__dataclass_fields__:
            hint = did_you_mean(name, inspect.signature(kind).parameters)
            raise UserError(f"{kind.__name__} has no argument {name!r}{hint}")
    return CoreConfig(**arguments)


Constructor = TypeVar("Constructor", bound=Callable[..., None])


def takes_core_config(constructor: Constructor) -> Constructor:
    """Show the fields of `CoreConfig` in the signature of a constructor in place of **arguments."""
    signature = inspect.signature(constructor)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.type,
        )
        for field in fields(CoreConfig)
    ]
    shown = signature.replace(parameters=[*own, *added])
    constructor.__signature__ = shown  # type: ignore[attr-defined]  # inspect's own protocol
    return constructor


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
