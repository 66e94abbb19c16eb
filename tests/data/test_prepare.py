"""`hfgpt prepare` as its users meet it: every format at once, a step at a time, and whatever goes wrong."""

import bz2
import errno
import gzip
import html
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from real_text import docstrings, nsmc_folder
from transformers import AutoTokenizer
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from hfgpt.cli import main
from hfgpt.config import from_mapping
from hfgpt.data import corpus as corpus_module
from hfgpt.data import executors, readers
from hfgpt.data.corpus import CorpusConfig, prepare
from hfgpt.data.documents import PartWriter, list_parts, read_documents, read_json
from hfgpt.data.executors import ExecutorConfig
from hfgpt.data.packing import TokenStream
from hfgpt.data.report import reconciles
from hfgpt.data.shards import sample_shares
from hfgpt.data.stages import locked
from hfgpt.data.tokenizer import encode_documents, train_tokenizer


PEOPLE = ["할머니는", "우리 동네 서점 주인은", "막내 동생은", "그 배우는", "담임 선생님은"]
TIMES = ["이른 아침부터", "비가 오는 날이면", "주말마다", "눈이 녹을 무렵", "저녁을 먹고 나서"]
DEEDS = ["바닷가를 걸으며 노래를 불렀다.", "오래된 사진을 한 장씩 꺼내 보았다.", "골목 끝 찻집에서 편지를 썼다."]
DEEDS += ["새로 산 자전거를 조심스럽게 닦았다.", "텃밭에 상추와 고추를 심었다."]
NAVIGATION = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/login'>로그인</a></li></ul></nav>"


def korean(generator: random.Random, sentences: int = 8) -> str:
    """A made-up story."""
    return " ".join(
        f"{generator.choice(PEOPLE)} {generator.choice(TIMES)} {generator.choice(DEEDS)} {generator.randrange(1000)}번째."
        for _ in range(sentences)
    )


def page(text: str, charset: str) -> bytes:
    body = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
    return (
        f"<!DOCTYPE html><html><head><meta charset='{charset}'><title>Page</title></head><body>{NAVIGATION}"
        f"<article>{body}</article><footer>Copyright 2020. All rights reserved.</footer></body></html>"
    ).encode(charset)


def jsonl(path: Path, texts: list[str], **fields: str) -> str:
    path.write_text("".join(json.dumps({"text": text, **fields}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def write_warc(path: Path, texts: list[str], stories: list[str]) -> None:
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for status, charset, pages in (
            ("200 OK", "utf-8", texts),
            ("200 OK", "euc-kr", stories),
            ("404 Not Found", "utf-8", texts[:1]),
        ):
            for number, text in enumerate(pages):
                headers = StatusAndHeaders(status, [("Content-Type", "text/html")], protocol="HTTP/1.1")
                writer.write_record(
                    writer.create_warc_record(
                        f"https://example.com/{charset}/{number}",
                        "response",
                        payload=io.BytesIO(page(text, charset)),
                        http_headers=headers,
                    )
                )


def write_wet(path: Path, texts: list[str]) -> None:
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number, text in enumerate(texts):
            writer.write_record(
                writer.create_warc_record(
                    f"https://example.com/wet/{number}",
                    "conversion",
                    payload=io.BytesIO(text.encode()),
                    warc_content_type="text/plain",
                )
            )


def write_wikipedia(path: Path, texts: list[str]) -> None:
    pages = [
        f"<page><title>Article {number}</title><ns>0</ns><revision><model>wikitext</model><text>"
        + html.escape(f"'''It''' is a [[thing (object)|thing]].{{{{cite}}}}\n\n{text}\n\n== References ==\n* one")
        + "</text></revision></page>"
        for number, text in enumerate(texts)
    ]
    pages.append("<page><title>R</title><ns>0</ns><redirect title='Article 0'/><revision><text/></revision></page>")
    content = f"<mediawiki xmlns='http://www.mediawiki.org/xml/export-0.11/'>{''.join(pages)}</mediawiki>"
    path.write_bytes(bz2.compress(content.encode()))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real English, each at least 60 words."""
    found = [text for text in docstrings() if len(text.split()) >= 60]
    random.Random(0).shuffle(found)
    return found


@pytest.fixture(scope="module")
def stories() -> list[str]:
    generator = random.Random(0)
    return [korean(generator) for _ in range(60)]


@pytest.fixture(scope="module")
def world(texts: list[str], stories: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe with every format there is."""
    folder = tmp_path_factory.mktemp("world")
    write_warc(folder / "crawl.warc.gz", texts[:12], stories[:12])
    write_wet(folder / "crawl.warc.wet.gz", [*texts[12:20], *stories[12:20]])
    (folder / "html").mkdir()
    for number, text in enumerate(texts[20:24]):
        (folder / f"html/{number}.html").write_bytes(page(text, "utf-8"))
    write_wikipedia(folder / "wiki-pages-articles1.xml-p1p9.bz2", texts[24:30])
    (folder / "books").mkdir()
    for number in range(2):
        (folder / f"books/{number}.txt").write_text("\n\n".join(texts[30 + 5 * number : 35 + 5 * number]))
    jsonl(folder / "rows.jsonl", texts[40:50], lang="en")
    with open(folder / "rows.csv", "w", encoding="utf-8") as file:
        file.write("text,label\n" + "".join(f'"{text}",1\n' for text in stories[20:35]))
    pyarrow.parquet.write_table(pyarrow.table({"content": stories[35:50]}), folder / "rows.parquet")
    (folder / "bench.jsonl").write_text(
        "".join(
            json.dumps({"question": text, "choices": ["a", "b"]}) + "\n" for text in (texts[41], texts[99], "short")
        )
    )
    weights = {
        "crawl": 4,
        "wet": 2,
        "pages": 1,
        "wikipedia": 1,
        "books": 0.5,
        "rows": 0.5,
        "한국어/csv": 0.5,
        "table": 0.5,
    }
    sources: list[dict[str, Any]] = [
        {"name": "crawl", "path": f"{folder}/crawl.warc.gz", "curated": False},
        {"name": "wet", "path": f"{folder}/crawl.warc.wet.gz", "curated": False},
        {"name": "pages", "path": f"{folder}/html/*.html", "curated": False},
        {"name": "wikipedia", "path": f"{folder}/wiki-*.xml*.bz2"},
        {"name": "books", "path": f"{folder}/books/*.txt"},
        {"name": "rows", "path": f"{folder}/rows.jsonl", "where": {"lang": "en"}},
        {"name": "한국어/csv", "path": f"{folder}/rows.csv", "language": "ko"},
        {"name": "table", "path": f"{folder}/rows.parquet", "text_field": "content"},
    ]
    return {
        "sources": [{**source, "weight": weights[source["name"]]} for source in sources],
        "languages": ["en", "ko"],
        "deduplicate": "exact",
        "decontaminate": {
            "benchmarks": [{"name": "테스트 1", "path": f"{folder}/bench.jsonl", "fields": ["question", "choices"]}]
        },
        "tokenizer": {"vocab_size": 1000, "sample_bytes": 60_000, "language_shares": {"en": 0.25, "ko": 0.75}},
        "holdout_fraction": 0.02,
    }


def run(recipe: dict[str, Any], folder: Path, **arguments: Any) -> dict[str, Any]:
    return prepare(
        from_mapping(CorpusConfig, recipe, "recipe.yaml"), folder, executor=ExecutorConfig(workers=1), **arguments
    )


@pytest.fixture(scope="module")
def prepared(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world, prepared; treat it as read-only."""
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    run(world, folder)
    return folder


@pytest.fixture
def simple(tmp_path: Path, tokenizer_folder: str) -> dict[str, Any]:
    """A recipe that takes a moment, with two sources."""
    return {
        "sources": [
            {"name": "a", "path": jsonl(tmp_path / "a.jsonl", [f"the cat number {n} sat" for n in range(20)])},
            {"name": "b", "path": jsonl(tmp_path / "b.jsonl", [f"고양이 {n} 매트에" for n in range(20)])},
        ],
        "tokenizer": {"path": tokenizer_folder},
        "deduplicate": "exact",
        "holdout_fraction": 0.0,
    }


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("report.")]
    assert len(files) > 3
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def texts_after(folder: Path, stage: str, source: str | None = None) -> list[str]:
    """The documents a stage has left."""
    parts = list_parts(folder.with_name(f"{folder.name}.stages") / stage / "documents")
    documents = [document for part in parts for document in read_documents(part)]
    return [document.text for document in documents if source in (None, document.metadata["source"])]


def ledgers(folder: Path) -> dict[str, int]:
    """When each stage was finished."""
    stages = folder.with_name(f"{folder.name}.stages")
    return {
        path.parent.relative_to(stages).as_posix(): path.stat().st_mtime_ns
        for depth in ("*", "*/*")
        for path in stages.glob(f"{depth}/ledger.json")
    }


# --- Everything at once


def test_every_format_ends_in_the_corpus_as_plain_text(prepared, texts, stories):
    report = read_json(prepared / "report.json")
    assert reconciles(report) == []
    metadata = read_json(prepared / "metadata.json")
    expected = {"crawl": 24, "wet": 16, "pages": 4, "wikipedia": 6, "books": 2, "한국어/csv": 15, "table": 15}
    assert {name: metadata["sources"][name]["documents"] for name in expected} == expected
    everything = texts_after(prepared, "decontaminate/cut")
    assert not [text for text in everything if "로그인" in text or "Home" in text]
    wikipedia = texts_after(prepared, "decontaminate/cut", "wikipedia")
    assert all(
        text.startswith("It is a thing.\n") and "References" not in text and "{{" not in text for text in wikipedia
    )
    crawl = "\n".join(texts_after(prepared, "decontaminate/cut", "crawl"))
    assert all(story in crawl for story in stories[:12])
    assert texts_after(prepared, "decontaminate/cut", "wet") == [*texts[12:20], *stories[12:20]]
    dropped = {stage["name"]: stage["dropped"] for stage in report["stages"]}["read"]
    assert dropped["crawl"]["HTTP status"]["documents"] == 1
    assert dropped["wikipedia"]["redirect"]["documents"] == 1
    assert {row["language"] for row in report["fertility"]} == {"en", "ko"}


def test_tokens_of_every_source_are_its_documents(prepared):
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    for source in read_json(prepared / "metadata.json")["sources"]:
        found = []
        for split in ("train", "validation"):
            stream = TokenStream(prepared, split, source)
            found += tokenizer.decode(stream.read(0, len(stream))).split(tokenizer.eos_token)[:-1]
        assert sorted(found) == sorted(texts_after(prepared, "decontaminate/cut", source))


def test_weights_are_in_the_metadata_and_realised_in_the_report(prepared, world):
    weights = {source["name"]: source["weight"] for source in world["sources"]}
    assert read_json(prepared / "metadata.json")["weights"] == weights
    rows = read_json(prepared / "report.json")["mixture"]["sources"]
    assert [row["source"] for row in rows] == list(weights)
    for row in rows:
        assert row["weight_normalised"] == pytest.approx(weights[row["source"]] / 10)
        assert row["realised"] == pytest.approx(row["weight_normalised"], abs=0.1)


def test_small_source_does_not_change_the_shares_of_the_languages():
    strata = {("wiki", "ko"): 1_000, ("crawl", "ko"): 10**6, ("web", "en"): 10**6}
    weights = {"wiki": 0.5, "crawl": 0.1, "web": 0.4}
    shares = sample_shares(strata, 100_000, weights, {"ko": 0.5, "en": 0.5})
    assert shares["wiki", "ko"] == 1_000
    assert shares["crawl", "ko"] == pytest.approx(49_000, abs=10)


def test_what_became_of_each_benchmark_example_is_published(prepared, texts):
    (file,) = (prepared / "contamination").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert file.name == "테스트_1.jsonl"
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["dirty"] for row in rows] == [True, False, False]
    assert rows[2]["grams"] == 0
    assert texts[41] not in texts_after(prepared, "decontaminate/cut")
    assert "테스트 1" in (prepared / "report.html").read_text(encoding="utf-8")


# --- The quality filter


def junk(generator: random.Random, words: str) -> str:
    return " ".join(generator.choice(words.split()) for _ in range(60)) + f" {generator.randrange(10**6)}"


ADVERTISING = "buy cheap pills casino bonus click here free download viagra poker winner credit loans sale"
KOREAN_ADVERTISING = "바카라 카지노 무료 쿠폰 지금 클릭 대출 상담 최저가 할인 이벤트 토토 입금 환전 추천인 코드"


def test_quality_filter_keeps_what_is_like_the_curated_sources_in_english_and_korean(
    texts, tmp_path, tokenizer_folder
):
    if nsmc_folder() is None:
        pytest.skip("no Korean reviews here")
    reviews = [json.loads(line)["text"] for line in (nsmc_folder() / "train.jsonl").open(encoding="utf-8")]
    reviews = ["\n".join(reviews[start : start + 12]) for start in range(0, 3600, 12)]
    generator = random.Random(0)
    good = {"en": texts[150:210], "ko": reviews[150:210]}
    bad = {
        "en": [junk(generator, ADVERTISING) for _ in range(300)],
        "ko": [junk(generator, KOREAN_ADVERTISING) for _ in range(300)],
    }
    crawl = [text for kind in (good, bad) for texts_of in kind.values() for text in texts_of]
    generator.shuffle(crawl)
    recipe = {
        "sources": [
            {"name": "crawl", "path": jsonl(tmp_path / "crawl.jsonl", crawl), "curated": False},
            {"name": "docs", "path": jsonl(tmp_path / "docs.jsonl", texts[:150])},
            {"name": "reviews", "path": jsonl(tmp_path / "reviews.jsonl", reviews[:150])},
        ],
        "quality": {"min_examples": 100},
        "clean": {"max_top_line": None, "max_repeated_lines": None},
        "deduplicate": "none",
        "tokenizer": {"path": tokenizer_folder},
    }
    run(recipe, tmp_path / "corpus")
    report = read_json(tmp_path / "corpus/report.json")
    assert reconciles(report) == []
    kept = set(texts_after(tmp_path / "corpus", "quality/filter", "crawl"))
    for language in ("en", "ko"):
        shares = [sum(text in kept for text in kind[language]) / len(kind[language]) for kind in (good, bad)]
        # Of the good ones most go too: they were among the negatives that the classifier learnt by heart.
        assert shares[0] > 5 * shares[1], language
        assert shares[1] < 0.02, language
        assert report["quality"][language]["filtered"]
    seen = texts_after(tmp_path / "corpus", "clean", "crawl")
    assert len(seen) > 700
    assert sum(numbers["kept"] + numbers["dropped"] for numbers in report["quality"].values()) == len(seen)
    assert len(texts_after(tmp_path / "corpus", "quality/filter", "docs")) == 150


def test_crawl_that_is_not_filtered_for_want_of_examples_is_told(simple, texts, tmp_path, capsys):
    simple["sources"] += [{"name": "c", "path": jsonl(tmp_path / "c.jsonl", texts[:5]), "curated": False}]
    run({**simple, "quality": {}}, tmp_path / "corpus")
    assert "`quality` does not filter language 'en': 0 positives, 5 negatives: fewer than min_examples" in (
        capsys.readouterr().err
    )
    assert len(texts_after(tmp_path / "corpus", "quality/filter", "c")) == 5


# --- A step at a time


def test_stages_one_by_one_and_then_publishing_give_the_same_corpus(world, prepared, tmp_path):
    folder = tmp_path / "corpus"
    for stage in ("read", "clean", "deduplicate", "decontaminate", "tokenizer", "tokenize", "shards"):
        entry = run(world, folder, stage=stage)
        assert entry["name"] == stage
        assert entry["tasks"] >= 1
        assert not folder.exists()
    before = ledgers(folder)
    run(world, folder)
    assert ledgers(folder) == before
    assert contents(folder) == contents(prepared)


def test_stage_before_its_turn_says_which_is_missing(simple, tmp_path):
    run(simple, tmp_path / "corpus", stage="read")
    with pytest.raises(
        ValueError, match="`--stage tokenize` needs 'clean', which is not done: run `--stage clean` first"
    ):
        run(simple, tmp_path / "corpus", stage="tokenize")
    with pytest.raises(
        ValueError, match=r"one of read, clean, deduplicate, tokenizer, tokenize, shards .*got 'tokenise'"
    ):
        run(simple, tmp_path / "corpus", stage="tokenise")


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"clean": {"min_words": 5}}, "clean"),
        ({"decontaminate": None}, "tokenizer/plan"),
        ({"tokenizer": {"vocab_size": 500}}, "tokenizer/plan"),
        ({"holdout_fraction": 0.1}, "tokenize"),
        ({"shard_tokens": 2000}, "shards/plan"),
        ({"max_bad_rows": 3}, None),
    ],
)
def test_changed_recipe_runs_only_what_depends_on_the_change(world, prepared, tmp_path, change, first):
    folder = tmp_path / "corpus"
    shutil.copytree(prepared, folder)
    shutil.copytree(prepared.with_name("corpus.stages"), tmp_path / "corpus.stages")
    before = ledgers(folder)
    recipe = {**world, **change}
    with pytest.raises(
        ValueError, match=r"another recipe .*pass --overwrite \(what has not changed is not made again\)"
    ):
        run(recipe, folder)
    assert ledgers(folder) == before
    run(recipe, folder, overwrite=True)
    after = ledgers(folder)
    order = sorted(after, key=lambda stage: after[stage])
    assert [stage for stage in order if after[stage] == before.get(stage)] == order[
        : order.index(first) if first else None
    ]
    assert reconciles(read_json(folder / "report.json")) == []
    if first in ("clean", "tokenizer/plan"):
        run(recipe, tmp_path / "fresh")
        assert contents(folder) == contents(tmp_path / "fresh")


def test_tokenizer_that_was_trained_anew_in_its_place_is_noticed(simple, tmp_path):
    simple["tokenizer"] = {"path": str(tmp_path / "mine")}
    train_tokenizer(["the cat sat"] * 4, 300).save_pretrained(tmp_path / "mine")
    run(simple, tmp_path / "corpus")
    before = ledgers(tmp_path / "corpus")
    train_tokenizer(["고양이가 매트에"] * 4, 300).save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="files that have changed since"):
        run(simple, tmp_path / "corpus")
    run(simple, tmp_path / "corpus", overwrite=True)
    saved, mine = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("corpus/tokenizer", "mine"))
    assert encode_documents(saved, ["고양이가"]) == encode_documents(mine, ["고양이가"])
    assert ledgers(tmp_path / "corpus")["clean"] == before["clean"]


def test_changed_file_below_the_home_folder_is_noticed(simple, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    simple["sources"] = [{"path": "~/a.jsonl"}]
    run(simple, tmp_path / "corpus")
    jsonl(tmp_path / "a.jsonl", ["another text"])
    with pytest.raises(ValueError, match="files that have changed since"):
        run(simple, tmp_path / "corpus")


def test_stages_can_be_discarded_at_once_or_later(simple, tmp_path):
    for folder in ("at once", "later"):
        if folder == "later":
            run(simple, tmp_path / folder)
        first = contents(tmp_path / folder) if folder == "later" else {}
        run(simple, tmp_path / folder, discard_stages=True)
        assert not (tmp_path / f"{folder}.stages").exists()
        assert not first or contents(tmp_path / folder) == first
    assert contents(tmp_path / "at once") == contents(tmp_path / "later")


@pytest.mark.parametrize("text_field", ["text", "nothing"])
def test_folder_of_somebody_else_by_the_name_of_the_stages_is_never_touched(simple, tmp_path, text_field):
    (tmp_path / "corpus.stages").mkdir()
    (tmp_path / "corpus.stages/thesis.tex").write_text("ten years of work")
    simple["sources"][0]["text_field"] = text_field
    with pytest.raises(ValueError, match=r"corpus\.stages holds something else: choose another folder"):
        run(simple, tmp_path / "corpus", discard_stages=True)
    assert (tmp_path / "corpus.stages/thesis.tex").read_text() == "ten years of work"


# --- What goes wrong: the input


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to("gone")


@pytest.mark.parametrize(
    ("make", "name", "glob", "message"),
    [
        (make_pipe, "in.jsonl", False, "is a pipe or a device"),
        (make_pipe, "in.jsonl", True, "is a pipe or a device"),
        (make_link_to_nothing, "in.jsonl", False, "No such file: `path: .*in.jsonl`"),
        (make_link_to_nothing, "in.jsonl", True, "No such file: `path: .*in.jsonl`"),
        (Path.mkdir, "in.jsonl", False, r"is a folder. For the files in it add /\*"),
        (Path.mkdir, "in.jsonl", True, "No file matches"),
        (
            lambda path: path.write_bytes(gzip.compress(b'{"text": "a"}' * 99)[:-12]),
            "in.jsonl.gz",
            False,
            "is damaged",
        ),
        (lambda path: path.write_text("text"), "in.jsonl.gz", False, "is damaged: Not a gzipped file"),
        (lambda path: path.write_text('\n[\n{"text": "a"},\n'), "in.json", False, "is one JSON array"),
        (lambda path: path.write_text("text"), "in.pdf", False, "Cannot tell the format of .*in.pdf"),
    ],
)
def test_file_that_cannot_be_read_is_named(simple, tmp_path, make, name, glob, message):
    (tmp_path / "files").mkdir()
    make(tmp_path / "files" / name)
    simple["sources"].append({"path": str(tmp_path / "files" / ("*" if glob else name))})
    with pytest.raises(ValueError, match=message):
        run(simple, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_file_of_somebody_else_is_named(simple, tmp_path, monkeypatch):
    def refuse(file: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(readers, "_size_and_hash", refuse)
    with pytest.raises(ValueError, match=r"Cannot read `path: .*a\.jsonl`: .*Permission denied"):
        run(simple, tmp_path / "corpus")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nobody://bucket/a.jsonl"}, "Cannot read `path: nobody://bucket/a.jsonl`: Protocol not known"),
        ({"path": "nobody://bucket/*.jsonl"}, "Cannot read `path: nobody://.*: Protocol not known"),
        ({"path": "http://127.0.0.1:1/a.jsonl"}, r"`path: http://127.0.0.1:1/a.jsonl` \(.*onnect"),
        ({"dataset": "nobody/vanished"}, "Cannot load `dataset: nobody/vanished` .*Check the name"),
    ],
)
def test_source_that_is_not_to_be_had_is_named(simple, tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        run({**simple, "sources": [source]}, tmp_path / "corpus")


def test_protocol_whose_package_is_not_installed_says_what_to_install(simple, tmp_path, monkeypatch):
    def missing(path: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(readers.fsspec, "url_to_fs", missing)
    with pytest.raises(ValueError, match=r"`path: s3://bucket/a\.jsonl`: Install s3fs"):
        run({**simple, "sources": [{"path": "s3://bucket/a.jsonl"}]}, tmp_path / "corpus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_field": "body"}, r"20 malformed rows.*a\.jsonl:1: no field `body`; the fields are text"),
        ({"where": {"label": 1}}, r"20 malformed rows.*a\.jsonl:1: no field `label`; the fields are text"),
        ({"where": {"text": "none"}}, r"0 malformed rows.*check .*`where`.*: `where` \(20\)"),
        ({"path": "empty"}, "No text was read from a .*: no rows"),
        ({"curated": False}, r"'clean' left no document: fewer than 20 words \(20\)"),
        ({"language": "de"}, None),
    ],
)
def test_recipe_that_leaves_nothing_says_why(simple, tmp_path, change, message):
    if change == {"path": "empty"}:
        change = {"path": jsonl(tmp_path / "empty.jsonl", [])}
    recipe = {**simple, "sources": [{**simple["sources"][0], **change}]}
    if message is None:
        run(recipe, tmp_path / "corpus")
        return
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path / "corpus")
    # What was wrong is mended in the recipe, and it goes on without being told to overwrite.
    run({**simple, "sources": simple["sources"][:1]}, tmp_path / "corpus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_field": "body"}, r"Source 'b' has no document left after 'read': malformed row \(20\)"),
        ({"curated": False}, r"Source 'b' has no document left after 'clean': fewer than 20 words \(20\)"),
        ({"path": "a"}, r"Source 'b' has no document left after 'deduplicate/filter': duplicate of a \(20\)"),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_source_of_which_nothing_is_left_is_told_at_once(simple, tmp_path, capsys, change, message, weighted):
    if "path" in change:
        change = {"path": simple["sources"][0]["path"]}
    simple["sources"][1].update(change)
    if not weighted:
        run(simple, tmp_path / "corpus")
        warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
        assert len(warnings) == 1
        assert re.search(message, warnings[0])
        return
    for source in simple["sources"]:
        source["weight"] = 1
    with pytest.raises(ValueError, match=f"{message}.*It has a `weight`"):
        run(simple, tmp_path / "corpus")
    assert "tokenize" not in ledgers(tmp_path / "corpus")


def test_weighted_source_whose_documents_are_all_held_out_says_so(simple, tmp_path):
    for source in simple["sources"]:
        source["weight"] = 1
    simple["sources"][1]["path"] = jsonl(tmp_path / "b.jsonl", ["three words there"])
    for seed in range(20):
        try:
            run({**simple, "holdout_fraction": 0.5, "seed": seed}, tmp_path / str(seed))
        except ValueError as error:
            assert "Source 'b' has a `weight`, and every document of it was held out: lower `holdout_fraction`" in str(
                error
            )
            return
    pytest.fail("was never held out")


def test_address_with_broken_bytes_does_not_cost_the_document(simple, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'{"text": "one", "url": "http://x/\xff"}\n{"text": "two", "url": "\\ud800"}\n{"text": "three", "url": 3}\n'
    )
    run({**simple, "sources": [{"path": str(path)}]}, tmp_path / "corpus")
    assert texts_after(tmp_path / "corpus", "clean") == ["one", "two", "three"]


def test_files_with_names_of_another_charset_are_read_like_any_other(simple, tmp_path, capsys):
    """Archives from Korean Windows unpack to names in CP949."""
    name = os.path.join(os.fsencode(tmp_path), "글.txt".encode("cp949"))
    try:
        with open(name, "wb") as file:
            file.write("한국어\n".encode() + b"\xff\n")
    except OSError:
        pytest.skip("file names must be UTF-8 here")
    source = {"name": "files", "path": f"{tmp_path}/*.txt", "sample_by": "line"}
    metadata = run({**simple, "sources": [source]}, tmp_path / "corpus")
    assert texts_after(tmp_path / "corpus", "clean") == ["한국어"]
    assert metadata["bad_rows"]["count"] == 1
    assert run({**simple, "sources": [source]}, tmp_path / "corpus") == metadata


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer": {"language_shares": {"english": 1}}}, "`language_shares` has 'english', which is no ISO 639-1"),
        ({"output_dir": "/"}, "The corpus cannot be / itself"),
        ({"decontaminate": {"benchmarks": [{"path": "a.html"}]}}, None),
        (
            {"decontaminate": {"benchmarks": [{"path": "a", "format": "html"}]}},
            "'a' has `format: html`. Benchmarks are",
        ),
        ({"decontaminate": {"benchmarks": [{"path": "a", "format": "wet"}]}}, "'a' has `format: wet`. Benchmarks are"),
        (
            {"decontaminate": {"benchmarks": [{"path": "a.csv", "extract": "html"}]}},
            "has `extract: html`. Benchmarks are",
        ),
    ],
)
def test_recipe_that_cannot_work_is_refused(simple, tmp_path, monkeypatch, values, message):
    if message is None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.html").write_bytes(page("text", "utf-8"))
        message = r"Benchmark 'a.html' \(`decontaminate.benchmarks`\): .*a\.html holds pages or articles. Benchmarks are rows"
    with pytest.raises(ValueError, match=message):
        recipe = {**simple, **values}
        run(recipe, Path(recipe.get("output_dir", tmp_path / "corpus")))


# --- What goes wrong: the machine


def test_second_run_at_the_same_time_is_refused(simple, tmp_path):
    with (
        locked(tmp_path / "corpus.stages"),
        pytest.raises(ValueError, match=r"Another `hfgpt prepare` is writing to .*corpus\.stages"),
    ):
        run(simple, tmp_path / "corpus")
    run(simple, tmp_path / "corpus")


def test_disk_that_is_full_at_the_end_loses_nothing(simple, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "write_report", full)
        with pytest.raises(
            ValueError, match=r"disk of .*corpus is full. What is finished is kept in .*corpus\.stages"
        ):
            run(simple, tmp_path / "corpus")
    before = ledgers(tmp_path / "corpus")
    run(simple, tmp_path / "corpus")
    assert ledgers(tmp_path / "corpus") == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "corpus", "corpus.stages"}


def test_disk_that_is_too_full_for_the_error_file_is_told(simple, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartWriter, "close", full)
    monkeypatch.setattr(executors, "write_json", full)
    with pytest.raises(ValueError, match="disk is full"):
        run(simple, tmp_path / "corpus")


def test_names_that_differ_only_in_what_a_path_cannot_hold_stay_apart(simple, tmp_path):
    names = ["a-2", "a", ".a"]
    simple["sources"] = [
        {"name": name, "path": jsonl(tmp_path / f"{number}.jsonl", [f"text {number}"])}
        for number, name in enumerate(names)
    ]
    run(simple, tmp_path / "corpus")
    assert [len(TokenStream(tmp_path / "corpus", "train", name)) > 0 for name in names] == [True] * 3


# --- The command


@pytest.fixture
def command(simple: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `hfgpt prepare` on the simple recipe, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, **changes: Any) -> int:
        Path("recipe.yaml").write_text(json.dumps({**simple, **changes}), encoding="utf-8")
        return main(["prepare", "recipe.yaml", "--workers", "1", *arguments])

    return command


@pytest.mark.parametrize("output", ["corpus", "./sub/corpus/", "말뭉치 1/"])
def test_standard_output_is_json_alone_wherever_the_corpus_goes(command, simple, tmp_path, capfd, output):
    simple["sources"][0]["name"] = "뉴스/2024"
    assert command("--output", output, "--json") == 0
    metadata = json.loads(capfd.readouterr().out)
    assert metadata == read_json(tmp_path / output / "metadata.json")
    assert set(metadata["splits"]["train"]["sources"]) == {"뉴스/2024", "b"}
    assert (tmp_path / f"{output.rstrip('/')}.stages").is_dir()
    assert len(TokenStream(tmp_path / output, "train", "뉴스/2024")) > 0
    assert command("--output", output, "--json", "--stage", "read") == 0
    assert json.loads(capfd.readouterr().out)["sources"]["뉴스/2024"]["documents_out"] == 20


def test_json_does_not_depend_on_the_terminal(command, simple, tmp_path, monkeypatch):
    simple["sources"][0]["name"] = "뉴스"
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert command("--output", "corpus", "--json") == 0
    out.flush()
    assert "뉴스" in json.loads(out.buffer.getvalue())["sources"]


def test_interrupted_run_says_so_and_goes_on_later(command, tmp_path, capfd, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module.Tokenize, "run", interrupt)
        assert command("--output", "corpus") == 130
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"
    before = ledgers(tmp_path / "corpus")
    assert set(before) == {
        "read",
        "clean",
        "deduplicate/signatures",
        "deduplicate/pairs",
        "deduplicate/clusters",
        "deduplicate/filter",
        "tokenizer/make",
    }
    assert command("--output", "corpus") == 0
    assert {stage: ledgers(tmp_path / "corpus")[stage] for stage in before} == before


def test_defect_in_a_task_is_one_message(command, tmp_path, capfd, monkeypatch):
    def fail(*_: Any) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(corpus_module.Tokenize, "run", fail)
    with pytest.raises(SystemExit) as caught:
        command("--output", "corpus")
    assert caught.value.code == 1
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith("hfgpt prepare: error: Stage 'tokenize' failed: KeyError: 'defect' (details in ")
    details = Path(message.split("details in ")[1].split(")")[0])
    assert "Traceback" in read_json(details)["traceback"]
