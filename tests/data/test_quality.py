"""The quality filter: the paper's rule, a model that no division into parts changes, and Korean told from junk."""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from hfgpt.config import from_mapping
from hfgpt.data.documents import Ledger, PartWriter, ReadPart, make_document, read_documents, write_json
from hfgpt.data.quality import (
    FEATURE_CHARACTERS,
    QualityConfig,
    QualityFilter,
    SampleQuality,
    TrainQuality,
    _fold,
    _Sample,
    extract_features,
    is_kept,
    load_model,
    quality_report,
    scores,
)


NSMC = Path(__file__).resolve().parents[3] / "shared/data/nsmc/train.jsonl"
CONFIG = QualityConfig(features=2**12, min_examples=50)

GOOD = "the harbour was quiet and two brothers repaired their father's boat while winter came over the town"
JUNK = "buy cheap pills casino bonus click here best price free shipping viagra loan win prize now online"
KOREAN_GOOD = "형제는 항구로 돌아와 아버지의 배를 고치고 겨울이 오는 마을에서 조용히 편지를 썼다 음악이 아름답다"
KOREAN_JUNK = "무료 상담 대출 당일 승인 카지노 보너스 최저가 클릭 지금 가입 이벤트 쿠폰 배송 할인 문의"
FRENCH = "deux frères reviennent au port et la mer est calme"


def make(words, count, source, language, seed):
    generator = random.Random(seed)
    return [
        make_document(" ".join(generator.choices(words.split(), k=15)) + f" {n}", f"{seed}-{n}", source, language)
        for n in range(count)
    ]


@pytest.fixture
def documents():
    """English and Korean, good and junk; French in the crawl alone."""
    documents = [
        *make(GOOD, 150, "books", "en", 1),
        *make(KOREAN_GOOD, 150, "books", "ko", 2),
        *make(JUNK, 150, "crawl", "en", 3),
        *make(KOREAN_JUNK, 150, "crawl", "ko", 4),
        *make(GOOD, 30, "crawl", "en", 5),
        *make(FRENCH, 80, "crawl", "fr", 6),
    ]
    random.Random(0).shuffle(documents)
    return documents


def write_parts(folder, documents, parts):
    for part in range(parts):
        with PartWriter(folder / f"{part:05d}.parquet") as writer:
            for document in documents[part::parts]:
                writer.write(document)
    return folder


def train(folder, documents, parts=3, config=CONFIG, counted=None):
    """Sample and train as the pipeline does, a task a part."""
    read_from = write_parts(folder / "documents", documents, parts)
    for rank in range(parts):
        ledger = Ledger()
        step = SampleQuality(config, ["books"], ["crawl"], read_from, folder / "samples", ledger, counted)
        pickle.loads(pickle.dumps(step)).run(ReadPart(read_from, ledger).run(rank=rank), rank, parts)
    TrainQuality(config, folder / "samples", folder / "model", Ledger()).run()
    return folder / "model"


def summary_of(model):
    return json.loads((model / "summary.json").read_text())


def filter_documents(documents, model, config=CONFIG):
    step = QualityFilter(config, ["crawl"], model, Ledger())
    return list(step.run(iter(documents))), step.ledger


@pytest.mark.parametrize("alpha", [9.0, 2.0])
@pytest.mark.parametrize("score", [0.0, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_share_kept_is_the_paretos(score, alpha):
    count = 4000
    kept = sum(is_kept(f"document {n}", score, alpha) for n in range(count))
    # numpy's pareto is the Lomax distribution: P(X > x) = (1 + x) ** -alpha.
    expected = (2 - score) ** -alpha
    assert abs(kept / count - expected) <= 5 * (expected * (1 - expected) / count) ** 0.5


def test_draw_belongs_to_the_document_and_the_seed():
    draws = [is_kept(f"document {n}", 0.9) for n in range(200)]
    assert draws == [is_kept(f"document {n}", 0.9) for n in range(200)]
    assert draws != [is_kept(f"document {n}", 0.9, seed=1) for n in range(200)]


def test_draws_are_those_of_every_process_and_machine():
    assert [n for n in range(40) if is_kept(f"글 {n}", 0.9)] == [
        0, 5, 12, 17, 19, 24, 26, 27, 32, 33, 34, 35, 36, 38, 39
    ]  # fmt: skip


def test_a_higher_score_never_loses_a_document():
    for n in range(300):
        kept = [is_kept(f"document {n}", score) for score in np.linspace(0, 1, 11)]
        assert kept == sorted(kept) and kept[-1]


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("It's ONE film.", ["it", "s", "one", "film"]),
        ("영화는 10점", ["영화는", "10점", "영화", "화는"]),
        ("映画館", ["映画館", "映画", "画館"]),
        ("café", ["café"]),
        ("...", []),
    ],
)
def test_features_are_words_and_pairs_of_inflected_scripts(text, features):
    assert extract_features(text) == features


def test_only_the_start_of_a_long_document_counts():
    assert len(extract_features("a " * FEATURE_CHARACTERS)) == FEATURE_CHARACTERS // 2


def test_model_does_not_depend_on_the_division_into_parts(tmp_path, documents):
    config = QualityConfig(features=2**12, min_examples=50, max_documents=100)
    model = train(tmp_path / "one", documents, 1, config)
    others = [
        train(tmp_path / "four", documents, 4, config),
        train(tmp_path / "reversed", documents[::-1], 3, config),
        train(tmp_path / "repeated", documents + documents[:100], 2, config),
    ]
    for other in others:
        assert (model / "quality.npz").read_bytes() == (other / "quality.npz").read_bytes()
        assert (model / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    assert summary_of(model)["en"]["positives"] == 100
    another_seed = train(
        tmp_path / "seed", documents, 1, QualityConfig(features=2**12, min_examples=50, max_documents=100, seed=1)
    )
    assert (model / "quality.npz").read_bytes() != (another_seed / "quality.npz").read_bytes()


def test_counts_of_an_earlier_stage_shrink_the_samples_and_change_nothing_else(tmp_path, documents):
    config = QualityConfig(features=2**12, min_examples=20, max_documents=25)
    counts = {}
    for document in documents:
        of_source = counts.setdefault(document.metadata["source"], {"documents_out": 1})
        name = f"language_{document.metadata['language']}"
        of_source[name] = of_source.get(name, 0) + 1
    write_json(tmp_path / "ledger.json", {"counts": counts})
    plain = train(tmp_path / "plain", documents, 8, config)
    counted = train(tmp_path / "counted", documents, 8, config, tmp_path / "ledger.json")
    assert (plain / "quality.npz").read_bytes() == (counted / "quality.npz").read_bytes()

    def sampled(folder):
        return sum(len(list(read_documents(part))) for part in folder.glob("samples/*/*.parquet"))

    assert 5 * 25 <= sampled(tmp_path / "counted") < sampled(tmp_path / "plain")


def test_sample_keeps_the_smallest_keys_within_both_limits():
    generator = random.Random(0)
    items = [(generator.getrandbits(128), "x" * generator.randrange(1, 50)) for _ in range(500)]
    for max_documents, max_characters in ((20, 10**6), (10**6, 700), (25, 500)):
        expected, characters = [], 0
        for key, text in sorted(items):
            characters += len(text)
            if characters > max_characters or len(expected) == max_documents:
                break
            expected.append((key, text, "s"))
        for order in (items, items[::-1], items + items[:100]):
            sample = _Sample(max_documents, max_characters)
            for key, text in order:
                sample.add(key, text, "s")
            assert sample.items() == expected


def test_good_text_passes_and_junk_does_not(tmp_path, documents):
    model = train(tmp_path, documents)
    kept, ledger = filter_documents(documents, model)
    left = {document.id for document in kept}
    assert [document for document in documents if document.id in left] == kept  # in order
    assert all(document.id in left for document in documents if document.metadata["source"] == "books")
    korean = summary_of(model)["ko"]
    assert korean["held_out_accuracy"] > 0.9 and korean["held_out_auc"] > 0.95
    # Seed 5: the good documents of the English crawl.
    shares = {
        seed: np.mean([document.id in left for document in documents if document.id.startswith(f"{seed}-")])
        for seed in (3, 4, 5)
    }
    assert shares[3] < 0.05 and shares[4] < 0.05 and shares[5] > 0.15

    # Every example is measured, with the scores that the filter gives.
    assert (korean["positives"], korean["negatives"]) == (150, 150)
    assert {name: sum(bins) for name, bins in korean["scores"].items()} == {"positives": 150, "negatives": 150}
    texts = [document.text for document in documents if document.id.startswith("4-")]
    shares_kept = (2 - scores(texts, load_model(model), "ko")) ** -CONFIG.alpha
    assert korean["expected_kept"]["negatives"] == pytest.approx(shares_kept.mean(), rel=1e-9)

    counts = ledger.counts["crawl"]
    dropped = sum(number for name, number in counts.items() if name.startswith("quality_dropped"))
    assert ledger.dropped["crawl"]["quality"]["documents"] == dropped == len(documents) - len(kept)

    report = quality_report(summary_of(model), ledger.counts)
    assert report["ko"]["kept"] + report["ko"]["dropped"] == 150
    assert (report["fr"]["kept"], report["fr"]["dropped"]) == (80, 0)


def test_a_language_without_positives_passes_and_is_reported(tmp_path, documents):
    model = train(tmp_path, documents)
    french = [document for document in documents if document.metadata["language"] == "fr"]
    kept, ledger = filter_documents(french, model)
    assert kept == french
    assert ledger.counts == {"crawl": {"quality_unscored_fr": 80}}
    numbers = summary_of(model)["fr"]
    assert numbers["filtered"] is False
    assert numbers["why"] == "0 positives: fewer than min_examples 50"
    with pytest.raises(ValueError, match="no classifier for 'fr'; it has en, ko"):
        scores(["bonjour"], load_model(model), "fr")


def test_documents_of_no_known_language_have_a_classifier_of_their_own(tmp_path, documents):
    for document in documents:
        document.metadata["language"] = None
    model = train(tmp_path, documents)
    assert list(summary_of(model)) == ["und"]
    _, ledger = filter_documents(documents, model)
    assert ledger.counts["crawl"]["quality_dropped_und"] > 200


def test_nothing_to_train_on_filters_nothing(tmp_path, documents):
    model = train(tmp_path, documents, config=QualityConfig(features=2**12))
    assert load_model(model).weights == {}
    kept, _ = filter_documents(documents, model)
    assert kept == documents


def test_scores_do_not_depend_on_the_batch(tmp_path, documents):
    model = load_model(train(tmp_path, documents))
    texts = ["", "...", *(document.text for document in documents if document.metadata["language"] == "en")]
    together = scores(texts, model, "en")
    assert together.shape == (len(texts),) and together.dtype == np.float64
    assert together.tolist() == [scores([text], model, "en")[0] for text in texts]
    assert scores([], model, "en").shape == (0,)


def test_model_is_plain_arrays(tmp_path, documents):
    model = train(tmp_path, documents)
    with np.load(model / "quality.npz", allow_pickle=False) as file:
        assert file["languages"].tolist() == ["en", "ko"]
        assert file["weights"].shape == (2, 2**12, 2) and file["weights"].dtype == np.float32
        assert file["bias"].shape == (2, 2)
    folder, given = load_model(model), load_model(model / "quality.npz")
    assert folder.features == 2**12 and folder.weights["ko"].shape == (2**12, 2)
    assert all((folder.bias[name] == given.bias[name]).all() for name in ("en", "ko"))
    with pytest.raises(ValueError, match="There is no quality classifier at"):
        load_model(tmp_path / "nothing")


def test_no_text_is_scored_by_what_it_trained(tmp_path, documents):
    """Texts of one fold leave the column that scores them as it is, and change the other."""
    config = QualityConfig(features=2**12, min_examples=20)
    before = load_model(train(tmp_path / "before", documents, config=config))
    more = make("new words", 200, "crawl", "en", 7)
    for fold in (0, 1):
        added = [document for document in more if _fold(document.text) == fold]
        assert 50 < len(added) < 150
        after = load_model(train(tmp_path / f"{fold}", documents + added, config=config))
        assert (after.weights["en"][:, fold] == before.weights["en"][:, fold]).all()
        assert after.bias["en"][fold] == before.bias["en"][fold]
        assert (after.weights["en"][:, 1 - fold] != before.weights["en"][:, 1 - fold]).any()
        texts = [document.text for document in added]
        assert (scores(texts, after, "en") == scores(texts, before, "en")).all()


def test_fold_is_the_same_everywhere_and_that_of_the_sampled_start():
    assert [_fold(f"글 {n}") for n in range(20)] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0]
    start = "가" * FEATURE_CHARACTERS
    assert {_fold(start + f"{n}") for n in range(20)} == {_fold(start)}
    assert 450 < sum(_fold(f"document {n}") for n in range(1000)) < 550


def test_a_class_that_is_all_in_one_fold_trains_nothing(tmp_path, documents):
    for document in documents:
        document.metadata["language"] = "en"
    documents = [d for d in documents if d.metadata["source"] == "crawl" or _fold(d.text) == 0]
    numbers = summary_of(train(tmp_path, documents))["en"]
    assert numbers["positives"] > 50 and numbers["filtered"] is False
    assert numbers["why"] == "all examples of a class are in one fold: more are needed"


def synthetic_pages():
    """A long tail of words of its own, as of real pages, and words that good pages and junk share."""
    generator = random.Random(0)

    def pages(kind, count):
        return [
            " ".join(
                f"{'common' if generator.random() < 0.3 else kind}{int(generator.paretovariate(0.5))}"
                for _ in range(15)
            )
            for _ in range(count)
        ]

    return pages("good", 2100), pages("junk", 1000)


def korean_pages():
    """Reviews, and as many advertisements of the same lengths."""
    if not NSMC.exists():
        pytest.skip("the Korean reviews are not here")
    texts = [json.loads(line)["text"] for line, _ in zip(NSMC.open(encoding="utf-8"), range(8000))]
    texts = [text for text in dict.fromkeys(texts) if len(text.split()) > 5]
    generator = random.Random(0)
    junk = [" ".join(generator.choices(KOREAN_JUNK.split(), k=len(text.split()))) for text in texts[2100:3100]]
    return texts[:2100], junk


@pytest.mark.parametrize("pages", [synthetic_pages, korean_pages])
def test_good_pages_of_the_crawl_stay_like_those_not_trained_on(tmp_path, pages):
    good, junk = pages()
    positives, in_crawl, unseen = good[:1000], good[1000:1100], good[1100:]
    documents = [
        make_document(text, f"{n}", source, "ko")
        for source, texts in (("books", positives), ("crawl", in_crawl + junk))
        for n, text in enumerate(texts)
    ]
    model = train(tmp_path, documents, 2, QualityConfig())
    kept, of_others, of_junk = (
        np.mean((2 - scores(texts, load_model(model), "ko")) ** -9.0) for texts in (in_crawl, unseen, junk)
    )
    # With one classifier for all, 0.27 and 0.53 of the synthetic, 0.05 and 0.61 of the Korean ones.
    assert abs(kept - of_others) < 0.1
    assert of_others > 0.4 and of_junk < 0.02
    # What the report says of the positives is what texts of their kind can expect.
    assert abs(summary_of(model)["ko"]["expected_kept"]["positives"] - of_others) < 0.1


def auc_of(tmp_path, positives, negatives):
    config = QualityConfig(min_examples=50)
    documents = [
        make_document(text, str(n), source, "ko")
        for source, texts in (("books", positives), ("crawl", negatives))
        for n, text in enumerate(texts)
    ]
    return summary_of(train(tmp_path, documents, 2, config))["ko"]["held_out_auc"]


@pytest.mark.skipif(not NSMC.exists(), reason="the Korean reviews are not here")
def test_korean_is_told_from_junk_made_of_its_words(tmp_path):
    texts = [json.loads(line)["text"] for line, _ in zip(NSMC.open(encoding="utf-8"), range(4000))]
    generator = random.Random(0)
    # Reviews with a third of the words replaced by those of advertisements.
    junk = [
        " ".join(generator.choice(KOREAN_JUNK.split()) if generator.random() < 0.33 else word for word in text.split())
        for text in texts[2000:]
        if len(text.split()) > 5
    ]
    assert auc_of(tmp_path, texts[:2000], junk) > 0.95


@pytest.mark.skipif(not NSMC.exists(), reason="the Korean reviews are not here")
def test_korean_reviews_that_like_a_film_are_told_from_those_that_do_not(tmp_path):
    rows = [json.loads(line) for line, _ in zip(NSMC.open(encoding="utf-8"), range(8000))]
    liked, disliked = ([row["text"] for row in rows if row["label"] == label] for label in (1, 0))
    # Words alone reach 0.81, words and pairs 0.87.
    assert auc_of(tmp_path, liked, disliked) > 0.84


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("positives", [], "`positives` is empty"),
        ("alpha", 0.0, "`alpha` must be above 0, got 0.0"),
        ("features", 3, "`features` must be from 256 to"),
        ("min_examples", 5, "`min_examples` must be at least 20"),
        ("max_documents", 100, r"`max_documents` \(100\) is below `min_examples` \(200\)"),
    ],
)
def test_bad_settings_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(QualityConfig, {field: value}, "the recipe")


def test_a_crawl_is_no_example_of_good_text(tmp_path):
    with pytest.raises(ValueError, match="`positives` of `quality` names crawl, with `curated: false`"):
        SampleQuality(CONFIG, ["books", "crawl"], ["crawl"], tmp_path, tmp_path, Ledger())
