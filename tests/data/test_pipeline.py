"""The whole pipeline on real text with everything planted in it that goes wrong in the world."""

import json
import random
import re
import zlib
from pathlib import Path

import pytest
from real_text import docstrings, nsmc_folder
from transformers import AutoTokenizer

from hfgpt.config import from_mapping, read_yaml
from hfgpt.data.corpus import CorpusConfig, prepare
from hfgpt.data.documents import list_parts, read_documents, read_json
from hfgpt.data.executors import ExecutorConfig
from hfgpt.data.packing import TokenStream, read_metadata
from hfgpt.data.report import reconciles


COPIES, LEAKS = 60, 25
NAVIGATION = ["Home | About | Contact", "We use cookies to improve your experience. Accept all", "로그인 | 회원가입"]


def grams(text: str, size: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def near_copy(text: str, generator: random.Random) -> str:
    """`text` with words replaced until about 80% of its 5-grams are left."""
    words = text.split(" ")
    original = grams(text, 5)
    while True:
        changed = list(words)
        changed[generator.randrange(len(words))] = f"replaced{generator.randrange(10**6)}"
        if len(grams(" ".join(changed), 5) & original) < 0.8 * len(original):
            return " ".join(words)
        words = changed


def sentence(generator: random.Random, words: int) -> str:
    """A sentence that is nowhere else."""
    return " ".join(
        "".join(generator.choices("bdfgklmnprstvz", k=3)) + generator.choice("aeiou") for _ in range(words)
    )


class Mess:
    """Sources with planted near-duplicates, leaks, boilerplate, broken bytes, empty and gigantic documents."""

    def __init__(self, folder: Path):
        generator = random.Random(0)
        texts = [text for text in docstrings() if len(text.split()) >= 60]
        generator.shuffle(texts)
        self.curated, others = texts[:120], texts[120:260]
        self.copies = [near_copy(text, generator) for text in self.curated[:COPIES]]
        self.benchmark = [sentence(generator, 20) for _ in range(LEAKS)]
        long = ["\n".join(texts[260 + 3 * number : 263 + 3 * number]) for number in range(LEAKS)]
        self.leaking = [
            text[: len(text) // 2] + f" {leak[0].upper()}{leak[1:]}! " + text[len(text) // 2 :]
            for text, leak in zip(long, self.benchmark)
        ]
        # Twelve words of a benchmark are no leak.
        self.quoting = [f"{text} {' '.join(self.benchmark[0].split()[:12])}." for text in others[:3]]
        self.clean = others[3:]
        self.gigantic = " ".join(sentence(generator, 12) for _ in range(40_000))
        crawl = [*self.copies, *self.leaking, *self.quoting, *self.clean, self.gigantic]
        generator.shuffle(crawl)
        lines = [json.dumps({"text": "\n".join([*NAVIGATION, text, *NAVIGATION])}).encode() for text in crawl]
        self.empty = [b'{"text": ""}', b'{"text": " \\n\\t "}', b'{"text": "\\u0000"}']
        self.short = [json.dumps({"text": NAVIGATION[1]}).encode()]
        self.broken = [b'{"text": "broken \xff\xfe bytes"}', b"not json", b"[1, 2]", b'{"body": "no text"}']
        self.crawl_rows = [*lines, *self.empty, *self.short, *self.broken]
        generator.shuffle(self.crawl_rows)
        (folder / "crawl.jsonl").write_bytes(b"\n".join(self.crawl_rows) + b"\n")
        (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in self.curated))
        (folder / "benchmark.jsonl").write_text(
            "".join(json.dumps({"question": text, "answers": ["yes", "no"]}) + "\n" for text in self.benchmark)
        )
        self.recipe = {
            "sources": [
                {"name": "crawl", "path": str(folder / "crawl.jsonl"), "curated": False},
                {"name": "docs", "path": str(folder / "docs.jsonl")},
            ],
            "decontaminate": {
                "benchmarks": [
                    {"name": "made-up", "path": str(folder / "benchmark.jsonl"), "fields": ["question", "answers"]}
                ]
            },
            "tokenizer": {"vocab_size": 2000, "sample_bytes": 500_000},
            "holdout_fraction": 0.02,
            "shard_tokens": 300_000,
        }


@pytest.fixture(scope="module")
def mess(tmp_path_factory: pytest.TempPathFactory) -> Mess:
    return Mess(tmp_path_factory.mktemp("mess"))


@pytest.fixture(scope="module")
def prepared(mess: Mess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mess, prepared in one process."""
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    prepare(from_mapping(CorpusConfig, mess.recipe, "recipe"), folder, executor=ExecutorConfig(workers=1))
    return folder


def texts_of(folder: Path, source: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    texts = []
    for split in ("train", "validation"):
        stream = TokenStream(folder, split, source)
        ids = stream.read(0, len(stream)).tolist()
        start = 0
        for position, token in enumerate(ids):
            if token == tokenizer.eos_token_id:
                texts.append(tokenizer.decode(ids[start:position]))
                start = position + 1
    return texts


def texts_after(folder: Path, stage: str, source: str) -> list[str]:
    """The documents a stage has left."""
    parts = list_parts(folder.with_name("corpus.stages") / stage / "documents")
    return [
        document.text for part in parts for document in read_documents(part) if document.metadata["source"] == source
    ]


def test_planted_near_duplicates_go_and_unrelated_documents_stay(mess, prepared):
    before, after = (
        {source: texts_after(prepared, stage, source) for source in ("docs", "crawl")}
        for stage in ("clean", "deduplicate/filter")
    )
    planted = [copy for copy in mess.copies if copy in before["crawl"]]
    assert len(planted) > 0.8 * COPIES
    assert sum(copy in after["crawl"] for copy in planted) <= 0.05 * len(planted)
    # Docstrings of the library may be like one another, too. What goes has its like among what stays.
    kept = [grams(text, 5) for text in (*after["crawl"], *after["docs"])]
    gone = [text for source in before for text in before[source] if text not in after[source]]
    assert len(gone) < 1.3 * len(planted)
    for text in gone:
        own = grams(text, 5)
        assert max(len(own & other) / len(own | other) for other in kept) > 0.35, text[:200]


def test_of_two_near_duplicates_the_curated_one_stays(mess, prepared):
    before, after = (texts_after(prepared, stage, "docs") for stage in ("clean", "deduplicate/filter"))
    for text in set(before) - set(after):
        own = grams(text, 5)
        assert max(len(own & grams(other, 5)) / len(own | grams(other, 5)) for other in after) > 0.35


def test_every_leak_is_cut_and_nothing_else(mess, prepared):
    before = texts_after(prepared, "deduplicate/filter", "crawl")
    kept = texts_of(prepared, "crawl")
    leaked = {gram for text in mess.benchmark for gram in grams(text, 13)}
    assert not leaked & {gram for text in kept for gram in grams(text, 13)}
    leaking = [(text, leak) for text, leak in zip(mess.leaking, mess.benchmark) if text in before]
    assert len(leaking) > 0.7 * LEAKS
    for text, leak in leaking:
        start = text.index(leak[1:]) - 1
        for piece in (text[: start - 200], text[start + len(leak) + 200 :]):
            # Punctuation beside the words may be counted to the gram.
            assert any(piece[skip : len(piece) - other] in kept for skip in (0, 1) for other in (0, 1)), piece
    leaking_texts = {text for text, _ in leaking}
    assert {text for text in before if text not in leaking_texts} <= set(kept)
    assert mess.quoting[0] in kept
    assert read_json(prepared / "report.json")["contamination"]["made-up"]["dirty"] == len(leaking)
    lines = (prepared / "contamination/made-up.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["dirty"] for line in lines) == len(leaking)


def test_everything_is_counted(mess, prepared):
    report = read_json(prepared / "report.json")
    assert reconciles(report) == []
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["read"]["sources"]["crawl"]["documents_in"] == len(mess.crawl_rows)
    assert stages["read"]["dropped"]["crawl"]["malformed row"]["documents"] == len(mess.broken)
    empty = stages["read"]["dropped"]["crawl"]["empty"]["documents"]
    empty += stages["clean"]["dropped"]["crawl"].get("empty", {"documents": 0})["documents"]
    assert empty >= len(mess.empty)
    assert read_metadata(prepared)["bad_rows"]["count"] == len(mess.broken)
    assert "not valid UTF-8" in " ".join(read_metadata(prepared)["bad_rows"]["examples"])
    assert (prepared / "report.html").read_text(encoding="utf-8").count("<svg") >= 3


def test_boilerplate_is_gone_and_the_gigantic_document_is_whole(mess, prepared):
    kept = texts_of(prepared, "crawl")
    assert not [text for text in kept if any(line in text for line in NAVIGATION)]
    assert mess.gigantic in kept
    assert len(mess.gigantic) > 2_000_000


def test_parts_and_workers_do_not_show_in_the_result(mess, prepared, tmp_path):
    recipe = {**mess.recipe, "part_bytes": 60_000}
    folder = tmp_path / "corpus"
    prepare(from_mapping(CorpusConfig, recipe, "recipe"), folder, executor=ExecutorConfig(workers=2))
    assert len(list((tmp_path / "corpus.stages/clean/documents").glob("*.parquet"))) > 4
    assert checksums(folder) == checksums(prepared)


def checksums(folder: Path) -> dict[str, int]:
    """Of shards and tokenizer."""
    files = [path for part in ("train", "validation", "tokenizer") for path in (folder / part).rglob("*.*")]
    assert len(files) > 4
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


@pytest.mark.skipif(nsmc_folder() is None, reason="NSMC's reviews are not beside the checkout")
def test_the_korean_english_recipe_makes_one_vocabulary_for_both(tmp_path):
    """Its own settings, on the first reviews, and on docstrings in the place of the demo's English."""
    recipe = read_yaml(Path(__file__).parents[2] / "recipes/corpus/korean-english.yaml")
    english = tmp_path / "english.jsonl"
    english.write_text("".join(json.dumps({"text": text}) + "\n" for text in docstrings()))
    korean, *_ = recipe["sources"]
    recipe["sources"] = [
        {**korean, "path": str(nsmc_folder() / "unlabelled.jsonl.gz"), "max_rows": 3000},
        {"name": "english", "path": str(english), "language": "en", "weight": 0.5},
    ]
    recipe["decontaminate"]["benchmarks"][0]["path"] = str(nsmc_folder() / "test.jsonl")
    recipe["tokenizer"] |= {"vocab_size": 4096, "sample_bytes": 300_000}
    prepare(from_mapping(CorpusConfig, recipe, "recipe"), tmp_path / "corpus", executor=ExecutorConfig(workers=1))
    report = read_json(tmp_path / "corpus/report.json")
    assert reconciles(report) == []
    fertility = {row["language"]: row for row in report["fertility"]}
    assert set(fertility) == {"ko", "en"}
    # GPT-2's vocabulary needs about ten tokens for a Korean word.
    assert fertility["ko"]["tokens_per_word"] < 4
    sample = {row["language"]: row["bytes"] for row in report["tokenizer"]["sample"]}
    assert sample["en"] == pytest.approx(sample["ko"], rel=0.05)
    assert [row["realised"] for row in report["mixture"]["sources"]] == pytest.approx([0.5, 0.5], abs=0.05)
