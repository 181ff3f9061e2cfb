"""What a transformers trunk takes, gives and bears, whatever its architecture and release.

Here: the few questions that depend on how transformers names and builds things. Who asks them:
`models.py` (language models), `classifiers.py` (reward models), the environment.
"""

import inspect
import sys
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def first_output(output: Any) -> Tensor:
    """Return a transformers output's first field: the last hidden state, or the logits."""
    tensor = output[0]
    assert isinstance(tensor, Tensor)
    return tensor


def plain_attention_length(trunk: nn.Module, body: PreTrainedModel) -> int:
    """Return the longest text that is read by plain causal attention with given positions.

    Up to it `RowCache` and packed rows serve; 0 for an architecture that is another thing.
    """
    accepted = set(inspect.signature(trunk.forward).parameters)
    needed = {"position_ids", "attention_mask", cache_argument(trunk)}
    if not needed <= accepted or body._is_stateful:
        return 0
    text = body.config.get_text_config().to_dict()
    if not set(text.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}:
        return 0  # layers that mix by other means, as LFM2's convolutions
    windows = [text.get(name) for name in ("sliding_window", "window_size")]  # GPT-Neo's word
    return min((int(window) for window in windows if window), default=sys.maxsize)


def cache_argument(trunk: nn.Module) -> str:
    """Return what a trunk calls its KV cache: `cache` from transformers 5.24 on."""
    renamed = "cache" in inspect.signature(trunk.forward).parameters
    return "cache" if renamed else "past_key_values"


def max_positions(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has; None where it does not say."""
    try:
        limit = model.config.get_text_config().max_position_embeddings
    except AttributeError:
        return None
    return None if limit is None or limit < 1 else int(limit)
