import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hfgpt.generation import (
    StopFilter,
    continue_prompt,
    generate,
    load,
    load_writer,
    score_of,
    token_bytes,
    token_probabilities,
)
from hfgpt.tasks import ChoiceTask
from hfgpt.tasks.saved import TaskRecord, save_task


@pytest.fixture(scope="module")
def loaded(pretrained):
    return load(pretrained, device="cpu")


def test_what_is_streamed_is_what_is_returned(loaded):
    pieces = []
    text = generate(*loaded, "The film was", max_new_tokens=40, write=pieces.append, do_sample=True, seed=0)
    assert "".join(pieces) == text
    assert len(pieces) > 1


def test_korean_streams_whole_characters(loaded):
    """A character of several byte tokens never comes out in halves."""
    model, tokenizer = loaded
    pieces = []
    ids = tokenizer("감동 그 자체", return_tensors="pt").input_ids
    assert ids.shape[1] > 6  # the tokenizer has seen no Korean: bytes
    text = generate(model, tokenizer, "감동 그 자체", max_new_tokens=10, write=pieces.append, do_sample=True, seed=0)
    assert "".join(pieces) == text


def test_an_empty_prompt_starts_a_document(loaded):
    assert isinstance(generate(*loaded, "", max_new_tokens=3), str)


def test_the_default_length_stays_within_the_positions(loaded):
    model, tokenizer = loaded
    prompt = "The film was dull and the story was dull and the cast was dull and the camera work " * 2
    used = len(AutoTokenizer.from_pretrained(model.name_or_path)(prompt).input_ids)
    assert 0 < model.config.max_position_embeddings - used < 64
    assert generate(model, tokenizer, prompt, min_new_tokens=4)


def test_the_models_precision_is_kept(pretrained, tmp_path):
    model, tokenizer = load(pretrained, device="cpu")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path, device="cpu")[0].dtype == torch.bfloat16


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize("device", ["foo", "cuda:99", ""])
def test_a_device_that_is_not_here_is_named(pretrained, device):
    with pytest.raises(ValueError, match=f"`--device {device}` cannot be used here .*: give cpu"):
        load(pretrained, device=device)


def test_text_ends_before_a_stop_text_wherever_tokens_end(loaded):
    options = {"max_new_tokens": 24, "do_sample": True, "seed": 0}
    whole = generate(*loaded, "The film was", **options)
    for place in range(5, 17):
        stop = whole[place : place + 4]
        pieces = []
        found = continue_prompt(*loaded, "The film was", write=pieces.append, stop=["never", stop], **options)
        assert found.text == "".join(pieces) == whole[: whole.index(stop)]
        # Nothing is generated past the token that ends it.
        assert found.ended == "stop" and stop not in loaded[1].decode(found.new_ids[:-1])


def test_beam_search_ends_at_a_stop_text(loaded):
    pieces = []
    options = {"max_new_tokens": 24, "num_beams": 2}
    assert "(" in generate(*loaded, "The film was", **options)
    text = generate(*loaded, "The film was", write=pieces.append, stop=["("], **options)
    assert "(" not in text and pieces == [text] * bool(text)


def test_what_could_begin_a_stop_text_is_held_back():
    written = []
    output = StopFilter(["\nQ:", "END"], written.append)
    for text in ("one\n", "two EN", "D of\nQ"):
        output.feed(text)
    assert written == ["one", "\ntwo "] and output.stopped
    output.feed("more")
    assert written == ["one", "\ntwo "]

    output = StopFilter(["\nQ:"], written.append)
    output.feed("an answer\nQ")
    assert written[-1] == "an answer"
    output.end()
    assert written[-1] == "\nQ" and not output.stopped


def test_generation_ends_when_it_is_asked_to(loaded):
    pieces = []
    found = continue_prompt(
        *loaded,
        "The film",
        max_new_tokens=40,
        write=pieces.append,
        should_stop=lambda: len(pieces) >= 3,
        min_new_tokens=9,
    )
    assert found.ended == "asked" and len(pieces) == 3 and found.text == "".join(pieces)


def test_an_empty_stop_text_is_refused(loaded):
    with pytest.raises(ValueError, match="`stop` has an empty text"):
        generate(*loaded, "The", stop=[""])


def test_another_models_positions_hold_too(loaded):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=16, n_embd=8, n_layer=1, n_head=1)).eval()
    with pytest.raises(ValueError, match=r"16 positions .* leaves \d+ to generate, and 30 were asked for"):
        generate(model, loaded[1], "The film", max_new_tokens=30)


def test_token_probabilities_are_those_of_the_logits(loaded):
    model, tokenizer = loaded
    text = "The film was dull, 감동 그 자체."
    tokens = token_probabilities(model, tokenizer, text, top=3)
    ids = tokenizer(text).input_ids
    assert [token.token_id for token in tokens] == ids
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.eos_token_id, *ids[:-1]]])).logits[0].float()
    log_probs = logits.log_softmax(-1)
    torch.testing.assert_close(
        torch.tensor([token.log_prob for token in tokens]), log_probs.gather(-1, torch.tensor(ids)[:, None])[:, 0]
    )
    for token, row in zip(tokens, log_probs):
        assert token.rank == int((row > row[token.token_id]).sum()) + 1
        best = row.exp().topk(3).values.tolist()
        assert [other.probability for other in token.alternatives] == pytest.approx(best, rel=1e-4)
    score = score_of(tokens)
    assert score.bytes == len(text.encode()) and score.tokens == len(ids)
    assert score.bits_per_byte == pytest.approx(-score.log_prob / math.log(2) / len(text.encode()))
    assert score.perplexity == pytest.approx(math.exp(-score.log_prob / len(ids)))

    inside = token_probabilities(model, tokenizer, text, from_start=False)
    with torch.no_grad():
        row = model(torch.tensor([ids])).logits[0, 0].float().log_softmax(-1)
    assert inside[0].log_prob is None and inside[1].log_prob == pytest.approx(float(row[ids[1]]), abs=1e-4)


def test_texts_of_tokens_are_whole_characters(loaded):
    model, tokenizer = loaded
    text = "감동\n그 film, 😀!"
    tokens = token_probabilities(model, tokenizer, text)
    assert "".join(token.text for token in tokens) == text
    assert not any("\ufffd" in token.text for token in tokens)
    # The tokenizer has seen no Korean: three bytes a syllable.
    assert [token.text for token in tokens[:6]] == ["", "", "감", "", "", "동"]
    assert not any("\ufffd" in other.text for token in tokens for other in token.alternatives)
    ids = tokenizer("감").input_ids
    assert [token_bytes(tokenizer, token_id) for token_id in ids] == ["<EA>", "<B0>", "<90>"]


def test_bytes_that_are_no_character_come_out_at_the_end(loaded):
    model, tokenizer = loaded
    ids = [*tokenizer("film").input_ids, *tokenizer("감").input_ids[:2], *tokenizer("a감").input_ids[:-1]]
    tokens = token_probabilities(model, tokenizer, ids)
    assert "".join(token.text for token in tokens) == tokenizer.decode(ids)


def test_a_text_past_the_positions_is_not_scored(loaded):
    with pytest.raises(ValueError, match=r"64 positions .* shorten it"):
        token_probabilities(*loaded, "word " * 100)
    with pytest.raises(ValueError, match="no text to score"):
        token_probabilities(*loaded, "")


def test_a_model_with_a_head_does_not_write(pretrained, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(pretrained)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"classification head: it classifies texts and does not write\. Without a task"
    ):
        load_writer(tmp_path)
    task = ChoiceTask("sentiment", prompt="{text}", choices={"bad": " bad", "good": " good"})
    save_task(TaskRecord(task, "choice", "en", head="classification"), tmp_path)
    with pytest.raises(ValueError, match=r"does not write\. Ask it by `hfgpt evaluate` or `hfgpt demo`"):
        load_writer(tmp_path)
    assert load_writer(pretrained, "cpu")[0].num_parameters() > 0
