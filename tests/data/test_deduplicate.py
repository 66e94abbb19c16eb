"""Near-duplicates are found and nothing else goes; what is curated stays; the files depend on the input alone."""

import copy
import itertools
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from hfgpt.data import deduplicate as module
from hfgpt.data.deduplicate import (
    Buckets,
    Clusters,
    DeduplicateConfig,
    DropDuplicates,
    Signatures,
    candidate_probability,
    duplicates_report,
    read_removed,
    shingle_hashes,
    word_hashes,
)
from hfgpt.data.documents import Ledger, PartWriter, ReadPart, WritePart, make_document, read_documents


NSMC = Path(__file__).resolve().parents[3] / "shared/data/nsmc/test.jsonl"
VOCABULARY = [f"word{number}" for number in range(5000)]


@pytest.fixture(autouse=True)
def quiet():
    """datatrove's steps log each file they read."""
    logger.disable("datatrove")
    yield
    logger.enable("datatrove")


class Deduplication:
    """The four steps over parts in a folder, one after another."""

    def __init__(self, folder: Path, parts: list[list[str]], sources: list[str] | None = None, **config):
        self.folder, self.parts, self.config = folder, parts, DeduplicateConfig(**config)
        self.signatures, self.buckets, self.clusters = (
            folder / name for name in ("signatures", "buckets", "clusters")
        )
        self.read_from, self.ledger = folder / "parts", Ledger()
        for number, texts in enumerate(parts):
            source = sources[number] if sources else "source"
            with PartWriter(self.read_from / f"{number:05d}.parquet") as writer:
                for row, text in enumerate(texts):
                    writer.write(make_document(text, f"{number}/{row}", source))

    def run(self, workers_per_bucket: int = 1, backwards: bool = False, tasks: int | None = None) -> "Deduplication":
        order = (lambda count: reversed(range(count))) if backwards else range
        parts, tasks = len(self.parts), tasks or self.config.minhash().num_buckets * workers_per_bucket
        # A task starts from a copy of its steps.
        for rank in order(parts):
            step = copy.deepcopy(Signatures(self.signatures, self.config, Ledger()))
            step.run(ReadPart(self.read_from, Ledger()).run(None, rank, parts), rank, parts)
        for rank in order(tasks):
            copy.deepcopy(Buckets(self.signatures, self.buckets, self.config, Ledger())).run(None, rank, tasks)
        Clusters(self.signatures, self.buckets, self.clusters, self.read_from, self.config, Ledger()).run()
        for rank in order(parts):
            documents = ReadPart(self.read_from, self.ledger).run(None, rank, parts)
            documents = DropDuplicates(self.clusters, self.ledger).run(documents, rank, parts)
            WritePart(self.read_from, self.folder / "kept", self.ledger).run(documents, rank, parts)
        return self

    @property
    def removed(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(part, row) removed -> (part, row) kept in its place."""
        return {
            (part, row): (kept_part, kept_row)
            for part in range(len(self.parts))
            for row, kept_part, kept_row in read_removed(self.clusters, part)
        }

    @property
    def kept(self) -> list[list[str]]:
        return [
            [document.text for document in read_documents(part)]
            for part in sorted((self.folder / "kept").glob("*.parquet"))
        ]

    @property
    def report(self) -> dict:
        return duplicates_report(self.clusters, self.read_from)


def grams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def share_of_each(a: set, b: set) -> float:
    return len(a & b) / max(len(a), len(b))


def edit(words: list[str], measure, level: float, random_state: random.Random) -> list[str]:
    """Words replaced, deleted and inserted until the two share no more than the level."""
    edited = list(words)
    while measure(grams(words), grams(edited)) > level:
        place, kind = random_state.randrange(len(edited)), random_state.randrange(3)
        edited[place : place + (kind != 0)] = [random_state.choice(VOCABULARY)] if kind != 2 else []
    return edited


def documents(count: int, seed: int = 0, low: int = 60, high: int = 150) -> list[list[str]]:
    random_state = random.Random(seed)
    return [random_state.choices(VOCABULARY, k=random_state.randint(low, high)) for _ in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("measure", [jaccard, share_of_each])
def test_pairs_that_share_eighty_percent_are_found_and_no_unrelated_ones(tmp_path, measure):
    random_state = random.Random(1)
    originals, others = documents(200), documents(100, seed=2)
    copies = [edit(words, measure, 0.8, random_state) for words in originals]
    parts = [originals, copies, others]
    run = Deduplication(tmp_path, [[" ".join(words) for words in part] for part in parts]).run()
    found = sum(run.removed.get((1, row)) == (0, row) for row in range(len(originals)))
    assert found / len(originals) >= 0.95
    # All pairs' exact similarity (those without a gram in common have none): no text went for one it does not resemble.
    sets = {(part, row): grams(words) for part, texts in enumerate(parts) for row, words in enumerate(texts)}
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for place, own in sets.items():
        for gram in own:
            places.setdefault(gram, []).append(place)
    near = {pair for sharing in places.values() for pair in itertools.combinations(sharing, 2)}
    similar = {(a, b) for a, b in near if jaccard(sets[a], sets[b]) >= 0.5}
    assert {(kept, removed) for removed, kept in run.removed.items()} <= similar
    assert run.kept[0] == [" ".join(words) for words in originals] and len(run.kept[2]) == 100


def test_pairs_that_share_a_third_stay(tmp_path):
    random_state = random.Random(1)
    originals = documents(100)
    copies = [edit(words, jaccard, 0.33, random_state) for words in originals]
    run = Deduplication(tmp_path, [[" ".join(words) for words in part] for part in (originals, copies)]).run()
    assert run.removed == {}


def test_defaults_find_both_readings_of_eighty_percent():
    config = DeduplicateConfig()
    assert candidate_probability(0.8 / 1.2, config.buckets, config.hashes_per_bucket) > 0.99
    assert candidate_probability(0.8, 10, 1) == pytest.approx(1 - 0.2**10)


def test_estimate_is_the_jaccard_similarity(tmp_path):
    """Over many hash functions; 600 grams in all, so that they are hashed in more than one go."""
    step = Signatures(tmp_path, DeduplicateConfig(buckets=999, hashes_per_bucket=4), Ledger())
    shingles = np.random.default_rng(0).integers(1 << 63, size=6000, dtype=np.uint64)
    first, second = step.smallest(shingles[:5000]), step.smallest(shingles[1000:])
    assert (first == second).mean() == pytest.approx(4000 / 6000, abs=0.03)
    assert first.max() < 1 << 32


def test_what_comes_first_is_kept_whatever_the_others_share(tmp_path):
    """Two web pages are nearer to each other than to the curated text, and come in any number."""
    random_state = random.Random(0)
    (curated,) = documents(1, low=300, high=300)
    page = edit(curated, jaccard, 0.75, random_state)
    pages = [" ".join(edit(page, jaccard, 0.97, random_state)) for _ in range(5)]
    parts = [["something else entirely, of its own"], [" ".join(curated)], [*pages, "the last of all the words here"]]
    run = Deduplication(tmp_path, parts, ["books", "wiki", "crawl"]).run()
    assert run.removed == {(2, row): (1, 0) for row in range(5)}
    assert run.kept == [parts[0], parts[1], parts[2][5:]]
    assert run.ledger.dropped["crawl"]["duplicate of wiki"]["documents"] == 5
    assert run.report == {
        "clusters": 1,
        "documents_in_clusters": 6,
        "removed": 5,
        "cluster_sizes": {"6": 1},
        "pairs_between_sources": {"wiki -> crawl": 5},
        "largest": [
            {
                "size": 6,
                "kept": {"source": "wiki", "id": "1/0", "text": parts[1][0][:300]},
                "removed": [{"source": "crawl", "id": f"2/{row}", "text": pages[row][:300]} for row in range(3)],
            }
        ],
    }


def test_short_texts_are_duplicates_where_their_words_are_equal(tmp_path):
    texts = [
        "Good movie!",
        "good  movie",
        "good film",
        "Good",
        "good movie, really",
        ":)",
        " :) ",
        ":(",
        "",
        "the one",
    ]
    run = Deduplication(tmp_path, [texts]).run()
    assert run.removed == {(0, 1): (0, 0), (0, 6): (0, 5)}
    assert run.ledger.dropped["source"]["duplicate"] == {"documents": 2, "bytes": 15}


def test_empty_texts_and_empty_parts(tmp_path):
    run = Deduplication(tmp_path, [[], ["", "a text"], [], [" \n", "a text"], []]).run(workers_per_bucket=3)
    assert run.removed == {(3, 0): (1, 0), (3, 1): (1, 1)}
    assert run.kept == [[], ["", "a text"], [], [], []]
    run = Deduplication(tmp_path / "no documents", [[], []]).run()
    assert run.removed == {} and run.report["clusters"] == 0 and run.report["largest"] == []


def test_only_equal_texts_go_where_exact_is_asked_for(tmp_path):
    (words,) = documents(1)
    text = " ".join(words)
    run = Deduplication(
        tmp_path, [[text, "a"], [f" {text}\n", text + " more", text.upper(), "a", "b"]], method="exact"
    )
    assert run.run(workers_per_bucket=2).removed == {(1, 0): (0, 0), (1, 3): (0, 1)}


def test_words_are_the_same_however_they_are_set():
    def same(*texts):
        first, *others = (word_hashes(text).tolist() for text in texts)
        return all(first == other for other in others)

    assert same("It's 3 o'clock", "it s 3 O’CLOCK!", " it\ns—3 «o» clock")
    assert same("한국어 문서", unicodedata.normalize("NFD", "한국어, 문서."), "「한국어」 문\u00ad서")
    assert same("中文 字", "中文字", "中，文。字")
    assert len(word_hashes("한국어 문서")) == 2 and len(word_hashes("中文字ひらภาษาไ")) == 10
    assert len(word_hashes("हिन्दी भाषा")) == 2 and len(word_hashes("snake_case3 ❤️ !")) == 2
    assert not same("ab ba", "ba ab") and not same("aa", "a") and not same("a b", "ab") and not same("ab", "ba")
    assert len(set(word_hashes(" ".join(VOCABULARY)).tolist())) == len(VOCABULARY)
    assert len(word_hashes("\ud800 a lone surrogate")) == 3


def test_shingles_are_word_ngrams():
    words = VOCABULARY[:30]
    shingles = shingle_hashes(" ".join(words), 5).tolist()
    assert len(set(shingles)) == 26
    assert shingle_hashes(" ".join(words[3:8]), 5).tolist() == [shingles[3]]
    assert shingle_hashes(" ".join(reversed(words[3:8])), 5).tolist() != [shingles[3]]


def test_pieces_of_a_large_text_do_not_show(monkeypatch):
    text = " ".join(f"{word}\nﷺ" for word in VOCABULARY[:500])  # the sign is 18 letters long when normalised
    whole = word_hashes(text).tolist()
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 100)
    assert word_hashes(text).tolist() == whole
    assert len(word_hashes("x" * 1000)) == 10  # no word is longer than a piece
    monkeypatch.setattr(module, "GRAMS_AT_ONCE", 7)
    config = DeduplicateConfig()
    shingles = shingle_hashes(text, 5)
    in_pieces = Signatures(Path(), config, Ledger()).smallest(shingles)
    monkeypatch.setattr(module, "GRAMS_AT_ONCE", 1 << 20)
    assert (in_pieces == Signatures(Path(), config, Ledger()).smallest(shingles)).all()


def test_chain_removes_no_document_for_one_it_does_not_resemble(tmp_path):
    """Each text is the last one, moved on by a twentieth: the first and the last share nothing."""
    words = random.Random(3).choices(VOCABULARY, k=2500)
    chain = [words[start : start + 200] for start in range(0, 2300, 10)]
    rows = list(range(len(chain)))
    random.Random(4).shuffle(rows)
    run = Deduplication(tmp_path, [[" ".join(chain[row]) for row in rows]]).run()
    assert len(run.removed) > len(chain) / 2
    for (_, removed), (_, kept) in run.removed.items():
        assert (0, kept) not in run.removed
        # 0.5 is estimated with a standard error of 0.05.
        assert jaccard(grams(chain[rows[removed]]), grams(chain[rows[kept]])) > 0.3
    # What is kept is not alike either, but for pairs about the threshold.
    kept = [grams(chain[row]) for number, row in enumerate(rows) if (0, number) not in run.removed]
    assert max(jaccard(a, b) for a, b in itertools.combinations(kept, 2)) < 0.65


def test_group_of_one_signature_takes_time_in_proportion(tmp_path, monkeypatch):
    """Thousands of equal texts are compared with one of them, not with one another."""
    compared = []
    similarity = module.Sketches.similarity

    def counted(self, first, second):
        compared.append(len(first))
        return similarity(self, first, second)

    monkeypatch.setattr(module.Sketches, "similarity", counted)
    parts = [["the very same words again and again"] * 700, ["the very same words again and again"] * 800]
    run = Deduplication(tmp_path, parts, buckets=4).run()
    assert len(run.removed) == 1499 and set(run.removed.values()) == {(0, 0)}
    assert sum(compared) <= 5 * 1500


def test_documents_of_one_signature_are_joined_with_their_like_alone(tmp_path):
    """Two kinds of text that agree on a bucket by chance, two of each, and one like none."""
    kinds = np.random.default_rng(0).integers(1 << 32, size=(3, 96), dtype=np.uint32)
    np.save(tmp_path / "00000.npy", kinds[[0, 1, 0, 2, 1]])
    members, groups = np.arange(5, dtype=np.uint64), np.zeros(5, dtype=np.int64)
    edges = module.verify(members, groups, module.Sketches(tmp_path), 0.5)
    assert sorted(edges.tolist()) == [[0, 2], [1, 4]]
    chain = np.array([[5, 6], [1, 2], [7, 6], [0, 2]], dtype=np.uint64)
    assert module.join(chain).tolist() == [[0, 0], [1, 0], [2, 0], [5, 5], [6, 5], [7, 5]]


def test_groups_are_whole_however_little_is_read_at_once(tmp_path):
    run = Deduplication(tmp_path, [["a"] * 5 + ["b", "c", "b"], ["a", "c", "b", "a"]], buckets=1).run()
    (file,) = run.buckets.glob("*.dups")
    expected = sorted([[0, 1, 2, 3, 4, 1 << 32, (1 << 32) + 3], [5, 7, (1 << 32) + 2], [6, (1 << 32) + 1]])
    for at_once in (1, 2, 3, 1000):
        found = []
        for members, groups in module.read_groups(file, at_once):
            found += [members[groups == group].tolist() for group in np.unique(groups)]
        assert sorted(found) == expected


def test_korean_reviews(tmp_path):
    if not NSMC.exists():
        pytest.skip("no Korean reviews at hand")
    with NSMC.open(encoding="utf-8") as file:
        reviews = [json.loads(line)["text"] for line in itertools.islice(file, 4000)]
    texts = [" ".join(reviews[start : start + 20]) for start in range(0, len(reviews) - 20, 20)]
    copies = [text.replace(text.split()[20], "영화", 1) for text in texts]
    run = Deduplication(tmp_path, [texts, copies]).run()
    assert sum(run.removed.get((1, row)) == (0, row) for row in range(len(texts))) >= 0.95 * len(texts)
    assert not any(part == 0 for part, _ in run.removed)


def test_files_depend_on_neither_tasks_nor_their_order(tmp_path):
    random_state = random.Random(5)
    originals = documents(60)
    near = [edit(words, jaccard, random_state.choice([0.4, 0.5, 0.7, 0.9]), random_state) for words in originals * 3]
    parts = [[" ".join(words) for words in part] for part in ([], originals, near[:100], near[100:])]
    first = Deduplication(tmp_path / "first", parts).run()
    for name, options in (
        ("workers", {"workers_per_bucket": 3}),
        ("order", {"backwards": True}),
        ("few", {"tasks": 5}),
        ("again", {"workers_per_bucket": 2, "backwards": True}),
    ):
        other = Deduplication(tmp_path / name, parts).run(**options)
        for folder in ("signatures", "clusters", "kept"):
            assert contents(other.folder / folder) == contents(first.folder / folder)
    # Run once more over what is there, as after a stop; what a killed task left is cleared.
    before = contents(first.folder)
    (first.signatures / ".writing-00002-killed" / "bucket_000").mkdir(parents=True)
    first.run()
    assert contents(first.folder) == before and not list(first.signatures.glob(".*"))
    assert len(first.removed) > 60


def test_seed_draws_other_hashes():
    shingles = shingle_hashes("one two three four five six seven", 5)
    first, second = (Signatures(Path(), DeduplicateConfig(seed=seed), Ledger()).smallest(shingles) for seed in (0, 1))
    assert not (first == second).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [("ngram", 0), ("buckets", 0), ("buckets", 1000), ("hashes_per_bucket", 0), ("min_similarity", 0.0), ("seed", -1)],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"`{field}` must be .*got {value}"):
        DeduplicateConfig(**{field: value})
