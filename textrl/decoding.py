"""Token-by-token decoding of language models with a KV cache.

In `RowCache` each row has its own length and can be restarted alone; `trunks.py` tests whether a
model supports it. `Decoder` prefills some rows and steps all rows; the environment and sampling use
it. `GrowingTexts` is for agents that act token by token. Next to read: `generation.py`, which
samples.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from textrl.packing import like_lengths
from textrl.policy import SplitLM


class _RowLayer(CacheLayerMixin):
    """The keys and values of one layer, [B heads L dim], written at each row's own position."""

    is_sliding = False

    def __init__(self, owner: "RowCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, length = self.owner.num_rows, self.owner.max_length
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (rows, states.shape[1], length, states.shape[3])
            self.__dict__[name] = states.new_zeros(shape)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        rows, owner = self.owner.rows, self.owner
        if owner.prefilling:  # each prompt attends only to itself
            width = key_states.shape[2]
            self.keys[rows, :, :width] = key_states.to(self.keys.dtype)
            self.values[rows, :, :width] = value_states.to(self.values.dtype)
            return key_states, value_states
        self.keys[rows, :, owner.positions] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, owner.positions] = value_states[:, :, 0].to(self.values.dtype)
        keys, values = self.keys[:, :, : owner.used], self.values[:, :, : owner.used]
        # A precision other than that of the first pass is rare; it is read through a copy.
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def select(self, rows: Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length, 0) if self.owner.prefilling else (self.owner.used, 0)

    def get_seq_length(self) -> int:
        return 0 if self.owner.prefilling else self.owner.used - 1

    def get_max_length(self) -> int:
        return self.owner.max_length


class RowCache(Cache):
    """A transformers cache whose rows have different lengths and can be restarted separately."""

    def __init__(self, num_layers: int, num_rows: int, max_length: int) -> None:
        self.num_rows = num_rows
        self.max_length = max_length
        self.prefilling = False
        self.rows = torch.arange(0)
        self.positions = torch.arange(0)
        self.used = 0
        super().__init__(layers=[_RowLayer(self) for _ in range(num_layers)])

    def restart(self, rows: Tensor) -> None:
        """Prepare for a pass that reads new beginnings of these rows."""
        self.prefilling, self.rows = True, rows

    def go_on(self, positions: Tensor, used: int) -> None:
        """Prepare for a pass that reads one token of every row, at these positions."""
        rows = torch.arange(len(positions), device=positions.device)
        self.prefilling, self.rows, self.positions, self.used = False, rows, positions, used

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order."""
        self.num_rows = len(rows)
        for layer in self.layers:
            assert isinstance(layer, _RowLayer)
            layer.select(rows)


def step_mask(positions: Tensor, used: int, dtype: torch.dtype) -> Tensor | None:
    """Return a mask that hides the slots after each row's end, [B 1 1 used], or None if not needed.

    Without a mask, attention uses a faster kernel.

    Args:
        positions: The position of each row's new token. Shape [B].
        used: Number of slots that are read.
        dtype: The dtype of the attention.
    """
    if bool((positions == used - 1).all()):
        return None
    hidden_slots = torch.arange(used, device=positions.device) > positions.unsqueeze(1)
    mask = torch.zeros(hidden_slots.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(hidden_slots, torch.finfo(dtype).min)[:, None, None, :]


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
