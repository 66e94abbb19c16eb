"""What a benchmark and a document share is cut as the paper says: the same as by brute force, to the character."""

import json
import pickle
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from hfgpt.config import from_mapping
from hfgpt.data import decontaminate
from hfgpt.data.decontaminate import (
    CUT,
    BenchmarkConfig,
    CollectGrams,
    CountGrams,
    Decontaminate,
    DecontaminateConfig,
    GramIndex,
    MergeCounts,
    contamination_report,
    read_examples,
    split_words,
)
from hfgpt.data.documents import Ledger, PartWriter, list_parts, make_document, read_documents
from hfgpt.data.readers import RowErrors, SourceConfig, read_rows


NSMC = Path(__file__).parents[3] / "shared" / "data" / "nsmc" / "test.jsonl"
GRAM = "one two three four five six seven eight nine ten eleven twelve thirteen"
WORDS = GRAM.split()


def filler(characters: int) -> str:
    """Text of so many characters, without white space at its ends, that is in no benchmark."""
    return ("filler " * (characters // 7 + 1))[: characters - 1] + "x" if characters else ""


def benchmark_file(folder: Path, name: str, rows: list) -> str:
    path = folder / f"{name}.jsonl"
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Result:
    """What came out of all the steps."""

    def __init__(self, folder: Path, benchmarks: dict[str, list], parts: list[list[str]], **numbers: int):
        folder.mkdir(exist_ok=True)
        self.config = DecontaminateConfig(
            [BenchmarkConfig(name=name, path=benchmark_file(folder, name, rows)) for name, rows in benchmarks.items()],
            **numbers,
        )
        read_from, self.folder = folder / "parts", folder / "decontaminate"
        ids = iter(range(10**9))
        for number, texts in enumerate(parts):
            with PartWriter(read_from / f"{number:05d}.parquet") as writer:
                for text in texts:
                    writer.write(make_document(text, f"doc{next(ids)}", f"source{number % 2}", "en", "http://a.b"))
        CollectGrams(self.config, self.folder, Ledger()).run()
        ledgers = []
        files = list_parts(read_from)
        for rank, part in enumerate(files):
            before = list(read_documents(part))
            step = CountGrams(read_from, self.folder, Ledger())
            assert [(d.id, d.text) for d in step.run(iter(before), rank, len(files))] == [
                (d.id, d.text) for d in before
            ]
        MergeCounts(read_from, self.folder, Ledger()).run()
        self.documents = []
        for rank, part in enumerate(files):
            step = pickle.loads(pickle.dumps(Decontaminate(self.config, read_from, self.folder, Ledger())))
            self.documents += step.run(read_documents(part), rank, len(files))
            ledgers.append(step.ledger.to_dict())
        self.ledger = Ledger.merged(ledgers)
        self.report = contamination_report(self.config, read_from, self.folder)
        self.examples = {
            name: [json.loads(line) for line in (self.folder / "examples" / f"{name}.jsonl").read_text().splitlines()]
            for name in benchmarks
        }
        assert not list(self.folder.rglob(".*"))

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def reasons(self) -> dict[str, int]:
        reasons: Counter[str] = Counter()
        for drops in self.ledger.dropped.values():
            reasons.update({reason: numbers["documents"] for reason, numbers in drops.items()})
        return dict(reasons)


def one(tmp_path, text: str, *copies: str, benchmark: str = GRAM, **numbers: int) -> Result:
    return Result(tmp_path, {"b": [benchmark]}, [[text, *copies]], **numbers)


# --- By brute force


def is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith(("P", "S"))


def reference_words(text: str) -> list[str]:
    """Over the whole text: lower-cased, then without punctuation, then split."""
    return "".join(character for character in text.lower() if not is_punctuation(character)).split()


def reference_grams(text: str, n: int) -> list[tuple[tuple[str, ...], int, int]]:
    """Every gram with its begin and end in the text."""
    runs = [(match, reference_words(match.group())) for match in re.finditer(r"\S+", text)]
    runs = [(match, words[0]) for match, words in runs if words]
    return [
        (tuple(word for _, word in runs[i : i + n]), runs[i][0].start(), runs[i + n - 1][0].end())
        for i in range(len(runs) - n + 1)
    ]


def reference(benchmarks: dict[str, list[str]], texts: list[str], config: DecontaminateConfig) -> dict:
    n = config.ngram_words
    of_example = {
        (name, i): {gram for gram, _, _ in reference_grams(row, n)}
        for name, rows in benchmarks.items()
        for i, row in enumerate(rows)
    }
    wanted = set().union(*of_example.values())
    counts = Counter(
        gram for text in texts for gram in {gram for gram, _, _ in reference_grams(text, n)} if gram in wanted
    )
    rare = {gram for gram, count in counts.items() if count <= config.max_documents}
    out, fates = [], []
    for number, text in enumerate(texts):
        gone = np.zeros(len(text), bool)
        met = set()
        for gram, begin, end in reference_grams(text, n):
            if gram in rare:
                met.add(gram)
                gone[max(begin - config.window_characters, 0) : end + config.window_characters] = True
        if not met:
            out.append((f"doc{number}", text))
            fates.append(("clean", met))
            continue
        pieces = []
        for position, character in enumerate(text):
            if not gone[position]:
                if position == 0 or gone[position - 1]:
                    pieces.append("")
                pieces[-1] += character
        kept = [p for p in pieces if len(p) >= config.min_piece_characters and p.strip()]
        if len(pieces) > config.max_pieces:
            fates.append(("pieces", met))
        elif not kept:
            fates.append(("short", met))
        else:
            fates.append(("cut", met))
            out += [(f"doc{number}#{i}", piece) for i, piece in enumerate(kept)]
    left = {gram for _, text in out for gram, _, _ in reference_grams(text, n)}
    examples = {
        name: [
            {
                "index": i,
                "dirty": bool(of_example[name, i] & set(counts)),
                "left_in_corpus": bool(of_example[name, i] & left),
                "grams": len(of_example[name, i]),
                "grams_found": len(of_example[name, i] & set(counts)),
                "documents": sum(bool(of_example[name, i] & met) for _, met in fates),
            }
            for i in range(len(rows))
        ]
        for name, rows in benchmarks.items()
    }
    report = {}
    for name, rows in benchmarks.items():
        grams = set().union(*(of_example[name, i] for i in range(len(rows))))
        report[name] = {
            "examples": len(rows),
            "too_short": sum(line["grams"] == 0 for line in examples[name]),
            "dirty": sum(line["dirty"] for line in examples[name]),
            "left_in_corpus": sum(line["left_in_corpus"] for line in examples[name]),
            "grams": len(grams),
            "grams_found": len(grams & set(counts)),
            "documents_cut": sum(fate == "cut" and bool(met & grams) for fate, met in fates),
            "documents_dropped": sum(fate in ("pieces", "short") and bool(met & grams) for fate, met in fates),
        }
    return {
        "out": out,
        "fates": Counter(fate for fate, _ in fates),
        "examples": examples,
        "report": report,
        "ignored": len(counts) - len(rare),
        "found": len(counts),
        "grams": len(wanted),
    }


def random_corpus(seed: int) -> tuple[dict[str, list[str]], list[str]]:
    rng = random.Random(seed)
    words = ["a", "B", "c.", "d's", "É", "가", "나.", "—", "ΑΣ", "x", "y", "zz", "w", "3%", "...", "q", "r"]
    spaces = [" ", "  ", "\n", "\u00a0", "\u3000", "\t", "\u2028"]

    def text(low: int, high: int, kinds: int = len(words)) -> str:
        return "".join(rng.choice(words[:kinds]) + rng.choice(spaces) for _ in range(rng.randint(low, high)))

    def near(row: str) -> str:
        """The same words, in other clothes."""
        return "".join(rng.choice("!,\"'") + run.swapcase() + rng.choice(spaces) for run in row.split())

    benchmarks = {name: [text(1, 12) for _ in range(rng.randint(1, 25))] for name in ("first", "second")}
    benchmarks["second"].append(benchmarks["first"][0])
    texts = []
    for _ in range(60):
        document = text(0, rng.choice([1, 2, 60]))
        for _ in range(rng.choice([0, 0, 1, 2, 6])):
            planted = near(rng.choice(benchmarks[rng.choice(["first", "second"])]))
            document += planted + text(0, rng.choice([2, 30]), 12)
        texts.append(document)
    return benchmarks, texts


@pytest.mark.parametrize("seed", range(8))
def test_as_by_brute_force(seed, tmp_path, monkeypatch):
    benchmarks, texts = random_corpus(seed)
    if seed % 2:
        monkeypatch.setattr(decontaminate, "CHUNK_CHARACTERS", 7)
        monkeypatch.setattr(decontaminate, "REMEMBERED_RUNS", 3)
    numbers = {
        "ngram_words": 4 + seed % 2,
        "window_characters": 3 * (seed % 3),
        "min_piece_characters": 15,
        "max_pieces": 2,
        "max_documents": 4,
    }
    parts = [texts[:20], texts[20:21], [], texts[21:]] if seed % 3 else [texts]
    result = Result(tmp_path, benchmarks, parts, **numbers)
    expected = reference(benchmarks, texts, result.config)
    assert [(document.id, document.text) for document in result.documents] == expected["out"]
    assert result.reasons == {
        reason: expected["fates"][fate]
        for reason, fate in {
            "contaminated: more than 2 pieces": "pieces",
            "contaminated: pieces too short": "short",
        }.items()
        if expected["fates"][fate]
    }
    assert sum(counts.get("documents_cut", 0) for counts in result.ledger.counts.values()) == expected["fates"]["cut"]
    assert result.examples == expected["examples"]
    assert result.report == {
        "grams": expected["grams"],
        "grams_found": expected["found"],
        "grams_ignored": expected["ignored"],
        "benchmarks": expected["report"],
    }


def test_the_random_corpora_have_everything(tmp_path):
    """Or the test above would be easy to pass."""
    fates: Counter[str] = Counter()
    for seed in range(8):
        benchmarks, texts = random_corpus(seed)
        config = DecontaminateConfig(
            [BenchmarkConfig(path="x.jsonl")], 4 + seed % 2, 3 * (seed % 3), 15, max_pieces=2, max_documents=4
        )
        expected = reference(benchmarks, texts, config)
        fates += expected["fates"]
        fates["ignored"] += expected["ignored"]
        fates["left"] += expected["report"]["first"]["left_in_corpus"]
    assert all(fates[fate] >= 10 for fate in ("clean", "cut", "pieces", "short", "ignored", "left")), fates


def test_result_is_that_of_any_division_into_parts(tmp_path):
    benchmarks, texts = random_corpus(100)
    numbers = {
        "ngram_words": 4,
        "window_characters": 4,
        "min_piece_characters": 15,
        "max_pieces": 3,
        "max_documents": 4,
    }
    results = [
        Result(tmp_path / str(number), benchmarks, parts, **numbers)
        for number, parts in enumerate([[texts], [texts[:31], texts[31:]], [[text] for text in texts]])
    ]
    for result in results[1:]:
        assert result.texts == results[0].texts
        assert (result.report, result.examples) == (results[0].report, results[0].examples)


# --- Words


NASTY = (
    "ΟΔΟΣ ΟΔΟΣ. ΟΔΟΣ.Α Σ ΑΣ'Α ΑΣ\u0301 ΑΣ\u00ad Α\u200bΣ",
    "İstanbul I\u0307 ISTANBUL ı ŉ ǰ ẞ ﬁ",
    "e\u0301 \u0301 é a\u200bb \u200b a\u00a0b a\u3000b a\u202fb a\u2028b\x85c\x1cd \ufeffx",
    "don't “quoted” -- $5 3,000.50 a—b ... 50% x^2 `code` ©2020 Ⓐ ⓐ",
    "고양이가 매트에, 앉았다. ‘고양이’가… 한국어　전각",
    " \n leading and trailing \t\n",
    "",
)


def test_words():
    assert split_words("Don't, “stop” -- it's $5 (five)!\n...\u00a0고양이가, E\u0301t\u00e9") == [
        "dont",
        "stop",
        "its",
        "5",
        "five",
        "고양이가",
        "e\u0301t\u00e9",
    ]


@pytest.mark.parametrize("text", NASTY)
def test_words_run_by_run_are_those_of_the_whole_text(text):
    assert split_words(text) == reference_words(text)


def test_words_run_by_run_are_those_of_the_whole_text_around_any_character():
    codes = [*range(0x3100), *range(0xA640, 0xA8FF), *range(0xAC00, 0xAC80), *range(0xF900, 0x10000)]
    codes += [*range(0x10400, 0x10450), *range(0x1D400, 0x1D500), *range(0x1F600, 0x1F640)]
    for first in range(0, len(codes), 500):
        text = " ".join(f"A{chr(c)}b Σ{chr(c)} {chr(c)}Σ aΣ{chr(c)}B" for c in codes[first : first + 500])
        assert split_words(text) == reference_words(text)


def test_grams_are_found_where_they_stand_in_nasty_text(tmp_path):
    text = unicodedata.normalize("NFC", "\n".join(NASTY))
    words = reference_words(text)
    config = DecontaminateConfig(
        [BenchmarkConfig(path=benchmark_file(tmp_path, "b", [" ".join(words)]))], ngram_words=2
    )
    CollectGrams(config, tmp_path, Ledger()).run()
    index = GramIndex(tmp_path)
    starts, _ = index.find(text)
    assert starts.tolist() == list(range(len(words) - 1))
    for start, (begin, end) in zip(starts, index.character_spans(text, starts), strict=True):
        assert reference_words(text[begin:end]) == words[start : start + 2]
        assert not text[begin:end][:1].isspace() and not text[begin:end][-1:].isspace()


# --- The paper's numbers, to the one


def test_defaults_are_the_papers():
    config = DecontaminateConfig([BenchmarkConfig(path="x.jsonl")])
    assert (config.ngram_words, config.window_characters, config.min_piece_characters) == (13, 200, 200)
    assert (config.max_pieces, config.max_documents) == (10, 10)


def test_two_hundred_characters_are_cut_on_each_side(tmp_path):
    before, after = filler(450), filler(421)
    result = one(tmp_path, f"{before} {GRAM} {after}")
    # The space beside the gram is one of the 200.
    assert result.texts == [before[:-199], after[199:]]
    assert [document.id for document in result.documents] == ["doc0#0", "doc0#1"]
    assert result.documents[1].metadata == {"source": "source0", "language": "en", "url": "http://a.b"}
    cut = len(GRAM) + 400
    assert result.ledger.counts["source0"] == {"documents_cut": 1, "pieces": 2, "bytes_cut": cut}
    assert result.reasons == {}
    (example,) = result.ledger.examples[CUT]
    assert example["id"] == "doc0" and example["text"].startswith(GRAM)


def test_punctuation_of_the_gram_goes_with_it(tmp_path):
    before, after = filler(400), filler(400)
    text = f"{before}\n({', '.join(WORDS).upper()}).\n-- {after}"
    assert one(tmp_path, text).texts == [before[:-199], after[196:]]


def test_twelve_words_are_not_cut(tmp_path):
    texts = [f"{filler(300)} {' '.join(WORDS[:12])} {filler(300)}", f"{filler(300)} {' '.join(WORDS[1:])} x"]
    result = one(tmp_path, *texts)
    assert result.texts == texts
    assert result.report["benchmarks"]["b"]["dirty"] == 0


def test_twelve_words_of_a_longer_example_are_not_cut(tmp_path):
    text = f"{filler(300)} {' '.join(WORDS[:12])} other {' '.join(WORDS[1:])}"
    assert one(tmp_path, text, benchmark=f"start {GRAM} and go on").texts == [text]


def test_clean_documents_pass_byte_for_byte(tmp_path):
    texts = ["", " \n", "one", "a\u0301\r\n\r\n\tb\u2028 c ", "\ufefftext", "고양이 🐈\x00 x", GRAM[:-1]]
    result = one(tmp_path, *texts)
    assert result.texts == texts
    assert [document.id for document in result.documents] == [f"doc{i}" for i in range(len(texts))]
    assert result.ledger.to_dict() == Ledger().to_dict()


@pytest.mark.parametrize(("length", "kept"), [(199, False), (200, True)])
def test_piece_of_two_hundred_characters_is_kept(length, kept, tmp_path):
    piece = filler(length)
    result = one(tmp_path, f"{piece}{'y' * 199} {GRAM} {filler(500)}")
    assert result.texts == ([piece] if kept else []) + [filler(500)[199:]]
    assert result.documents[0].id == "doc0#0"


@pytest.mark.parametrize("text", [GRAM, f"{filler(398)} {GRAM}\n{filler(300)}"])
def test_document_of_short_pieces_alone_is_dropped(text, tmp_path):
    result = one(tmp_path, text)
    assert result.texts == []
    assert result.reasons == {"contaminated: pieces too short": 1}
    assert result.ledger.dropped["source0"]["contaminated: pieces too short"]["bytes"] == len(text)
    assert result.report["benchmarks"]["b"]["documents_dropped"] == 1
    assert result.report["benchmarks"]["b"]["documents_cut"] == 0


def test_piece_of_white_space_is_dropped(tmp_path):
    result = one(tmp_path, f"{filler(500)} {GRAM}{' ' * 1000}")
    assert result.texts == [filler(500)[:-199]]


@pytest.mark.parametrize(("cuts", "kept"), [(9, 10), (10, 0)])
def test_eleven_pieces_are_too_many(cuts, kept, tmp_path):
    result = one(tmp_path, f" {GRAM} ".join([filler(700)] * (cuts + 1)))
    assert len(result.texts) == kept
    assert result.reasons == ({} if kept else {"contaminated: more than 10 pieces": 1})


def test_short_pieces_count_as_pieces_and_nothing_does_not(tmp_path):
    eleven = f" {GRAM} ".join([filler(800)] + [filler(402)] * 9 + [filler(800)])
    # Nothing before the first gram and after the last: nine pieces between them.
    nine = f"{GRAM} " + f" {GRAM} ".join([filler(800)] * 9) + f" {GRAM}"
    result = one(tmp_path, eleven, nine)
    assert result.reasons == {"contaminated: more than 10 pieces": 1}
    assert len(result.texts) == 9


@pytest.mark.parametrize(("copies", "cut"), [(10, True), (11, False)])
def test_gram_in_eleven_documents_is_a_common_phrase(copies, cut, tmp_path):
    texts = [f"{filler(500)} {GRAM} {GRAM} {number}" for number in range(copies)]
    result = Result(tmp_path, {"b": [GRAM]}, [texts[:4], texts[4:]])
    assert result.texts == ([filler(500)[:-199]] * copies if cut else texts)
    (line,) = result.examples["b"]
    assert line["dirty"] and line["left_in_corpus"] == (not cut)
    assert line["documents"] == (10 if cut else 0)
    assert result.report["grams_ignored"] == (0 if cut else 1)


def test_common_phrase_stays_in_a_document_that_is_cut_elsewhere(tmp_path):
    other = " ".join(f"w{number}" for number in range(13))
    texts = [f"{filler(300)} {GRAM} {filler(300)}"] * 11
    texts[3] = f"{GRAM} {filler(500)} {other}"
    result = Result(tmp_path, {"b": [GRAM, other]}, [texts])
    assert result.texts[3] == f"{GRAM} {filler(500)}"[:-199]
    assert [line["left_in_corpus"] for line in result.examples["b"]] == [True, False]


# --- Where grams are


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{GRAM} {filler(500)}", [filler(500)[199:]]),
        (f"{filler(500)} {GRAM}", [filler(500)[:-199]]),
        (f"{filler(500)}\n" + "\n\n".join(WORDS) + f"\n{filler(500)}", [filler(500)[:-199], filler(500)[199:]]),
    ],
    ids=["beginning", "end", "across lines"],
)
def test_gram_anywhere(text, expected, tmp_path):
    assert one(tmp_path, text).texts == expected


def test_overlapping_windows_are_one(tmp_path):
    long = " ".join(f"w{number}" for number in range(20))
    apart, touching = f"{filler(500)} {GRAM} {filler(399)} {GRAM}", f"{filler(500)} {GRAM} {filler(398)} {GRAM}"
    result = Result(tmp_path, {"b": [GRAM, long]}, [[f"{filler(500)} {long} {filler(500)}", apart, touching]])
    assert result.texts == [filler(500)[:-199], filler(500)[199:], filler(500)[:-199], filler(500)[:-199]]
    assert result.report["benchmarks"]["b"]["grams_found"] == 9
    # One piece more, of one character, where windows do not touch.
    result = one(tmp_path / "apart", apart, touching, max_pieces=1)
    assert result.reasons == {"contaminated: more than 1 pieces": 1}


def test_whole_example_as_a_document_and_inside_one(tmp_path):
    example = f"He said: {GRAM}, says {' '.join(f'w{number}' for number in range(60))}."
    result = Result(tmp_path, {"b": [example]}, [[example, f"{filler(600)}\n{example}\n{filler(600)}"]])
    assert len(result.texts) == 2 and not any("says" in text for text in result.texts)
    assert result.reasons == {"contaminated: pieces too short": 1}


def test_two_benchmarks_share_a_gram(tmp_path):
    result = Result(
        tmp_path,
        {"first": [GRAM, "too short"], "second": ["nothing " * 13, f"so: {GRAM.upper()}!"]},
        [[f"{filler(500)} {GRAM} {filler(500)}", "clean"]],
    )
    assert len(result.texts) == 3
    assert [line["dirty"] for line in result.examples["first"]] == [True, False]
    assert [line["dirty"] for line in result.examples["second"]] == [False, True]
    first, second = (result.report["benchmarks"][name] for name in ("first", "second"))
    assert first == {
        "examples": 2,
        "too_short": 1,
        "dirty": 1,
        "left_in_corpus": 0,
        "grams": 1,
        "grams_found": 1,
        "documents_cut": 1,
        "documents_dropped": 0,
    }
    assert (second["grams"], second["grams_found"], second["documents_cut"]) == (3, 1, 1)
    assert result.report["grams"] == 3


def test_korean(tmp_path):
    sentence = "나는 어제 저녁에 친구와 함께 극장에서 아주 재미있는 한국 영화를 보고 집으로 돌아왔다"
    words = sentence.split()
    before, after = "앞에 있는 글 " * 60, " 뒤에 오는 글" * 60
    text = f"{before}“{sentence}.”{after}"
    result = one(tmp_path, text, " ".join(words[1:]), benchmark=sentence)
    assert len(words) == 13
    assert result.texts == [before[:-200], after[200:], " ".join(words[1:])]


@pytest.mark.skipif(not NSMC.exists(), reason="no NSMC here")
def test_korean_reviews_are_found_in_a_corpus_that_quotes_them(tmp_path):
    reviews = [json.loads(line)["text"] for line in NSMC.read_text(encoding="utf-8").splitlines()][:400]
    quoted = reviews[::7]
    result = Result(tmp_path, {"nsmc": reviews}, [["가 나 다 " * 100 + text + " 라 마" * 100 for text in quoted]])
    long = [len(reference_words(review)) >= 13 for review in reviews]
    assert 0 < sum(long) < len(long)
    lines = result.examples["nsmc"]
    assert [line["grams"] > 0 for line in lines] == long
    assert all(lines[index]["dirty"] for index in range(0, 400, 7) if long[index])
    assert result.report["benchmarks"]["nsmc"]["left_in_corpus"] == 0


def test_benchmarks_too_short_to_check(tmp_path):
    result = Result(tmp_path, {"b": ["a b c", "- " * 20, " ".join(WORDS[:12])]}, [[GRAM], []])
    assert result.texts == [GRAM]
    assert result.report["benchmarks"]["b"]["too_short"] == 3
    assert result.report["grams"] == 0


def test_no_gram_runs_from_one_text_into_the_next(tmp_path):
    rows = [" ".join(WORDS[:6]), " ".join(WORDS[6:]), f"x {GRAM}", f"{GRAM} y"]
    result = Result(tmp_path, {"b": rows}, [[f"{' '.join(WORDS[1:])} x"]])
    assert result.report["grams"] == 3
    assert result.report["grams_found"] == 0


# --- Hashes only say where to look


def test_grams_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    factors = decontaminate._factors
    monkeypatch.setattr(
        decontaminate, "_factors", lambda n, salt: np.zeros(n, np.uint64) if salt < 2 else factors(n, salt)
    )
    result = one(tmp_path, f"{filler(500)} {GRAM} {filler(500)}", benchmark=f"a {GRAM} b c")
    assert result.report["grams"] == 4
    assert result.report["grams_found"] == 1
    assert json.loads((result.folder / "grams" / "grams.json").read_text())["salt"] == 2


def test_the_same_hash_is_no_match(tmp_path, monkeypatch):
    monkeypatch.setattr(decontaminate, "_factors", lambda n, salt: np.full(n, 1 << 50, np.uint64))
    text = " ".join(reversed(WORDS)) + filler(300)
    result = one(tmp_path, text, f"{GRAM} {filler(500)}")
    assert result.texts == [text, filler(500)[199:]]


# --- Reading benchmarks


def examples(tmp_path, rows, limit=0, **options):
    benchmark = BenchmarkConfig(name="quiz", path=benchmark_file(tmp_path, "quiz", rows), **options)
    return list(read_examples(benchmark, RowErrors(limit)))


def test_every_text_of_the_fields_is_an_examples(tmp_path):
    rows = [
        {"question": "Who?", "choices": {"text": ["me", "you"], "label": ["A", "B"]}, "id": "no"},
        {"question": None, "choices": [["them", 3], None, "us"], "id": "no"},
        {"question": " ", "choices": [], "id": "passed over"},
        {"question": "Why?", "choices": 7, "id": "no"},
    ]
    assert examples(tmp_path, rows, fields=["question", "choices"]) == [
        ["Who?", "me", "you", "A", "B"],
        ["them", "us"],
        ["Why?"],
    ]


def test_a_text_in_any_field_is_found_and_counts_for_its_example(tmp_path):
    rows = [{"q": "short", "a": {"aliases": ["x", GRAM]}}, {"q": GRAM, "a": None}, {"q": WORDS[0], "a": WORDS[1:]}]
    config = DecontaminateConfig([BenchmarkConfig(path=benchmark_file(tmp_path, "b", rows), fields=["q", "a"])])
    CollectGrams(config, tmp_path, Ledger()).run()
    assert np.load(tmp_path / "grams" / "examples.npy").tolist() == [0, 1]


def test_default_field_and_numbering_are_those_of_read_rows(tmp_path):
    rows = [{"t": text, "film": str(i % 5)} for i, text in enumerate(["a", "", "b", " ", "c", "d", "e", "f", "g"])]
    options = {"text_field": "t", "group_by": "film", "test_fraction": 0.5, "where": {"film": ["0", "1", "2", "3"]}}
    for part in ("all", "train", "test"):
        source = SourceConfig(path=benchmark_file(tmp_path, "quiz", rows), part=part, **options)
        expected = [[row["t"]] for row in read_rows(source, RowErrors())]
        assert examples(tmp_path, rows, part=part, **options) == expected != []
    assert len(examples(tmp_path, rows, text_field="t", max_rows=2)) == 2


def test_missing_field_is_an_error_that_helps(tmp_path):
    with pytest.raises(ValueError, match=r"Benchmark 'quiz'.*no field `answer` in .*:2.*the fields are question, id"):
        examples(
            tmp_path, [{"question": "a", "answer": "b"}, {"question": "a", "id": 1}], fields=["question", "answer"]
        )


def test_benchmark_without_text_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Benchmark 'quiz'.*no example with text in question"):
        examples(tmp_path, [{"question": 3}], fields=["question"])


@pytest.mark.parametrize("row", ["not json", '{"text": "\\ud800"}'])
def test_malformed_row_is_an_error_by_default_and_may_be_passed_over(row, tmp_path):
    path = tmp_path / "quiz.jsonl"
    path.write_text(f'{row}\n{{"text": "fine"}}\n')
    config = DecontaminateConfig([BenchmarkConfig(path=str(path))])
    with pytest.raises(ValueError, match="max_bad_rows"):
        CollectGrams(config, tmp_path, Ledger()).run()
    config.max_bad_rows = 1
    CollectGrams(config, tmp_path, Ledger()).run()
    assert json.loads((tmp_path / "grams" / "grams.json").read_text())["benchmarks"][0]["examples"] == 1


def test_vanished_benchmark_is_an_error_that_names_it(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'some/thing' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for benchmark in (BenchmarkConfig(dataset="some/thing"), BenchmarkConfig(name="some/thing", path="gone.jsonl")):
        with pytest.raises(ValueError, match=r"Benchmark 'some/thing'.*(Cannot load `dataset|No such file)"):
            CollectGrams(DecontaminateConfig([benchmark]), tmp_path, Ledger()).run()


# --- Configuration


def test_config_from_yaml():
    values = yaml.safe_load(
        """
        max_documents: 5
        benchmarks:
          - name: nsmc
            path: data/nsmc/test.jsonl
            fields: [document]
          - dataset: EleutherAI/lambada_openai
            dataset_split: test
        """
    )
    config = from_mapping(DecontaminateConfig, values, "recipe")
    assert config.max_documents == 5
    assert [benchmark.fields for benchmark in config.benchmarks] == [["document"], ["text"]]
    assert config.benchmarks[1].file_name == "EleutherAI_lambada_openai"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": []}, "`benchmarks` is empty"),
        ({"benchmarks": [{"path": "x.csv", "fields": []}]}, "`fields` of benchmark 'x.csv' is empty"),
        ({"benchmarks": [{"path": "x.csv"}, {"path": "x.csv"}]}, "same `name`"),
        ({"ngram_words": 0}, "`ngram_words` must be at least 1, got 0"),
        ({"window_characters": -1}, "`window_characters` must be at least 0, got -1"),
        ({"max_pieces": 0}, "`max_pieces` must be at least 1, got 0"),
        ({"n": 13}, "Unknown key `n`"),
    ],
)
def test_config_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(DecontaminateConfig, {"benchmarks": [{"path": "x.csv"}], **change}, "recipe")


# --- Steps


def test_documents_that_have_changed_since_they_were_counted_are_refused(tmp_path):
    result = one(tmp_path, "clean", f"{GRAM} {filler(500)}")
    step = Decontaminate(result.config, tmp_path / "parts", result.folder, Ledger())
    documents = list(read_documents(list_parts(tmp_path / "parts")[0]))
    with pytest.raises(ValueError, match="has changed since"):
        list(step.run(reversed(documents)))
    with pytest.raises(ValueError, match="fewer documents"):
        list(step.run(documents[:1]))


def test_steps_run_again_write_the_same_bytes(tmp_path):
    benchmarks, texts = random_corpus(7)
    first, second = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in Result(tmp_path / name, benchmarks, [texts[:30], texts[30:]], ngram_words=4).folder.rglob("*")
            if path.is_file()
        }
        for name in ("first", "second")
    )
    assert first == second != {}


def test_very_long_run_and_very_long_document(tmp_path, monkeypatch):
    monkeypatch.setattr(decontaminate, "CHUNK_CHARACTERS", 1000)
    text = f"{'x' * 50_000}{filler(5000)} {GRAM} {filler(100_000)}"
    result = one(tmp_path, text)
    assert result.texts == [f"{'x' * 50_000}{filler(5000)}"[:-199], filler(100_000)[199:]]
