"""Which sampled outputs labelers are asked about: the pairs of which the reward model learns most.

`textrl collect --choose informative` trains a reward model on the rankings so far, again and again
(`reward_check.py`). The sampler asks `Chooser` for the next pairs: of all prompts that wait, those
with the largest gain in information about the reward model's last layer (`textrl/informative.py`).
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from textrl.chat import Chat, prompt_of, render
from textrl.errors import UserError
from textrl.informative import most_informative
from textrl.labels.asking import pairs_asked
from textrl.labels.store import Store
from textrl.rewards import RewardModel
from textrl.rows import Row


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A prompt with sampled outputs, about which nobody has been asked yet."""

    row: Row
    place: str
    outputs: list[str]
    """Two or more."""


class Chooser:
    """Chooses pairs by the newest reward model; without one, it takes candidates as they come."""

    def __init__(self, folder: Path, store: Store, tokenizer: PreTrainedTokenizerBase) -> None:
        """Begin without a model.

        Args:
            folder: Where reward models appear, each in a folder named by its number of rankings.
            store: The label database.
            tokenizer: The policy's, whose chat template writes prompts that are messages.
        """
        self._folder, self._store, self._tokenizer = folder, store, tokenizer
        self._path: Path | None = None
        self._model: RewardModel | None = None
        self._known: dict[str, tuple[Tensor, float] | None] = {}

    @property
    def rankings(self) -> int:
        """Number of rankings from which the reward model that chooses has learnt; 0 without one."""
        return 0 if self._path is None else int(self._path.name)

    def choose(self, pool: list[Candidate], count: int) -> list[tuple[int, list[str]]]:
        """Return the numbers of some candidates, each with two of its outputs, the best first."""
        self._load_newest()
        in_order = [(number, one.outputs[:2]) for number, one in enumerate(pool)]
        if self._model is None:
            return in_order[:count]
        open_pairs = [
            (number, pair, news)
            for number, one in enumerate(pool)
            for pair in itertools.combinations(one.outputs, 2)
            if (news := self._difference(one.row, one.place, pair)) is not None
        ]
        if not open_pairs:
            return in_order[:count]
        states = torch.stack([state for _, _, (state, _) in open_pairs])
        asked = [self._difference(row, "a task", pair) for row, pair in pairs_asked(self._store)]
        known = [news for news in asked if news is not None]
        best = most_informative(
            states,
            torch.tensor([margin for _, _, (_, margin) in open_pairs]),
            torch.stack([state for state, _ in known]) if known else states[:0],
            torch.tensor([margin for _, margin in known]),
            count,
            [number for number, _, _ in open_pairs],
        )
        chosen = [(open_pairs[index][0], list(open_pairs[index][1])) for index in best]
        numbers = {number for number, _ in chosen}
        return [*chosen, *(one for one in in_order if one[0] not in numbers)][:count]

    def _load_newest(self) -> None:
        newest = max(self._folder.iterdir(), key=lambda path: int(path.name), default=None)
        if newest is not None and newest != self._path:
            self._model, self._path = RewardModel.from_pretrained(newest), newest
            self._known.clear()

    def _difference(
        self, row: Row, place: str, pair: tuple[str, str]
    ) -> tuple[Tensor, float] | None:
        """Return the first output's state [H] and score less the second's; None if unreadable."""
        first, second = (self._read(row, place, output) for output in pair)
        if first is None or second is None:
            return None
        return first[0] - second[0], first[1] - second[1]

    def _read(self, row: Row, place: str, output: str) -> tuple[Tensor, float] | None:
        """Return the reward model's state [H] and score of an output that it can read."""
        model = self._model
        assert model is not None
        prompt = prompt_of(row, place)
        chat = prompt if isinstance(prompt, Chat) else None
        text = prompt if chat is None else render(self._tokenizer, chat, place, for_reply=True)
        whole = model.text_of(text, output, chat, place)
        if whole not in self._known:
            try:
                (ids,) = model.encoded([whole])
            except UserError as error:  # people can read it in any case
                print(f"not seen by the reward model: {error}", file=sys.stderr, flush=True)
                self._known[whole] = None
            else:
                state, score = model.classifier.states([ids])[0], model.raw_scores([whole])[0]
                self._known[whole] = state, score
        return self._known[whole]
