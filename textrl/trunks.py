"""What a transformers trunk accepts, returns and supports, for any architecture and release.

This module has the few questions that depend on the internals of transformers. Trials on a few
tokens answer them where possible. `models.py` (language models), `classifiers.py` (reward models)
and the environment use it. Next to read: `heads.py`, `decoding.py`.
"""

import inspect
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from textrl.decoding import RowCache, step_mask
from textrl.errors import UserError
from textrl.finite import check_finite
from textrl.packing import Family, Packing, Pass, first_output, packed_pass

LEAST_PASS_COST = 64
PASS_PARAMETERS = 1 << 28
ATTENTION_SLOWNESS = 1.5
"""Seconds per FLOP of attention divided by seconds per FLOP of a large matrix product, measured
with models of 4M and 135M parameters."""
FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""The exceptions that a model raises if a trial uses a feature that it does not support."""


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A trunk whose positions begin at 0, with the maximum text length for each way of reading."""

    module: nn.Module
    plain: int
    """The longest text that is read by plain causal attention with given positions, packed or
    not."""
    alone_beyond: int
    """The longest text whose states do not depend on the other texts of its pass."""
    cached: int
    """The longest text that may be stepped with a `RowCache`; 0: no text may."""
    appended: int
    """The number of tokens that one pass may append to the texts in a `RowCache`."""


class AdjustedTrunk(nn.Module):
    """Adapts a trunk whose first position is not 0, or whose rotary frequencies are dynamic.

    RoBERTa counts from pad + 1 and skips padding ids. Dynamic frequencies depend on the longest
    text of a pass, and stay changed after a long text.
    """

    def __init__(self, trunk: nn.Module, first_position: int, alone_beyond: int) -> None:
        """Wrap a trunk."""
        super().__init__()
        self.trunk, self.first_position, self.alone_beyond = trunk, first_position, alone_beyond

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **named: Any) -> Any:
        """Return what the trunk returns at these positions, by default 0, 1, ..."""
        if input_ids.shape[1] > self.alone_beyond:
            with torch.no_grad():  # resets the frequencies to those of short texts
                self.trunk(input_ids=input_ids[:1, :1], use_cache=False)
        if position_ids is None and self.first_position:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        if position_ids is not None:
            position_ids = position_ids.expand(input_ids.shape) + self.first_position
            named["position_ids"] = position_ids
        return self.trunk(input_ids=input_ids, **named)


def examined(trunk: nn.Module, body: PreTrainedModel) -> Trunk:
    """Return the trunk and what it supports, found by trials on a few tokens."""
    plain = plain_attention_length(trunk, body)
    first = first_position(trunk, body)
    beyond = frequencies_alone_beyond(trunk, body)
    module = AdjustedTrunk(trunk, first, beyond) if first or beyond < sys.maxsize else trunk
    appended = most_appended(module, body, cache_argument(trunk)) if plain > 0 else 0
    cached = min(plain, beyond) if appended else 0
    return Trunk(module=module, plain=plain, alone_beyond=beyond, cached=cached, appended=appended)


def probe_ids(model: PreTrainedModel, *shape: int) -> Tensor:
    """Return token ids for a trial; none of them is the padding id."""
    config = model.config.get_text_config()
    ids = [i for i in range(min(config.vocab_size, 64)) if i != config.pad_token_id]
    count = torch.Size(shape).numel()
    return torch.tensor([ids[i % len(ids)] for i in range(count)], device=model.device).view(shape)


def alike(found: Tensor, expected: Tensor) -> bool:
    """Return whether the states of two passes are equal up to rounding."""
    bound = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
    return bool(((found - expected).abs() <= bound).all())


def plain_attention_length(trunk: nn.Module, body: PreTrainedModel) -> int:
    """Return the longest text that is read by plain causal attention with given positions.

    Up to this length `RowCache` and packed rows may be used. It is 0 if the architecture is not
    plain causal attention.
    """
    accepted = set(inspect.signature(trunk.forward).parameters)
    needed = {"position_ids", "attention_mask", cache_argument(trunk)}
    if not needed <= accepted or body._is_stateful:
        return 0
    text = body.config.get_text_config().to_dict()
    if not set(text.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}:
        return 0  # layers that are not attention, such as LFM2's convolutions
    windows = [text.get(name) for name in ("sliding_window", "window_size")]  # GPT-Neo's name
    return min((int(window) for window in windows if window), default=sys.maxsize)


def cache_argument(trunk: nn.Module) -> str:
    """Return the name of a trunk's KV-cache argument: `cache` from transformers 5.24 on."""
    renamed = "cache" in inspect.signature(trunk.forward).parameters
    return "cache" if renamed else "past_key_values"


@torch.no_grad()
def first_position(trunk: nn.Module, body: PreTrainedModel) -> int:
    """Return the position id of a text's first token: 0, or pad + 1 in the RoBERTa family."""
    pad = body.config.get_text_config().pad_token_id
    if pad is None or "position_ids" not in inspect.signature(trunk.forward).parameters:
        return 0
    ids = probe_ids(body, 1, 3)
    from_zero = torch.arange(3, device=ids.device).unsqueeze(0)
    try:
        usual = first_output(trunk(input_ids=ids, use_cache=False))
        given = (
            first_output(trunk(input_ids=ids, position_ids=from_zero + first, use_cache=False))
            for first in (0, int(pad) + 1)
        )
        zero, shifted = alike(next(given), usual), alike(next(given), usual)
    except FAILURES:
        return 0
    return int(pad) + 1 if shifted and not zero else 0


@torch.no_grad()
def frequencies_alone_beyond(trunk: nn.Module, body: PreTrainedModel) -> int:
    """Return the longest text whose rotary frequencies do not depend on the texts beside it.

    Longrope and dynamic frequencies depend on the largest position of a pass. A trial with two
    tokens and one large position finds this without a long text. Other frequencies do not depend
    on it (sys.maxsize).
    """
    text = body.config.get_text_config()
    if "position_ids" not in inspect.signature(trunk.forward).parameters:
        return sys.maxsize
    if not _rope_types(text.to_dict()) - {"default", "linear", "llama3", "yarn", "proportional"}:
        return sys.maxsize  # a position beyond the end of a table must not be tried on a GPU
    ids = probe_ids(body, 1, 3).expand(2, 3)

    def changes(longest: int) -> bool:
        """Return whether a text of three tokens has other states beside a longer one."""
        positions = torch.arange(3, device=ids.device).repeat(2, 1)
        alone = first_output(trunk(input_ids=ids, position_ids=positions, use_cache=False))
        positions[1, 2] = longest - 1
        beside = first_output(trunk(input_ids=ids, position_ids=positions, use_cache=False))
        return not torch.equal(beside[0], alone[0])

    right, wrong = 3, 2 * int(max(text.max_position_embeddings, 4))
    if not changes(wrong):
        return sys.maxsize
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if changes(middle) else (middle, wrong)
    first_output(trunk(input_ids=ids[:1, :1], use_cache=False))  # reset to short texts' frequencies
    return right


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary frequencies that a configuration names, at any depth."""
    if not isinstance(config, dict):
        return set()
    own = {str(config["rope_type"])} if "rope_type" in config else set()
    return own.union(*(_rope_types(value) for value in config.values()))


@torch.no_grad()
def most_appended(trunk: nn.Module, body: PreTrainedModel, cache_word: str) -> int:
    """Return how many tokens one pass may append to texts of different lengths in a cache.

    It is sys.maxsize, or 1 where the architecture masks by slot, so that tokens of one pass have to
    stand at the cache's end; 0 where the states would not be those of a pass over the whole texts.
    """
    ids, device = probe_ids(body, 2, 4), body.device
    padding = 4
    one, two = (  # of one token, and of two, where the second of the longer text is padding
        torch.tensor([[1], [2]], device=device),
        torch.tensor([[2, 3], [3, padding]], device=device),
    )

    def right(*passes: Tensor) -> bool:
        cache = RowCache(int(body.config.get_text_config().num_hidden_layers), 2, padding)
        named: dict[str, Any] = {cache_word: cache, "use_cache": True}
        try:
            whole = first_output(trunk(input_ids=ids, use_cache=False))
            cache.restart(torch.arange(2, device=device))
            first_output(trunk(input_ids=ids[:, :2], **named))
            for slots in passes:
                positions, real = slots.clamp_max(3), slots != padding
                used = int(positions.max()) + 1
                cache.go_on(slots, used)
                stepped = trunk(
                    input_ids=ids.gather(1, positions),
                    attention_mask=step_mask(positions, used, body.dtype),
                    position_ids=positions,
                    **named,
                )
                expected = whole[torch.arange(2, device=device).unsqueeze(1), positions]
                if not alike(first_output(stepped)[real], expected[real]):
                    return False
        except FAILURES:
            return False  # its attention takes no such mask, or its cache is of another kind
        return True

    if right(one, two):
        return sys.maxsize
    return 1 if right(one, one + 1) else 0


@torch.no_grad()
def packing_of(model: PreTrainedModel, trunk: Trunk) -> Packing:
    """Return the packing of a model's trunk, from its architecture, its size and a trial.

    Args:
        model: The whole model, which gives the sizes.
        trunk: The causal model without its head.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cost = max(LEAST_PASS_COST, PASS_PARAMETERS // parameters)
    beyond = trunk.alone_beyond
    never = Packing(pass_cost=cost, attention_cost=0.0, max_length=0, alone_beyond=beyond)
    text = model.config.get_text_config()
    # Some architectures mask by slot instead of position, or take no such mask.
    by_slot = "window_size" in text.to_dict()
    takes_mask = text._attn_implementation in ("eager", "sdpa")
    if trunk.plain < 1 or by_slot or not takes_mask:
        return never
    was_training = model.training
    model.eval()
    bears = _bears_packing(trunk.module, text.vocab_size, model.device)
    model.train(was_training)
    if not bears:
        return never
    # attention takes 4 FLOPs per pair of slots, layer and channel; a token takes 2 per parameter
    attention = ATTENTION_SLOWNESS * 2 * text.num_hidden_layers * text.hidden_size / parameters
    longest = min(trunk.plain, beyond)
    return replace(never, attention_cost=attention, max_length=longest)


def _bears_packing(trunk: nn.Module, vocab_size: int, device: torch.device) -> bool:
    """Return whether three texts in one row have the same states as in three separate rows."""
    texts = [[i % vocab_size for i in text] for text in ([1, 2, 3, 4], [1, 2, 5, 6, 7], [8, 9])]
    families = [
        Family(begin=2, members=[0, 1], num_tokens=7),
        Family(begin=2, members=[2], num_tokens=2),
    ]
    packed, places = packed_pass(texts, [families])
    try:
        together = packed.to(device).states(trunk)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # the attention does not take such a mask
    for text, own in zip(texts, places, strict=True):
        alone = Pass(input_ids=torch.tensor([text], device=device)).states(trunk)
        close = torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max()
        if not bool(((together[own] - alone).abs() <= close).all()):
            return False
    return True


@torch.no_grad()
def causal_logits(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return the ids of a trial and the model's logits, after a check that the model is causal.

    Raises:
        UserError: the logits depend on a later token, there is not one row of logits per token, or
            a weight is not finite, so that trials are meaningless.
    """
    check_finite(model, "cannot be used")
    name = name_of(model)
    ids = probe_ids(model, 1, 6).repeat(2, 1)
    ids[1, -1] = ids[1, 0]
    try:
        logits = first_output(model(input_ids=ids, use_cache=False))
    except FAILURES as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} does not read plain token ids ({reason}); a causal language model is needed"
        ) from error
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise UserError(
            f"{name} answers 6 tokens with output of shape {list(logits.shape[1:])}; one row of "
            f"logits a token is needed (prompt tuning adds tokens of its own: use LoRA)"
        )
    bound = torch.finfo(logits.dtype).eps ** 0.75 * logits.abs().max()
    if bool(((logits[0, :-1] - logits[1, :-1]).abs() > bound).any()):
        raise UserError(
            f"{name} is not causal: its logits change when a later token does; use a causal "
            f"language model (BERT and RoBERTa need is_decoder=True, encoder-decoders do not serve)"
        )
    return ids, logits


def unadapted(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without the PEFT wrapper."""
    wrapped: Any = model
    inner = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    assert isinstance(inner, PreTrainedModel)
    return inner


def name_of(model: PreTrainedModel) -> str:
    """Return the class name of a model without the PEFT wrapper."""
    return type(unadapted(model)).__name__
