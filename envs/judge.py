"""The texts of episodes, and what they score."""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from textrl.envs.prompts import PromptSet
from textrl.rewards import Scorer


class Judge:
    """Turns token ids of episodes into text and has the text scored."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, scorer: Scorer, prompts: PromptSet
    ) -> None:
        """Keep the three; nothing is loaded here."""
        self.tokenizer = tokenizer
        self.scorer = scorer
        self.prompts = prompts

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids without special tokens and ids beyond the tokenizer."""
        known = [token for token in ids if token < len(self.tokenizer)]
        return str(self.tokenizer.decode(known, skip_special_tokens=True))

    def scores(
        self, prompts: list[str], completions: list[str], indices: list[int | None]
    ) -> np.ndarray:
        """Return the scores of texts, float64 [N].

        Args:
            prompts: the text of each prompt.
            completions: the text of each completion.
            indices: of each prompt in the prompt set, None where it is not from there.
        """
        if not prompts:
            return np.zeros(0)
        return self.scorer(prompts, completions, self._columns(indices))

    def scores_of_ids(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return the scores of token ids, float64 [N].

        A prompt of the set brings its text and columns; any other is decoded and has none.
        """
        known = {tuple(ids): index for index, ids in enumerate(self.prompts.ids)}
        indices = [known.get(tuple(ids)) for ids in prompts]
        texts = [
            self.decode(ids) if index is None else self.prompts.texts[index]
            for ids, index in zip(prompts, indices, strict=True)
        ]
        return self.scores(texts, [self.decode(ids) for ids in completions], indices)

    def _columns(self, indices: list[int | None]) -> dict[str, list[Any]]:
        """Return the data set's other columns for these prompts, None where there is none."""
        return {
            name: [None if index is None else values[index] for index in indices]
            for name, values in self.prompts.columns.items()
        }
