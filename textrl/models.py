"""Loading of Transformers models, and `split_lm`, which splits a language model for `policy.py`.

Language models, classifiers and tokenizers are loaded strictly, with errors that a user can act on.
In other modules: the forward pass (`policy.py`), what an architecture supports (`trunks.py`),
sampling (`generation.py`), scoring (`rewards.py`), critics (`agents/critic.py`).
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from textrl.adapters import ADAPTER_FOLDER, SETTINGS, base_of, holds_head, with_adapter
from textrl.devices import pick_device as pick_device
from textrl.devices import pick_dtype as pick_dtype
from textrl.durable import CHECKSUMS, check_files, finish_save
from textrl.errors import UserError
from textrl.heads import head_of
from textrl.packing import first_output
from textrl.paths import local_or_hub
from textrl.policy import SplitLM as SplitLM
from textrl.trunks import Trunk, cache_argument, causal_logits, examined, packing_of

NOT_THE_MODELS = (
    *("trainer_state", "adapter", "agent.json", "critic.safetensors", "run.json"),
    *("logged.jsonl", "value.json"),
)
"""What a run saves beside its model; a model is used without it."""


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id; an adapter without one has that of its base.

    Raises:
        UserError: there is none.
    """
    name = _whole(local_or_hub(name), weights=False)
    if (base := base_of(name)) and not any(Path(name).glob("tokenizer*")):
        return load_tokenizer(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise _no_model(name, "tokenizer", error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_causal_lm(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Return the causal language model of a folder or hub id, in eval mode.

    The folder of an adapter gives its base model with the adapter; only the adapter is trainable.

    Raises:
        UserError: there is no such model, or its weights are incomplete.
    """
    device, name = pick_device(device), _whole(local_or_hub(name))
    if base := base_of(name):
        model = load_causal_lm(base, dtype=dtype, device=device)
        return in_eval(moved(with_adapter(model, name), device))
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=pick_dtype(dtype, device),
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # may come from files, formats or packages that a checkpoint needs
        raise _no_model(name, "language model", error) from error
    model, report = found
    if report["missing_keys"]:
        raise UserError(f"{name}: the checkpoint lacks weights: {sorted(report['missing_keys'])}")
    assert isinstance(model, PreTrainedModel)
    return in_eval(moved(model, device))


def load_policy(folder: Path, device: torch.device, frozen: list[str]) -> PreTrainedModel:
    """Return the float32 policy that an agent saved to a folder, with its adapter if it had one.

    Args:
        folder: The folder of the merged model, with the adapter beside it (see `save_adapter`).
        device: The device of the policy.
        frozen: The names of its parameters that were not trained.

    Raises:
        UserError: the folder has no policy, or `peft` is not installed.
    """
    adapter = folder / ADAPTER_FOLDER
    if adapter.exists():
        base = load_causal_lm(adapter / "base", dtype="float32", device=device)
        own = next(adapter.rglob(SETTINGS)).parent  # a named adapter is in a subfolder of its name
        policy = in_eval(moved(with_adapter(base, own), device))
    else:
        policy = load_causal_lm(folder, dtype="float32", device=device)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return policy


def load_classifier(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Return the sequence classifier of a folder or hub id, in eval mode, with a trained head.

    Raises:
        UserError: there is no such model, or its head would be newly initialised (a language
            model).
    """
    device = pick_device(device)
    model, missing = _classifier(name, dtype=pick_dtype(dtype, device))
    if missing:
        raise UserError(
            f"{name}: no trained reward head in this checkpoint (missing "
            f"{', '.join(sorted(missing))}); train one with `textrl reward`"
        )
    return in_eval(moved(model, device))


def untrained_classifier(name: str | Path) -> tuple[PreTrainedModel, set[str]]:
    """Return a one-label float32 classifier of a folder or hub id, and the names of new weights.

    New weights are those that the checkpoint does not have.

    Raises:
        UserError: there is no such model, or its weights have another shape.
    """
    return _classifier(name, dtype=torch.float32, num_labels=1)


def _classifier(name: str | Path, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    name = _whole(local_or_hub(name))
    if base := base_of(name):
        model, missing = _classifier(base, **(options | {"num_labels": 1}))
        return with_adapter(model, name), missing if not holds_head(name) else set()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, trust_remote_code=False, **options
        )
    except Exception as error:
        raise _no_model(name, "sequence classifier", error) from error
    assert isinstance(model, PreTrainedModel)
    return model, set(report["missing_keys"])


def _whole(name: str, *, weights: bool = True) -> str:
    """Return a model's name; of a folder that textrl saved, the files are those of that save.

    Raises:
        UserError: A file of the model or the tokenizer is missing or altered.
    """
    folder = Path(name)
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the folder of the model")
    finish_save(folder)
    if (folder / CHECKSUMS).exists():
        large = () if weights else [path.name for path in folder.glob("*.safetensors")]
        try:
            check_files(folder, skipped=(*NOT_THE_MODELS, *large))
        except UserError as error:
            raise UserError(
                f"{error}; if you changed it on purpose, take its line out of {folder / CHECKSUMS}"
            ) from error
    return name


def _no_model(name: str | Path, kind: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"no {kind} at {str(name)!r}: neither a folder that holds one nor a hub id within reach "
        f"({reason})"
    )


def moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return the model on the device (PreTrainedModel.to hides nn.Module.to's signature)."""
    nn.Module.to(model, device)
    return model


def in_eval(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model in eval mode."""
    model.eval()
    return model


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model in eval mode, with gradients turned off for all parameters."""
    return in_eval(model.requires_grad_(False))


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the end-of-sequence token.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token; set tokenizer.eos_token to end texts")
    return int(tokenizer.eos_token_id)


def ensure_pad(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Return the id of a padding token that is not EOS, and make one if there is none.

    Transformers' classifiers read the last token that is not padding, so with pad == eos they would
    read the token before EOS. The unk token is used if it is not EOS; otherwise "<pad>" is added
    and the embedding is enlarged. The id is set in the tokenizer and in the model's config.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        unk = tokenizer.unk_token
        spare = unk is not None and unk != tokenizer.eos_token
        tokenizer.add_special_tokens({"pad_token": unk if spare else "<pad>"})
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        width = embedding.num_embeddings
        if len(tokenizer) > width:
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    return int(tokenizer.pad_token_id)


def split_lm(model: PreTrainedModel) -> SplitLM:
    """Split a model into trunk and head, after trials of what it supports (see `trunks.py`).

    If no head of the model maps the trunk's states to its logits (`heads.py`), the whole model is
    used as trunk and its logits as states. This is correct, but does not save computation.

    Raises:
        UserError: it has no head, is not causal, or is adapted outside its layers.
    """
    body: Any = model
    if hasattr(model, "get_base_model"):  # PEFT wraps the model that has trunk and head
        body = body.get_base_model()
    if body.get_output_embeddings() is None:
        raise UserError(f"{type(body).__name__} has no LM head; a causal language model is needed")
    was_training = model.training
    model.eval()
    try:
        return _split(model, body)
    finally:
        model.train(was_training)


def _split(model: PreTrainedModel, body: Any) -> SplitLM:
    ids, logits = causal_logits(model)
    trunk = examined(body.base_model, body)
    with torch.no_grad():
        states = first_output(trunk.module(input_ids=ids, use_cache=False))
    head = head_of(body, body.base_model, states, logits)
    if head is None and body is not model:
        raise UserError(
            f"the adapter of this {type(body).__name__} is not within its layers (prompt or prefix "
            f"tuning); use one that is, such as LoRA"
        )
    if head is None:
        trunk = Trunk(module=model, plain=0, alone_beyond=trunk.alone_beyond, cached=0, appended=0)
        head, states = nn.Identity(), logits
    if not trunk.cached:
        warnings.warn(
            f"{type(body).__name__} is stepped without a KV cache, each token re-encoding its "
            f"prefix: a trial found that its cache does not serve rows of different lengths",
            stacklevel=3,
        )
    return SplitLM(
        model=model,
        trunk=trunk.module,
        head=head,
        vocab_size=logits.shape[-1],
        state_size=states.shape[-1],
        packing=packing_of(model, trunk),
        max_cached=trunk.cached,
        max_appended=trunk.appended,
        cache_argument=cache_argument(body.base_model),
    )
