"""Token-by-token decoding of language models with a KV cache (`row_cache.py`).

`Decoder` prefills some rows and steps all rows; the environment and sampling use it.
`GrowingTexts` is for agents that act token by token. Next to read: `generation.py`, which samples.
"""

import torch
from torch import Tensor

from textrl.batching import like_lengths
from textrl.models import SplitLM
from textrl.row_cache import RowCache, step_mask


class Decoder:
    """Runs a language model token by token over a batch of rows of different lengths.

    `prefill` (re)starts some rows with their prompts; `step` appends one token to every row. Each
    returns the hidden state that predicts the next token. If a model cannot use the cache, or a row
    is longer than the model's window, the prefix is encoded again instead, with equal results.
    """

    def __init__(self, lm: SplitLM, num_rows: int, max_length: int) -> None:
        """Make a decoder for num_rows sequences of at most max_length tokens."""
        self.lm = lm
        self.lengths = torch.ones(num_rows, dtype=torch.long, device=lm.device)
        self._ids = torch.zeros(num_rows, max_length, dtype=torch.long, device=lm.device)
        layers = int(lm.model.config.get_text_config().num_hidden_layers)
        cached = max_length <= lm.max_cached
        self._cache = RowCache(layers, num_rows, max_length) if cached else None

    @torch.no_grad()
    def prefill(self, rows: Tensor, prompt_ids: Tensor, prompt_lengths: Tensor) -> Tensor:
        """Restart the given rows with these prompts; return the states after them, [R H].

        Prompts of similar lengths are read together, to save computation on padding.

        Args:
            rows: The rows to restart. Shape [R].
            prompt_ids: The prompts, right-padded. Shape [R P].
            prompt_lengths: The number of tokens of each prompt, >= 1. Shape [R].
        """
        states: Tensor | None = None
        for alike in like_lengths(prompt_lengths.tolist(), self.lm.packing.pass_cost):
            part = torch.tensor(alike, device=rows.device)
            found = self._read(rows[part], prompt_ids[part], prompt_lengths[part])
            if states is None:
                states = found.new_empty(len(rows), found.shape[1])
            states[part] = found
        assert states is not None
        return states

    def _read(self, rows: Tensor, prompt_ids: Tensor, prompt_lengths: Tensor) -> Tensor:
        """Restart some rows in one pass, as wide as their longest prompt."""
        width = int(prompt_lengths.max())
        prompt_ids = prompt_ids[:, :width].long()
        self.lengths[rows] = prompt_lengths
        self._ids[rows, :width] = prompt_ids
        if self._cache is None:
            states = self.lm.hidden(prompt_ids, prompt_lengths)
        else:
            self._cache.restart(rows)
            states = self.lm.cached_hidden(prompt_ids, self._cache)
        return states[torch.arange(len(rows), device=states.device), prompt_lengths - 1]

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to every row; return the states after them, [B H].

        Args:
            tokens: One token id per row. A row that is already full keeps its length, and its state
                is then invalid. Shape [B].
        """
        rows = torch.arange(len(tokens), device=tokens.device)
        positions = self.lengths.clamp_max(self._ids.shape[1] - 1)
        self._ids[rows, positions] = tokens
        self.lengths = (self.lengths + 1).clamp_max(self._ids.shape[1])
        used = int(positions.max()) + 1
        if self._cache is None:
            return self.lm.hidden(self._ids[:, :used], self.lengths)[rows, positions]
        self._cache.go_on(positions, used)
        states = self.lm.cached_hidden(
            tokens.unsqueeze(1),
            self._cache,
            attention_mask=step_mask(positions, used, self.lm.model.dtype),
            position_ids=positions.unsqueeze(1),
        )
        return states[:, 0]

    def select(self, rows: Tensor) -> None:
        """Keep these rows in this order, to drop finished rows or to copy a prompt to a group."""
        self.lengths, self._ids = self.lengths[rows], self._ids[rows]
        if self._cache is not None:
            self._cache.select(rows)


class GrowingTexts:
    """Computes the states after texts that grow by one token per call, with one KV cache.

    A row is read from its beginning if its text is not the previous text plus one token. All rows
    are read from the beginning after a weight update.
    """

    def __init__(self, lm: SplitLM) -> None:
        """Start with nothing read."""
        self.lm = lm
        self._decoder: Decoder | None = None
        self._ids = torch.zeros(0, 0, dtype=torch.long)
        self._lengths = torch.zeros(0, dtype=torch.long)
        self._states = torch.zeros(0, 0)
        self._version = -1

    @torch.no_grad()
    def states(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the state after each text, [B H].

        Args:
            ids: The texts, right-padded with one number. Shape [B L].
            lengths: The number of tokens of each text, >= 1. Shape [B].
        """
        version = sum(parameter._version for parameter in self.lm.model.parameters())
        fresh = self._decoder is None or ids.shape != self._ids.shape or version != self._version
        if fresh:
            self._decoder = Decoder(self.lm, len(ids), ids.shape[1])
            self._ids, self._lengths = torch.zeros_like(ids), torch.zeros_like(lengths)
            self._states = torch.zeros(0, 0)
        decoder = self._decoder
        assert decoder is not None
        before = torch.arange(ids.shape[1], device=ids.device) < self._lengths.unsqueeze(1)
        begins = ((ids == self._ids) | ~before).all(1) & (self._lengths > 0)
        same, grown = begins & (lengths == self._lengths), begins & (lengths == self._lengths + 1)
        if not same.all():
            stepped = bool(grown.any())
            if stepped:
                last = ids.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
                self._states = decoder.step(last)
            stale = (~grown if stepped else ~same).nonzero().squeeze(1)
            if len(stale):
                read = decoder.prefill(stale, ids[stale], lengths[stale])
                if not len(self._states):
                    self._states = read.new_zeros(len(ids), read.shape[1])
                self._states = self._states.index_copy(0, stale, read)
        self._ids, self._lengths, self._version = ids.clone(), lengths.clone(), version
        return self._states
