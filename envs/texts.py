"""The texts of an environment: prompts, drawn in shuffled epochs, and completions with scores.

`PromptSet` is loaded and encoded once, `PromptStream` draws from it, and `Judge` turns the token
ids of episodes into texts and scores them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from textrl.chat import Chat, Messages, prompt_of
from textrl.data import load_records
from textrl.digests import data_digest
from textrl.encoding import encode_prompt
from textrl.errors import UserError, shown
from textrl.reward_calls import Texts
from textrl.rows import Row, is_conversation
from textrl.scorer import Scorer, Scores
from textrl.seams import decode, decode_completion

PromptSource = str | Path | Sequence[Any]
"""A source of prompts: a .jsonl, .csv or .parquet file or `hub:OWNER/NAME` with a `prompt` column,
a list of strings, chats or dicts, or a `datasets.Dataset`."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt: its text, its ids, and its messages if it is a chat."""

    text: str
    """The text of the prompt; for a chat, the rendered template without special tokens."""
    ids: list[int]
    chat: Chat | None = None


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The prompts of a task, with the data set's other columns."""

    prompts: list[Prompt]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def looked_up(
        self, prompt: int | str | Messages, tokenizer: PreTrainedTokenizerBase, limit: int
    ) -> int | Prompt:
        """Return the index of a prompt of the set, or any other prompt encoded.

        Raises:
            UserError: there is no prompt of this index, or the prompt is empty or too long.
        """
        if not isinstance(prompt, int):
            return encode_one(prompt, tokenizer, limit, "options['prompt']")
        if not 0 <= prompt < len(self):
            raise UserError(f"prompt index {prompt} is not in [0, {len(self)})")
        return prompt

    @cached_property
    def digest(self) -> str:
        """A hash of the prompts and columns."""
        return data_digest([[p.ids for p in self.prompts], sorted(self.columns.items())])


def load_prompts(
    source: PromptSource, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> PromptSet:
    """Load the prompts of a source and check their lengths; no prompt is ever cut.

    Raises:
        UserError: there are no prompts, or one is empty or over the limit (its place is named).
    """
    records = load_records(as_rows(source))
    records.require("prompt")
    prompts = [
        encode_one(prompt_of(row, place), tokenizer, max_prompt_tokens, place)
        for row, place in zip(records.rows, records.places, strict=True)
    ]
    return PromptSet(prompts=prompts, columns=records.columns_but("prompt"))


def encode_one(
    prompt: Any, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, place: str
) -> Prompt:
    """Encode one prompt and check its length."""
    if is_conversation(prompt):
        prompt = Chat(messages=prompt)
    ids = encode_prompt(tokenizer, prompt, place)
    if len(ids) > max_prompt_tokens:
        raise UserError(
            f"{place}: the prompt has {len(ids)} tokens, max_prompt_tokens is {max_prompt_tokens}; "
            f"raise it or drop the prompt (a cut prompt would train on nonsense)"
        )
    if isinstance(prompt, Chat):
        return Prompt(text=decode(tokenizer, ids), ids=ids, chat=prompt)
    return Prompt(text=prompt, ids=ids)


def as_rows(source: PromptSource) -> str | Path | Sequence[Row]:
    """Return a source of prompts whose strings and chats have become rows with a prompt."""
    if not isinstance(source, list | tuple):
        return source  # a Dataset; load_records refuses anything else
    return [
        {"prompt": item} if isinstance(item, str) or is_conversation(item) else item
        for item in source
    ]


def chosen_prompt(options: dict[str, Any], row: int, num_rows: int) -> Any:
    """Return the prompt or the index that reset options select for a row.

    A vector environment takes a list with one entry per row, or one value for all rows.

    Raises:
        UserError: neither key is given, or both are, or a list has not one entry per row.
    """
    for name, value in options.items():
        many = isinstance(value, list | tuple) and not is_conversation(value)
        many |= isinstance(value, np.ndarray) and value.ndim > 0
        if many and len(value) != num_rows:
            raise UserError(f"options[{name!r}] has {len(value)} entries for {num_rows} rows")
    if set(options) not in ({"prompt"}, {"index"}):
        raise UserError(f"reset options are 'prompt' or 'index', got {sorted(map(str, options))}")
    if "index" in options:
        index = options["index"]
        if isinstance(index, list | tuple) or (isinstance(index, np.ndarray) and index.ndim):
            index = index[row] if row < len(index) else index
        if not isinstance(index, Integral) or isinstance(index, bool):
            raise UserError(
                f"options['index'] is {shown(index)} for row {row}; expected a whole number"
            )
        return int(index)
    prompt = options["prompt"]
    if isinstance(prompt, str) or is_conversation(prompt):
        return prompt
    if not isinstance(prompt, list | tuple) or row >= len(prompt):
        raise UserError(
            f"options['prompt'] is {shown(prompt)}; expected a text, messages, or a list"
        )
    return prompt[row]


class Stream(Protocol):
    """An endless stream of episodes."""

    drawn: int
    """How many episodes have been returned."""

    def next(self) -> Any:
        """Return the next episode."""

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, JSON-able."""

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


class PromptStream:
    """An endless stream of prompt indices: shuffled epochs, in which each index is repeated."""

    def __init__(self, rng: np.random.Generator, size: int, repeats: int = 1) -> None:
        """Start at the first epoch."""
        self._rng, self._repeats, self._size = rng, repeats, size
        self.drawn = 0
        """How many indices have been returned."""
        self._epoch: Any = rng.bit_generator.state
        self._order, self._used = np.empty(0, dtype=np.int64), 0

    def next(self) -> int:
        """Return the next index."""
        if self._used == len(self._order) * self._repeats:
            self._begin_epoch()
        index = int(self._order[self._used // self._repeats])
        self._used += 1
        self.drawn += 1
        return index

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, JSON-able: how its epoch began, and how far it is."""
        return {"epoch": self._epoch, "used": self._used, "drawn": self.drawn}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._rng.bit_generator.state = state["epoch"]
        self._begin_epoch()
        self._used, self.drawn = int(state["used"]), int(state["drawn"])

    def _begin_epoch(self) -> None:
        self._epoch = self._rng.bit_generator.state
        self._order = self._rng.permutation(self._size)
        self._used = 0


class Judge:
    """Turns token ids of episodes into text and scores the text."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Sequence[int],
        scorer: Scorer,
        prompts: PromptSet,
    ) -> None:
        """Keep the arguments; nothing is loaded here."""
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.scorer = scorer
        self.prompts = prompts

    def completion(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> str:
        """Return the text of a completion, without special tokens."""
        return decode_completion(self.tokenizer, prompt_ids, completion_ids, self.end_ids)

    def scores(
        self,
        prompts: list[Prompt],
        completions: list[str],
        indices: list[int | None],
        ids: list[list[int]],
        *,
        group_size: int = 1,
        dense: bool | None = None,
    ) -> Scores:
        """Return the scores of N completions, N > 0.

        Args:
            prompts: The prompt of each completion.
            completions: The texts of the completions.
            indices: The index of each prompt in the prompt set, None for any other prompt.
            ids: The token ids of the completions.
            group_size: Number of consecutive completions of the same prompt.
            dense: Whether to call the dense reward functions, or the others; None for both.
        """
        texts = Texts(
            prompts=[prompt.text for prompt in prompts],
            completions=completions,
            columns=self._columns(indices),
            completion_ids=ids,
        )
        chats: list[Chat | None] = [prompt.chat for prompt in prompts]
        return self.scorer.scores(texts, chats, group_size=group_size, dense=dense)

    def scores_of_ids(
        self, prompts: list[list[int]], completions: list[list[int]], group_size: int
    ) -> np.ndarray:
        """Return the scores of token ids, float64 [N].

        A prompt of the set is scored with its text, messages and columns; any other is decoded.
        `group_size` consecutive ones have the same prompt.

        Raises:
            UserError: a prompt is in the set several times, with different columns.
        """
        if not prompts:
            return np.zeros(0)
        known: dict[tuple[int, ...], int] = {}
        for index, prompt in enumerate(self.prompts.prompts):
            first = known.setdefault(tuple(prompt.ids), index)
            for name, values in self.prompts.columns.items():
                if values[first] != values[index] and list(prompt.ids) in prompts:
                    raise UserError(
                        f"prompts {first} and {index} are the same tokens with another {name!r}, "
                        f"so that a text does not tell which one is meant; make them different"
                    )
        indices = [known.get(tuple(ids)) for ids in prompts]
        found = [
            Prompt(text=decode(self.tokenizer, ids), ids=ids)
            if index is None
            else self.prompts.prompts[index]
            for ids, index in zip(prompts, indices, strict=True)
        ]
        texts = [self.completion(*pair) for pair in zip(prompts, completions, strict=True)]
        found_scores = self.scores(found, texts, indices, completions, group_size=group_size)
        return found_scores.total

    def _columns(self, indices: list[int | None]) -> dict[str, list[Any]]:
        """Return the data set's other columns for these prompts, None for a missing value."""
        return {
            name: [None if index is None else values[index] for index in indices]
            for name, values in self.prompts.columns.items()
        }
