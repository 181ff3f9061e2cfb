"""Checks, before training begins, that a model can be trained, saved and loaded again."""

import copy
import tempfile
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from textrl.adapters import is_adapted
from textrl.errors import UserError
from textrl.trunks import unadapted


def check_live(model: object, what: str = "policy") -> None:
    """Raise UserError unless this is a transformers model (and not just the name of a model)."""
    if isinstance(model, PreTrainedModel) or (isinstance(model, nn.Module) and is_adapted(model)):
        return
    if isinstance(model, nn.Module):
        raise UserError(
            f"the {what} is a {type(model).__name__}; expected a transformers model itself, not "
            f"compiled and not wrapped for several GPUs"
        )
    loader = "load_causal_lm" if what == "policy" else "load_classifier"
    raise UserError(
        f"the {what} is {model!r}; expected a live model: textrl.models.{loader}("
        f'{str(model)!r}, dtype="float32")'
    )


def check_trainable(model: PreTrainedModel, what: str = "policy") -> None:
    """Raise UserError unless the model has trainable weights that can be saved after training."""
    check_live(model, what)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        remedy = (
            "load the adapter with PeftModel.from_pretrained(..., is_trainable=True)"
            if is_adapted(model)
            else "a copy of the frozen reference is frozen too: call requires_grad_(True)"
        )
        raise UserError(f"no parameter of the {what} takes a gradient; {remedy}")
    if getattr(model, "_hf_peft_config_loaded", False):  # by transformers' own add_adapter
        raise UserError(
            f"the {what} holds an adapter within itself, which is saved without its model; load "
            f"the model, then wrap it: peft.get_peft_model, or PeftModel.from_pretrained"
        )
    for name, parameter in trained:
        if parameter.dtype in (torch.bfloat16, torch.float16):
            raise UserError(
                f"the {what}'s weights are {parameter.dtype} ({name}), in which small updates are "
                f'lost; call its .float(), and set precision="bfloat16" for fast matrix products'
            )
    _check_tied(model, what)
    _check_generation(model, what)


def check_same_width(policy: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Raise UserError unless the logits of both models have the same width."""
    widths = []
    for model in (policy, reference):
        head: Any = unadapted(model).get_output_embeddings()
        weight = getattr(getattr(head, "base_layer", head), "weight", None)
        widths.append(None if weight is None else int(weight.shape[0]))
    if None not in widths and widths[0] != widths[1]:
        raise UserError(
            f"the policy chooses among {widths[0]} tokens and the reference among {widths[1]}; "
            f"give both the same tokenizer and size (resize_token_embeddings)"
        )


def _check_generation(model: PreTrainedModel, what: str) -> None:
    """Refuse a generation config that transformers would refuse to save after the training."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            copy.deepcopy(settings).save_pretrained(folder)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the {what}'s generation_config cannot be saved ({reason}); mend it, or set it to "
                f"transformers.GenerationConfig()"
            ) from error


def _check_tied(model: PreTrainedModel, what: str) -> None:
    """Refuse an adapter on only one of two tied embeddings, since merging ties them again."""
    if not is_adapted(model):
        return
    body: Any = unadapted(model)
    ends = {"input": body.get_input_embeddings(), "output": body.get_output_embeddings()}
    matrices = [getattr(end, "base_layer", end) for end in ends.values() if end is not None]
    tied = len(matrices) == 2 and matrices[0].weight is matrices[1].weight
    adapted = [name for name, end in ends.items() if hasattr(end, "base_layer")]
    if tied and adapted:
        raise UserError(
            f"the {what} has an adapter on its {adapted[0]} embedding, which is tied to the other "
            f"one, so that merging it would change both; leave embed_tokens and lm_head out of "
            f"target_modules"
        )
