"""A KV cache in which each row has its own length and can be restarted alone.

This module has `RowCache` and the mask that hides the slots after each row's end. `trunks.py`
tests whether a model supports it. Next to read: `decoding.py`, which steps models with it.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


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
