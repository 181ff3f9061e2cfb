"""Scoring of texts with sequence classifiers: encoding, and one score per text.

A decoder's score is read at the text's last token only, so its last MLP runs only there. An encoder
does its own pooling. Next to read: `rewards.py`, which makes a reward function from
this.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.chat import RenderedText, end_ids, split_end
from textrl.errors import UserError
from textrl.finite import check_finite
from textrl.limits import max_positions
from textrl.packing import Packing, filled_batches, first_output, like_lengths, plan, take
from textrl.seams import one_bos, without_eos
from textrl.trunks import Trunk, alike, examined, packing_of, probe_ids, unadapted

SCORING_TOKENS = 8192
"""Number of tokens that a classifier reads in one pass without gradient."""


def max_text_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the maximum number of tokens that a classifier reads."""
    return min(max_positions(model) or 1 << 30, int(tokenizer.model_max_length))


def encode_for_scoring(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
    """Return the ids that a classifier reads: the text, then EOS if its tokenizer has one.

    There is one BOS; for a chat it is the template's own. A text that already ends with an end
    token, as written by a chat template, keeps that token.

    Raises:
        UserError: there are more than max_length ids; a cut text would get a different score.
    """
    ends = end_ids(tokenizer)
    rendered = split_end(tokenizer, text, ends)[1] is not None
    special = not isinstance(text, RenderedText) or tokenizer.cls_token_id is not None
    ids: list[int] = one_bos(tokenizer, tokenizer(text, add_special_tokens=special).input_ids)
    if rendered:
        bare = tokenizer(text, add_special_tokens=False).input_ids
        ids = ids if ids[-1] == bare[-1] else without_eos(tokenizer, ids)
        while len(ids) > 1 and ids[-1] == ids[-2] and ids[-1] in ends:
            ids = ids[:-1]
    elif tokenizer.eos_token_id is not None:
        ids = [*without_eos(tokenizer, ids), int(tokenizer.eos_token_id)]
    if len(ids) > max_length:
        raise UserError(
            f"the text has {len(ids)} tokens and the limit is {max_length}; allow fewer tokens of "
            f"prompt and completion, or use a model that reads more ({text[:40]!r}...)"
        )
    return ids


HOOKING = threading.Lock()
"""A lock, because hooks are attached to a model during a pass: one thread at a time."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A sequence classifier, and the parts of it that need not run on every token.

    A decoder has a head called `score`, and its states do not depend on later tokens. It is read at
    each text's last token, whatever the padding id is: transformers' own pooling looks for
    ids != pad, which is wrong if pad == EOS.
    """

    model: PreTrainedModel
    trunk: nn.Module
    """The model below the head; its positions begin at 0."""
    head: nn.Module | None
    """The head of a decoder; None for an encoder, which does its own pooling."""
    last_mlp: nn.Module | None
    """The last MLP of a decoder, if running it only at the last tokens changes no score."""
    packing: Packing
    alone: bool
    """Whether padding changes an encoder's scores, so that a pass has texts of one length only."""

    def scores(self, encoded: list[list[int]]) -> Tensor:
        """Return one score per text (of one token or more), float32 [N].

        The score is the logit, or for two labels the log-odds of label 1. Texts with the same
        beginning (such as a prompt) share its computation.
        """
        limit = SCORING_TOKENS if not torch.is_grad_enabled() else sys.maxsize
        batches = filled_batches([len(ids) for ids in encoded], limit)
        logits = torch.cat([self._logits([encoded[i] for i in rows]) for rows in batches]).float()
        numbers = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        places = torch.tensor([i for rows in batches for i in rows], device=numbers.device)
        return numbers[places.argsort()]

    @torch.no_grad()
    def states(self, encoded: list[list[int]]) -> Tensor:
        """Return what the last layer reads of each text, float32 [N H].

        Raises:
            UserError: the model's last layer is not linear.
        """
        outputs = self.model.config.num_labels
        layers = [part for part in self.model.modules() if isinstance(part, nn.Linear)]
        last = next((layer for layer in layers[::-1] if layer.out_features == outputs), None)
        if last is None:
            raise UserError(
                f"{type(self.model).__name__} has no linear last layer, which would tell what "
                f"it is uncertain about"
            )
        read: list[Tensor] = []
        handle = last.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
        try:  # one text at a time, because a batch may be read in another order
            for ids in encoded:
                self._logits([ids])
        finally:
            handle.remove()
        return torch.cat([state.reshape(1, -1) for state in read]).float()

    def _logits(self, encoded: list[list[int]]) -> Tensor:
        device = self.model.device
        lengths = torch.tensor([len(ids) for ids in encoded], device=device)
        width = int(lengths.max())
        padded = [ids + [0] * (width - len(ids)) for ids in encoded]
        input_ids = torch.tensor(padded, dtype=torch.long, device=device)
        if self.head is None:
            return self._encoder_logits(input_ids, lengths)
        recomputing = self.model.training and self.model.is_gradient_checkpointing
        last_mlp = None if recomputing else self.last_mlp  # a recomputation runs without the hooks
        states = last_states(self.trunk, self.packing, last_mlp, input_ids, lengths)
        with torch.autocast(device.type, enabled=False):  # a score needs more than 8 bits
            logits = self.head(states.to(next(self.head.parameters()).dtype))
        assert isinstance(logits, Tensor)
        return logits

    def _encoder_logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        batches = like_lengths(lengths.tolist(), 0 if self.alone else self.packing.pass_cost)
        found = []
        for rows in batches:
            width = int(lengths[rows].max())
            mask = torch.arange(width, device=lengths.device) < lengths[rows].unsqueeze(1)
            ids = input_ids[rows, :width]
            found.append(self.model(input_ids=ids, attention_mask=mask.long()).logits)
        places = torch.tensor([i for rows in batches for i in rows], device=lengths.device)
        return torch.cat(found)[places.argsort()]


def split_classifier(model: PreTrainedModel) -> Classifier:
    """Return the classifier with the parts that need not run on every token, found by trials.

    Raises:
        UserError: a weight is not finite.
    """
    check_finite(model, "cannot be used")
    body = unadapted(model)
    head = dict(body.named_children()).get("score")
    trunk = Trunk(module=body.base_model, plain=0, alone_beyond=sys.maxsize, cached=0, appended=0)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=probe_ids(model, 1, 4)).logits
    if logits.dim() != 2:
        raise UserError(
            f"{type(body).__name__} answers a text with output of shape {list(logits.shape[1:])}; "
            f"a reward model is a sequence classifier (train one with `textrl reward`)"
        )
    if head is not None and not _is_causal(body):
        head = None
    if head is not None:
        trunk = examined(body.base_model, body)
    alone = head is None and _padding_matters(model)
    model.train(was_training)
    return Classifier(
        model=model,
        trunk=trunk.module,
        head=head,
        last_mlp=None if head is None else _last_mlp(body),
        packing=packing_of(model, trunk),
        alone=alone,
    )


@torch.no_grad()
def _is_causal(body: PreTrainedModel) -> bool:
    """Return whether states are independent of later tokens."""
    ids = probe_ids(body, 1, 7)
    whole = first_output(body.base_model(input_ids=ids, use_cache=False))
    beginning = first_output(body.base_model(input_ids=ids[:, :4], use_cache=False))
    return alike(beginning, whole[:, :4])


@torch.no_grad()
def _padding_matters(model: PreTrainedModel) -> bool:
    """Return whether a masked tail changes the score of a text."""
    ids = probe_ids(model, 1, 7)
    mask = (torch.arange(7, device=ids.device) < 4).long().unsqueeze(0)
    padded = ids * mask  # as `Classifier` pads
    found = model(input_ids=padded, attention_mask=mask).logits
    return not alike(found, model(input_ids=ids[:, :4], attention_mask=mask[:, :4]).logits)


def last_states(
    trunk: nn.Module,
    packing: Packing,
    last_mlp: nn.Module | None,
    input_ids: Tensor,
    lengths: Tensor,
) -> Tensor:
    """Return the state at each text's last token, [B H], from right-padded ids [B L]."""
    passes, places = plan(packing, input_ids, lengths)
    ends = places.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
    states, start = [], 0
    for one in passes:
        slots = one.input_ids.numel()
        here = ends[(ends >= start) & (ends < start + slots)].unique() - start
        with _only_at(last_mlp, here):
            states.append(one.states(trunk))
        start += slots
    return take(torch.cat(states), ends)


@contextmanager
def _only_at(mlp: nn.Module | None, slots: Tensor) -> Iterator[None]:
    """Run the last MLP at these slots only; it adds 0 at the others, which are never read."""
    if mlp is None:
        yield
        return
    shape: list[torch.Size] = []

    def pick(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        shape.append(inputs[0].shape)
        return take(inputs[0].flatten(0, -2), slots).unsqueeze(0), *inputs[1:]

    def put(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        rows = output.new_zeros(shape[0].numel() // shape[0][-1], output.shape[-1])
        return rows.index_copy(0, slots, output.squeeze(0)).view(*shape[0][:-1], -1)

    with HOOKING:
        handles = mlp.register_forward_pre_hook(pick), mlp.register_forward_hook(put)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def _last_mlp(model: PreTrainedModel) -> nn.Module | None:
    """Return the last layer's MLP if running it only at last tokens leaves their states equal."""
    mlps = [child for name, child in model.base_model.named_modules() if name.endswith(".mlp")]
    if not mlps:
        return None
    lengths = torch.tensor([4, 7, 2], device=model.device)
    ids = (
        torch.arange(21, device=model.device).view(3, 7) % model.config.get_text_config().vocab_size
    )
    alone = Packing(pass_cost=0, attention_cost=0.0, max_length=0)
    was_training = model.training
    model.eval()
    try:
        whole = last_states(model.base_model, alone, None, ids, lengths)
        ends = last_states(model.base_model, alone, mlps[-1], ids, lengths)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None  # it takes or returns something else
    finally:
        model.train(was_training)
    close = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()
    return mlps[-1] if bool(((whole - ends).abs() <= close).all()) else None
