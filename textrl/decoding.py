"""Token-by-token decoding of language models with a KV cache.

In `RowCache` each row has its own length and can be restarted alone; `trunks.py` tests whether a
model supports it. `Decoder` reads tokens of some rows and steps some rows; the environment and
sampling use it. `GrowingTexts` is for agents that act token by token. Next to read:
`generation.py`, which samples.
"""

from collections.abc import Iterator

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
        rows, length = self.owner.num_rows, self.owner.max_length + 1  # one slot for padding
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
        slots, owner = self.owner.slots, self.owner
        if owner.prefilling:  # each prompt attends only to itself
            width = key_states.shape[2]
            self.keys[slots, :, :width] = key_states.to(self.keys.dtype)
            self.values[slots, :, :width] = value_states.to(self.values.dtype)
            return key_states, value_states
        new_keys, new_values = key_states.transpose(1, 2), value_states.transpose(1, 2)
        self.keys[slots.unsqueeze(1), :, owner.positions] = new_keys.to(self.keys.dtype)
        self.values[slots.unsqueeze(1), :, owner.positions] = new_values.to(self.values.dtype)
        read = slots if owner.scattered else slice(len(slots))  # a slice is read without a copy
        keys, values = self.keys[read, :, : owner.used], self.values[read, :, : owner.used]
        # A precision other than that of the first pass is rare; it is read through a copy.
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def select(self, slots: Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[slots], self.values[slots]

    def move(self, sources: Tensor, targets: Tensor, used: int) -> None:
        assert self.keys is not None
        assert self.values is not None
        for states in (self.keys, self.values):
            states[targets, :, :used] = states[sources, :, :used]

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
        self.prefilling = self.scattered = False
        self.slots = torch.arange(0)
        self.positions = torch.arange(0)
        self.used = 0
        super().__init__(layers=[_RowLayer(self) for _ in range(num_layers)])

    def restart(self, slots: Tensor) -> None:
        """Prepare for a pass that reads the beginnings of the texts in these slots."""
        self.prefilling, self.slots = True, slots

    def go_on(self, positions: Tensor, used: int, slots: Tensor | None = None) -> None:
        """Prepare for a pass that reads K more tokens of some texts.

        Args:
            positions: Where the tokens go; max_length takes what is padding. Shape [R K].
            used: Number of positions that are read.
            slots: The slots of the texts; None: the first R, which costs no copy. Shape [R].
        """
        self.scattered = slots is not None
        first = torch.arange(len(positions), device=positions.device)
        self.slots = first if slots is None else slots
        self.prefilling, self.positions, self.used = False, positions, used

    def select(self, slots: Tensor) -> None:
        """Keep only these slots, in this order."""
        self.num_rows = len(slots)
        for layer in self.layers:
            assert isinstance(layer, _RowLayer)
            layer.select(slots)

    def move(self, sources: Tensor, targets: Tensor, used: int) -> None:
        """Copy the first positions of some slots to other slots, all at once."""
        for layer in self.layers:
            assert isinstance(layer, _RowLayer)
            layer.move(sources, targets, used)


def step_mask(positions: Tensor, used: int, dtype: torch.dtype) -> Tensor | None:
    """Return a mask that hides what comes after each new token, [R 1 K used], or None for nothing.

    Without a mask, attention uses a faster kernel.

    Args:
        positions: The positions of the new tokens. Shape [R K].
        used: Number of positions that are read.
        dtype: The dtype of the attention.
    """
    if bool((positions == used - 1).all()):
        return None
    hidden = torch.arange(used, device=positions.device) > positions.unsqueeze(-1)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min).unsqueeze(1)


class Decoder:
    """Runs a language model over a batch of texts of different lengths that grow.

    `prefill` (re)starts some rows with their prompts, `read` appends several tokens to some rows,
    and `step` appends one. If a model cannot use the cache, or a text is longer than the model's
    window, the whole text is encoded again instead, with equal results.

    Rows keep their numbers. In the cache, the rows that are stepped stand before those that wait,
    so that a step reads them without a copy.
    """

    def __init__(self, lm: SplitLM, num_rows: int, max_length: int) -> None:
        """Make a decoder for num_rows texts of at most max_length tokens."""
        self.lm = lm
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=lm.device)
        """The number of tokens that were read of each row. [B]."""
        self._ids = torch.zeros(num_rows, max_length, dtype=torch.long, device=lm.device)
        self._row_of = torch.arange(num_rows, device=lm.device)  # slot -> row
        self._slot_of = self._row_of.clone()  # row -> slot
        layers = int(lm.model.config.get_text_config().num_hidden_layers)
        cached = max_length <= lm.max_cached
        self._cache = RowCache(layers, num_rows, max_length) if cached else None

    @torch.no_grad()
    def prefill(self, rows: Tensor, prompt_ids: Tensor, prompt_lengths: Tensor) -> Tensor:
        """Restart the given rows with these prompts; return the states after them, [R H].

        Args:
            rows: The rows to restart. Shape [R].
            prompt_ids: The prompts, right-padded. Shape [R P].
            prompt_lengths: The number of tokens of each prompt, >= 1. Shape [R].
        """
        self.lengths[rows] = 0
        return self.read_to_end(rows, prompt_ids, prompt_lengths)

    def read_to_end(self, rows: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        """Append tokens to some rows as `read` does; return the states after them, [R H]."""
        states: Tensor | None = None
        for part, found in self._passes(rows, ids, counts):
            if states is None:
                states = found.new_empty(len(rows), found.shape[-1])
            last = counts[part] - 1
            states[part] = found[torch.arange(len(part), device=last.device), last]
        assert states is not None
        return states

    @torch.no_grad()
    def read(self, rows: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        """Append tokens to some rows; return the state after each of them, [R K H].

        Args:
            rows: The rows. Shape [R].
            ids: The tokens, right-padded. Shape [R K].
            counts: The number of tokens of each row, >= 1. Later states mean nothing. Shape [R].
        """
        states: Tensor | None = None
        for part, found in self._passes(rows, ids, counts):
            if states is None:
                states = found.new_zeros(*ids.shape, found.shape[-1])
            states[part, : found.shape[1]] = found
        assert states is not None
        return states

    @torch.no_grad()
    def _passes(self, rows: Tensor, ids: Tensor, counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Append tokens to some rows; yield the indices [r] of each pass and its states [r k H].

        Rows that get a similar number of tokens are read together, to save computation on padding.
        """
        begun = self.lengths[rows] > 0
        for which in ((~begun).nonzero().squeeze(1), begun.nonzero().squeeze(1)):
            for alike in like_lengths(counts[which].tolist(), self.lm.packing.pass_cost):
                part = which[torch.tensor(alike, device=which.device)]
                width = int(counts[part].max())
                yield part, self._read_together(rows[part], ids[part, :width].long(), counts[part])

    def _read_together(self, rows: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        """Append tokens to rows that are all empty or all begun, in one pass."""
        starts = self.lengths[rows]
        ends = starts + counts
        steps = torch.arange(ids.shape[1], device=ids.device)
        positions, real = starts.unsqueeze(1) + steps, steps < counts.unsqueeze(1)
        index, step = real.nonzero(as_tuple=True)
        self._ids[rows[index], positions[index, step]] = ids[index, step]
        self.lengths[rows] = ends
        used = int(ends.max())
        positions = positions.clamp_max(used - 1)
        if self._cache is None:
            states = self.lm.hidden(self._ids[rows, :used], ends)
            return states[torch.arange(len(rows), device=rows.device).unsqueeze(1), positions]
        slots = self._slot_of[rows]
        if int(starts.max()) == 0:
            self._cache.restart(slots)
            return self.lm.cached_hidden(ids, self._cache)
        places = positions.masked_fill(~real, self._cache.max_length)
        first = bool((slots < len(rows)).all())  # then they are read without a copy of the cache
        if first:
            order = slots.argsort()
            ids, positions, places = ids[order], positions[order], places[order]
        width, found = min(ids.shape[1], self.lm.max_appended), []
        for part in (slice(k, k + width) for k in range(0, ids.shape[1], width)):
            at = positions[:, part]
            used = int(at.max()) + 1
            self._cache.go_on(places[:, part], used, None if first else slots)
            mask = step_mask(at, used, self.lm.model.dtype)
            found.append(self.lm.cached_hidden(ids[:, part], self._cache, mask, at))
        states = torch.cat(found, dim=1)
        return states[slots] if first else states

    @torch.no_grad()
    def step(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Append one token to some rows; return the states after them, [R H].

        Args:
            tokens: One token id per row. A row that is already full keeps its length, and its state
                is then invalid. Shape [R].
            rows: The rows; None: all of them. Shape [R].
        """
        rows = torch.arange(len(tokens), device=tokens.device) if rows is None else rows
        slots = self._brought_forward(rows)
        positions = self.lengths[rows].clamp_max(self._ids.shape[1] - 1)
        self._ids[rows, positions] = tokens
        self.lengths[rows] = (self.lengths[rows] + 1).clamp_max(self._ids.shape[1])
        used = int(positions.max()) + 1
        if self._cache is None:
            states = self.lm.hidden(self._ids[rows, :used], self.lengths[rows])
            return states[torch.arange(len(rows), device=rows.device), positions]
        in_slots = torch.empty_like(slots)
        in_slots[slots] = torch.arange(len(slots), device=slots.device)
        positions = positions[in_slots].unsqueeze(1)
        self._cache.go_on(positions, used)
        states = self.lm.cached_hidden(
            tokens[in_slots].unsqueeze(1),
            self._cache,
            attention_mask=step_mask(positions, used, self.lm.model.dtype),
            position_ids=positions,
        )
        return states[slots, 0]

    def select(self, rows: Tensor) -> None:
        """Keep these rows in this order, a row as often as it is named (a prompt's group)."""
        if self._cache is not None:
            self._cache.select(self._slot_of[rows])
        self.lengths, self._ids = self.lengths[rows], self._ids[rows]
        self._row_of = torch.arange(len(rows), device=rows.device)
        self._slot_of = self._row_of.clone()

    def _brought_forward(self, rows: Tensor) -> Tensor:
        """Move some rows to the first slots of the cache; return the slot of each, [R]."""
        count, slots = len(rows), self._slot_of[rows]
        if self._cache is None or bool((slots < count).all()):
            return slots
        wanted = torch.zeros_like(self._slot_of, dtype=torch.bool)
        wanted[slots] = True
        free = (~wanted[:count]).nonzero().squeeze(1)
        behind = wanted[count:].nonzero().squeeze(1) + count
        sources, targets = torch.cat([behind, free]), torch.cat([free, behind])
        self._cache.move(sources, targets, int(self.lengths.max()))
        self._row_of[targets] = self._row_of[sources]
        self._slot_of[self._row_of] = torch.arange(len(self._row_of), device=rows.device)
        return self._slot_of[rows]


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
