"""Banded attention on PyTorch's scaled_dot_product_attention at a cost linear in the length.

SDPA knows no band: given one as a dense mask it still visits all T x T pairs. Here the queries are cut into blocks, and
each block attends to the keys within reach of it, so that T * (window + block) pairs are visited. Flash and flex
attention have windows of their own and do not come here.

Shapes in comments: B batch, Q queries, K keys (those of a cache in front), H heads, D head width, N blocks, b queries
in a block, R keys within reach of a block.
"""

from typing import Any

import torch
from torch import nn


# Below this the calls cost more than the pairs they save.
MIN_BLOCK = 16


def block_sizes(sliding_window: int) -> tuple[int, int]:
    """Queries in a block and keys that it reaches back, a multiple of the former, for a band of `sliding_window`.

    Half a window is where the pairs visited in vain (b/2 to each side of the band) and the copies of keys (R/b) balance.
    """
    block = max(-(-sliding_window // 16) * 8, MIN_BLOCK)
    return block, -(-(sliding_window - 1) // block) * block


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
        Booleans (batch or 1, blocks, 1, block, reach), true where a query sees a key. SDPA gives zeros to a query that
        sees none, as padding on the left does.
    """
    block, look_back = block_sizes(sliding_window)
    blocks = -(-query_length // block)
    distance = torch.arange(block, device=device)[:, None] + look_back
    distance = distance - torch.arange(look_back + block, device=device)
    mask = (distance >= 0) & (distance < sliding_window)  # b, R

    def by_block(keys: torch.Tensor, before: bool | int, after: bool | int) -> torch.Tensor:
        """(batch, K) -> (batch, N, R): the keys within reach of each block."""
        front = look_back - (key_length - query_length)
        keys = nn.functional.pad(keys, (front, 0), value=before)
        keys = nn.functional.pad(keys, (0, blocks * block - query_length), value=after)
        return keys.unfold(-1, look_back + block, block)

    key_is_there = torch.ones(1, key_length, dtype=torch.bool, device=device) if key_mask is None else key_mask.bool()
    mask = mask & by_block(key_is_there, False, True)[:, :, None, :]  # batch or 1, N, b, R
    if segments is not None:
        keys_of = by_block(segments, -1, -1)
        mask = mask & (keys_of[:, :, -block:, None] == keys_of[:, :, None, :])
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
    blocks, block, reach = attention_mask.shape[1], attention_mask.shape[3], attention_mask.shape[4]
    front = reach - block - (key.shape[2] - query_length)  # negative where a cache holds more than the band reaches
    missing = blocks * block - query_length

    def by_block(keys: torch.Tensor) -> torch.Tensor:
        """(B, H, K, D) -> (B * N, H, R, D)."""
        keys = nn.functional.pad(keys.transpose(1, 2), (0, 0, 0, 0, front, missing))
        keys = keys.reshape(batch, -1, block, heads, head_dim)
        keys = torch.cat([keys[:, start : start + blocks] for start in range(reach // block)], dim=2)
        return keys.view(batch * blocks, reach, heads, head_dim).transpose(1, 2)

    query = query.transpose(1, 2)
    if missing:
        query = nn.functional.pad(query, (0, 0, 0, 0, 0, missing))
    query = query.reshape(batch * blocks, block, heads, head_dim).transpose(1, 2)
    attn_output = nn.functional.scaled_dot_product_attention(
        query,
        by_block(key),
        by_block(value),
        attn_mask=attention_mask.expand(batch, -1, -1, -1, -1).reshape(batch * blocks, 1, block, reach),
        dropout_p=dropout,
        scale=scaling,
    )
    attn_output = attn_output.transpose(1, 2).reshape(batch, blocks * block, heads, head_dim)
    return attn_output[:, :query_length], None
