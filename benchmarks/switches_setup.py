"""A model, real texts and the kinds of work that the switches of `throughput_switches.py` time."""

from collections.abc import Callable
from dataclasses import replace

from throughput_model import make_model
from torch import Tensor
from transformers import PreTrainedModel

from textrl.demo.models import train_tokenizer
from textrl.demo.pretrained import smollm2_folder
from textrl.demo.reviews import load_reviews
from textrl.encoding import encode_text
from textrl.models import SplitLM, load_tokenizer, split_lm
from textrl.policy import PolicyModule
from textrl.types import Sequence, stack_sequences

PROMPT = 12
"""Tokens of a sequence that do not count, where a prompt is wanted."""
Work = Callable[[], Tensor | None]
"""Does the work; returns what must be equal with the switch on and off."""
Switch = tuple[str, Work, Work]
"""Its name, the work with it, the work without it."""


class Setup:
    """A model and real texts for it."""

    def __init__(self, size: str) -> None:
        """Load the model; the texts are reviews of 8 words or more."""
        self.model: PreTrainedModel = make_model(size)
        self.lm: SplitLM = split_lm(self.model)
        texts = [review.text for review in load_reviews() if len(review.text.split()) >= 8]
        tokenizer = load_tokenizer(smollm2_folder()) if size == "smollm2" else None
        tokenizer = tokenizer or train_tokenizer(texts[:3000])
        ids = [encode_text(tokenizer, text) for text in texts[:512]]
        ids = [row for row in ids if len(row) > PROMPT + 4]
        self.texts = [Sequence(ids=row, counts=[i > 0 for i in range(len(row))]) for row in ids]
        self.long = sorted(self.texts[:256], key=lambda s: -len(s.ids))[:64]
        self.prompted = [
            Sequence(ids=row, counts=[i >= PROMPT for i in range(len(row))]) for row in ids
        ]


def gradient_step(model: PreTrainedModel, loss: Callable[[], Tensor]) -> Work:
    """Return forward and backward of a loss; the loss is what must be equal."""

    def work() -> Tensor:
        model.zero_grad(set_to_none=False)
        value = loss()
        value.backward()
        return value.detach()

    return work


def loss_sum(lm: SplitLM, data: list[Sequence]) -> Tensor:
    """Return the summed SFT loss of sequences."""
    return -PolicyModule(lm).logprobs_of(stack_sequences(data, lm.device)).sum()


def with_packing(lm: SplitLM, **changes: float) -> SplitLM:
    """Return the model with another idea of what packing costs."""
    return replace(lm, packing=replace(lm.packing, **changes))
