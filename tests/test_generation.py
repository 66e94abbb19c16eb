import io
import math
from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from hfgpt.cli import main
from hfgpt.generation import (
    StopFilter,
    TextDecoder,
    continue_prompt,
    encode_prompt,
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
    options = {"max_new_tokens": 40, "do_sample": True, "seed": 0}
    found = continue_prompt(*loaded, "The film was", write=pieces.append, **options)
    assert "".join(pieces) == found.text == loaded[1].decode(found.new_ids, skip_special_tokens=True)
    assert len(pieces) > 1
    assert generate(*loaded, "The film was", **options) == found.text


def writing(model, ids):
    """The model, made to write some tokens whatever it reads; a context manager."""
    script = iter(ids)

    def likeliest(module, args, kwargs, output):
        output.logits = torch.full_like(output.logits, -1e4)
        output.logits[..., next(script)] = 0.0
        return output

    return removed(model.register_forward_hook(likeliest, with_kwargs=True))


@contextmanager
def removed(handle):
    try:
        yield
    finally:
        handle.remove()


def test_korean_streams_whole_characters(loaded):
    """A character of several byte tokens never comes out in halves."""
    model, tokenizer = loaded
    ids = tokenizer("감동 😀 그").input_ids
    assert len(ids) > 12  # the tokenizer has seen no Korean: bytes
    pieces = []
    with writing(model, ids):
        found = continue_prompt(model, tokenizer, "영화", max_new_tokens=len(ids), write=pieces.append)
    assert found.new_ids == ids and found.text == "".join(pieces) == tokenizer.decode(ids) == "감동 😀 그"
    assert [piece.strip() for piece in pieces if piece.strip()] == ["감", "동", "😀", "그"]


def sentencepiece_tokenizer(bos=True):
    """As those of Llama 2, Mistral and Gemma: characters without a token are tokens of their bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    vocab |= {word: len(vocab) + place for place, word in enumerate(["▁", "f", "i", "l", "m"])}
    backend = Tokenizer(models.BPE(vocab, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), *strip])
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", ["감동적인 film 이었다 😀 뷁쀍", "film", "감동적인감동적인감동적인감동적인"])
def test_byte_tokens_of_sentencepiece_become_their_characters(text):
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    decoder = TextDecoder(tokenizer)
    pieces = [decoder.add(token_id) for token_id in ids]
    assert "".join(pieces) == text == tokenizer.decode(ids) and decoder.end() == ""
    assert all(len(piece) <= 1 for piece in pieces)

    # Behind a prompt, a text brings its own space; the bytes may go on from those of the prompt.
    decoder = TextDecoder(tokenizer, tokenizer("영화").input_ids)
    assert "".join(map(decoder.add, ids)) == f" {text}"
    syllable = [3 + byte for byte in "감".encode()]
    decoder = TextDecoder(tokenizer, syllable[:2])
    assert decoder.add(syllable[2]) == "감"


def test_bytes_that_are_no_character_do_not_hold_the_text_back():
    tokenizer = sentencepiece_tokenizer()
    syllable = [3 + byte for byte in "감".encode()]
    decoder = TextDecoder(tokenizer)
    # A whole one, one that is broken off by a letter, a byte that is none, a whole one, half of one.
    ids = [*syllable, *syllable[:2], tokenizer.convert_tokens_to_ids("f"), 3 + 0xFF, *syllable, syllable[0]]
    pieces = [decoder.add(token_id) for token_id in ids]
    assert "".join(pieces) == "감\ufffdf\ufffd감" and decoder.end() == "\ufffd"


def test_stop_texts_and_probabilities_of_byte_tokens():
    tokenizer = sentencepiece_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    ids = tokenizer("감동적인 film", add_special_tokens=False).input_ids[1:]
    with writing(model, ids):
        found = continue_prompt(model, tokenizer, "영화", max_new_tokens=len(ids), stop=["적"])
    assert (found.text, found.ended, found.new_ids) == ("감동", "stop", ids[:9])
    tokens = token_probabilities(model, tokenizer, ids, top=0)
    assert [token.text for token in tokens] == [*["", "", "감", "", "", "동", "", "", "적", "", "", "인"], *" film"]


def test_an_empty_prompt_starts_a_document(loaded):
    model, tokenizer = loaded
    for prompt in ("", []):
        assert continue_prompt(model, tokenizer, prompt, max_new_tokens=3).prompt_ids == [tokenizer.eos_token_id]
    # Where the tokenizer begins each text by itself, that is all there is: no end-of-text behind it.
    assert encode_prompt(sentencepiece_tokenizer(), "") == [1]
    assert encode_prompt(sentencepiece_tokenizer(bos=False), "") == [2]
    nameless = sentencepiece_tokenizer(bos=False)
    nameless.eos_token = None
    with pytest.raises(ValueError, match="The prompt is empty"):
        encode_prompt(nameless, "")


def test_an_end_of_text_in_the_last_place_is_the_end(loaded):
    model, tokenizer = loaded
    film, end = tokenizer(" film").input_ids[0], tokenizer.eos_token_id
    for ids, ended in (([film, end], "end"), ([end], "end"), ([film, film], "length")):
        with writing(model, ids):
            found = continue_prompt(model, tokenizer, "The", max_new_tokens=2)
        assert (found.new_ids, found.ended) == (ids, ended)


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repetition-penalty", "0"], "--repetition-penalty must be above 0 (1 is none), got 0.0."),
        (["--seed", "-1"], "--seed must be at least 0, got -1."),
        (["--seed", str(2**32)], "--seed must be at most 4294967295"),
        (["--min-new-tokens", "-3"], "--min-new-tokens must be at least 0, got -3."),
        (["--min-new-tokens", "100"], "--min-new-tokens 100 is more than --max-new-tokens 64, its default"),
        (["--min-new-tokens", "5", "--max-new-tokens", "4"], "--min-new-tokens 5 is more than --max-new-tokens 4:"),
        (["--temperature", "nan"], "--temperature must be above 0, got nan"),
        (["--beams", "3", "--top-k", "5", "--interactive"], "leave out --beams or --top-k."),
    ],
)
def test_the_command_refuses_numbers_before_it_loads(words, message, capsys):
    assert main(["generate", "nowhere/at-all", "x", *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == ""


def test_the_command_prints_the_prompt_with_the_text(pretrained, capsys, monkeypatch):
    words = ["generate", "--device", "cpu", str(pretrained)]
    # What cannot be written leaves no prompt on standard output.
    assert main([*words, "The film", "--max-new-tokens", "100"]) == 2
    assert capsys.readouterr().out == ""
    # At a terminal, where no prompt was given, it says what it waits for.
    asked = io.StringIO("The film\n")
    monkeypatch.setattr(asked, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin", asked)
    assert main([*words, "--max-new-tokens", "3"]) == 0
    shown = capsys.readouterr()
    text = generate(*load(pretrained, "cpu"), "The film", max_new_tokens=3)
    assert shown.out == f"The film{text}\n" and "standard input; Ctrl-D" in shown.err
    # Nor is it lost where nothing follows.
    assert main([*words, "The film", "--max-new-tokens", "3", "--stop", text[0]]) == 0
    shown = capsys.readouterr()
    assert shown.out == "The film\n" and "standard input" not in shown.err


def test_a_stop_text_is_looked_for_in_the_new_text_alone(loaded):
    model, tokenizer = loaded
    ids = tokenizer("was dull").input_ids
    with writing(model, ids):
        found = continue_prompt(model, tokenizer, "The film ", max_new_tokens=len(ids), stop=["film was"])
    assert (found.text, found.ended) == ("was dull", "length")


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
