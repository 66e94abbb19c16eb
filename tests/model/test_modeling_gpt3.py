"""GPT3Model and GPT3ForCausalLM against GPT-2, against attention written out here, and against themselves."""

import copy
import json
import math
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import BANDED, DENSE, TINY, collect_complaints, make_ids, make_model, tiny_config
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hfgpt import GPT3Config, GPT3ForCausalLM, GPT3Model


WINDOW = TINY["sliding_window"]
LIMIT = TINY["max_position_embeddings"]
VOCAB = TINY["vocab_size"]

implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Against GPT-2


def gpt2_with_the_weights_of(model: GPT3ForCausalLM) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=LIMIT,
        n_embd=TINY["hidden_size"],
        n_layer=TINY["num_hidden_layers"],
        n_head=TINY["num_attention_heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    source = model.state_dict()
    target = {
        "transformer.wte.weight": source["model.embed_tokens.weight"],
        "transformer.wpe.weight": source["model.embed_positions.weight"],
        "transformer.ln_f.weight": source["model.norm.weight"],
        "transformer.ln_f.bias": source["model.norm.bias"],
        "lm_head.weight": source["model.embed_tokens.weight"],
    }
    for layer in range(config.n_layer):
        ours, theirs = f"model.layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            qkv = torch.cat([source[f"{ours}.self_attn.{name}_proj.{kind}"] for name in "qkv"])
            conv1d = {
                "attn.c_attn": qkv,
                "attn.c_proj": source[f"{ours}.self_attn.o_proj.{kind}"],
                "mlp.c_fc": source[f"{ours}.mlp.up_proj.{kind}"],
                "mlp.c_proj": source[f"{ours}.mlp.down_proj.{kind}"],
            }
            for name, value in conv1d.items():
                # GPT-2's Conv1D holds its weight as (in, out).
                target[f"{theirs}.{name}.{kind}"] = value.T if kind == "weight" else value
            target[f"{theirs}.ln_1.{kind}"] = source[f"{ours}.input_layernorm.{kind}"]
            target[f"{theirs}.ln_2.{kind}"] = source[f"{ours}.post_attention_layernorm.{kind}"]
    gpt2 = GPT2LMHeadModel(config)
    gpt2.load_state_dict(target)
    return gpt2.eval()


@implementations
def test_dense_model_is_gpt2(implementation):
    model = make_model(layer_types=DENSE, attn_implementation=implementation)
    gpt2 = gpt2_with_the_weights_of(model)
    ids = make_ids(3, 40)
    ours, theirs = model(ids, labels=ids), gpt2(ids, labels=ids)
    assert_same(ours.logits, theirs.logits)
    assert_same(ours.loss, theirs.loss)

    ours.loss.backward()
    theirs.loss.backward()
    assert model.model.embed_tokens.weight.grad.abs().max() > 1e-3
    assert_same(model.model.embed_tokens.weight.grad, gpt2.transformer.wte.weight.grad)
    assert_same(model.model.embed_positions.weight.grad, gpt2.transformer.wpe.weight.grad)


# Against attention written out


def written_out_logits(model: GPT3ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one sequence, from the weights and the formulas alone, in float64."""
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    config = model.config
    length, heads = len(ids), config.num_attention_heads

    def linear(name, inputs):
        return inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, inputs):
        centred = inputs - inputs.mean(-1, keepdim=True)
        deviation = torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + config.layer_norm_eps)
        return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    hidden = weights["model.embed_tokens.weight"][ids] + weights["model.embed_positions.weight"][:length]
    for layer, layer_type in enumerate(config.layer_types):
        visible = torch.zeros(length, length, dtype=torch.bool)
        for query in range(length):
            for key in range(query + 1):
                visible[query, key] = layer_type == "full_attention" or key > query - config.sliding_window

        prefix = f"model.layers.{layer}"
        normed = norm(f"{prefix}.input_layernorm", hidden)
        q, k, v = (linear(f"{prefix}.self_attn.{name}_proj", normed).chunk(heads, dim=-1) for name in "qkv")
        attended = []
        for head in range(heads):
            scores = q[head] @ k[head].T / math.sqrt(config.hidden_size / heads)
            exponents = torch.where(visible, scores.exp(), 0.0)
            attended.append(exponents / exponents.sum(-1, keepdim=True) @ v[head])
        hidden = hidden + linear(f"{prefix}.self_attn.o_proj", torch.cat(attended, dim=-1))

        up = linear(f"{prefix}.mlp.up_proj", norm(f"{prefix}.post_attention_layernorm", hidden))
        gelu = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        hidden = hidden + linear(f"{prefix}.mlp.down_proj", gelu)
    return (norm("model.norm", hidden) @ weights["lm_head.weight"].T).float()


LENGTHS = [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 3 * WINDOW + 5, LIMIT]


@implementations
@pytest.mark.parametrize("length", LENGTHS)
def test_alternating_model_is_attention_written_out(implementation, length):
    model = make_model(attn_implementation=implementation)
    ids = make_ids(2, length)
    logits = model(ids).logits
    for row in range(2):
        assert_same(logits[row], written_out_logits(model, ids[row]))


@implementations
@pytest.mark.parametrize(
    "layer_types", [BANDED, DENSE, [BANDED[0], BANDED[0], DENSE[0], BANDED[0]]], ids=["banded", "dense", "mixed"]
)
def test_layer_types_in_any_order_are_attention_written_out(implementation, layer_types):
    model = make_model(layer_types=layer_types, attn_implementation=implementation)
    ids = make_ids(1, 29)
    assert_same(model(ids, use_cache=False).logits[0], written_out_logits(model, ids[0]))


@implementations
def test_banded_layer_sees_the_window_and_not_one_key_more(implementation):
    model = make_model(num_hidden_layers=1, layer_types=BANDED[:1], attn_implementation=implementation)
    ids = make_ids(1, 20)
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % VOCAB
    difference = (model(ids).logits - model(changed).logits).abs().amax(dim=-1)[0]
    reached = torch.arange(20).ge(4) & torch.arange(20).lt(4 + WINDOW)
    assert (difference[reached] > 1e-3).all()
    assert (difference[~reached] == 0).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_eager_is_sdpa(length):
    ids = make_ids(2, length)
    eager, sdpa = (make_model(attn_implementation=name) for name in ("eager", "sdpa"))
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    eager_output, sdpa_output = (model(ids, labels=ids) for model in (eager, sdpa))
    assert_same(eager_output.logits, sdpa_output.logits)
    if length > 1:
        eager_output.loss.backward()
        sdpa_output.loss.backward()
        for ours, theirs in zip(eager.parameters(), sdpa.parameters()):
            assert_same(ours.grad, theirs.grad)


@implementations
def test_masks_made_by_the_caller_are_used_by_layer_type(implementation):
    model = make_model(attn_implementation=implementation)
    ids = make_ids(1, 20)
    query, key = torch.arange(20)[:, None], torch.arange(20)
    visible = {"full_attention": key <= query, "sliding_attention": (key <= query) & (key > query - WINDOW)}
    if implementation == "sdpa":
        masks = {name: mask[None, None] for name, mask in visible.items()}
    else:
        masks = {name: torch.where(mask, 0.0, torch.finfo().min)[None, None] for name, mask in visible.items()}
    assert_same(model(ids, attention_mask=masks).logits, model(ids).logits)

    swapped = dict(zip(masks, reversed(masks.values())))
    assert (model(ids, attention_mask=swapped).logits - model(ids).logits).abs().max() > 1e-2


# Padding and packing


def pad(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), length), 5), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[index, span], mask[index, span] = row, 1
    return ids, mask


@implementations
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_padding_changes_nothing(implementation, side, use_cache):
    model = make_model(attn_implementation=implementation)
    rows = [make_ids(1, length, seed=length)[0] for length in (3, WINDOW, 21, 30)]
    ids, mask = pad(rows, side)
    logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
    assert logits.isfinite().all()
    for index, row in enumerate(rows):
        assert_same(logits[index][mask[index] == 1], model(row[None]).logits[0])


@implementations
def test_left_padded_rows_decode_with_the_cache_as_without_padding(implementation):
    model = make_model(attn_implementation=implementation)
    rows = [make_ids(1, length, seed=length)[0] for length in (14, 20, 30)]
    ids, mask = pad(rows, "left")
    prompt = 22
    output = model(ids[:, :prompt], attention_mask=mask[:, :prompt], use_cache=True)
    logits = [output.logits]
    for position in range(prompt, 30):
        output = model(
            ids[:, position : position + 1],
            attention_mask=mask[:, : position + 1],
            past_key_values=output.past_key_values,
        )
        logits.append(output.logits)
    logits = torch.cat(logits, dim=1)
    for index, row in enumerate(rows):
        assert_same(logits[index][mask[index] == 1], model(row[None]).logits[0])


def pack(lengths: list[int]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    rows = [make_ids(1, length, seed=length) for length in lengths]
    return rows, torch.cat(rows, dim=1), torch.cat([torch.arange(length) for length in lengths])[None]


@implementations
@pytest.mark.parametrize("layer_types", [None, BANDED], ids=["alternating", "banded"])
def test_packed_sequences_do_not_see_each_other(implementation, layer_types):
    model = make_model(layer_types=layer_types, attn_implementation=implementation)
    rows, packed, position_ids = pack([5, 13, 1, WINDOW, 20])
    logits = model(packed, position_ids=position_ids, use_cache=False).logits
    separate = torch.cat([model(row).logits for row in rows], dim=1)
    assert_same(logits, separate)


def test_rows_of_a_batch_are_packed_each_in_its_own_way():
    model = make_model()
    first_rows, first, first_positions = pack([11, 19])
    second_rows, second, second_positions = pack([24, 6])
    logits = model(
        torch.cat([first, second]), position_ids=torch.cat([first_positions, second_positions]), use_cache=False
    ).logits
    assert_same(logits[:1], torch.cat([model(row).logits for row in first_rows], dim=1))
    assert_same(logits[1:], torch.cat([model(row).logits for row in second_rows], dim=1))


@implementations
def test_packed_row_may_be_longer_than_the_position_limit(implementation):
    model = make_model(attn_implementation=implementation)
    rows, packed, position_ids = pack([40, LIMIT, 30])
    assert packed.shape[1] > LIMIT
    logits = model(packed, position_ids=position_ids, use_cache=False).logits
    assert_same(logits, torch.cat([model(row).logits for row in rows], dim=1))


@pytest.mark.parametrize("lengths", [[5, 13, 20], [40, 40]], ids=["below limit", "above limit"])
def test_packed_sequences_do_not_see_each_other_where_use_cache_is_not_given(lengths):
    model = make_model()
    rows, packed, position_ids = pack(lengths)
    logits = model(packed, position_ids=position_ids).logits
    assert_same(logits, torch.cat([model(row).logits for row in rows], dim=1))


# The cache


@implementations
@pytest.mark.parametrize(
    "chunks",
    [[1] * 30, [5] * 6, [20] + [1] * 10, [WINDOW - 1, 1, 1, WINDOW, WINDOW + 3, 2], [3, 17, 1, 1, 8]],
    ids=["one at a time", "five at a time", "prompt then one", "around the window", "uneven"],
)
def test_decoding_with_the_cache_is_the_full_forward(implementation, chunks):
    model = make_model(attn_implementation=implementation)
    ids = make_ids(2, 30)
    cache, logits = None, []
    for chunk in ids.split(chunks, dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    assert cache.get_seq_length() == 30
    assert_same(torch.cat(logits, dim=1), model(ids, use_cache=False).logits)


@pytest.mark.parametrize("chunks", [[30], [1] * 30, [12, 1, 9, 8]], ids=["at once", "one at a time", "uneven"])
def test_cache_of_banded_layers_keeps_only_the_window(chunks):
    model = make_model()
    cache = None
    for chunk in make_ids(1, 30).split(chunks, dim=1):
        cache = model(chunk, past_key_values=cache, use_cache=True).past_key_values
    kept = [layer.keys.shape[-2] for layer in cache.layers]
    # The next query is the window's last key itself, so one fewer is enough.
    assert kept[0::2] == [30, 30]
    assert all(WINDOW - 1 <= length <= WINDOW for length in kept[1::2])


def test_decoding_to_the_last_position_is_the_full_forward():
    model = make_model()
    ids = make_ids(1, LIMIT)
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    assert_same(model(ids[:, -1:], past_key_values=cache).logits[:, 0], model(ids).logits[:, -1])


@pytest.mark.parametrize("window", [2, 29, 30, LIMIT, 10 * LIMIT])
def test_decoding_with_any_window_is_attention_written_out(window):
    model = make_model(sliding_window=window)
    ids = make_ids(1, 30)
    cache, logits = None, []
    for chunk in ids.split([10, *[1] * 20], dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    assert_same(torch.cat(logits, dim=1)[0], written_out_logits(model, ids[0]))


def test_use_cache_decides_whether_a_cache_is_returned():
    ids = make_ids(1, 5)
    model = make_model()
    assert model(ids).past_key_values.get_seq_length() == 5
    assert model(ids, use_cache=False).past_key_values is None
    assert make_model(use_cache=False)(ids).past_key_values is None


# Generation


def greedy_by_full_forwards(model: GPT3ForCausalLM, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@implementations
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_greedy_generation_is_the_argmax_of_full_forwards(implementation, options):
    model = make_model(attn_implementation=implementation)
    prompt = make_ids(3, 5)
    generated = model.generate(prompt, max_new_tokens=20, do_sample=False, **options)
    assert generated.shape == (3, 25)
    assert torch.equal(generated, greedy_by_full_forwards(model, prompt, 20))


def test_greedy_generation_of_left_padded_prompts_is_that_of_each_alone():
    model = make_model()
    rows = [make_ids(1, length, seed=length)[0] for length in (2, 11, 17)]
    ids, mask = pad(rows, "left")
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    for index, row in enumerate(rows):
        assert torch.equal(generated[index, -12:], greedy_by_full_forwards(model, row[None], 12)[0, -12:])


def test_greedy_generation_from_embeddings_is_that_from_ids():
    model = make_model()
    prompt = make_ids(2, 12)
    generated = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), max_new_tokens=10, do_sample=False)
    assert torch.equal(generated, greedy_by_full_forwards(model, prompt, 10)[:, -10:])


def test_beam_search_with_a_beam_for_each_word_finds_the_likeliest_pair():
    model = make_model()
    prompt = make_ids(2, 2 * WINDOW)
    generated = model.generate(prompt, max_new_tokens=2, num_beams=VOCAB, do_sample=False)
    assert generated.shape == (2, 2 * WINDOW + 2)
    for row in range(2):
        first = model(prompt[row : row + 1]).logits[0, -1].log_softmax(-1)
        every = torch.cat([prompt[row].expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)
        pairs = first[:, None] + model(every).logits[:, -1].log_softmax(-1)
        assert generated[row, -2:].tolist() == list(divmod(int(pairs.argmax()), VOCAB))


def test_beam_search_scores_are_the_likelihoods_of_what_it_returns():
    model = make_model()
    prompt = make_ids(2, 6)
    output = model.generate(
        prompt,
        max_new_tokens=12,
        num_beams=4,
        num_return_sequences=3,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert output.sequences.shape == (6, 18)
    log_probabilities = model(output.sequences[:, :-1]).logits.log_softmax(-1)
    likelihoods = log_probabilities.gather(-1, output.sequences[:, 1:, None])[:, -12:, 0].sum(dim=1)
    assert_same(output.sequences_scores, likelihoods, tolerance=1e-4)


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_sampling_draws_from_the_k_likeliest(k):
    model = make_model()
    torch.manual_seed(0)
    generated = model.generate(make_ids(2, 5), max_new_tokens=15, do_sample=True, top_k=k, num_return_sequences=2)
    assert generated.shape == (4, 20)
    likeliest = model(generated).logits[:, 4:-1].topk(k).indices
    assert (likeliest == generated[:, 5:, None]).any(dim=-1).all()


def test_top_p_sampling_draws_from_the_nucleus():
    model = make_model()
    torch.manual_seed(0)
    generated = model.generate(make_ids(2, 5), max_new_tokens=15, do_sample=True, top_k=0, top_p=0.5)
    assert generated.shape == (2, 20)
    probabilities, order = model(generated).logits[:, 4:-1].softmax(-1).sort(descending=True)
    in_nucleus = probabilities.cumsum(-1) - probabilities < 0.5 + 1e-4
    assert ((order == generated[:, 5:, None]) & in_nucleus).any(dim=-1).all()


def test_sampling_is_reproduced_by_its_seed():
    model = make_model()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate(make_ids(1, 5), max_new_tokens=20, do_sample=True, top_k=0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# Past the last position


def forward_with_ids(model):
    model(make_ids(1, LIMIT + 1))


def forward_with_ids_without_cache(model):
    model(make_ids(1, LIMIT + 1), use_cache=False)


def forward_with_embeddings(model):
    model(inputs_embeds=torch.zeros(1, LIMIT + 1, TINY["hidden_size"]))


def forward_with_a_mask(model):
    model(make_ids(1, LIMIT + 1), attention_mask=torch.ones(1, LIMIT + 1, dtype=torch.long), use_cache=False)


def forward_with_a_full_cache(model):
    cache = model(make_ids(1, LIMIT), use_cache=True).past_key_values
    model(make_ids(1, 1), past_key_values=cache)


def forward_with_a_cache_and_several_tokens(model):
    cache = model(make_ids(1, LIMIT - 2), use_cache=True).past_key_values
    model(make_ids(1, 3), past_key_values=cache)


def forward_with_position_ids(model):
    model(make_ids(1, 3), position_ids=torch.tensor([[0, LIMIT, 1]]), use_cache=False)


def forward_with_position_ids_and_cache(model):
    cache = model(make_ids(1, 3), use_cache=True).past_key_values
    model(make_ids(1, 1), position_ids=torch.tensor([[LIMIT]]), past_key_values=cache)


def forward_packed_with_one_sequence_too_long(model):
    positions = torch.cat([torch.arange(5), torch.arange(LIMIT + 1)])[None]
    model(make_ids(1, LIMIT + 6), position_ids=positions, use_cache=False)


@pytest.mark.parametrize("kind", ["base", "causal_lm"])
@pytest.mark.parametrize(
    "call",
    [
        forward_with_ids,
        forward_with_ids_without_cache,
        forward_with_embeddings,
        forward_with_a_mask,
        forward_with_a_full_cache,
        forward_with_a_cache_and_several_tokens,
        forward_with_position_ids,
        forward_with_position_ids_and_cache,
        forward_packed_with_one_sequence_too_long,
    ],
)
def test_forward_past_the_last_position_names_the_limit(kind, call):
    model = make_model()
    with pytest.raises(ValueError, match=rf"\b{LIMIT}\b.*max_position_embeddings"):
        call(model.model if kind == "base" else model)


@pytest.mark.parametrize("length", [LIMIT + 1, 2])
def test_forward_past_the_last_position_is_refused_by_shapes_alone(length):
    """On an accelerator, reading the positions would wait for the device; the meta device has none to read."""
    model = make_model().to("meta")
    cache = None if length > LIMIT else model(make_ids(1, LIMIT - 1).to("meta"), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=rf"\b{LIMIT}\b.*max_position_embeddings"):
        model(make_ids(1, length).to("meta"), past_key_values=cache)


def test_negative_positions_are_refused():
    with pytest.raises(ValueError, match="position"):
        make_model()(make_ids(1, 3), position_ids=torch.tensor([[-1, 0, 1]]), use_cache=False)


def test_forward_of_exactly_the_limit_is_accepted():
    assert make_model()(make_ids(1, LIMIT)).logits.shape == (1, LIMIT, VOCAB)


def count_forwards(model: GPT3ForCausalLM) -> list[None]:
    calls: list[None] = []
    model.model.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        (60, {"max_new_tokens": 5}),
        (60, {"max_length": LIMIT + 1}),
        (60, {"max_new_tokens": 5, "num_beams": 2}),
        (60, {"max_new_tokens": 5, "use_cache": False}),
        (LIMIT + 1, {"max_new_tokens": 1}),
        (LIMIT + 1, {}),
    ],
    ids=str,
)
def test_generation_past_the_last_position_is_refused_before_the_first_token(prompt, options):
    model = make_model()
    calls = count_forwards(model)
    with pytest.raises(ValueError, match=rf"\b{LIMIT}\b.*max_position_embeddings"):
        model.generate(make_ids(1, prompt), do_sample=False, **options)
    assert calls == []


def test_generation_from_embeddings_past_the_last_position_is_refused_before_the_first_token():
    model = make_model()
    embeddings = model.get_input_embeddings()(make_ids(1, 60))
    calls = count_forwards(model)
    with pytest.raises(ValueError, match=rf"\b{LIMIT}\b.*max_position_embeddings"):
        model.generate(inputs_embeds=embeddings, max_new_tokens=10, do_sample=False)
    assert calls == []


def test_generation_to_the_last_position_is_accepted():
    model = make_model()
    prompt = make_ids(2, 50)
    generated = model.generate(prompt, max_new_tokens=14, do_sample=False)
    assert torch.equal(generated, greedy_by_full_forwards(model, prompt, 14))


# Loss


def cross_entropy_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Sum over the predicted tokens of minus log probability, and their number."""
    total, count = 0.0, 0
    for row_logits, row_labels in zip(logits.detach().double(), labels):
        for position in range(len(row_labels) - 1):
            if (target := int(row_labels[position + 1])) != -100:
                scores = row_logits[position]
                total -= float(scores[target] - torch.log(torch.exp(scores).sum()))
                count += 1
    return total, count


def ids_and_partly_ignored_labels() -> tuple[torch.Tensor, torch.Tensor]:
    ids = make_ids(2, 20)
    labels = ids.clone()
    labels[0, :12] = -100
    labels[1, 5] = -100
    labels[1, -1] = -100
    return ids, labels


def test_loss_is_the_mean_cross_entropy_of_the_next_token():
    model, ids = make_model(), make_ids(2, 20)
    output = model(ids, labels=ids)
    total, count = cross_entropy_by_hand(output.logits, ids)
    assert count == 2 * 19
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)


def test_loss_ignores_minus_100():
    model = make_model()
    ids, labels = ids_and_partly_ignored_labels()
    output = model(ids, labels=labels)
    total, count = cross_entropy_by_hand(output.logits, labels)
    assert count == 8 + 17
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("num_items", [100, torch.tensor(100)], ids=["int", "tensor"])
def test_loss_is_divided_by_num_items_in_batch(num_items):
    model = make_model()
    ids, labels = ids_and_partly_ignored_labels()
    output = model(ids, labels=labels, num_items_in_batch=num_items)
    total, _ = cross_entropy_by_hand(output.logits, labels)
    assert output.loss.item() == pytest.approx(total / 100, rel=1e-5)


def test_loss_of_micro_batches_adds_up_to_that_of_the_batch():
    model = make_model()
    ids, labels = ids_and_partly_ignored_labels()
    model(ids, labels=labels).loss.backward()
    whole = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row in range(2):
        model(ids[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=25).loss.backward()
    for name, parameter in model.named_parameters():
        assert_same(parameter.grad, whole[name])


@pytest.mark.parametrize("keep", [6, torch.arange(14, 20)], ids=["count", "positions"])
def test_logits_to_keep_takes_the_labels_of_the_kept_positions(keep):
    model, ids = make_model(), make_ids(2, 20)
    output = model(ids, labels=ids[:, -6:], logits_to_keep=keep)
    assert output.logits.shape == (2, 6, VOCAB)
    assert_same(output.logits, model(ids).logits[:, -6:])
    total, count = cross_entropy_by_hand(output.logits, ids[:, -6:])
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)


def test_labels_that_are_shifted_already_are_not_shifted_again():
    model, ids = make_model(), make_ids(2, 20)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    plain = model(ids, labels=ids).loss
    assert model(ids, labels=ids, shift_labels=shifted).loss.item() == pytest.approx(plain.item(), rel=1e-6)


def test_without_labels_there_is_no_loss():
    assert make_model()(make_ids(1, 5)).loss is None


# Training


def enable_checkpointing(model: GPT3ForCausalLM) -> None:
    # The older name is deprecated where there is a newer one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def test_gradient_checkpointing_recomputes_layers_and_changes_no_gradient():
    ids = make_ids(2, 20)
    forwards, gradients, losses = [], [], []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            enable_checkpointing(model)
        calls: list[None] = []
        model.model.layers[1].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        forwards.append(len(calls))
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert forwards == [1, 2]
    assert losses[0] == losses[1]
    for plain, checkpointed in zip(*gradients):
        assert_same(checkpointed, plain, tolerance=1e-6)


def test_gradient_checkpointing_keeps_packed_sequences_apart():
    model = make_model().train()
    enable_checkpointing(model)
    rows, packed, position_ids = pack([5, 13, 20])
    logits = model(packed, position_ids=position_ids, use_cache=False).logits
    model.eval()
    assert_same(logits, torch.cat([model(row).logits for row in rows], dim=1))


def test_every_parameter_gets_a_gradient():
    model, ids = make_model(), make_ids(2, LIMIT)
    model(ids, labels=ids).loss.backward()
    # Adding a constant to every key of a query changes no softmax.
    without = [
        name
        for name, parameter in model.named_parameters()
        if "k_proj.bias" not in name and (parameter.grad is None or not parameter.grad.abs().max() > 1e-6)
    ]
    assert without == []


@implementations
@pytest.mark.parametrize("field", ["attention_dropout", "residual_dropout", "embedding_dropout"])
def test_dropout_acts_in_training_alone(field, implementation):
    plain = make_model(attn_implementation=implementation)
    model = make_model(**{field: 0.5}, attn_implementation=implementation)
    ids = make_ids(1, 20)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    model.train()
    first, second = model(ids, use_cache=False).logits, model(ids, use_cache=False).logits
    assert (first - second).abs().max() > 1e-3


@implementations
def test_bfloat16_is_close_to_float32(implementation):
    model = make_model(attn_implementation=implementation)
    rows = [make_ids(1, length, seed=length)[0] for length in (3, 30)]
    ids, mask = pad(rows, "left")
    expected = model(ids, attention_mask=mask).logits
    model.to(torch.bfloat16)
    output = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()
    real = mask == 1
    assert (output.logits.float() - expected)[real].abs().mean() < 0.05 * expected[real].abs().mean()
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# What else is returned


@implementations
def test_hidden_states_are_those_of_the_embeddings_and_each_layer(implementation):
    model = make_model(attn_implementation=implementation)
    ids = make_ids(2, 10)
    output = model(ids, output_hidden_states=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, 10, 32)] * 5
    base = model.model
    assert_same(output.hidden_states[0], base.embed_tokens(ids) + base.embed_positions(torch.arange(10)))
    assert_same(output.hidden_states[-1], base(ids).last_hidden_state)
    assert_same(output.hidden_states[-1] @ model.lm_head.weight.T, output.logits)
    assert model(ids).hidden_states is None


def test_attentions_of_eager_are_distributions_over_what_each_layer_sees():
    model = make_model(attn_implementation="eager")
    output = model(make_ids(2, 20), output_attentions=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 20, 20)] * 4
    query, key = torch.arange(20)[:, None], torch.arange(20)
    for layer, weights in enumerate(output.attentions):
        visible = key <= query
        if layer % 2:
            visible = visible & (key > query - WINDOW)
        assert_same(weights.sum(dim=-1), torch.ones(2, 4, 20))
        assert torch.equal(weights > 0, visible.expand_as(weights))


def test_tuple_output_holds_loss_logits_and_cache():
    model, ids = make_model(), make_ids(1, 10)
    output = model(ids, labels=ids)
    loss, logits, cache = model(ids, labels=ids, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert cache.get_seq_length() == 10


def test_embeddings_in_place_of_ids_give_the_same_logits():
    model, ids = make_model(), make_ids(2, 20)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)


@pytest.mark.parametrize("both", [False, True])
def test_ids_and_embeddings_are_given_one_at_a_time(both):
    model, ids = make_model(), make_ids(1, 5)
    inputs = {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)} if both else {}
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(**inputs)


# Initial weights


def expected_std(name: str, config: GPT3Config) -> float:
    residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    return config.initializer_range / (math.sqrt(2 * config.num_hidden_layers) if residual else 1)


def assert_initialised(model: GPT3Model | GPT3ForCausalLM, only: str = "") -> None:
    checked = 0
    for name, parameter in model.named_parameters():
        if not name.endswith(only):
            continue
        checked += 1
        assert parameter.device.type == "cpu"
        if name.endswith(".bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            # Five standard errors of the mean, and of the standard deviation of a normal sample.
            std = expected_std(name, model.config)
            assert parameter.mean().abs() < 5 * std / math.sqrt(parameter.numel()), name
            assert parameter.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * parameter.numel())), name
    assert checked


@pytest.mark.parametrize("sizes", [{}, {"num_hidden_layers": 9, "initializer_range": 0.1}], ids=str)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("build", [GPT3ForCausalLM, AutoModelForCausalLM.from_config, AutoModel.from_config])
def test_initial_weights_are_those_of_the_paper(build, tied, sizes):
    torch.manual_seed(0)
    assert_initialised(build(tiny_config(hidden_size=64, tie_word_embeddings=tied, **sizes)))


@pytest.mark.parametrize("tied", [True, False])
def test_initial_weights_are_those_of_the_paper_after_the_meta_device(tied):
    """With nothing in the checkpoint, every parameter is made on the meta device and initialised after."""
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, tie_word_embeddings=tied)
    model = GPT3ForCausalLM.from_pretrained(None, config=config, state_dict={})
    assert_initialised(model)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


@pytest.mark.parametrize(
    "missing",
    [
        "layers.1.self_attn.o_proj.weight",
        "layers.2.mlp.down_proj.weight",
        "layers.0.mlp.up_proj.weight",
        "layers.0.self_attn.q_proj.bias",
        # Its weight is loaded, and must not be drawn again with it.
        "layers.1.self_attn.o_proj.bias",
        "layers.3.input_layernorm.weight",
        "norm.weight",
        "embed_positions.weight",
    ],
)
def test_weight_missing_from_a_checkpoint_is_initialised_and_the_rest_is_loaded(tmp_path, missing):
    torch.manual_seed(0)
    source = make_model(hidden_size=64)
    source.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[f"model.{missing}"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    model, info = GPT3ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {f"model.{missing}"}
    assert_initialised(model, only=f"model.{missing}")
    for (name, loaded), saved in zip(model.named_parameters(), source.parameters()):
        assert torch.equal(loaded, saved) is (name != f"model.{missing}"), name


# Tied weights, saving, loading, copying


def test_tied_head_shares_the_storage_of_the_embeddings(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, loaded, AutoModelForCausalLM.from_config(model.config)):
        assert each.lm_head.weight is each.model.embed_tokens.weight
    with torch.no_grad():
        loaded.model.embed_tokens.weight[3] = 7.0
    assert (loaded.lm_head.weight[3] == 7.0).all()


def test_tied_weight_is_saved_once(tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    assert weights["model.embed_tokens.weight"].shape == (VOCAB, 32)


def test_untied_head_is_its_own(tmp_path):
    model = make_model(tie_word_embeddings=False)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    tied = sum(parameter.numel() for parameter in make_model().parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == tied + VOCAB * 32

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    ids = make_ids(2, 20)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert_same(loaded(ids[:1]).logits[0], written_out_logits(model, ids[0]))


def test_saved_model_is_loaded_by_the_auto_classes_with_equal_outputs(tmp_path):
    model, ids = make_model(), make_ids(2, 20)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT3ForCausalLM"]

    config = AutoConfig.from_pretrained(tmp_path)
    assert {**config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
    causal_lm, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(causal_lm) is GPT3ForCausalLM
    assert not any(info.values())
    assert not causal_lm.training
    assert torch.equal(causal_lm(ids).logits, model(ids).logits)

    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is GPT3Model
    assert not any(info.values())
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_saved_base_model_is_loaded_under_the_head(tmp_path):
    model, ids = make_model(), make_ids(2, 20)
    model.model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_model_saved_in_shards_is_loaded_with_equal_outputs(tmp_path):
    model, ids = make_model(), make_ids(2, 20)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_model_is_loaded_in_the_dtype_it_was_saved_in(tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").dtype == torch.float32


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copy_of_a_model_is_equal_tied_and_independent(duplicate):
    model, ids = make_model(), make_ids(2, 20)
    before = model(ids).logits
    other = duplicate(model)
    assert torch.equal(other(ids).logits, before)
    assert other.lm_head.weight is other.model.embed_tokens.weight
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [120, 60])
def test_resized_vocabulary_keeps_the_old_words_and_the_tie(tmp_path, size, tied):
    model = make_model(tie_word_embeddings=tied)
    kept = min(size, VOCAB)
    ids = make_ids(2, 20, vocab_size=kept)
    before = model(ids).logits[..., :kept]
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model(ids).logits.shape == (2, 20, size)
    assert_same(model(ids).logits[..., :kept], before)

    ids[0, 3] = size - 1
    assert model(ids, labels=ids).loss.isfinite()
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


# What transformers says of our code


def test_nothing_draws_a_warning(tmp_path):
    ids = make_ids(2, 12)
    with collect_complaints() as complaints:
        model = GPT3ForCausalLM(tiny_config())
        AutoModelForCausalLM.from_config(tiny_config())
        model.save_pretrained(tmp_path)
        AutoConfig.from_pretrained(tmp_path)
        AutoModel.from_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        pickle.loads(pickle.dumps(copy.deepcopy(model)))
        mask = torch.ones_like(ids)
        for options in ({"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 3, "top_p": 0.9}):
            model.generate(ids, attention_mask=mask, max_new_tokens=3, **options)
        model.train()
        model(ids, labels=ids, num_items_in_batch=22).loss.backward()
        _, packed, position_ids = pack([5, 9])
        model(packed, position_ids=position_ids, use_cache=False)
        enable_checkpointing(model)
        model(ids, labels=ids, use_cache=False).loss.backward()
    assert complaints == []


def test_the_check_for_warnings_sees_those_of_transformers():
    """The control of the test above."""
    model, ids = make_model().train(), make_ids(1, 5)
    enable_checkpointing(model)
    with collect_complaints() as complaints:
        model(ids, use_cache=True)
    assert any("use_cache" in complaint for complaint in complaints)


@pytest.mark.parametrize("columns", [9, 11])
def test_an_attention_mask_of_the_wrong_length_is_refused(columns):
    model = make_model()
    with pytest.raises(ValueError, match="`attention_mask` must cover"):
        model(torch.ones(1, 10, dtype=torch.long), attention_mask=torch.ones(1, columns, dtype=torch.long))
