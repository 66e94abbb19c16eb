"""The growing cache of dense layers: equal to transformers' own in everything a caller may do with it."""

import copy

import pytest
import torch
from tiny_models import make_ids, make_model
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from hfgpt.model.cache import ROOM, GrowingLayer, find_room, let_grow


def make_states(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, (2, 3, tokens, 4)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, tokens, 4, generator=generator), torch.randn(2, 3, tokens, 4, generator=generator)


def check_equal(ours: DynamicLayer, theirs: DynamicLayer) -> None:
    """The same keys and values, held and returned."""
    assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)


def both(action, *layers) -> None:
    for layer in layers:
        action(layer)
    check_equal(*layers)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 300, [5, 1, 1, 130, 1], [200, 56, 1, 1], [128, 1]])
def test_it_holds_what_it_was_given(chunks):
    ours, theirs = GrowingLayer(), DynamicLayer()
    for seed, tokens in enumerate(chunks):
        states = make_states(tokens, seed)
        for mine, expected in zip(ours.update(*states), theirs.update(*states)):
            assert torch.equal(mine, expected)
        check_equal(ours, theirs)


@torch.no_grad()
def test_a_token_is_written_in_place_until_the_room_is_full():
    layer = GrowingLayer()
    layer.update(*make_states(7))
    places = set()
    for seed in range(2 * ROOM):
        layer.update(*make_states(1, seed))
        places.add((layer.keys.data_ptr(), layer.values.data_ptr()))
        assert find_room(layer.keys).shape[2] <= layer.get_seq_length() + ROOM
    assert len(places) <= 3


@torch.no_grad()
@pytest.mark.parametrize(
    "action",
    [
        lambda layer: layer.crop(-4),
        lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.batch_select_indices(torch.tensor([1])),
        lambda layer: layer.offload() or layer.prefetch(),
        lambda layer: vars(layer).update(keys=layer.keys[:, :, 1:], values=layer.values[:, :, 1:]),
        lambda layer: vars(layer).update(keys=layer.keys[:1], values=layer.values[:1]),
        lambda layer: layer.reset() or layer.update(*make_states(2, 9)),
    ],
    ids=["crop", "reorder", "repeat", "select", "offload", "cut in front", "cut rows", "reset"],
)
def test_it_goes_on_rightly_after_what_a_caller_does(action):
    ours, theirs = GrowingLayer(), DynamicLayer()
    both(lambda layer: layer.update(*make_states(10)), ours, theirs)
    both(lambda layer: layer.update(*make_states(1, 1)), ours, theirs)
    both(action, ours, theirs)
    rows = ours.keys.shape[0]
    for seed in (2, 3):
        states = [state[:1].expand(rows, -1, -1, -1) for state in make_states(1, seed)]
        both(lambda layer, states=states: layer.update(*states), ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_a_copy_is_independent(duplicate):
    layer = GrowingLayer()
    layer.update(*make_states(10))
    layer.update(*make_states(1, 1))
    twin = duplicate(layer)
    kept = twin.keys.clone()
    layer.update(*make_states(1, 2))
    assert torch.equal(twin.keys, kept)
    twin.update(*make_states(1, 3))
    assert torch.equal(layer.keys[:, :, -1:], make_states(1, 2)[0])
    assert torch.equal(twin.keys[:, :, -1:], make_states(1, 3)[0])


def test_gradients_pass_through_the_cache():
    layer, states = GrowingLayer(), [state.requires_grad_() for state in make_states(5)]
    layer.update(*states)
    keys, _ = layer.update(*make_states(1, 1))
    keys.sum().backward()
    assert torch.equal(states[0].grad, torch.ones_like(states[0]))


def test_what_was_filled_in_inference_mode_goes_on_outside_of_it():
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(*make_states(5))
    with torch.no_grad():
        keys, _ = layer.update(*make_states(1, 1))
    assert torch.equal(keys, torch.cat([make_states(5)[0], make_states(1, 1)[0]], dim=2))


@torch.no_grad()
def test_a_wider_dtype_is_not_cut_down():
    ours, theirs = GrowingLayer(), DynamicLayer()
    both(lambda layer: layer.update(*[state.bfloat16() for state in make_states(5)]), ours, theirs)
    both(lambda layer: layer.update(*make_states(1, 1)), ours, theirs)
    assert ours.keys.dtype == torch.float32


def test_dense_layers_alone_are_given_room_and_other_caches_left_alone():
    config = make_model().config
    cache = DynamicCache(config=config)
    let_grow(cache)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer, DynamicSlidingWindowLayer] * 2
    filled = DynamicCache(config=config)
    make_model()(make_ids(1, 5), past_key_values=filled)
    let_grow(filled)
    assert type(filled.layers[0]) is DynamicLayer


@torch.no_grad()
def test_its_attributes_are_those_of_the_layer_it_replaces():
    """Exporters walk over them, and would take the room for more keys."""
    ours, theirs = GrowingLayer(), DynamicLayer()
    both(lambda layer: layer.update(*make_states(5)), ours, theirs)
    assert vars(ours).keys() == vars(theirs).keys()


def test_generation_uses_it():
    model, ids = make_model(), make_ids(2, 20)
    output = model.generate(ids, max_new_tokens=10, do_sample=False, return_dict_in_generate=True)
    assert type(output.past_key_values.layers[0]) is GrowingLayer
    again = model.generate(ids, max_new_tokens=10, do_sample=False, past_key_values=DynamicCache(config=model.config))
    assert torch.equal(output.sequences, again)
    with torch.no_grad():
        assert type(model(ids, use_cache=True).past_key_values.layers[0]) is GrowingLayer
