"""Scoring of texts by reward functions, frozen reward models, or weighted lists of both.

Reward functions follow TRL's convention: `f(prompts, completions, **columns) -> list of floats`,
with the data set's other columns by name. Prompts and completions are texts. For chat prompts, a
function with an argument `messages` gets the messages, and a reward model with a chat template
reads messages and completion rendered by its own template. `make_scorer` makes a `Scorer` of what a
user gives. Next to read: `scorer.py` (the sum), `reward_calls.py` (the calls and their checks),
`reward_kinds.py` (a number a token, or a whole group).
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.chat import Chat, Messages, render_reply
from textrl.classifiers import encode_for_scoring, max_text_length, split_classifier
from textrl.errors import UserError
from textrl.limits import check_vocabulary
from textrl.models import freeze, load_classifier, load_tokenizer
from textrl.people import PeopleReward
from textrl.resolve import PEOPLE
from textrl.reward_calls import Patience, Texts, called
from textrl.reward_kinds import MARK, kind_of
from textrl.reward_kinds import remote as remote
from textrl.reward_kinds import reward_function as reward_function
from textrl.scorer import FrozenModel, Scorer


class RewardFunction(Protocol):
    """Scores a batch of texts; the columns of the prompt data set are keyword arguments."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> Sequence[float]:
        """Return one finite number per completion."""
        ...


Reward = str | Path | Callable[..., Any]
"""A folder or hub id of a sequence classifier, a function, or `collect:labels.db`: people."""


def make_scorer(
    reward: Reward | Sequence[Reward | tuple[Reward, float]],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    patience: Patience | None = None,
) -> Scorer:
    """Return the scorer of one reward, or of a list of rewards or (reward, weight) pairs.

    Raises:
        UserError: the list is empty, something is not a reward, or a model does not load.
    """
    entries = list(reward) if isinstance(reward, list | tuple) else [reward]
    if not entries:
        raise UserError("the list of rewards is empty; give at least one")
    functions, names, weights = [], [], []
    for entry in entries:
        source, weight = _with_weight(entry)
        if isinstance(source, str) and source.startswith(PEOPLE):
            source = PeopleReward.from_name(source)
        if isinstance(source, str | Path):
            functions.append(RewardModel.from_pretrained(source, dtype=dtype, device=device))
            names.append(str(source))
        elif isinstance(source, nn.Module):
            raise UserError(
                f"a live {type(source).__name__} needs its tokenizer to score texts; give "
                f"textrl.rewards.RewardModel(model, tokenizer)"
            )
        elif callable(source):
            functions.append(source)
            names.append(str(getattr(source, "__name__", type(source).__name__)))
        else:
            raise UserError(f"a reward must be a model's name or a callable, got {source!r}")
        weights.append(weight)
    return Scorer(
        functions=tuple(functions),
        names=_different(names),
        kinds=tuple(map(kind_of, functions)),
        weights=tuple(weights),
        patience=patience or Patience(),
    )


def _different(names: list[str]) -> tuple[str, ...]:
    """Return names of which no two are equal.

    >>> _different(["score", "score", "bonus"])
    ('score', 'score_2', 'bonus')
    """
    different: list[str] = []
    for name in names:
        number, candidate = 2, name
        while candidate in different:
            number, candidate = number + 1, f"{name}_{number}"
        different.append(candidate)
    return tuple(different)


def _with_weight(entry: Any) -> tuple[Any, float]:
    """Return a reward and its weight, which is 1 by default."""
    if not isinstance(entry, tuple | list):
        return entry, 1.0
    numbers = [isinstance(part, Real) and math.isfinite(part) for part in entry]
    if numbers != [False, True]:
        raise UserError(f"a reward with its weight is (reward, finite number), got {entry!r}")
    return entry[0], float(entry[1])


def conversational(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a TRL reward function that reads messages, for use with chat prompts.

    It gets `prompts` as messages and each completion as `[{"role": "assistant", "content": text}]`.
    """

    def score(
        prompts: list[str],
        completions: list[str],
        messages: list[Messages | None] | None = None,
        completion_ids: list[list[int]] | None = None,
        **columns: list[Any],
    ) -> Any:
        if messages is None or None in messages:
            raise UserError("the prompts are plain text; a conversational function needs messages")
        replies = [[{"role": "assistant", "content": text.strip()}] for text in completions]
        texts: Any = Texts(
            prompts=messages,  # type: ignore[arg-type]  # messages in place of texts
            completions=replies,  # type: ignore[arg-type]
            columns=columns,
            completion_ids=completion_ids,
        )
        return called(function, texts)

    setattr(score, MARK, kind_of(function))
    score.__name__ = str(getattr(function, "__name__", type(function).__name__))
    return score


class RewardModel(FrozenModel):
    """A frozen sequence classifier with its own tokenizer, as a reward function.

    The score of a text is the classifier's logit (one label) or the log-odds of label 1 (two
    labels). If the checkpoint's config has `score_mean` and `score_std`, the mean is subtracted
    and the result is divided by the std.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Freeze the model.

        Raises:
            UserError: it has neither one nor two labels.
        """
        if model.config.num_labels not in (1, 2):
            raise UserError(
                f"a reward model needs 1 label (or 2: negative, positive), this one has "
                f"{model.config.num_labels}; wrap it in a function that returns one number"
            )
        check_vocabulary(model, tokenizer)
        self.model = freeze(model)
        self.tokenizer = tokenizer
        self.classifier = split_classifier(model)
        self.max_length = max_text_length(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
    ) -> "RewardModel":
        """Load the reward model of a folder or hub id; its head must be trained.

        Raises:
            UserError: there is no such model, or the checkpoint has no trained head.
        """
        return cls(load_classifier(name, dtype=dtype, device=device), load_tokenizer(name))

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        *,
        chats: list[Chat | None] | None = None,
        **columns: list[Any],
    ) -> list[float]:
        """Return the normalised score of each prompt + completion.

        Args:
            prompts: The prompts as texts.
            completions: The completions as texts.
            chats: The prompts that are messages, and None for those that are plain text.
            columns: Other columns, which are ignored.

        Raises:
            UserError: a text is longer than the model can read; none is ever cut.
        """
        given = chats or [None] * len(prompts)
        texts = [
            self.text_of(*sample, place=f"sample {row}")
            for row, sample in enumerate(zip(prompts, completions, given, strict=True))
        ]
        config = self.model.config.to_dict()
        mean, std = config.get("score_mean", 0.0), config.get("score_std", 1.0)
        return [(score - mean) / std for score in self.raw_scores(texts)]

    def text_of(self, prompt: str, completion: str, chat: Chat | None, place: str) -> str:
        """Return the text to score; a chat is rendered by this model's own template.

        Tools and template variables are meant for the policy's template. Those that this model's
        template does not use are dropped.
        """
        if chat is None or not self.tokenizer.chat_template:
            return prompt + completion
        return render_reply(self.tokenizer, chat.read_by(self.tokenizer), completion, place)

    @torch.no_grad()
    def raw_scores(self, texts: list[str]) -> list[float]:
        """Return the classifier's score of each text without normalisation."""
        if not texts:
            return []
        scores: list[float] = self.classifier.scores(self.encoded(texts)).tolist()
        return scores

    def encoded(self, texts: list[str]) -> list[list[int]]:
        """Return the ids that the classifier reads of each text.

        Raises:
            UserError: a text is longer than the model can read, or empty with no EOS to stand for
                it.
        """
        encoded = []
        for row, text in enumerate(texts):
            try:
                encoded.append(encode_for_scoring(self.tokenizer, text, self.max_length))
            except UserError as error:
                raise UserError(f"sample {row}: {error}") from None
        if not all(encoded):
            raise UserError(
                f"text {encoded.index([])} of the batch is empty and the reward model's tokenizer "
                f"has no EOS token to stand for it; give it one"
            )
        return encoded
