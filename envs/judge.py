"""`Judge`, which turns the token ids of episodes into texts and scores them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from textrl.chat import Chat
from textrl.envs.prompts import Prompt, PromptSet
from textrl.errors import UserError
from textrl.rewards import Scorer
from textrl.seams import decode, decode_completion


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
        self, prompts: list[Prompt], completions: list[str], indices: list[int | None]
    ) -> np.ndarray:
        """Return the scores of completions, float64 [N].

        Args:
            prompts: The prompt of each completion.
            completions: The texts of the completions.
            indices: The index of each prompt in the prompt set, None for any other prompt.
        """
        if not prompts:
            return np.zeros(0)
        chats: list[Chat | None] = [prompt.chat for prompt in prompts]
        texts = [prompt.text for prompt in prompts]
        return self.scorer(texts, completions, self._columns(indices), chats)

    def scores_of_ids(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return the scores of token ids, float64 [N].

        A prompt of the set is scored with its text, messages and columns; any other is decoded.

        Raises:
            UserError: a prompt is in the set several times, with different columns.
        """
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
        return self.scores(found, texts, indices)

    def _columns(self, indices: list[int | None]) -> dict[str, list[Any]]:
        """Return the data set's other columns for these prompts, None for a missing value."""
        return {
            name: [None if index is None else values[index] for index in indices]
            for name, values in self.prompts.columns.items()
        }
