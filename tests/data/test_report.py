import copy
import json
import os
import re
import sys
import unicodedata
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from hfgpt.data.documents import Ledger, make_document
from hfgpt.data.report import SECTIONS, reconciles, summary_lines, write_report


WIKI = "위키백과"
SOURCES = ("crawl", WIKI)
HOSTILE = "<script>alert('x')</script> & \x00\x1b[31m \ud800 \u202e 한국어 문장 $a_1$"


def stage(name: str, documents: dict[str, int], drops: dict[str, dict[str, int]], seconds: float = 2.0) -> dict:
    """A stage as a real ledger counts it: so many documents of each source, so many dropped for each reason."""
    ledger = Ledger()
    for source, number in documents.items():
        document = make_document(HOSTILE, f"{source}-1", source, "ko")
        size = len(document.text.encode("utf-8", "replace"))
        left = number
        for reason, dropped in drops.get(source, {}).items():
            left -= dropped
            for _ in range(dropped):
                ledger.drop(document, reason)
        ledger.count(source, documents_in=number, bytes_in=number * size)
        if left:
            ledger.count(source, documents_out=left, bytes_out=left * size)
    made = ledger.to_dict()
    return {
        "name": name,
        "seconds": seconds,
        "cpu_seconds": 3.5,
        "tasks": 4,
        "workers": 2,
        "resumed": False,
        "sources": made["counts"],
        "dropped": made["dropped"],
        "examples": made["examples"],
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """A small run whose accounts add up."""
    looks = stage("signatures", {"crawl": 1100, WIKI: 90}, {})
    for counts in looks["sources"].values():
        del counts["documents_out"], counts["bytes_out"]
    cuts = stage("decontaminate", {"crawl": 1000, WIKI: 90}, {"crawl": {"piece too short": 5}})
    cuts["sources"]["crawl"] |= {"documents_cut": 10, "pieces": 25, "documents_out": 1010}
    return {
        "name": "말뭉치",
        "hfgpt_version": "1.2.3",
        "created": "2026-01-02T03:04:05+00:00",
        "recipe": {"name": "말뭉치", "sources": [{"name": WIKI, "weight": 0.4}], "anything": None},
        "sources": list(SOURCES),
        "stages": [
            stage("clean", {"crawl": 1234, WIKI: 100}, {"crawl": {"too short": 134}, WIKI: {"too short": 10}}),
            looks,
            stage("deduplicate", {"crawl": 1100, WIKI: 90}, {"crawl": {"near-duplicate <b>$x_1$": 100}}),
            cuts,
        ],
        "duplicates": {
            "clusters": 36,
            "documents_in_clusters": 136,
            "removed": 100,
            "cluster_sizes": {"2": 20, "3": 10, "4": 5, "33": 1},
            "pairs_between_sources": {f"{WIKI} -> crawl": 7},
            "largest": [
                {
                    "size": 33,
                    "kept": {"source": "crawl", "id": "k", "text": HOSTILE},
                    "removed": [{"source": WIKI, "id": f"r{i}", "text": HOSTILE} for i in range(9)],
                }
            ],
        },
        "contamination": {
            "nsmc": {
                "examples": 50_000,
                "too_short": 32_100,
                "dirty": 123,
                "left_in_corpus": 0,
                "documents_cut": 10,
                "documents_dropped": 1,
            }
        },
        "quality": {
            "ko": {
                "positives": 4000,
                "negatives": 4001,
                "filtered": True,
                "held_out_accuracy": 0.91234,
                "held_out_auc": float("nan"),
                "scores": {"curated": list(range(20)), "raw": list(range(20, 0, -1))},
                "expected_kept": {"positives": 0.8125, "negatives": 0.03125},
                "kept": 3000,
                "dropped": 1000,
            },
            "fr": {
                "positives": 0,
                "negatives": 80,
                "filtered": False,
                "why": "0 positives: fewer than min_examples 50",
                "kept": 80,
                "dropped": 0,
            },
        },
        "fertility": [
            {
                "language": "ko",
                "documents": 300,
                "words": 30_000,
                "bytes": 345_678,
                "characters": 123_456,
                "tokens": 66_000,
                "tokens_per_word": 2.2,
                "tokens_per_byte": 0.19093,
                "tokens_per_document": 220.0,
            }
        ],
        "tokenizer": {
            "vocab_size": 32_000,
            "trained": True,
            "sample": [{"source": WIKI, "language": "ko", "bytes": 9_876_543}],
        },
        "splits": {
            "train": {"documents": 1090, "tokens": 26_000, "bytes": 104_000},
            "validation": {"documents": 10, "tokens": 1000, "bytes": 4000},
        },
        "tokens_by_source": {"crawl": {"train": 20_000, "validation": 900}, WIKI: {"train": 6000, "validation": 100}},
        "mixture": {
            "train_tokens": 40_000,
            "sources": [
                {
                    "source": source,
                    "weight": weight,
                    "weight_normalised": weight,
                    "realised": weight + 0.001,
                    "tokens": int(weight * 40_000),
                    "epochs": 1.5,
                }
                for source, weight in zip(SOURCES, (0.6, 0.4))
            ],
        },
        "bad_rows": {"count": 17, "examples": ["data/위키.jsonl:12: not JSON: <x>"]},
    }


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps what the tests look at."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._cell: str | None = None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag == "table":
            self.rows: list[list[str]] = []
        elif tag in ("td", "th", "caption"):
            self._cell = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "caption":
            assert self._cell is not None
            self.tables[self._cell] = self.rows
        elif tag in ("td", "th"):
            assert self._cell is not None
            self.rows[-1].append(self._cell)
        if tag in ("td", "th", "caption"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell += data

    def values(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]


def page(report: dict[str, Any], folder: Path) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(report, folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_every_section_and_needs_nothing_else(report: dict, tmp_path: Path) -> None:
    made = page(report, tmp_path)
    assert [attributes["id"] for tag, attributes in made.tags if tag == "section"] == [id for id, _, _ in SECTIONS]
    ids = made.values("id")
    assert len(ids) == len(set(ids))
    tags = {tag for tag, _ in made.tags}
    assert not tags & {"script", "link", "img", "iframe", "object"} and not made.values("src")
    links = made.values("href") + made.values("xlink:href")
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|\son\w+=", text)
    assert all(used in ids for used in re.findall(r"url\(#([^)]*)\)", text))
    assert re.search(r'<meta name="viewport"', text) and "prefers-color-scheme: dark" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_plots_have_words(report: dict, tmp_path: Path) -> None:
    made = page(report, tmp_path)
    plots = [attributes for tag, attributes in made.tags if tag == "svg"]
    assert len(plots) == 8
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    funnel = str(plots[0]["aria-label"])
    assert f"clean: crawl 1,100, {WIKI} 90; deduplicate: crawl 1,000, {WIKI} 90" in funnel
    captions = [tag for tag, _ in made.tags if tag == "figcaption"]
    assert len(captions) >= len(plots)


def test_text_is_escaped(report: dict, tmp_path: Path) -> None:
    report["name"] = report["sources"][0] = "<script>1</script>"
    report["stages"][0]["name"] = "<script>2</script>"
    report["recipe"]["name"] = "</pre><script>3</script>"
    report["quality"] = {"<script>4</script>": report["quality"]["ko"]}
    report["quality"]["<script>4</script>"]["scores"]["<script>5</script>"] = [1, 2]
    report["bad_rows"]["examples"].append("<script>6</script>")
    report["fertility"][0]["language"] = '"><script>7</script>'
    report["contamination"]["<script>8</script>"] = report["contamination"]["nsmc"]
    made = page(report, tmp_path)
    assert "script" not in {tag for tag, _ in made.tags}
    assert all(f"<script>{number}</script>" in made.text for number in range(1, 9))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert "\ufffd[31m" in text


def test_korean_names_are_drawn_by_the_browser(report: dict, tmp_path: Path) -> None:
    report["stages"][0]["dropped"][WIKI]["한국어가 아닌 문서 $\\bad{$"] = {"documents": 10, "bytes": 100}
    page(report, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert "한국어가 아닌 문서 $\\bad{$"[:13] in "".join(labels)
    assert WIKI in labels and not any("zq" in label for label in labels)


def row(made: Page, caption: str, *names: str) -> dict[str, str]:
    """The row of a table that begins with these cells, by the names of its columns."""
    head, *rows = made.tables[caption]
    assert all(len(cells) == len(head) for cells in rows)
    (found,) = [cells for cells in rows if cells[: len(names)] == list(names)]
    return dict(zip(head, found))


def test_the_page_says_what_the_json_says(report: dict, tmp_path: Path) -> None:
    made = page(report, tmp_path)
    plain = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))

    cut = row(made, "Stages, in their order", "decontaminate")
    counts = plain["stages"][3]["sources"]
    total = {name: sum(counts[source][name] for source in SOURCES) for name in ("documents_in", "bytes_in")}
    assert cut["documents in"] == f"{total['documents_in']:,}" == "1,090"
    assert cut["documents out"] == "1,100" and cut["dropped"] == "5"
    speed = total["bytes_in"] / 2.0
    assert cut["tokens/s"] == f"{round(speed * 27_000 / 108_000):,}"
    assert cut["MB/s"] == f"{speed / 1e6:.2f}" and f"{total['bytes_in']:,} bytes" in made.values("title")
    looks = row(made, "Stages, in their order", "signatures")
    assert looks["documents in"] == "1,190" and looks["documents out"] == "–"

    dropped = row(made, "Documents dropped, by stage, reason and source", "clean", "too short")
    assert (dropped["crawl"], dropped[WIKI], dropped["all documents"]) == ("134", "10", "144")
    assert dropped["share of those read"] == "10.8%"

    left = row(made, "documents left after each stage", "clean")
    assert (left["crawl"], left[WIKI], left["all"]) == ("1,100", "90", "1,190")
    assert row(made, "documents left after each stage", "before all stages")["all"] == "1,334"

    sizes = row(made, "Clusters by size", "3 to 4")
    assert sizes["clusters"] == "15" and row(made, "Clusters by size", "33 to 64")["clusters"] == "1"
    assert row(made, "Near-duplicates", "all sources")["removed"] == "100"
    assert row(made, "Pairs between sources", f"{WIKI} -> crawl") == {
        "kept -> removed": f"{WIKI} -> crawl",
        "pairs": "7",
    }

    benchmark = row(made, "Benchmark examples found in the corpus", "nsmc")
    assert list(benchmark.values()) == ["nsmc", "50,000", "32,100", "123", "0.2%", "0", "10", "1"]
    quality = row(made, "Quality filters", "ko")
    measured, became = ["0.912", "–", "81.2%", "3.1%"], ["3,000", "1,000", "75.0%"]
    assert list(quality.values()) == ["ko", "4,000", "4,001", "yes", "–", *measured, *became]
    passed = row(made, "Quality filters", "fr")
    assert (passed["filtered"], passed["why not"]) == ("no", "0 positives: fewer than min_examples 50")
    assert passed["expected kept of negatives"] == "–" and passed["kept of all"] == "100.0%"
    fertility = row(made, "Fertility, by language", "ko")
    assert (
        fertility["tokens"] == "66,000" and fertility["bytes"] == "346 kB" and fertility["tokens per word"] == "2.200"
    )
    assert row(made, "What the tokenizer was trained on", WIKI)["bytes"] == "9.88 MB"
    assert row(made, "Splits", "all")["tokens"] == "27,000"
    assert row(made, "Tokens by source", WIKI)["all"] == "6,100"
    mixed = row(made, "The mixture, wanted and realised", WIKI)
    assert list(mixed.values()) == [WIKI, "0.400", "40.0%", "40.1%", "16,000", "1.500"]

    exact = made.values("value")
    for number in (0.91234, 0.19093, 345_678, 9_876_543, 0.401):
        assert str(number) in exact
    summary = "Of 1,334 documents, 1,100 (82.5%) were kept"
    assert summary in made.text and "27,000 tokens" in made.text and "17 rows" in made.text


# Those from which other sections take something.
@pytest.mark.parametrize("absent", ["sources", "stages", "splits", "mixture"])
def test_a_section_may_be_absent(report: dict, absent: str, tmp_path: Path) -> None:
    del report[absent]
    made = page(report, tmp_path)
    sections = [attributes["id"] for tag, attributes in made.tags if tag == "section"]
    assert len(sections) >= len(SECTIONS) - 4
    # Splits and tokens by source share a section.
    assert absent not in sections or absent == "splits"
    assert ("Not part of this run: mixture." in made.text) == (absent == "mixture")
    assert summary_lines(report)


def test_a_section_may_be_alone(report: dict, tmp_path: Path) -> None:
    for name, content in report.items():
        made = page({name: content}, tmp_path)
        sections = [attributes["id"] for tag, attributes in made.tags if tag == "section"]
        if name == "stages":
            assert sections == ["funnel", "stages", "drops", "examples"]
        elif name not in ("name", "hfgpt_version", "created", "sources"):
            assert sections == [{"bad_rows": "bad-rows", "tokens_by_source": "splits"}.get(name, name)]
        assert summary_lines({name: content})


def test_nothing_at_all(report: dict, tmp_path: Path) -> None:
    for nothing in ({}, dict.fromkeys(report), {name: type(value)() for name, value in report.items()}):
        made = page(nothing, tmp_path)
        assert "No stage was run." in made.text and not made.tables
        assert summary_lines(nothing)[-1] == "report: report.html"


def test_no_documents(report: dict, tmp_path: Path) -> None:
    def emptied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: emptied(item) for key, item in value.items()}
        if isinstance(value, list):
            return [emptied(item) for item in value]
        return value if isinstance(value, (str, bool)) else 0

    empty = emptied(report)
    made = page(empty, tmp_path)
    assert "Of 0 documents, 0 were kept" in made.text and "svg" not in {tag for tag, _ in made.tags}
    assert reconciles(empty) == []
    empty["stages"] = [stage("clean", {}, {})]
    page(empty, tmp_path)


def test_the_json_is_strict_and_stable(report: dict, tmp_path: Path) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    report["mixture"]["train_tokens"] = float("inf")
    page(report, tmp_path)
    page(turned(report), tmp_path / "turned")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    plain = json.loads(text, parse_constant=refuse)
    assert plain["quality"]["ko"]["held_out_auc"] is None and plain["mixture"]["train_tokens"] is None
    assert plain["stages"] == json.loads(json.dumps(report["stages"]).replace("\\ud800", "?"))
    assert WIKI in text and "\\u" not in text.replace("\\u0000", "").replace("\\u001b", "")
    assert text == (tmp_path / "turned" / "report.json").read_text(encoding="utf-8")


def test_the_page_depends_on_the_report_alone(report: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pyplot keeps figures, and picks a backend, for the whole process.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    names = ("svg.fonttype", "svg.hashsalt", "font.family")
    settings = [matplotlib.rcParams[name] for name in names]
    given = copy.deepcopy(report)
    page(report, tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    page(given, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    assert [matplotlib.rcParams[name] for name in names] == settings
    assert json.dumps(report) == json.dumps(given)


def test_files_are_whole_or_not_there(report: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(report, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("report.json", "report.html")}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report(report | {"name": "other"}, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_accounts_that_add_up(report: dict, tmp_path: Path) -> None:
    assert reconciles(report) == []
    assert "The accounts add up" in page(report, tmp_path).text
    # Of a source whose documents were all dropped, nothing counts the documents written.
    gone = stage("clean", {"crawl": 5, WIKI: 3}, {WIKI: {"empty": 3}})
    assert "documents_out" not in gone["sources"][WIKI]
    assert reconciles({"sources": list(SOURCES), "stages": [gone, stage("next", {"crawl": 5}, {})]}) == []
    nothing_left = {"stages": [stage("clean", {WIKI: 3}, {WIKI: {"empty": 3}})]}
    assert reconciles(nothing_left) == []
    assert "Of 3 documents, 0 (0.0%) were kept" in summary_lines(nothing_left)[0]


@pytest.mark.parametrize(
    "number, source, name, by, said",
    [
        (0, "crawl", "documents_in", 1, ["1,235 documents in - 134 dropped = 1,101, but 1,100"]),
        (0, WIKI, "documents_out", -1, ["100 documents in - 10 dropped = 90, but 89", "read 90 documents"]),
        (
            2,
            "crawl",
            "documents_in",
            -2,
            ["read 1,098 documents", "1,098 documents in - 100 dropped = 998, but 1,000"],
        ),
        (3, "crawl", "pieces", 1, ["1,000 documents in - 5 dropped - 10 cut + 26 pieces = 1,011, but 1,010"]),
    ],
)
def test_accounts_that_do_not_add_up(
    report: dict, tmp_path: Path, number: int, source: str, name: str, by: int, said: list[str]
) -> None:
    report["stages"][number]["sources"][source][name] += by
    problems = reconciles(report)
    assert len(problems) == len(said)
    assert all(words in problem and source in problem for words, problem in zip(said, problems))
    made = page(report, tmp_path)
    assert "the accounts do not add up" in made.text and all(problem in made.text for problem in problems)
    assert any("WARNING" in line and problems[0] in line for line in summary_lines(report))


def test_a_source_that_vanishes_is_noticed(report: dict) -> None:
    del report["stages"][2]["sources"][WIKI]
    assert any(f'read 0 documents of "{WIKI}"' in problem for problem in reconciles(report))


def test_summary_lines(report: dict, tmp_path: Path) -> None:
    report["stages"][0]["name"] = "정제"
    lines = summary_lines(report, tmp_path)
    assert 8 <= len(lines) <= 15 and lines[-1] == f"report: {tmp_path / 'report.html'}"
    assert "Of 1,334 documents, 1,100 (82.5%) were kept" in lines[0]
    assert lines[2].split() == ["정제", "1,334", "1,190", "too", "short", "144"]
    assert any(f"tokens by source: crawl 20,900, {WIKI} 6,100" in line for line in lines)
    assert any(f"{WIKI} 40.1% (wanted 40.0%, 1.50 epochs)" in line for line in lines)
    assert any("nsmc 123 (left: 0)" in line for line in lines)

    def column(line: str, word: str) -> int:
        """Where a word ends on a terminal, where Korean letters are two columns wide."""
        before = line[: line.index(word) + len(word)]
        return sum(2 if unicodedata.east_asian_width(letter) == "W" else 1 for letter in before)

    ends = {
        column(lines[number], word) for number, word in ((1, "documents in"), (2, "1,334"), (3, "1,190"), (4, "1,090"))
    }
    assert len(ends) == 1
    report["stages"] = [
        stage(f"stage {number}", {"crawl": 100 - number}, {"crawl": {"one": 1}} if number < 29 else {})
        for number in range(30)
    ]
    assert len(summary_lines(report, tmp_path)) <= 15


def test_more_sources_than_colours(tmp_path: Path) -> None:
    names = [f"source {number}" for number in range(12)]
    made = page({"sources": names, "stages": [stage("clean", dict.fromkeys(names, 3), {})]}, tmp_path)
    assert "others: source 7, source 8, source 9, source 10, source 11" in made.text
    assert row(made, "documents left after each stage", "clean")["all"] == "36"
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    defined = set(re.findall(r"(--colour-\d+):", text))
    assert set(re.findall(r"var\((--colour-\d+)\)", text)) <= defined and "#ff00" not in text
