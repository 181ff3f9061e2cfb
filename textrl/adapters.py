"""PEFT's adapters: which models have one, and how it is saved and read back.

adapter/        beside a merged model: the adapter as PEFT saves it
adapter/base/   the model below it, a plain transformers checkpoint
"""

import copy
import json
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from textrl.errors import UserError

ADAPTER_FOLDER = "adapter"
SETTINGS = "adapter_config.json"
"""What PEFT calls the file that makes a folder an adapter's."""


def is_adapted(model: nn.Module) -> bool:
    """Return whether PEFT wraps the model."""
    return hasattr(model, "merge_and_unload")


def base_of(folder: str | Path) -> str | None:
    """Return the model that an adapter's folder was made for, None for any other folder or name.

    Raises:
        UserError: the folder does not say.
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
    """Return whether an adapter brings a classifier's trained head."""
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as weights:
        return any(".score." in name or ".classifier." in name for name in weights.keys())  # noqa: SIM118  # it is no dict


def with_adapter(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Return a model with the adapter of a folder around it, its parameters alone to be trained.

    Raises:
        UserError: `peft` is not installed, or the adapter is another model's.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UserError(f"{folder} is PEFT's: pip install 'textrl-gym[peft]'") from error
    try:
        adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except Exception as error:  # peft raises what it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the adapter in {folder} does not fit its model ({reason})") from error
    return cast(PreTrainedModel, adapted)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter and the model below it; nothing where there is no adapter."""
    if not is_adapted(model):
        return
    adapted: Any = copy.deepcopy(model)
    # the base beside it holds the embedding; peft would ask the hub whether it was resized
    adapted.save_pretrained(str(folder / ADAPTER_FOLDER), save_embedding_layers=False)
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
