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
        self._known: dict[str, tuple[Tensor, float]] = {}

    @property
    def rankings(self) -> int:
        """Number of rankings from which the reward model that chooses has learnt; 0 without one."""
        return 0 if self._path is None else int(self._path.name)

    def choose(self, pool: list[Candidate], count: int) -> list[tuple[int, list[str]]]:
        """Return the numbers of some candidates, each with two of its outputs, the best first."""
        self._load_newest()
        if self._model is None:
            return [(number, one.outputs[:2]) for number, one in enumerate(pool[:count])]
        readable = [number for number, one in enumerate(pool) if self._readable(one)]
        pairs = [
            (number, pair)
            for number in readable
            for pair in itertools.combinations(pool[number].outputs, 2)
        ]
        places = [(pool[number].row, pool[number].place, pair) for number, pair in pairs]
        asked = [(row, "a task", pair) for row, pair in pairs_asked(self._store)]
        ranked: list[int] = []
        if pairs:
            numbers = [number for number, _ in pairs]
            compared = (*self._compared(places), *self._compared(asked))
            ranked = most_informative(*compared, count, numbers)
        chosen = [(pairs[best][0], list(pairs[best][1])) for best in ranked]
        others = [number for number in range(len(pool)) if number not in readable]
        return chosen + [(n, pool[n].outputs[:2]) for n in others[: count - len(chosen)]]

    def _readable(self, one: Candidate) -> bool:
        """Return whether the reward model can read the outputs; people can in any case."""
        try:
            for output in one.outputs:
                self._read(one.row, one.place, output)
        except UserError as error:
            print(f"not chosen by the reward model: {error}", file=sys.stderr, flush=True)
            return False
        return True

    def _load_newest(self) -> None:
        newest = max(self._folder.iterdir(), key=lambda path: int(path.name), default=None)
        if newest is not None and newest != self._path:
            self._model, self._path = RewardModel.from_pretrained(newest), newest
            self._known.clear()

    def _compared(self, pairs: list[tuple[Row, str, tuple[str, str]]]) -> tuple[Tensor, Tensor]:
        """Return the difference of the states of each pair, [N H], and of the scores, [N]."""
        both = [[self._read(row, place, output) for output in pair] for row, place, pair in pairs]
        if not both:
            width = next(iter(self._known.values()))[0].shape[0]
            return torch.zeros(0, width), torch.zeros(0)
        states = torch.stack([first[0] - second[0] for first, second in both])
        return states, torch.tensor([first[1] - second[1] for first, second in both])

    def _read(self, row: Row, place: str, output: str) -> tuple[Tensor, float]:
        """Return the reward model's state and score of an output."""
        model = self._model
        assert model is not None
        prompt = prompt_of(row, place)
        chat = prompt if isinstance(prompt, Chat) else None
        text = prompt if chat is None else render(self._tokenizer, chat, place, for_reply=True)
        whole = model.text_of(text, output, chat, place)
        if whole not in self._known:
            (ids,) = model.encoded([whole])
            self._known[whole] = model.classifier.states([ids])[0], model.raw_scores([whole])[0]
        return self._known[whole]
