"""Banded attention in blocks: equal to a brute-force mask in value and gradient, and never T x T."""

import pytest
import torch
from tiny_models import BANDED, largest_tensor, make_ids, make_model, tiny_config

from hfgpt.model.banded_attention import banded_attention_forward, block_size, make_block_mask
from hfgpt.model.modeling_gpt3 import make_masks


BATCH, HEADS, HEAD_DIM = 2, 3, 4
WINDOWS = [2, 3, 8, 17, 31, 32, 33, 64]
LENGTHS = [1, 5, 16, 31, 32, 33, 64, 100]


def make_states(queries: int, keys: int) -> list[torch.Tensor]:
    """Query, key and value, (BATCH, HEADS, length, HEAD_DIM), in float64."""
    generator = torch.Generator().manual_seed(4)
    shape = [(BATCH, HEADS, length, HEAD_DIM) for length in (queries, keys, keys)]
    return [torch.randn(size, generator=generator, dtype=torch.double).requires_grad_() for size in shape]


def attend_by_mask(states, window, key_mask=None, segments=None) -> torch.Tensor:
    """Attention with the band written out as a mask of queries x keys; what would see nothing sees itself."""
    query, key, value = states
    queries, keys = query.shape[2], key.shape[2]
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    mask = ((distance >= 0) & (distance < window)).expand(BATCH, -1, -1)
    if key_mask is not None:
        mask = mask & key_mask[:, None, :].bool()
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    mask = mask | ((distance == 0) & ~mask.any(-1, keepdim=True))
    scores = (query @ key.transpose(2, 3)) * 0.5
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def check(states, window, key_mask=None, segments=None) -> None:
    """Output and gradients of both are equal."""
    query, key, _ = states
    mask = make_block_mask(window, query.shape[2], key.shape[2], key_mask, segments)
    output, weights = banded_attention_forward(torch.nn.Module(), *states, mask, scaling=0.5)
    expected = attend_by_mask(states, window, key_mask, segments)
    assert weights is None
    torch.testing.assert_close(output, expected)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.double)
    torch.testing.assert_close(
        torch.autograd.grad((output * direction).sum(), states),
        torch.autograd.grad((expected * direction).sum(), states),
    )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", LENGTHS)
def test_blocks_are_the_band(window, length):
    check(make_states(length, length), window)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("earlier", [1, 15, 31, 64, 90])
def test_blocks_are_the_band_after_the_keys_of_a_cache(window, earlier):
    check(make_states(50, 50 + earlier), window)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_blocks_leave_out_padding(window, length, side):
    key_mask = torch.ones(BATCH, length, dtype=torch.long)
    if side == "left":
        key_mask[0, : length // 2], key_mask[1, : length // 3] = 0, 0
    elif side == "right":
        key_mask[0, length - length // 2 :], key_mask[1, length - length // 3 :] = 0, 0
    else:
        key_mask[0, ::3], key_mask[1, ::7] = 0, 0
    check(make_states(length, length), window, key_mask)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_no_query_is_without_a_key(window, side):
    """Kernels differ in what they make of one."""
    key_mask = torch.zeros(BATCH, 100, dtype=torch.long)
    key_mask[:, slice(0, 3) if side == "right" else slice(97, 100)] = 1
    assert make_block_mask(window, 100, 100, key_mask).any(dim=-1).all()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", LENGTHS)
def test_blocks_keep_packed_sequences_apart(window, length):
    starts = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(6)) < 0.2
    check(make_states(length, length), window, segments=starts.long().cumsum(-1))


@pytest.mark.parametrize("window", WINDOWS)
def test_a_block_is_a_window_or_more(window):
    assert block_size(window) % 8 == 0
    assert window <= block_size(window) < window + 16


@pytest.mark.parametrize("length", [65, 64, 100, 256])
@pytest.mark.parametrize("kind", ["plain", "padded", "packed"])
def test_no_tensor_of_length_times_length_is_made_for_a_banded_layer(length, kind):
    model = make_model(layer_types=BANDED, max_position_embeddings=256, hidden_size=8, num_attention_heads=1)
    ids, batch = make_ids(1, length), {}
    if kind == "padded":
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][:, :9] = 0
    elif kind == "packed":
        batch["position_ids"] = torch.arange(length)[None] % 40
    used = largest_tensor(lambda: model.model(ids, **batch).last_hidden_state.sum().backward())
    # Rows of a block's reach in float32 are the largest: length x (16 + 16).
    assert used < 2 * 48 * length
    dense = make_model(
        layer_types=["full_attention"] * 4, max_position_embeddings=256, hidden_size=8, num_attention_heads=1
    )
    dense.set_attn_implementation("eager")
    assert largest_tensor(lambda: dense.model(ids).last_hidden_state) >= length**2  # which the watch sees


@pytest.mark.parametrize("length", [7, 8, 9, 16, 17, 33, 64])
@pytest.mark.parametrize("kind", ["plain", "left", "right", "packed", "packed and padded"])
def test_training_through_blocks_is_training_through_a_dense_mask(length, kind):
    def gradients(implementation: str) -> dict[str, torch.Tensor]:
        model, ids, batch = make_model(attn_implementation=implementation).train(), make_ids(2, length), {}
        labels = ids.clone()
        if kind in ("left", "right", "packed and padded"):
            mask = torch.ones_like(ids)
            padding = slice(0, length // 3) if kind == "left" else slice(length - length // 3, length)
            mask[1, padding] = 0
            batch["attention_mask"], labels = mask, ids.masked_fill(mask == 0, -100)
            if kind == "left":
                # Predicted from padding, which may see anything.
                labels[1, length // 3] = -100
        if "packed" in kind:
            batch["position_ids"] = torch.arange(length).expand(2, -1) % (length // 2 + 1)
        model(ids, labels=labels, **batch).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    torch.testing.assert_close(gradients("sdpa"), gradients("eager"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_rows_under_a_mask_of_ones_are_packed(implementation):
    model, ids = make_model(attn_implementation=implementation), make_ids(1, 40)
    positions = torch.cat([torch.arange(25), torch.arange(15)])[None]
    expected = torch.cat([model(ids[:, :25]).logits, model(ids[:, 25:]).logits], dim=1)
    logits = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [20, 50])
def test_a_gap_in_the_positions_under_a_mask_is_no_new_sequence(length):
    model, ids = make_model(), make_ids(1, length)
    positions = torch.arange(length)[None] + 10 * (torch.arange(length) > 9)
    mask = torch.ones_like(ids)
    with_gap = model(ids, position_ids=positions, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    dense = create_masks(model, ids)
    torch.testing.assert_close(
        with_gap, model(ids, position_ids=positions, attention_mask=dense).logits, rtol=1e-4, atol=1e-4
    )


def create_masks(model, ids) -> dict[str, torch.Tensor]:
    """Additive masks of dense and banded layers, written out."""
    distance = torch.arange(ids.shape[1])[:, None] - torch.arange(ids.shape[1])
    visible = {"full_attention": distance >= 0}
    visible["sliding_attention"] = (distance >= 0) & (distance < model.config.sliding_window)
    return {kind: torch.where(seen, 0.0, -1e30)[None, None] for kind, seen in visible.items()}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_rows_with_padding_behind_are_packed(implementation):
    model, ids = make_model(attn_implementation=implementation), make_ids(1, 45)
    positions = torch.cat([torch.arange(25), torch.arange(15), torch.zeros(5, dtype=torch.long)])[None]
    mask = torch.ones_like(ids)
    mask[:, 40:] = 0
    expected = torch.cat([model(ids[:, :25]).logits, model(ids[:, 25:40]).logits], dim=1)
    logits = model(ids, position_ids=positions, attention_mask=mask).logits[:, :40]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_flash_attention_refuses_packing_and_padding_at_once():
    config = tiny_config()
    config._attn_implementation = "flash_attention_2"
    mask = torch.ones(1, 40, dtype=torch.long)
    mask[:, :5] = 0
    with pytest.raises(ValueError, match="packed sequences"):
        make_masks(config, torch.empty(1, 40, 0), mask, None, torch.arange(40)[None] % 20)
    # Positions counted from the mask restart only at the padding: that is no packing.
    masks = make_masks(config, torch.empty(1, 40, 0), mask, None, (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1))
    assert masks["full_attention"] is not None


def test_dropout_of_a_banded_layer_acts_in_training_alone():
    model, ids = make_model(layer_types=BANDED, attention_dropout=0.5), make_ids(1, 60)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
