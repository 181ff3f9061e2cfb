"""PEFT adapters: detection, saving and loading.

An agent or trainer with an adapter saves a merged model, and these folders beside it:

adapter/        the adapter as PEFT saves it, with the tokenizer
adapter/base/   the base model of the adapter, a plain transformers checkpoint
"""

import copy
import json
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.errors import UserError

ADAPTER_FOLDER = "adapter"
SETTINGS = "adapter_config.json"
"""The name of the file by which PEFT recognises the folder of an adapter."""


def is_adapted(model: nn.Module) -> bool:
    """Return whether PEFT wraps the model."""
    return hasattr(model, "merge_and_unload")


def base_of(folder: str | Path) -> str | None:
    """Return the name of an adapter's base model, or None if this is not an adapter's folder.

    Raises:
        UserError: the folder does not name the base model.
    """
    file = Path(folder) / SETTINGS
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    if not base:
        raise UserError(f"{file} names no base model; set base_model_name_or_path there")
    return str(base)


def holds_head(folder: str | Path) -> bool:
    """Return whether an adapter contains a classifier's trained head."""
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as weights:
        return any(".score." in name or ".classifier." in name for name in weights.keys())  # noqa: SIM118  # it is no dict


def with_adapter(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Return a model with the adapter of a folder; only the adapter's parameters are trainable.

    Raises:
        UserError: `peft` is not installed, or the adapter belongs to another model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UserError(f"{folder} is PEFT's: pip install 'textrl-gym[peft]'") from error
    try:
        adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except Exception as error:  # peft may raise any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the adapter in {folder} does not fit its model ({reason})") from error
    return cast(PreTrainedModel, adapted)


def save_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the adapter, its tokenizer and its base; write nothing if the model has no adapter."""
    if not is_adapted(model):
        return
    adapted: Any = copy.deepcopy(model)
    # the base model has the embedding; peft would query the hub to find out if it was resized
    adapted.save_pretrained(str(folder / ADAPTER_FOLDER), save_embedding_layers=False)
    for place in (folder / ADAPTER_FOLDER).rglob(SETTINGS):  # a named adapter is in a subfolder
        settings = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(settings.get("target_modules"), list):  # a set, in the order of its hashes
            settings["target_modules"].sort()
        place.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        # peft's model card is a form without entries, but for the folder that the base came from
        place.with_name("README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(str(folder / ADAPTER_FOLDER))
    adapted.unload().save_pretrained(str(folder / ADAPTER_FOLDER / "base"))


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
