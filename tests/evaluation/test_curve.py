"""Learning from few labels: which rows a run gets, what is the same for both starts, and that a curve goes on."""

import json
import math
from collections import Counter

import pytest
from helpers import SENTIMENT

from hfgpt.evaluation import curve as module
from hfgpt.evaluation.curve import curve, draw, draw_curve, optimizer_steps, summary
from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments


def recipe(model, reviews_file, **fields):
    values = {
        "train_path": str(reviews_file),
        **SENTIMENT,
        **fields,
    }
    return FinetuneConfig(str(model), **values)


def arguments(tmp_path, **fields):
    values = {
        "seed": 0,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 16,
        "bf16": False,
        "use_cpu": True,
        **fields,
    }
    return FinetuningArguments(output_dir=str(tmp_path / "unused"), **values)


# Which rows


def test_labels_are_drawn_from_the_classes_in_turn():
    labels = ["a"] * 50 + ["b"] * 20 + ["c"] * 5
    for seed in range(5):
        assert Counter(labels[index] for index in draw(labels, 12, seed)) == {"a": 4, "b": 4, "c": 4}
        assert Counter(labels[index] for index in draw(labels, 35, seed)) == {"a": 15, "b": 15, "c": 5}
        assert sorted(draw(labels, 75, seed)) == list(range(75))
    assert len(set(draw([None] * 30, 10, 0))) == 10


def test_a_draw_depends_on_its_seed_alone_and_holds_the_smaller_ones():
    labels = [index % 3 == 0 for index in range(90)]
    assert draw(labels, 16, 1) == draw(labels, 64, 1)[:16]
    assert draw(labels, 16, 1) != draw(labels, 16, 2)
    assert draw(labels, 16, 1) == draw(list(labels), 16, 1)


def test_steps_are_the_recipes_epochs_but_at_least_so_many(tmp_path):
    args = arguments(tmp_path, num_train_epochs=3.0, gradient_accumulation_steps=2)
    assert optimizer_steps(args, 16, 100) == 100
    assert optimizer_steps(args, 3200, 100) == 300
    assert optimizer_steps(args, 3201, 100) == 303
    args.max_steps = 7
    assert optimizer_steps(args, 3200, 100) == 7


# Runs


@pytest.fixture(scope="module")
def finished(pretrained, reviews_file, tmp_path_factory):
    """A curve of two points and two seeds: its folder, result, and the function that repeats the call."""
    folder = tmp_path_factory.mktemp("curve")

    def again(output=folder / "out", counts=(8, 128), seeds=2, **fields):
        config, args = recipe(pretrained, reviews_file, **fields), arguments(folder)
        return curve(config, args, list(counts), seeds, output, min_steps=80)

    return folder / "out", again(), again


def runs_of(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_each_start_and_number_of_labels_is_a_point_with_its_seeds(finished):
    folder, result, _ = finished
    runs = runs_of(folder)
    assert len(runs) == 8 and {run["seed"] for run in runs} == {0, 1}
    assert {(point["start"], point["labels"]) for point in result["points"]} == {
        (start, count) for start in ("pretrained", "random") for count in (8, 128)
    }
    for point in result["points"]:
        values = [
            run["accuracy"] for run in runs if (run["start"], run["labels"]) == (point["start"], point["labels"])
        ]
        assert sorted(values) == sorted(point["values"]) and point["mean"] == pytest.approx(sum(values) / 2)
        assert point["low"] <= point["mean"] <= point["high"] and point["steps"] == 80
    assert result["metric"] == "accuracy" and 0.4 < result["baselines"]["majority"] < 0.7
    assert json.loads((folder / "curve.json").read_text()) == result
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(entry.name for entry in folder.iterdir()) == ["curve.json", "curve.jsonl", "curve.png"]


def test_more_labels_teach_more(finished):
    _, result, _ = finished
    # These 12 steps of pretraining have not made a model that helps; a random one learns what words mean from 128 rows.
    means = {point["labels"]: point["mean"] for point in result["points"] if point["start"] == "random"}
    assert means[128] > 0.9 > means[8] > 0.4


def test_a_finished_curve_trains_nothing_and_one_cut_off_the_rest(finished, monkeypatch):
    folder, result, again = finished
    trained = []
    original = module._train_and_score

    def counted(config, args, record, tokenizer, rows, random_start):
        trained.append((args.seed, len(rows.train), random_start))
        return original(config, args, record, tokenizer, rows, random_start)

    monkeypatch.setattr(module, "_train_and_score", counted)
    assert again() == result and trained == []
    lines = (folder / "curve.jsonl").read_text()
    kept = lines.splitlines()
    # The last run is gone, and the one before was being written.
    (folder / "curve.jsonl").write_text("\n".join(kept[:-2]) + "\n" + kept[-2][:40])
    assert again() == result
    assert trained == [(1, 128, False), (1, 128, True)]
    assert runs_of(folder) == [json.loads(line) for line in kept]


def test_runs_of_another_recipe_are_not_mixed_in(finished):
    _, _, again = finished
    with pytest.raises(ValueError, match=r"curve\.jsonl holds runs of another recipe"):
        again(max_length=40)


@pytest.mark.parametrize(
    "changed", ["data.jsonl", "model/model-00001-of-00002.safetensors", "model/adapter_model.bin"]
)
def test_runs_of_data_and_weights_that_were_replaced_are_not_mixed_in(changed, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("data.jsonl", changed):
        (tmp_path / name).write_text("before")
    config, args = recipe(tmp_path / "model", tmp_path / "data.jsonl"), arguments(tmp_path)
    before = module._settings(config, args, 10)
    assert module._settings(config, args, 10) == before
    (tmp_path / changed).write_text("later on")
    assert module._settings(config, args, 10) != before


def test_both_starts_get_the_same_rows_steps_and_order(pretrained, reviews_file, tmp_path, monkeypatch):
    seen = []

    def record_run(config, args, record, tokenizer, rows, random_start):
        places = [example.where for example in rows.train.examples]
        seen.append((random_start, places, args.max_steps, args.seed, args.learning_rate, config.use_peft))
        assert rows.validation is None and args.eval_strategy == "no"
        return {"accuracy": 0.5, "macro_f1": 0.5, "train_loss": 1.0}

    monkeypatch.setattr(module, "_train_and_score", record_run)
    config = recipe(pretrained, reviews_file, validation_fraction=0.1, early_stopping_patience=2, use_peft=True)
    curve(config, arguments(tmp_path, seed=5), [16, 4, 16], 1, tmp_path / "out", min_steps=10)
    (small, small_random, large, large_random) = seen
    assert small[1] == large[1][:4] == small_random[1] and large[1] == large_random[1]
    assert [run[0] for run in seen] == [False, True, False, True]
    assert {run[2] for run in seen} == {10} and {run[3] for run in seen} == {5}
    # Nothing random is worth an adapter.
    assert (small[4], small[5]) == (1e-2, True)
    assert (small_random[4], small_random[5]) == (pytest.approx(1e-3), False)
    result = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert result["points"][0]["std"] is None and (tmp_path / "out" / "curve.png").exists()


@pytest.mark.parametrize(
    ("counts", "seeds", "message"),
    [
        ([16, 5000], 1, "5000 labels were asked for"),
        ([], 1, "at least 1"),
        ([0], 1, "at least 1"),
        ([4], 0, "at least 1"),
    ],
)
def test_numbers_that_cannot_be(pretrained, reviews_file, tmp_path, counts, seeds, message):
    with pytest.raises(ValueError, match=message):
        curve(recipe(pretrained, reviews_file), arguments(tmp_path), counts, seeds, tmp_path / "out")


def test_intervals_are_over_seeds_and_differences_paired_by_them():
    runs = [
        {"start": start, "labels": 16, "seed": seed, "steps": 9, "f1": value}
        for start, values in (("pretrained", [0.8, 0.9, 0.7]), ("random", [0.6, 0.6, 0.5]))
        for seed, value in enumerate(values)
    ]
    found = summary(runs, "f1")
    point = found["points"][0]
    assert (point["mean"], point["std"]) == (pytest.approx(0.8), pytest.approx(0.1))
    # Student's t for 2 degrees of freedom is 4.303.
    assert point["high"] - point["mean"] == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    (difference,) = found["differences"]
    assert difference["values"] == pytest.approx([0.2, 0.3, 0.2])
    assert difference["low"] < difference["mean"] == pytest.approx(0.7 / 3)


def test_a_plot_of_many_numbers_of_labels_names_each(tmp_path):
    runs = [
        {"start": start, "labels": count, "seed": seed, "steps": 9, "accuracy": 0.5 + seed / 10}
        for start in module.STARTS
        for count in (16, 64, 256, 1024)
        for seed in (0, 1)
    ]
    result = {"task": "t", "metric": "accuracy", "test_rows": 1000, "baselines": {"majority": 0.5}}
    draw_curve(tmp_path / "a.png", {**result, **summary(runs, "accuracy")})
    assert (tmp_path / "a.png").stat().st_size > 5000
