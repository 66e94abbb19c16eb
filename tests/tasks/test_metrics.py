"""Metrics equal hand computations, scikit-learn and sacrebleu; intervals equal drawing the rows themselves anew."""

import random
from dataclasses import replace

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import f1_score

from hfgpt.tasks import ChoiceTask, Example, TextTask, get_task
from hfgpt.tasks.metrics import (
    METRICS,
    baselines,
    char_f1,
    check_metrics,
    normalize_answer,
    score,
    score_with_intervals,
    signature,
    token_f1,
)
from hfgpt.tasks.scoring import Prediction


CHOICE = ChoiceTask(name="c", prompt="{text}", choices={"a": " a", "b": " b", "c": " c"})
TEXT = TextTask(name="t", prompt="{text}", metrics=["exact_match", "f1", "char_f1"])
TRANSLATION = get_task("translation", "en-fr")


def labelled(*labels):
    """Examples of `CHOICE`."""
    names = list(CHOICE.choices)
    return [Example("", "x", "", " x", (" a", " b", " c"), label, (names[label],)) for label in labels]


def chosen(*labels):
    return [Prediction("abc"[label], label) for label in labels]


def answered(*references):
    return [Example("", "x", "", " x", references=refs if isinstance(refs, tuple) else (refs,)) for refs in references]


def said(*texts):
    return [Prediction(text) for text in texts]


def sentences(count, seed):
    """Random ones, and others that share most of their words."""
    words = ["the", "cell", "of", "a", "note", "book", "opens", "and", "closes,", "then", "1.5", "files", "saved", "."]
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(count)]
    return texts, [" ".join(word for word in text.split() if generator.random() < 0.8) or "none" for text in texts]


def test_classes_by_hand():
    # Class a: 1 of 2 guesses and 1 of 2 truths; b: 1 of 2 and 1 of 1; c does not occur.
    scores = score(CHOICE, chosen(0, 0, 1, 1), labelled(0, 1, 1, 1))
    assert scores == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 4 / 5) / 2})


def test_a_prediction_without_a_label_is_wrong():
    assert score(CHOICE, [Prediction("?"), *chosen(1)], labelled(0, 1))["accuracy"] == 0.5


def test_macro_f1_is_scikit_learns_on_every_resample():
    generator = np.random.default_rng(1)
    actual = generator.choice(3, size=40, p=[0.85, 0.1, 0.05])
    predicted = np.where(generator.random(40) < 0.6, actual, generator.choice(3, size=40))
    task = replace(CHOICE, metrics=["macro_f1"])
    args = (task, chosen(*predicted.tolist()), labelled(*actual.tolist()))
    whole = f1_score(actual, predicted, average="macro", zero_division=0)
    got = score_with_intervals(*args, resamples=50, seed=3)["macro_f1"]
    assert score(*args)["macro_f1"] == pytest.approx(whole) == got.value
    rows = np.random.default_rng(3).integers(40, size=(50, 40))
    values = [f1_score(actual[row], predicted[row], average="macro", zero_division=0) for row in rows]
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_rows_with_choices_of_their_own_have_no_classes():
    task = ChoiceTask(name="own", prompt="{text}", choices_field="options")
    assert score(task, chosen(0, 1), labelled(0, 0)) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat's  hat, an apple\n", "cats hat apple"),
        ("theatre anode", "theatre anode"),
        ("“Quoted” 1990–95", "“quoted” 1990–95"),
        ("『비타민 A』, 서울에서!", "비타민 a 서울에서"),
        ("\u1112\u1161\u11ab국", "한국"),
        ("the", ""),
    ],
)
def test_answers_are_normalized_as_squad_does(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "words", "characters"),
    [
        ("the big red cat", "a red cat", 2 * 2 / 5, 2 * 6 / 15),
        ("red red", "red", 2 / 3, 2 / 3),
        ("서울에서", "서울", 0.0, 2 * 2 / 6),
        ("dog", "cat", 0.0, 0.0),
        ("", "cat", 0.0, 0.0),
        ("the", "!", 1.0, 1.0),
    ],
)
def test_overlap_by_hand(prediction, reference, words, characters):
    assert token_f1(prediction, reference) == pytest.approx(words)
    assert char_f1(prediction, reference) == pytest.approx(characters)


def test_the_best_reference_counts():
    scores = score(TEXT, said("the red cat", "no"), answered(("cat", "red cat"), "yes"))
    assert scores == {"exact_match": 0.5, "f1": 0.5, "char_f1": 0.5}
    chrf = score(replace(TEXT, metrics=["chrf"]), said("red cat", "a dog"), answered(("blue", "red cat"), "a dog"))
    assert chrf == {"chrf": pytest.approx(100.0)}


def test_corpus_metrics_are_sacrebleus():
    texts, references = sentences(60, seed=0)
    task = replace(TRANSLATION, metrics=["chrf", "bleu", "bleu_char"])
    scores = score(task, said(*texts), answered(*references))
    assert scores["chrf"] == pytest.approx(CHRF().corpus_score(texts, [references]).score)
    assert scores["bleu"] == pytest.approx(BLEU().corpus_score(texts, [references]).score)
    assert scores["bleu_char"] == pytest.approx(BLEU(tokenize="char").corpus_score(texts, [references]).score)
    assert 0 < scores["bleu"] < scores["bleu_char"] < 100


def test_intervals_of_corpus_metrics_are_those_of_resampled_texts():
    texts, references = sentences(30, seed=1)
    task = replace(TRANSLATION, metrics=["chrf", "bleu"])
    got = score_with_intervals(task, said(*texts), answered(*references), resamples=40, seed=7, confidence=0.8)
    rows = np.random.default_rng(7).integers(30, size=(40, 30))
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU(force=True))):
        values = [metric.corpus_score([texts[i] for i in row], [[references[i] for i in row]]).score for row in rows]
        assert (got[name].low, got[name].high) == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])))
        assert got[name].low < got[name].value < got[name].high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        labels = (generator.random(100) < 0.7).astype(int)
        interval = score_with_intervals(
            CHOICE, chosen(*[1] * 100), labelled(*labels.tolist()), resamples=200, seed=trial
        )
        inside += interval["accuracy"].low <= 0.7 <= interval["accuracy"].high
    assert 180 <= inside <= 198


def test_intervals_depend_on_the_seed_alone_and_not_on_how_many_are_drawn_at_once(monkeypatch):
    args = (CHOICE, chosen(*[0, 1, 2] * 20), labelled(*[0, 1, 1] * 20))
    first = score_with_intervals(*args, resamples=99, seed=1)
    monkeypatch.setattr("hfgpt.tasks.metrics.MAX_WEIGHTS", 200)
    assert score_with_intervals(*args, resamples=99, seed=1) == first
    assert score_with_intervals(*args, resamples=99, seed=2) != first


def test_rows_that_are_all_right_have_an_interval_of_no_width():
    scores = score_with_intervals(CHOICE, chosen(0, 1), labelled(0, 1))
    assert {name: (s.low, s.value, s.high) for name, s in scores.items()} == {
        "accuracy": (1.0, 1.0, 1.0),
        "macro_f1": (1.0, 1.0, 1.0),
    }


def test_what_cannot_be_scored_is_named():
    for task in (replace(TEXT, metrics=["f1", "rouge"]), replace(CHOICE, metrics=["rouge"])):
        with pytest.raises(ValueError, match=rf"'rouge'.*{', '.join(METRICS)}"):
            score(task, [], [])
    with pytest.raises(ValueError, match=r"'accuracy'.*needs choices"):
        check_metrics(replace(TEXT, metrics=["accuracy"]))
    with pytest.raises(ValueError, match="1 predictions and 2 rows"):
        score(CHOICE, chosen(0), labelled(0, 1))
    with pytest.raises(ValueError, match="0 rows"):
        score(CHOICE, [], [])
    with pytest.raises(ValueError, match=r"rows.jsonl:3 has no answer"):
        score(TEXT, said("x"), [Example("", "x", "", "", where="rows.jsonl:3")])
    with pytest.raises(ValueError, match="`resamples`"):
        score_with_intervals(CHOICE, chosen(0), labelled(0), resamples=0)
    with pytest.raises(ValueError, match="'rouge'"):
        signature("rouge")


def test_signatures_say_how_a_value_was_computed():
    for name, parts in {
        "chrf": ["nc:6", "nw:0", "version:"],
        "bleu": ["tok:13a", "smooth:exp"],
        "bleu_char": ["tok:char"],
        "f1": ["words"],
    }.items():
        assert all(part in signature(name) for part in parts)
    assert all(signature(name) for name in METRICS)


def test_majority_is_of_the_training_rows():
    predictions = baselines(CHOICE, labelled(2, 2, 0, 1, 1), labelled(0, 0, 0, 2))
    # The first of equals.
    assert predictions == {"majority": chosen(1, 1, 1, 1)}
    own = ChoiceTask(name="own", prompt="{text}", choices_field="options")
    two = Example("", "x", "", " y", (" x", " y"), 1, ("y",))
    assert baselines(own, labelled(2), [two, *labelled(0)])["majority"] == [Prediction("y", 1), Prediction("c", 2)]


def test_copy_says_the_source_and_constant_what_fits_most():
    train = answered("Fermer le fichier", "Ouvrir le fichier", "Copier le fichier", "zzz", "zzz")
    test = [Example("English: ", " Open ", "\nFrench:", " Ouvrir", references=("Ouvrir",))] * 2
    predictions = baselines(TRANSLATION, train, test)
    assert set(predictions) == {"copy", "constant"}
    assert predictions["copy"] == said("Open", "Open")
    assert len(set(predictions["constant"])) == 1 and predictions["constant"][0].text.endswith("le fichier")
    by_match = replace(TRANSLATION, metrics=["exact_match"])
    assert baselines(by_match, train, test)["constant"] == said("zzz", "zzz")


def test_a_random_span_stands_in_the_context_and_is_as_long_as_training_answers():
    task = get_task("qa")
    train = answered("two words", "now there are five words", ("two more", "one"))
    context = " ".join(f"w{i}" for i in range(50))
    test = [Example("Question: q\nPassage: ", context, "\nAnswer:", " w3", references=("w3",))] * 200
    test.append(Example("Question: q\nPassage: ", "short", "\nAnswer:", " short", references=("short",)))
    spans = [prediction.text for prediction in baselines(task, train, test, seed=5)["random_span"]]
    assert all(span in context for span in spans[:-1]) and spans[-1] == "short"
    assert {len(span.split()) for span in spans[:-1]} == {2, 5}
    assert {"w0", "w49"} <= {word for span in spans for word in span.split()}
    assert spans == [prediction.text for prediction in baselines(task, train, test, seed=5)["random_span"]]


def test_baselines_need_training_rows():
    with pytest.raises(ValueError, match="training rows"):
        baselines(CHOICE, [], labelled(0))
