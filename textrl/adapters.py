"""PEFT adapters of a saved policy: beside the merged model, what it takes to train on.

adapter/        the adapter as PEFT saves it
adapter/base/   the model below it, a plain transformers checkpoint
"""

import copy
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from textrl.errors import UserError
from textrl.models import in_eval, load_causal_lm, moved

ADAPTER_FOLDER = "adapter"


def is_adapted(model: PreTrainedModel) -> bool:
    """Return whether PEFT wraps the model."""
    return hasattr(model, "merge_and_unload")


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter and the model below it; nothing where there is no adapter."""
    if not is_adapted(model):
        return
    adapted: Any = copy.deepcopy(model)
    # the base beside it holds the embedding; peft would ask the hub whether it was resized
    adapted.save_pretrained(str(folder / ADAPTER_FOLDER), save_embedding_layers=False)
    adapted.unload().save_pretrained(str(folder / ADAPTER_FOLDER / "base"))


def load_policy(folder: Path, device: torch.device, frozen: list[str]) -> PreTrainedModel:
    """Return the float32 policy that was saved to a folder, with its adapter if it had one.

    Args:
        folder: that `save_adapter` wrote to, beside the merged model.
        device: where the policy goes.
        frozen: names of its parameters that were not trained.

    Raises:
        UserError: there is none, or `peft` is not installed.
    """
    adapter = folder / ADAPTER_FOLDER
    if not adapter.exists():
        policy = load_causal_lm(folder, dtype="float32", device=device)
    else:
        try:
            from peft import PeftModel
        except ImportError as error:
            raise UserError(f"{adapter} is PEFT's: pip install 'textrl-gym[peft]'") from error
        base = load_causal_lm(adapter / "base", dtype="float32", device=device)
        adapted = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
        policy = in_eval(moved(cast(PreTrainedModel, adapted), device))
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return policy


def check_apart(policy: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Raise UserError if training the policy would change the reference too."""
    frozen = {id(parameter) for parameter in reference.parameters()}
    shared = [n for n, p in policy.named_parameters() if p.requires_grad and id(p) in frozen]
    if shared:
        raise UserError(
            f"policy and reference share {len(shared)} trained parameters ({shared[0]}), so their "
            f"KL would stay 0 (peft puts adapters into the model itself); make the reference a "
            f"model of its own: copy.deepcopy before get_peft_model, or load it twice"
        )
