"""A cache for dense layers that writes each new token, where transformers' own copies everything to append it.

At 2,048 tokens that copy costs a quarter of a step of decoding. Banded layers keep transformers' sliding-window cache,
whose copies are of a window.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


# Tokens of room made at a time: one copy in so many steps, and at most so much memory unused.
ROOM = 128


class GrowingLayer(DynamicLayer):
    """Keys and values of one dense layer, (batch, heads, seq, head_dim), at the beginning of memory with room for more.

    The room is found from the tensors themselves. So what walks over a cache sees keys and values alone, and whatever
    replaces them (reordered beams, a selection) is given room at the next update. Tensors taken from it hold until
    tokens are cropped and others written in their place.
    """

    keys: Any
    values: Any

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, (batch, heads, new tokens, head_dim); returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or key_states.dtype != self.keys.dtype:
            # Gradients need the tensors as they were, a compiler's guards their sizes, and another dtype may be wider.
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = append(self.keys, key_states), append(self.values, value_states)
        return self.keys, self.values

    def __copy__(self) -> "GrowingLayer":
        """A branch of its own: the two do not write into the same memory."""
        twin = type(self)()
        twin.__dict__.update(self.__dict__)
        if self.is_initialized:
            twin.keys, twin.values = self.keys.clone(), self.values.clone()
        return twin


def append(held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`held` followed by `new` along the tokens: in the memory of `held` if that has room, else in new memory."""
    batch, heads, tokens, width = new.shape
    start = held.shape[-2] if held.numel() else 0
    room = find_room(held) if start else None
    if room is None or room.shape[2] < start + tokens:
        room = new.new_empty(batch, heads, start + tokens + ROOM, width)
        if start:
            room[:, :, :start] = held
    room[:, :, start : start + tokens] = new
    return room[:, :, : start + tokens]


def find_room(held: torch.Tensor) -> torch.Tensor | None:
    """All of the memory that `held` is the beginning of, (batch, heads, seq + room, head_dim), if it may be written."""
    batch, heads, _, width = held.shape
    capacity = held.stride(1) // width
    strides = (heads * capacity * width, capacity * width, width, 1)
    whole = held.storage_offset() == 0 and held.untyped_storage().nbytes() == batch * strides[0] * held.element_size()
    if not whole or held.stride() != strides or (held.is_inference() and not torch.is_inference_mode_enabled()):
        return None
    return held.as_strided((batch, heads, capacity, width), strides)


def let_grow(cache: Cache) -> None:
    """Give the dense layers of an empty `DynamicCache` room to grow; any other cache is left as it is."""
    if type(cache) is DynamicCache and not cache.offloading and cache.get_seq_length() == 0:
        cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
