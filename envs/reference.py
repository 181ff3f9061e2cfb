"""Loading of an environment's frozen reference model and tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.errors import UserError
from textrl.limits import max_positions
from textrl.models import SplitLM, freeze, load_causal_lm, load_tokenizer, moved


def check_positions(lm: SplitLM, max_length: int) -> None:
    """Raise UserError unless the reference can read every episode, stepped or in one pass.

    Rotary frequencies that change with the text's length would give a token one log-prob when the
    model is stepped, and a different one when it reads the whole text.
    """
    limit, alone_beyond = max_positions(lm.model), lm.packing.alone_beyond
    if max_length > alone_beyond:
        raise UserError(
            f"max_prompt_tokens + max_completion_tokens is {max_length}, but the reference's "
            f"rotary frequencies change with the text's length beyond {alone_beyond} tokens; lower "
            f"one of them"
        )
    if limit is not None and max_length > limit:
        raise UserError(
            f"max_prompt_tokens + max_completion_tokens is {max_length}, but the reference has "
            f"{limit} positions; lower one of them"
        )


class Source(Protocol):
    """Where a reference comes from, part of an environment's configuration."""

    @property
    def reference(self) -> str | Path | PreTrainedModel | None:
        """A name, a loaded model, or None for the environment's built-in model."""

    @property
    def tokenizer(self) -> str | Path | PreTrainedTokenizerBase | None:
        """A name, a loaded tokenizer, or None for that of the reference."""

    @property
    def dtype(self) -> str | torch.dtype:
        """The data type of the weights of a reference that is loaded by name."""


def load_reference(
    source: Source,
    device: torch.device,
    built_in_model: Callable[[], PreTrainedModel],
    built_in_tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the frozen reference and its tokenizer.

    The reference is loaded by name, given as an object, or the built-in one.
    """
    if source.reference is None:
        model = moved(built_in_model(), device)
        if source.tokenizer is None:
            return freeze(model), built_in_tokenizer()
    elif isinstance(source.reference, torch.nn.Module):  # PEFT models are not PreTrainedModel
        model = moved(source.reference, device)
    else:
        model = load_causal_lm(source.reference, dtype=source.dtype, device=device)
    name = source.reference if source.tokenizer is None else source.tokenizer
    if isinstance(name, PreTrainedTokenizerBase):
        return freeze(model), name
    assert isinstance(name, str | Path)
    return freeze(model), load_tokenizer(name)
