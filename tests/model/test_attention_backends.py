"""What attention implementations are given by the model: eager, SDPA, flex, flash, and those that others register.

Flash attention's kernels are replaced by formulas with the kernels' own arguments, so that all of transformers' code on
the way to them runs, on a machine without the package. Flex attention runs without compilation, but for one slow test.
"""

import copy
import math
from fnmatch import fnmatch
from itertools import pairwise

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from tiny_models import BANDED, DENSE, TINY, collect_complaints, make_ids, make_model, tiny_config
from torch import nn
from transformers import AttentionInterface, AutoModel, DataCollatorWithFlattening, integrations, masking_utils

from hfgpt import GPT3ForCausalLM, GPT3Model


WINDOW = TINY["sliding_window"]
LIMIT = TINY["max_position_embeddings"]
HEAD_DIM = TINY["hidden_size"] // TINY["num_attention_heads"]
LENGTHS = [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 29, 5 * WINDOW, LIMIT]


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# The kernels of flash attention, as formulas


class FlashCall(dict):
    """The arguments of one call to a kernel but for the tensors, and its kind."""


def attend(query, key, value, softmax_scale, causal, window_size):
    """One sequence, (length, heads, head_dim). Queries are at the end of the keys; windows are inclusive, -1 is none."""
    query_at = torch.arange(len(query))[:, None] + len(key) - len(query)
    key_at = torch.arange(len(key))
    left, right = window_size
    hidden = torch.zeros(len(query), len(key), dtype=torch.bool)
    if causal:
        hidden |= key_at > query_at
    if left >= 0:
        hidden |= key_at < query_at - left
    if right >= 0:
        hidden |= key_at > query_at + right
    scores = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(dim=-1), value)


@pytest.fixture
def flash_calls(monkeypatch) -> list[FlashCall]:
    """Replaces the kernels of flash_attention_2; what they were called with."""
    calls: list[FlashCall] = []

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False
    ):
        calls.append(FlashCall(kind="dense", softmax_scale=softmax_scale, causal=causal, window_size=window_size))
        return torch.stack([attend(*row, softmax_scale, causal, window_size) for row in zip(q, k, v)])

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        deterministic=False,
    ):
        bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        calls.append(
            FlashCall(
                kind="varlen",
                softmax_scale=softmax_scale,
                causal=causal,
                window_size=window_size,
                bounds_q=bounds_q,
                bounds_k=bounds_k,
            )
        )
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert (bounds_q[0], bounds_q[-1], bounds_k[0], bounds_k[-1]) == (0, len(q), 0, len(k))
        assert max_seqlen_q >= max(end - start for start, end in pairwise(bounds_q))
        assert max_seqlen_k >= max(end - start for start, end in pairwise(bounds_k))
        pieces = [
            attend(q[a:b], k[c:d], v[c:d], softmax_scale, causal, window_size)
            for a, b, c, d in zip(bounds_q, bounds_q[1:], bounds_k, bounds_k[1:])
        ]
        return torch.cat(pieces)

    kernels = (flash_attn_func, flash_attn_varlen_func, None, flash_utils._pad_input, flash_utils._unpad_input)
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *_, **__: kernels)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    return calls


@pytest.fixture
def uncompiled_flex(monkeypatch) -> None:
    make_mask = masking_utils.create_block_mask
    monkeypatch.setattr(
        masking_utils, "create_block_mask", lambda *args, **kwargs: make_mask(*args, **{**kwargs, "_compile": False})
    )
    # Within a compiled forward transformers calls flex attention itself.
    monkeypatch.setattr(integrations.flex_attention, "is_torchdynamo_compiling", lambda: True)


@pytest.fixture(params=["eager", "sdpa", "flex_attention", "flash_attention_2"])
def implementation(request) -> str:
    if request.param == "flex_attention":
        request.getfixturevalue("uncompiled_flex")
    elif request.param == "flash_attention_2":
        request.getfixturevalue("flash_calls")
    return request.param


def model_with(implementation: str, **overrides) -> GPT3ForCausalLM:
    model = make_model(**overrides).requires_grad_(False)  # flex attention has no backward on CPU
    # `attn_implementation=` looks for the package.
    model.config._attn_implementation = implementation
    return model


# All implementations give the same


@pytest.mark.parametrize("length", LENGTHS)
def test_implementations_agree_at_any_length(implementation, length):
    ids = make_ids(2, length)
    assert_same(model_with(implementation)(ids).logits, model_with("eager")(ids).logits)


@pytest.mark.parametrize("layer_types", [BANDED, DENSE], ids=["banded", "dense"])
def test_implementations_agree_with_layers_of_one_kind(implementation, layer_types):
    ids = make_ids(2, 29)
    expected = model_with("eager", layer_types=layer_types)(ids).logits
    assert_same(model_with(implementation, layer_types=layer_types)(ids).logits, expected)


def pad(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), length), 5), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[index, span], mask[index, span] = row, 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [[3, WINDOW, 21, 30], [37]], ids=str)
def test_padded_rows_are_each_alone(implementation, side, lengths):
    model, alone = model_with(implementation), model_with("eager")
    rows = [make_ids(1, length, seed=length)[0] for length in lengths]
    ids, mask = pad([*rows, make_ids(1, 40)[0]], side)
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for index, row in enumerate(rows):
        assert_same(logits[index][mask[index] == 1], alone(row[None]).logits[0])


def pack(*rows_of_lengths: list[int]) -> tuple[list[list[torch.Tensor]], torch.Tensor, torch.Tensor]:
    """Sequences of these lengths, row by row; the rows; their positions."""
    sequences = [
        [make_ids(1, length, seed=10 * row + length) for length in lengths]
        for row, lengths in enumerate(rows_of_lengths)
    ]
    positions = [torch.cat([torch.arange(length) for length in lengths]) for lengths in rows_of_lengths]
    return sequences, torch.cat([torch.cat(row, dim=1) for row in sequences]), torch.stack(positions)


def assert_packed_is_separate(model: GPT3ForCausalLM, *rows_of_lengths: list[int], **inputs) -> None:
    sequences, ids, position_ids = pack(*rows_of_lengths)
    logits = model(ids, position_ids=position_ids, **inputs).logits
    alone = model_with("eager")
    for row, expected in zip(logits, sequences):
        assert_same(row, torch.cat([alone(sequence).logits[0] for sequence in expected]))


@pytest.mark.parametrize("lengths", [[5, 13, 1, WINDOW, 20], [LIMIT, 30], [40], [1, 1, 1]], ids=str)
def test_packed_sequences_are_each_alone(implementation, lengths):
    assert_packed_is_separate(model_with(implementation), lengths)


def test_rows_of_a_batch_are_packed_each_in_its_own_way(implementation):
    assert_packed_is_separate(model_with(implementation), [12, 18], [20, 10], [30])


def test_mask_of_ones_beside_packed_positions_changes_nothing(implementation):
    mask = torch.ones(2, 30, dtype=torch.long)
    assert_packed_is_separate(model_with(implementation), [12, 18], [20, 10], attention_mask=mask)


def test_packed_row_may_begin_within_a_sequence(implementation):
    """A sequence that was cut by the row before goes on at its own positions."""
    model, alone = model_with(implementation), model_with("eager")
    first, second = make_ids(1, 7), make_ids(1, 23, seed=3)
    positions = torch.cat([torch.arange(5, 12), torch.arange(23)])[None]
    logits = model(torch.cat([first, second], dim=1), position_ids=positions).logits
    assert_same(logits[:, :7], alone(first, position_ids=positions[:, :7]).logits)
    assert_same(logits[:, 7:], alone(second).logits)


@pytest.mark.parametrize("packed", [False, True])
def test_implementations_agree_in_bfloat16(implementation, packed):
    model, exact = model_with(implementation).to(torch.bfloat16), model_with("eager")
    if packed:
        _, ids, position_ids = pack([12, 18], [20, 10])
        inputs = {"position_ids": position_ids}
    else:
        ids, mask = pad([make_ids(1, length)[0] for length in (21, 30)], "left")
        inputs = {"attention_mask": mask}
    logits, expected = model(ids, **inputs).logits, exact(ids, **inputs).logits
    real = inputs.get("attention_mask", torch.ones_like(ids)) == 1
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert (logits - expected)[real].abs().mean() < 0.05 * expected[real].abs().mean()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_implementations_agree_in_generation(implementation, options):
    batch = 1 if "prompt_lookup_num_tokens" in options else 2
    ids, mask = pad([make_ids(1, length)[0] for length in (9, 20)[-batch:]], "left")
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, **options}
    expected = model_with("eager").generate(ids, **options)
    assert torch.equal(model_with(implementation).generate(ids, **options), expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"], indirect=True)
def test_gradients_of_packed_rows_agree(implementation):
    _, ids, position_ids = pack([12, 18], [20, 10])
    gradients = []
    for name in ("eager", implementation):
        model = make_model().train()
        model.config._attn_implementation = name
        model(ids, labels=ids, position_ids=position_ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*gradients):
        assert_same(ours, theirs)


@pytest.mark.slow
def test_compiled_flex_attention_agrees_with_eager():
    """Compiling takes up to minutes. Packed batches are left out: torch's C++ code for their block mask does not compile."""
    ids, mask = pad([make_ids(1, length)[0] for length in (21, 30)], "left")
    with torch.no_grad():
        logits = model_with("flex_attention")(ids, attention_mask=mask).logits
        expected = model_with("eager")(ids, attention_mask=mask).logits
    assert_same(logits[mask == 1], expected[mask == 1])


# What flash attention's kernels are given


def test_flash_kernels_get_the_window_of_each_layer(flash_calls):
    model_with("flash_attention_2")(make_ids(2, 20))
    assert [call["kind"] for call in flash_calls] == ["dense"] * 4
    # Inclusive: the query's own key and so many before it.
    assert [call["window_size"][0] for call in flash_calls] == [-1, WINDOW - 1] * 2
    assert all(call["causal"] is True for call in flash_calls)
    assert all(type(call["softmax_scale"]) is float for call in flash_calls)
    assert [call["softmax_scale"] for call in flash_calls] == pytest.approx([1 / math.sqrt(HEAD_DIM)] * 4)


def test_flash_kernels_do_not_get_padding(flash_calls):
    ids, mask = pad([make_ids(1, length)[0] for length in (9, 20)], "left")
    model_with("flash_attention_2")(ids, attention_mask=mask)
    assert [call["bounds_q"] for call in flash_calls] == [[0, 9, 29]] * 4
    flash_calls.clear()
    model_with("flash_attention_2")(ids, attention_mask=torch.ones_like(ids))
    assert [call["kind"] for call in flash_calls] == ["dense"] * 4


def test_flash_kernels_get_the_bounds_of_packed_sequences(flash_calls):
    _, ids, position_ids = pack([12, 18], [20, 10])
    model_with("flash_attention_2")(ids, position_ids=position_ids)
    assert [call["bounds_q"] for call in flash_calls] == [[0, 12, 30, 50, 60]] * 4
    assert [call["bounds_k"] for call in flash_calls] == [[0, 12, 30, 50, 60]] * 4


@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2"], indirect=True)
@pytest.mark.parametrize("kernel_arguments", [False, True])
def test_batches_of_the_flattening_collator_are_each_sequence_alone(implementation, kernel_arguments):
    rows = [make_ids(1, length, seed=length) for length in (12, 18, 3)]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=kernel_arguments)
    batch = collate([{"input_ids": row[0].tolist()} for row in rows])
    model, alone = model_with(implementation), model_with("eager")
    output = model(**batch)
    assert_same(output.logits, torch.cat([alone(row).logits for row in rows], dim=1))
    losses = [alone(row, labels=row).loss * (row.shape[1] - 1) for row in rows]
    assert_same(output.loss, sum(losses) / 30)


def test_padding_among_packed_sequences_is_refused_under_flash_and_right_elsewhere(implementation):
    sequences, ids, position_ids = pack([12, 10], [20, 2])
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    model = model_with(implementation)
    if implementation == "flash_attention_2":
        with pytest.raises(ValueError, match="packed"):
            model(ids, position_ids=position_ids, attention_mask=mask)
        return
    logits = model(ids, position_ids=position_ids, attention_mask=mask).logits
    alone = model_with("eager")
    assert_same(logits[0], torch.cat([alone(sequence).logits[0] for sequence in sequences[0]]))
    assert_same(logits[1, :20], alone(sequences[1][0]).logits[0])


# Implementations that others register


@pytest.fixture
def served_calls():
    """An implementation without a mask function, as serving back ends bring; what it was called with."""
    calls: list[dict] = []

    def served_attention(module, query, key, value, attention_mask, **kwargs):
        calls.append({"module": module, "attention_mask": attention_mask, **kwargs})
        window = kwargs["sliding_window"] or query.shape[2]
        rows = [
            attend(*row, kwargs["scaling"], module.is_causal, (window - 1, -1))
            for row in zip(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        ]
        return torch.stack(rows).flatten(2), None

    AttentionInterface.register("served", served_attention)
    yield calls
    AttentionInterface._global_mapping.pop("served")


def test_registered_implementation_gets_what_serving_back_ends_read(served_calls):
    model = make_model(attn_implementation="served")
    ids, instances = make_ids(1, 20), {layer: object() for layer in range(4)}
    positions = torch.arange(20)[None]
    states = model.model(
        input_ids=None,
        inputs_embeds=model.model.embed_tokens(ids),
        position_ids=positions,
        use_cache=False,
        return_dict=False,
        attention_instances=instances,
        forward_batch="anything",
    )
    assert isinstance(states, tuple)
    assert_same(states[0], make_model().model(ids).last_hidden_state)
    assert [call["module"].layer_idx for call in served_calls] == [0, 1, 2, 3]
    assert [call["sliding_window"] for call in served_calls] == [None, WINDOW, None, WINDOW]
    for call in served_calls:
        assert call["attention_mask"] is None
        assert call["module"].is_causal is True
        assert type(call["scaling"]) is type(call["module"].scaling) is float
        assert call["scaling"] == call["module"].scaling == pytest.approx(1 / math.sqrt(HEAD_DIM))
        assert call["dropout"] == 0.0
        assert call["attention_instances"] is instances
        assert call["forward_batch"] == "anything"
        assert torch.equal(call["position_ids"], positions)


def test_registered_implementation_without_a_mask_function_gets_no_mask(served_calls):
    model = make_model(attn_implementation="served")
    ids = make_ids(2, 20)
    model(ids, attention_mask=torch.tensor([[0] * 5 + [1] * 15, [1] * 20]))
    _, packed, position_ids = pack([12, 18])
    model(packed, position_ids=position_ids, use_cache=False)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert len(served_calls) == 16
    assert all(call["attention_mask"] is None for call in served_calls)


def test_tokens_of_several_requests_in_any_order_may_share_a_row(served_calls):
    """A serving back end gives a flat row of decoding steps and prompts; only it knows what belongs together."""
    model = make_model(attn_implementation="served")
    positions = torch.tensor([[17, 3, 0, 1, 2, LIMIT - 1, 9, 9]])
    model.model(input_ids=make_ids(1, 8), position_ids=positions, use_cache=False, return_dict=False)
    assert all(torch.equal(call["position_ids"], positions) for call in served_calls)


def test_dropout_reaches_an_implementation_in_training_alone(served_calls):
    model = make_model(attn_implementation="served", attention_dropout=0.3)
    model(make_ids(1, 4))
    model.train()
    model(make_ids(1, 4))
    assert [call["dropout"] for call in served_calls] == [0.0] * 4 + [0.3] * 4


def test_registered_mask_function_is_used(served_calls):
    masks = []

    def served_mask(**kwargs):
        masks.append(kwargs)
        return f"mask {len(masks)}"

    masking_utils.AttentionMaskInterface.register("served", served_mask)
    try:
        make_model(attn_implementation="served")(make_ids(2, 20))
    finally:
        masking_utils.AttentionMaskInterface._global_mapping.pop("served")
    assert [(mask["q_length"], mask["kv_length"]) for mask in masks] == [(20, 20)] * 2
    assert [call["attention_mask"] for call in served_calls] == ["mask 1", "mask 2"] * 2


# The shape of the model that serving back ends rely on


def test_parameters_and_modules_are_named_as_serving_back_ends_expect():
    for tied in (True, False):
        model = make_model(tie_word_embeddings=tied)
        assert all(name.startswith(("model.", "lm_head.")) for name in model.state_dict())
        assert GPT3ForCausalLM.base_model_prefix == "model"
        assert type(model.model) is type(model.base_model) is type(AutoModel.from_config(tiny_config())) is GPT3Model
        assert "lm_head.weight" in model.state_dict()
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    assert lists == ["model.layers"]
    assert len(model.model.layers) == TINY["num_hidden_layers"]
    assert model.get_decoder() is model.model
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_input_embeddings() is model.model.embed_tokens


def test_every_projection_is_in_the_tensor_parallel_plan():
    model = make_model()
    linear = [name for name, module in model.model.named_modules() if isinstance(module, nn.Linear)]
    plan = model.config.base_model_tp_plan
    without = [name for name in linear if not any(fnmatch(name, pattern) for pattern in plan)]
    assert without == []
    assert all(any(fnmatch(name, pattern) for name in [*linear, "embed_tokens"]) for pattern in plan)


@pytest.mark.parametrize("layer", [0, 1], ids=["dense", "banded"])
def test_halves_of_the_heads_add_up_to_the_whole(implementation, layer):
    """What tensor parallelism does: each rank holds some heads, and the output projections are summed."""
    model = model_with(implementation)
    whole, given = model.model.layers[layer].self_attn, {}
    whole.register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)
    ids, mask = pad([make_ids(1, length)[0] for length in (21, 30)], "left")
    model(ids, attention_mask=mask, use_cache=False)
    expected, _ = whole(**given)

    total, half = 0, TINY["hidden_size"] // 2
    for rank in range(2):
        part, rows = copy.deepcopy(whole), slice(rank * half, (rank + 1) * half)
        part._forward_pre_hooks.clear()
        for projection in (part.q_proj, part.k_proj, part.v_proj):
            projection.weight = nn.Parameter(projection.weight[rows], requires_grad=False)
            projection.bias = nn.Parameter(projection.bias[rows], requires_grad=False)
        part.o_proj.weight = nn.Parameter(part.o_proj.weight[:, rows], requires_grad=False)
        if rank:
            part.o_proj.bias = None
        output, _ = part(**given)
        assert output.shape == expected.shape
        total = total + output
    assert_same(total[mask == 1], expected[mask == 1])


@pytest.mark.parametrize("head_dim", [2, 16])
def test_implementations_agree_for_any_number_of_heads(implementation, head_dim):
    heads = {"num_attention_heads": TINY["hidden_size"] // head_dim}
    ids = make_ids(1, 20)
    assert_same(model_with(implementation, **heads)(ids).logits, model_with("eager", **heads)(ids).logits)


# Choosing the implementation


def test_implementation_is_switched_at_run_time(served_calls):
    model, ids = make_model(), make_ids(2, 20)
    expected = model(ids).logits
    assert model.config._attn_implementation == "sdpa"
    with collect_complaints() as complaints:
        model.set_attn_implementation("eager")
        output = model(ids, output_attentions=True)
        assert_same(output.logits, expected)
        assert all(weights.shape == (2, 4, 20, 20) for weights in output.attentions)
        model.set_attn_implementation("served")
        assert_same(model(ids).logits, expected)
        assert len(served_calls) == 4
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(ids).logits, expected)
        assert len(served_calls) == 4
    assert complaints == []


def test_implementation_is_switched_between_prompt_and_decoding():
    model, ids = make_model(), make_ids(2, 30)
    expected = model(ids).logits[:, 20:]
    cache = model(ids[:, :20], use_cache=True).past_key_values
    model.set_attn_implementation("eager")
    assert_same(model(ids[:, 20:], past_key_values=cache).logits, expected)


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="sparse_fantasy"):
        make_model().set_attn_implementation("sparse_fantasy")
    with pytest.raises(ValueError, match="sparse_fantasy"):
        make_model(attn_implementation="sparse_fantasy")


def test_implementation_is_not_saved(tmp_path):
    make_model(attn_implementation="eager").save_pretrained(tmp_path)
    assert "eager" not in (tmp_path / "config.json").read_text()
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"


def test_a_function_registered_as_sdpa_is_given_banded_layers_too(monkeypatch):
    """Sequence parallelism replaces it by one that exchanges heads for tokens between processes."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own, layers = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def recording(module, *args, **kwargs):
        layers.append(module.layer_idx)
        return own(module, *args, **kwargs)

    model, ids = make_model(), make_ids(1, 60)
    expected = model(ids).logits
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", recording)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert layers == [0, 1, 2, 3]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_are_computed_without_data(kind, train, monkeypatch):
    """As planners and estimators of memory do."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr("hfgpt.model.modeling_gpt3.CHUNK_BYTES", 0)
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        model = GPT3ForCausalLM(tiny_config()).train(train)
        ids = torch.zeros(2, 60, dtype=torch.long)
        output = model(ids, attention_mask=torch.ones_like(ids), labels=ids, position_ids=ids)
        if train:
            output.loss.backward()
        else:
            assert output.logits.shape == (2, 60, 97)
    assert output.loss.shape == ()
