"""A cache for dense layers that writes each new token, where transformers' own copies everything to append it.

At 2,048 tokens that copy costs a quarter of a step of decoding. Banded layers keep transformers' sliding-window cache,
whose copies are of a window.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values of one dense layer, with room for some more than it holds.

    `keys` and `values` are (batch, heads, seq, head_dim), views of the room. What a caller does to them (crop, reorder
    beams, repeat, select) makes new tensors or shorter views, and the next update finds out.
    """

    # Tokens of room made at a time: one copy in so many steps, and at most so much memory unused.
    step = 128
    keys: Any
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, (batch, heads, new tokens, head_dim); returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or key_states.dtype != self.keys.dtype:
            # Gradients need the tensors as they were, a compiler's guards their sizes, and another dtype may be wider.
            self.room = None
            return super().update(key_states, value_states, *args, **kwargs)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if not self._fits(length):
            shape = (*key_states.shape[:-2], length + self.step, key_states.shape[-1])
            room = key_states.new_empty(shape), value_states.new_empty((*shape[:-1], value_states.shape[-1]))
            if held:
                room[0][:, :, :held], room[1][:, :, :held] = self.keys, self.values
            self.room = room
        assert self.room is not None
        for room, states in zip(self.room, (key_states, value_states)):
            room[:, :, held:length] = states
        self.keys, self.values = self.room[0][:, :, :length], self.room[1][:, :, :length]
        return self.keys, self.values

    def _fits(self, length: int) -> bool:
        """Whether `keys` and `values` are still the beginning of the room, and there is enough of it."""
        if self.room is None or (self.room[0].is_inference() and not torch.is_inference_mode_enabled()):
            return False
        return all(
            view.data_ptr() == room.data_ptr() and view.stride() == room.stride() and room.shape[-2] >= length
            for view, room in zip((self.keys, self.values), self.room)
        )

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.room = None


def let_grow(cache: Cache) -> None:
    """Give the dense layers of an empty `DynamicCache` room to grow; any other cache is left as it is."""
    if type(cache) is DynamicCache and not cache.offloading and cache.get_seq_length() == 0:
        cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
