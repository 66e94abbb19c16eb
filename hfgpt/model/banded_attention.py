"""Banded attention on PyTorch's scaled_dot_product_attention at a cost linear in the length.

SDPA knows no band: given one as a dense mask it still visits all T x T pairs. Here the queries are cut into blocks of a
window, and each block attends to itself and to the block before, so that T * 2 windows of pairs are visited. Flash and
flex attention have windows of their own and do not come here.

Shapes in comments: B batch, Q queries, K keys (those of a cache in front), H heads, D head width, N blocks, b queries
in a block.
"""

from typing import Any

import torch
from torch import nn


# Below this the calls cost more than the pairs they save.
MIN_BLOCK = 16


def block_size(sliding_window: int) -> int:
    """Queries in a block: a window, rounded up to what kernels like.

    Smaller blocks visit fewer pairs in vain, and were not faster: SDPA's kernels work in large tiles.
    """
    return max(-(-sliding_window // 8) * 8, MIN_BLOCK)


def make_block_mask(
    sliding_window: int,
    query_length: int,
    key_length: int,
    key_mask: torch.Tensor | None = None,
    segments: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Which keys each query sees, by blocks.

    Args:
        sliding_window: Keys a query sees, its own among them.
        query_length, key_length: The last query is at the last key.
        key_mask: (batch, key_length), false for padding.
        segments: (batch, key_length), equal for tokens of one packed sequence; without a cache only.

    Returns:
        Booleans (batch or 1, blocks, 1, block, 2 * block), true where a query sees a key. One that would see none,
        as in padding on the left, sees itself: kernels differ in what they make of a query without keys, and with cuDNN's
        training has gone wrong.
    """
    block = block_size(sliding_window)
    blocks = -(-query_length // block)
    distance = torch.arange(block, 2 * block, device=device)[:, None] - torch.arange(2 * block, device=device)
    mask = (distance >= 0) & (distance < sliding_window)  # b, 2b

    def by_block(keys: torch.Tensor, before: bool | int, after: bool | int) -> torch.Tensor:
        """(batch, K) -> (batch, N, 2b): the keys that each block may see."""
        keys = nn.functional.pad(keys, (block - (key_length - query_length), 0), value=before)
        keys = nn.functional.pad(keys, (0, blocks * block - query_length), value=after)
        return keys.unfold(-1, 2 * block, block)

    key_is_there = torch.ones(1, key_length, dtype=torch.bool, device=device) if key_mask is None else key_mask.bool()
    mask = mask & by_block(key_is_there, False, True)[:, :, None, :]  # batch or 1, N, b, 2b
    if segments is not None:
        keys_of = by_block(segments, -1, -1)
        mask = mask & (keys_of[:, :, -block:, None] == keys_of[:, :, None, :])
    mask = mask | ((distance == 0) & ~mask.any(dim=-1, keepdim=True))
    return mask.unsqueeze(2)


def banded_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' kind, with a mask of `make_block_mask`.

    Takes query (B, H, Q, D), key and value (B, H, K, D); returns (B, Q, H, D) and no weights.
    """
    batch, heads, query_length, head_dim = query.shape
    blocks, block = attention_mask.shape[1], attention_mask.shape[3]
    front = block - (key.shape[2] - query_length)  # negative where a cache holds more than the band reaches
    missing = blocks * block - query_length

    def by_block(keys: torch.Tensor) -> torch.Tensor:
        """(B, H, K, D) -> (B * N, H, 2b, D)."""
        keys = nn.functional.pad(keys.transpose(1, 2), (0, 0, 0, 0, front, missing))
        keys = keys.reshape(batch, blocks + 1, block, heads, head_dim)
        if torch.compiler.is_compiling():
            keys = torch.cat([keys[:, :-1], keys[:, 1:]], dim=2)
        else:
            keys = _BlockPairs.apply(keys)
        return keys.reshape(batch * blocks, 2 * block, heads, head_dim).transpose(1, 2)

    query = query.transpose(1, 2)
    if missing:
        query = nn.functional.pad(query, (0, 0, 0, 0, 0, missing))
    query = query.reshape(batch * blocks, block, heads, head_dim).transpose(1, 2)
    attn_output = nn.functional.scaled_dot_product_attention(
        query,
        by_block(key),
        by_block(value),
        attn_mask=attention_mask.expand(batch, -1, -1, -1, -1).reshape(batch * blocks, 1, block, 2 * block),
        dropout_p=dropout,
        scale=scaling,
    )
    attn_output = attn_output.transpose(1, 2).reshape(batch, blocks * block, heads, head_dim)
    return attn_output[:, :query_length], None


class _BlockPairs(torch.autograd.Function):
    """(B, N + 1, b, H, D) -> (B, N, 2b, H, D): each block behind the one before, as a view that copies nothing."""

    @staticmethod
    def forward(ctx: Any, blocks: torch.Tensor) -> torch.Tensor:
        batch, count, block, heads, head_dim = blocks.shape
        step = heads * head_dim
        blocks = blocks.contiguous()
        return blocks.as_strided(
            (batch, count - 1, 2 * block, heads, head_dim), (blocks.stride(0), block * step, step, head_dim, 1)
        )

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        before, itself = gradient.chunk(2, dim=2)
        return torch.cat([before[:, :1], before[:, 1:] + itself[:, :-1], itself[:, -1:]], dim=1)
