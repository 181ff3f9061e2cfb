"""Loading of an environment's frozen reference model and tokenizer."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.envs import tasks
from textrl.envs.core_config import CoreConfig
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


def load_reference(
    config: CoreConfig, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the frozen reference and its tokenizer.

    The reference is loaded by name, given as an object, or that of the tiny built-in task.
    """
    if config.reference is None:
        model = moved(tasks.tiny_model(), device)
        if config.tokenizer is None:
            return freeze(model), tasks.tiny_tokenizer()
    elif isinstance(config.reference, torch.nn.Module):  # PEFT models are not PreTrainedModel
        model = moved(config.reference, device)
    else:
        model = load_causal_lm(config.reference, dtype=config.dtype, device=device)
    name = config.reference if config.tokenizer is None else config.tokenizer
    if isinstance(name, PreTrainedTokenizerBase):
        return freeze(model), name
    assert isinstance(name, str | Path)
    return freeze(model), load_tokenizer(name)
