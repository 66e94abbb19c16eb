"""Generation in the ways `generate` offers, each against forwards over the whole sequence without a cache.

Static caches and compiled decoding, assisted and prompt-lookup decoding, beams, logits processors, a cache continued over
several turns, embeddings as prompts, continuous batching, bfloat16. Prompts and outputs are longer than the band, so that
the caches of banded layers have dropped keys by the time they are used. Logits are compared beside tokens: a tiny model is
so sure of its tokens that a small fault would not change them.
"""

from itertools import pairwise

import pytest
import torch
from tiny_models import BANDED, DENSE, TINY, make_ids, make_model
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    TextIteratorStreamer,
)
from transformers.generation import GenerateDecoderOnlyOutput

from hfgpt import GPT3ForCausalLM


WINDOW = TINY["sliding_window"]
LIMIT = TINY["max_position_embeddings"]
VOCAB = TINY["vocab_size"]
NEW = 2 * WINDOW + 3
GREEDY = {"do_sample": False, "max_new_tokens": NEW}

implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])
layouts = pytest.mark.parametrize("layer_types", [None, BANDED, DENSE], ids=["alternating", "banded", "dense"])
caches = pytest.mark.parametrize("cache", ["dynamic", "static"])


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def lengthen(mask: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
    return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1)


@torch.no_grad()
def logits_of(model: GPT3ForCausalLM, ids: torch.Tensor, new: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The logits from which the last `new` tokens were drawn, by one forward over all of them."""
    return model(ids, attention_mask=lengthen(mask, new), use_cache=False).logits[:, -new - 1 : -1]


def generate_greedily(
    model: GPT3ForCausalLM, ids: torch.Tensor, mask: torch.Tensor | None = None, **options
) -> GenerateDecoderOnlyOutput:
    """`generate`, having checked its tokens and logits against those of a full forward.

    Without `input_ids` in the options `ids` is the prompt.
    """
    if "inputs_embeds" not in options:
        options["input_ids"] = ids
    options = {**GREEDY, "attention_mask": mask, "return_dict_in_generate": True, "output_logits": True, **options}
    output = model.generate(**options)
    count = options["max_new_tokens"]
    new, logits = output.sequences[:, -count:], torch.stack(output.logits, dim=1)
    assert output.sequences.shape[1] == count + ("input_ids" in options) * ids.shape[1]
    assert_same(logits, logits_of(model, torch.cat([ids, new], dim=1), count, mask))
    assert torch.equal(new, logits.argmax(dim=-1))
    return output


def left_padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = make_ids(len(lengths), max(lengths))
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids, mask.long()


# Static caches


@implementations
@layouts
@pytest.mark.parametrize("prompt", [3, WINDOW, 3 * WINDOW])
def test_generation_with_a_static_cache_is_full_forwards(implementation, layer_types, prompt):
    model = make_model(attn_implementation=implementation, layer_types=layer_types)
    generate_greedily(model, make_ids(2, prompt), cache_implementation="static")


@implementations
@caches
def test_left_padded_prompts_longer_than_the_window_generate_as_each_alone(implementation, cache):
    model = make_model(attn_implementation=implementation)
    lengths = [4, WINDOW, 21, 30]
    ids, mask = left_padded(lengths)
    output = generate_greedily(model, ids, mask, cache_implementation=cache)
    for row, length in enumerate(lengths):
        alone = output.sequences[row : row + 1, 30 - length :]
        assert_same(torch.stack(output.logits, dim=1)[row : row + 1], logits_of(model, alone, NEW))


def test_banded_layers_of_a_static_cache_hold_only_the_window():
    output = generate_greedily(make_model(), make_ids(2, 3 * WINDOW), cache_implementation="static")
    sizes = [layer.keys.shape[-2] for layer in output.past_key_values.layers]
    assert sizes[1::2] == [WINDOW, WINDOW]
    assert min(sizes[0::2]) >= 3 * WINDOW + NEW - 1


@caches
@pytest.mark.parametrize("chunk", [1, 5, WINDOW, 13])
def test_prompt_read_in_chunks_gives_what_full_forwards_give(cache, chunk):
    ids, mask = left_padded([17, 30])
    generate_greedily(make_model(), ids, mask, cache_implementation=cache, prefill_chunk_size=chunk)


# Compiled decoding


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.slow
def test_decoding_step_with_a_static_cache_is_not_compiled_again(dynamo):
    model, ids = make_model(num_hidden_layers=2), make_ids(2, 30)
    step = torch.compile(model.forward, fullgraph=True, backend="eager")
    cache = StaticCache(config=model.config, max_cache_len=LIMIT)
    prompt = WINDOW - 2
    with torch.no_grad():
        logits = [model(ids[:, :prompt], past_key_values=cache).logits]
        for position in range(prompt, 30):
            # One graph for the banded layers' count of tokens as it is, one for any count, one for a full band.
            with torch.compiler.set_stance("default" if position <= WINDOW else "fail_on_recompile"):
                logits.append(step(ids[:, position : position + 1], past_key_values=cache).logits)
        assert_same(torch.cat(logits, dim=1), model(ids).logits)
    assert dynamo["graph_break"] == {}
    assert dynamo["stats"]["unique_graphs"] <= 3


def test_generate_compiles_decoding_with_a_static_cache(dynamo):
    ids, mask = left_padded([13, 20])
    compile_config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compile_config._compile_all_devices = True  # `generate` does not compile on CPU by itself
    model = make_model(num_hidden_layers=2)
    generate_greedily(model, ids, mask, cache_implementation="static", compile_config=compile_config)
    assert dynamo["graph_break"] == {}
    assert 1 <= dynamo["stats"]["unique_graphs"] <= 2


# Assisted decoding: the cache is rolled back where a candidate is refused


def count_widths(model: GPT3ForCausalLM) -> list[int]:
    """The number of tokens in each forward to come."""
    widths: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    return widths


@implementations
@layouts
def test_assisted_decoding_gives_what_full_forwards_give(implementation, layer_types):
    model = make_model(attn_implementation=implementation, layer_types=layer_types)
    widths = count_widths(model)
    generate_greedily(model, make_ids(1, 2 * WINDOW), assistant_model=make_model(num_hidden_layers=2))
    assert max(widths[1:-1]) > 1 and len(widths) > 3, "no candidate was refused"


def test_assistant_whose_candidates_are_all_right_saves_forwards():
    model = make_model()
    widths = count_widths(model)
    generate_greedily(model, make_ids(1, 2 * WINDOW), assistant_model=make_model())
    assert len(widths) < NEW - 5


@implementations
@layouts
@pytest.mark.parametrize("candidates", [2, WINDOW + 3])
def test_prompt_lookup_decoding_gives_what_full_forwards_give(implementation, layer_types, candidates):
    model = make_model(attn_implementation=implementation, layer_types=layer_types)
    widths = count_widths(model)
    generate_greedily(model, make_ids(1, 6).repeat(1, 4), prompt_lookup_num_tokens=candidates)
    assert widths[0] == 24 + candidates and max(widths[1:]) > 2, "no candidate was found"


def test_early_exit_decoding_gives_what_full_forwards_give():
    generate_greedily(make_model(), make_ids(1, 2 * WINDOW), assistant_early_exit=2)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 10},
        {"assistant_model": True},
        {"assistant_early_exit": 2},
    ],
    ids=["prompt lookup", "assistant", "early exit"],
)
def test_assisted_decoding_reaches_the_last_position(options):
    if "assistant_model" in options:
        options = {"assistant_model": make_model()}
    generate_greedily(make_model(), make_ids(1, 5).repeat(1, 6), max_new_tokens=LIMIT - 30, **options)


# Beams and sampling


@implementations
@pytest.mark.parametrize("options", [{"use_cache": False}, {}, {"cache_implementation": "static"}], ids=str)
def test_beam_search_past_the_window_scores_by_full_forwards(implementation, options):
    model = make_model(attn_implementation=implementation)
    ids, mask = left_padded([5, 17])
    output = model.generate(
        ids,
        attention_mask=mask,
        num_beams=4,
        num_return_sequences=2,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
        **GREEDY,
    )
    sequences, mask = output.sequences, mask.repeat_interleave(2, dim=0)
    assert sequences.shape == (4, 17 + NEW)
    logits = logits_of(model, sequences, NEW, mask)
    likelihoods = logits.log_softmax(dim=-1).gather(-1, sequences[:, -NEW:, None]).sum(dim=(1, 2))
    assert_same(output.sequences_scores, likelihoods)
    greedy = logits_of(model, model.generate(ids, attention_mask=mask[::2], **GREEDY), NEW, mask[::2])
    assert (output.sequences_scores[::2] >= greedy.log_softmax(dim=-1).amax(dim=-1).sum(dim=-1) - 1e-4).all()
    plain = model.generate(ids, attention_mask=mask[::2], num_beams=4, length_penalty=0.0, use_cache=False, **GREEDY)
    assert torch.equal(sequences[::2], plain)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3}, {"top_p": 0.8}], ids=str)
def test_sampling_with_a_cache_is_sampling_without(options):
    model, ids = make_model(), make_ids(2, WINDOW + 1)
    drawn = []
    for cache in ({"use_cache": False}, {"use_cache": True}, {"cache_implementation": "static"}):
        torch.manual_seed(0)
        # Hot, so that few tokens are certain.
        drawn.append(model.generate(ids, max_new_tokens=NEW, do_sample=True, temperature=3.0, **options, **cache))
    assert drawn[0].shape[0] == 2 * options.get("num_return_sequences", 1)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


# Logits processors, stopping, streaming


def test_pair_of_tokens_is_not_repeated_where_that_is_forbidden():
    model, ids = make_model(), make_ids(1, WINDOW)
    plain = list(pairwise(model.generate(ids, **GREEDY)[0].tolist()))
    assert len(set(plain)) < len(plain)
    pairs = list(pairwise(model.generate(ids, no_repeat_ngram_size=2, **GREEDY)[0].tolist()))
    assert len(set(pairs)) == len(pairs)


def test_repetition_penalty_weakens_the_tokens_seen():
    model, ids = make_model(), make_ids(1, WINDOW)
    generated = model.generate(ids, repetition_penalty=2.0, **GREEDY)
    assert not torch.equal(generated, model.generate(ids, **GREEDY))
    for step, scores in enumerate(logits_of(model, generated, NEW)[0]):
        seen = generated[0, : WINDOW + step].unique()
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * 2.0, scores[seen] / 2.0)
        assert scores.argmax() == generated[0, WINDOW + step]


def first_new_word(words: list[int], start: int) -> int:
    return next(place for place in range(start, len(words)) if words[place] not in words[:place])


def test_generation_ends_at_the_end_token_and_not_before_the_minimum():
    model, ids = make_model(), make_ids(1, WINDOW)
    plain = model.generate(ids, **GREEDY)[0, WINDOW:].tolist()
    last = first_new_word(plain, 2)
    options = {"eos_token_id": plain[last], "pad_token_id": 0}
    assert model.generate(ids, **options, **GREEDY)[0, WINDOW:].tolist() == plain[: last + 1]
    longer = model.generate(ids, min_new_tokens=last + 4, **options, **GREEDY)[0, WINDOW:].tolist()
    assert longer[:last] == plain[:last]
    assert plain[last] not in longer[: last + 4]


def test_rows_that_have_ended_are_padded():
    model, ids = make_model(), make_ids(2, WINDOW)
    first, second = model.generate(ids, **GREEDY)[:, WINDOW:].tolist()
    last = next(place for place in range(NEW) if first[place] not in [*first[:place], *second[: place + 2]])
    mask = torch.ones_like(ids)
    generated = model.generate(ids, attention_mask=mask, eos_token_id=first[last], pad_token_id=1, **GREEDY)
    rows = generated[:, WINDOW:].tolist()
    assert rows[0][: last + 1] == first[: last + 1]
    assert rows[1][: last + 2] == second[: last + 2]
    assert len(rows[0]) > last + 1 and set(rows[0][last + 1 :]) == {1}


def test_guidance_weighs_the_prompt_against_none():
    model, ids = make_model(), make_ids(1, 2 * WINDOW)
    generated = model.generate(ids, guidance_scale=2.0, **GREEDY)
    assert not torch.equal(generated, model.generate(ids, **GREEDY))
    conditional = logits_of(model, generated, NEW).log_softmax(dim=-1)
    # Without the prompt but for its last token.
    unconditional = logits_of(model, generated[:, -NEW - 1 :], NEW).log_softmax(dim=-1)
    assert torch.equal(generated[:, -NEW:], (2.0 * conditional - unconditional).argmax(dim=-1))


def test_streamer_receives_every_token():
    class Words:
        def decode(self, ids, **_):
            return "".join(f"{int(word)} " for word in ids)

    model, ids = make_model(), make_ids(1, WINDOW)
    streamer = TextIteratorStreamer(Words(), skip_prompt=True)
    generated = model.generate(ids, streamer=streamer, **GREEDY)
    pieces = list(streamer)
    assert len(pieces) >= NEW
    assert "".join(pieces).split() == [str(word) for word in generated[0, WINDOW:].tolist()]


# A cache that is continued


make_caches = pytest.mark.parametrize(
    "make_cache",
    [
        lambda config: DynamicCache(config=config),
        lambda config: DynamicCache(),
        lambda config: StaticCache(config=config, max_cache_len=LIMIT),
    ],
    ids=["dynamic", "without the config", "static"],
)


@make_caches
@pytest.mark.parametrize("seen", [0, 1, WINDOW, 19])
def test_generation_from_a_cache_is_generation_at_once(make_cache, seen):
    model, ids = make_model(), make_ids(2, 20)
    cache = make_cache(model.config)
    if seen:
        model(ids[:, :seen], past_key_values=cache)
    widths = count_widths(model)
    generate_greedily(model, ids, past_key_values=cache)
    assert widths[0] == 20 - seen


@make_caches
def test_turns_of_a_conversation_share_one_cache(make_cache):
    model = make_model()
    history, mask = left_padded([13, 20])
    cache = make_cache(model.config)
    for turn in range(3):
        widths = count_widths(model)
        history = generate_greedily(model, history, mask, past_key_values=cache, max_new_tokens=7).sequences
        # The last token drawn has not been read before.
        assert widths[0] == (20 if turn == 0 else 5)
        history = torch.cat([history, make_ids(2, 4, seed=10 + turn)], dim=1)
        mask = lengthen(mask, 11)


def test_turn_may_give_the_new_tokens_alone():
    model = make_model()
    output = generate_greedily(model, make_ids(1, 12))
    whole = torch.cat([output.sequences, make_ids(1, 9, seed=5)], dim=1)
    generated = model.generate(
        whole[:, output.past_key_values.get_seq_length() :],
        # It says how many tokens there are in all.
        attention_mask=torch.ones_like(whole),
        past_key_values=output.past_key_values,
        return_dict_in_generate=True,
        output_logits=True,
        **GREEDY,
    )
    whole = torch.cat([whole, generated.sequences[:, -NEW:]], dim=1)
    assert_same(torch.stack(generated.logits, dim=1), logits_of(model, whole, NEW))


def test_cache_of_one_prompt_serves_several_continuations():
    model, prompt = make_model(), make_ids(1, 2 * WINDOW + 3)
    cache = model(prompt, use_cache=True).past_key_values
    cache.batch_repeat_interleave(3)
    ids = torch.cat([prompt.expand(3, -1), make_ids(3, 4, seed=9)], dim=1)
    generate_greedily(model, ids, past_key_values=cache)


# Embeddings as prompts


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("with_ids", [False, True])
def test_generation_from_left_padded_embeddings_is_that_from_ids(options, with_ids):
    model = make_model()
    ids, mask = left_padded([9, 20])
    if with_ids:
        options = {"input_ids": ids, **options}
    generate_greedily(model, ids, mask, inputs_embeds=model.get_input_embeddings()(ids), **options)


def test_beam_search_from_embeddings_is_that_from_ids():
    model, ids = make_model(), make_ids(2, 20)
    from_ids = model.generate(ids, num_beams=3, **GREEDY)
    from_embeddings = model.generate(inputs_embeds=model.get_input_embeddings()(ids), num_beams=3, **GREEDY)
    assert torch.equal(from_embeddings, from_ids[:, 20:])


# What is returned


@caches
def test_scores_states_and_attentions_of_generation_are_those_of_a_full_forward(cache):
    model, ids = make_model(attn_implementation="eager"), make_ids(2, 12)
    output = generate_greedily(
        model,
        ids,
        output_scores=True,
        output_hidden_states=True,
        output_attentions=True,
        cache_implementation=cache,
    )
    assert_same(torch.stack(output.scores), torch.stack(output.logits))
    assert len(output.hidden_states) == len(output.attentions) == NEW
    full = model(output.sequences[:, :-1], output_hidden_states=True, output_attentions=True)
    for layer in range(5):
        assert_same(torch.cat([step[layer] for step in output.hidden_states], dim=1), full.hidden_states[layer])
    for layer in range(4):
        last = output.attentions[-1][layer][:, :, 0]
        # What a static cache has no token for yet, and what the band has dropped, weighs nothing.
        expected = full.attentions[layer][:, :, -1]
        assert_same(last[last > 0], expected[expected > 0])


def test_suppressed_token_has_no_score_and_keeps_its_logit():
    model, ids = make_model(), make_ids(1, WINDOW)
    likeliest = int(model.generate(ids, **GREEDY)[0, WINDOW])
    output = model.generate(
        ids,
        suppress_tokens=[likeliest],
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **GREEDY,
    )
    scores, logits = torch.stack(output.scores), torch.stack(output.logits)
    assert likeliest not in output.sequences[0, WINDOW:]
    assert (scores[..., likeliest] == -torch.inf).all()
    assert logits[0, 0].argmax() == likeliest
    kept = torch.arange(VOCAB) != likeliest
    assert torch.equal(scores[..., kept], logits[..., kept])


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([2]), torch.tensor([19, 0, 7])], ids=str)
def test_logits_to_keep_computes_those_positions_alone(keep):
    model, ids = make_model(), make_ids(2, 20)
    positions = torch.arange(20)[-keep:] if isinstance(keep, int) else keep
    widths = []
    model.lm_head.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    kept = model(ids, logits_to_keep=keep).logits
    assert widths == [len(positions)]
    assert_same(kept, model(ids).logits[:, positions])


def test_generation_computes_the_last_logits_alone():
    model, widths = make_model(), []
    model.lm_head.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    model.generate(make_ids(2, 20), **GREEDY)
    assert widths == [1] * NEW


# Half precision, a single row


@implementations
@caches
def test_model_loaded_in_bfloat16_generates_near_float32(tmp_path, implementation, cache):
    make_model().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation=implementation)
    ids, mask = left_padded([5, 20])
    output = model.generate(
        ids,
        attention_mask=mask,
        return_dict_in_generate=True,
        output_logits=True,
        cache_implementation=cache,
        **GREEDY,
    )
    assert {layer.keys.dtype for layer in output.past_key_values.layers} == {torch.bfloat16}
    expected = logits_of(make_model(), output.sequences, NEW, mask)
    difference = torch.stack(output.logits, dim=1) - expected
    assert difference.abs().mean() < 0.05 * expected.abs().mean()


@caches
@pytest.mark.parametrize("padding", [1, WINDOW + 2])
def test_padding_on_the_left_of_a_single_row_changes_nothing(cache, padding):
    model, ids = make_model(), make_ids(1, 20)
    mask = (torch.arange(20) >= padding).long()[None]
    output = generate_greedily(model, ids, mask, cache_implementation=cache)
    assert_same(torch.stack(output.logits, dim=1), logits_of(model, output.sequences[:, padding:], NEW))


# Continuous batching


@implementations
def test_continuous_batching_gives_what_full_forwards_give(implementation):
    model = make_model(attn_implementation=implementation)
    prompts = [make_ids(1, length, seed=length) for length in (3, WINDOW + 1, 30)]
    outputs = model.generate_batch(
        [prompt[0].tolist() for prompt in prompts],
        generation_config=GenerationConfig(eos_token_id=-1, pad_token_id=0, **GREEDY),
        # Pages smaller than the band, batches smaller than a prompt.
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=4, num_blocks=64, max_batch_tokens=16, return_logprobs=True
        ),
        progress_bar=False,
    )
    outputs = {tuple(output.prompt_ids): output for output in outputs.values()}
    assert len(outputs) == 3
    for prompt in prompts:
        output = outputs[tuple(prompt[0].tolist())]
        new = torch.tensor(output.generated_tokens)[None]
        logprobs, likeliest = logits_of(model, torch.cat([prompt, new], dim=1), NEW).log_softmax(dim=-1).max(dim=-1)
        assert torch.equal(new, likeliest)
        assert_same(torch.tensor(output.logprobs)[None], logprobs)
