"""Scores for texts: callables, frozen reward models, weighted lists of both.

The convention is that of TRL's reward functions: `f(prompts, completions, **columns) -> list of
floats`, the data set's other columns by name. Whatever a function returns is checked: None, NaN, a
wrong length or an exception is an error that names the sample, never a silent 0.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.batching import pass_cost, token_batches
from textrl.errors import UserError
from textrl.models import first_output, freeze, load_classifier, load_tokenizer, max_positions

SCORING_TOKENS = 8192
"""Tokens in one forward pass of a reward model, padding included."""


class RewardFunction(Protocol):
    """Scores a batch of texts; columns of the prompt data set arrive by name."""

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> Sequence[float]:
        """Return one finite number a completion."""
        ...


Reward = str | Path | Callable[..., Any]
"""A folder or hub id of a sequence classifier, or a function."""


class RewardModel:
    """A frozen sequence classifier with its own tokenizer, as a reward function.

    The score of a text is the classifier's logit (one label) or the log-odds of label 1 (two
    labels), minus `config.score_mean`, over `config.score_std` where the checkpoint carries them.
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
        self.model = freeze(model)
        self.tokenizer = tokenizer
        self.max_length = max_text_length(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
    ) -> "RewardModel":
        """Return the reward model of a folder or hub id; its head must be trained.

        Raises:
            UserError: there is none, or the checkpoint has no trained head.
        """
        return cls(load_classifier(name, dtype=dtype, device=device), load_tokenizer(name))

    def __call__(
        self, prompts: list[str], completions: list[str], **columns: list[Any]
    ) -> list[float]:
        """Return the normalised score of each prompt + completion."""
        texts = [
            prompt + completion for prompt, completion in zip(prompts, completions, strict=True)
        ]
        config = self.model.config.to_dict()
        mean, std = config.get("score_mean", 0.0), config.get("score_std", 1.0)
        return [(score - mean) / std for score in self.raw_scores(texts)]

    @torch.no_grad()
    def raw_scores(self, texts: list[str]) -> list[float]:
        """Return the classifier's own number for each text, not normalised."""
        if not texts:
            return []
        encoded = [encode_for_scoring(self.tokenizer, text, self.max_length) for text in texts]
        scores: list[float] = sequence_scores(self.model, encoded).tolist()
        return scores


def max_text_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a classifier reads at most."""
    return min(max_positions(model) or 1 << 30, int(tokenizer.model_max_length))


def encode_for_scoring(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
    """Return the ids a classifier reads: the text, then EOS where its tokenizer has one."""
    ids: list[int] = tokenizer(text).input_ids
    eos = tokenizer.eos_token_id
    if eos is None:
        return ids[:max_length]
    if ids and ids[-1] == eos:
        ids = ids[:-1]
    return [*ids[: max_length - 1], eos]


def sequence_scores(model: PreTrainedModel, encoded: list[list[int]]) -> Tensor:
    """Return one score a text, [N], from passes of texts of like lengths.

    A score is read at the text's last real token whatever the padding id is.
    """
    cost = pass_cost(sum(parameter.numel() for parameter in model.parameters()))
    groups = token_batches([len(ids) for ids in encoded], SCORING_TOKENS, cost)
    found = [_padded_scores(model, [encoded[i] for i in rows]) for rows in groups]
    places = torch.tensor([i for rows in groups for i in rows], device=model.device)
    return torch.cat(found)[places.argsort()]


def _padded_scores(model: PreTrainedModel, encoded: list[list[int]]) -> Tensor:
    """Return the scores of one pass.

    A decoder is pooled by explicit length (transformers' own pooling looks for ids != pad, which
    goes wrong where pad == EOS); an encoder gets its attention mask and pools by itself.
    """
    lengths = torch.tensor([len(ids) for ids in encoded], device=model.device)
    width = int(lengths.max())
    input_ids = torch.zeros(len(encoded), width, dtype=torch.long)
    for row, ids in enumerate(encoded):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    input_ids = input_ids.to(model.device)
    head = dict(model.named_children()).get("score")
    if head is not None:
        states = first_output(model.base_model(input_ids=input_ids, use_cache=False))
        last = states[torch.arange(len(encoded), device=model.device), lengths - 1]
        with torch.autocast(model.device.type, enabled=False):  # a score wants more than 8 bits
            logits = head(last.to(next(head.parameters()).dtype))
    else:
        mask = torch.arange(width, device=model.device) < lengths.unsqueeze(1)
        logits = model(input_ids=input_ids, attention_mask=mask.long()).logits
    numbers: Tensor = logits.float()
    return numbers[:, 0] if numbers.shape[1] == 1 else numbers[:, 1] - numbers[:, 0]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Named reward functions and their weights: the sum is the score of a text."""

    functions: tuple[Callable[..., Any], ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def reward_model(self) -> RewardModel | None:
        """The first frozen reward model among the functions, for critics that start from it."""
        return next((f for f in self.functions if isinstance(f, RewardModel)), None)

    def __call__(
        self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]
    ) -> np.ndarray:
        """Return the weighted sum of all functions, float64 [B].

        Raises:
            UserError: a function failed or returned something that is not one number a sample.
        """
        total = np.zeros(len(prompts))
        for function, name, weight in zip(self.functions, self.names, self.weights, strict=True):
            total += weight * _checked_call(function, name, prompts, completions, columns)
        return total


def make_scorer(
    reward: Reward | Sequence[Reward | tuple[Reward, float]],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
) -> Scorer:
    """Return the scorer of one reward, or of a list of rewards or (reward, weight) pairs.

    Raises:
        UserError: an empty list, something that is no reward, or a model that does not load.
    """
    entries = list(reward) if isinstance(reward, list | tuple) else [reward]
    if not entries:
        raise UserError("the list of rewards is empty; give at least one")
    functions, names, weights = [], [], []
    for entry in entries:
        source, weight = entry if isinstance(entry, tuple | list) else (entry, 1.0)
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
        weights.append(float(weight))
    return Scorer(functions=tuple(functions), names=tuple(names), weights=tuple(weights))


def _checked_call(
    function: Callable[..., Any],
    name: str,
    prompts: list[str],
    completions: list[str],
    columns: dict[str, list[Any]],
) -> np.ndarray:
    try:
        values = _call(function, prompts, completions, columns)
    except Exception as error:
        raise UserError(
            f"reward function {name!r} raised {type(error).__name__}: {error} on a batch of "
            f"{len(prompts)} that starts with {_shorten(prompts[0], completions[0])}"
        ) from error
    if values is None or not hasattr(values, "__len__"):
        raise UserError(f"reward function {name!r} returned {values!r}; expected a list of floats")
    if len(values) != len(prompts):
        raise UserError(
            f"reward function {name!r} returned {len(values)} numbers for {len(prompts)} texts"
        )
    for row, value in enumerate(values):
        try:
            finite = value is not None and math.isfinite(float(value))
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise UserError(
                f"reward function {name!r} returned {value!r} for sample {row}, "
                f"{_shorten(prompts[row], completions[row])}; expected a finite number"
            )
    return np.array([float(value) for value in values])


def _call(
    function: Callable[..., Any],
    prompts: list[str],
    completions: list[str],
    columns: dict[str, list[Any]],
) -> Any:
    """Call by name where the function names `completions`, as TRL does, else by position.

    It gets the columns that its signature takes; columns called like the texts give way to them.
    """
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    extra = {name: c for name, c in columns.items() if everything or name in parameters}
    if "completions" not in parameters:
        extra.pop("prompts", None)
        extra.pop("completions", None)
        return function(prompts, completions, **extra)
    extra |= {"completions": completions}
    if everything or "prompts" in parameters:
        extra |= {"prompts": prompts}
    return function(**extra)


def _shorten(prompt: str, completion: str) -> str:
    return f"prompt {prompt[:60]!r}, completion {completion[:60]!r}"
