"""Data efficiency: a task learnt from few labels, from the pretrained weights and from random ones, and both drawn.

Each run is `training.finetune`'s own, on labels that are a pure function of seed and number: drawn in turn from the classes,
and nested, so that the first 16 are among the first 64. Both starts take the same labels, the same order and the same
optimizer steps, and answer the same test rows. A finished run is a line of `curve.jsonl`, so that the same call goes on
where it was stopped.
"""

import copy
import dataclasses
import gc
import glob
import hashlib
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.documents import write_json, written_whole
from ..tasks.metrics import baselines, score
from ..training.arguments import FinetuneConfig, FinetuningArguments
from ..training.finetune import (
    LORA_LEARNING_RATE_FACTOR,
    check,
    load_tokenizer,
    longest_input,
    make_record,
    make_task,
    make_trainer,
    set_defaults,
)
from ..training.recipe import TRAINING_FIELDS, file_states
from ..training.task_rows import EncodedExamples, RowReader, Rows


RUNS_FILE, RESULT_FILE, PLOT_FILE = "curve.jsonl", "curve.json", "curve.png"
STARTS = ("pretrained", "random")
# Of a run on few labels, whose epochs would be over before anything is learnt.
MIN_STEPS = 100
# What a run's outcome depends on, beside the recipe's task and data, and its own seed.
SETTINGS = (
    *TRAINING_FIELDS, "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "bf16", "fp16",
)  # fmt: skip
# What it does not depend on: the curve has its own.
OTHER_FIELDS = ("random_start", "compare_random_start", "early_stopping_patience", "max_eval_rows")


def curve(
    config: FinetuneConfig,
    args: FinetuningArguments,
    label_counts: Sequence[int],
    seeds: int,
    output: str | Path,
    min_steps: int = MIN_STEPS,
) -> dict[str, Any]:
    """Fine-tune with several numbers of labels, from the pretrained and from random weights, with several seeds.

    A run takes the optimizer steps that the recipe's epochs come to, and `min_steps` where that is less (the recipe's
    `max_steps`, if it has any). There is no early stopping, as there is nothing to set apart of 16 labels. With `use_peft`
    the runs from random weights train them all, at a tenth of the learning rate: nothing random is worth adapting.

    Leaves in `output`: `curve.jsonl` with each run, `curve.json` with what is returned, `curve.png`.

    Args:
        config: Model, task and data; the test split is the recipe's.
        args: How to train; `seed` is the first one.
        label_counts: Training rows of each point.
        seeds: Runs of each point and start, each with its own draw of labels, order and random weights.
        output: Folder.
        min_steps: Optimizer steps of a run at least.

    Returns:
        `metric`, the task's first; `baselines` by name; `points` of each start and number of labels with `values`, `mean`,
        `std` and the 95% interval `low` to `high` of the mean over seeds (Student's t; None for one seed); `differences`,
        pretrained minus random, paired by seed, the same way.

    Raises:
        ValueError: More labels than there are rows, a folder with runs of another recipe, or what `finetune` raises.
    """
    counts = sorted(set(label_counts))
    if not counts or counts[0] < 1 or seeds < 1 or min_steps < 1:
        raise ValueError(
            f"A curve needs numbers of labels, of seeds and of steps of at least 1, got {list(label_counts)}, {seeds} "
            f"and {min_steps}."
        )
    config, args = _without_validation(config, args)
    task = make_task(config)
    check(config, args, task)
    tokenizer = load_tokenizer(config)
    model_config = AutoConfig.from_pretrained(config.model_name_or_path)
    max_length = longest_input(config, model_config)
    set_defaults(config, args, task, model_config)
    settings = _settings(config, args, min_steps)
    output = Path(output)
    runs = _read_runs(output / RUNS_FILE, settings)

    rows = RowReader(config, task, tokenizer, max_length, is_main=args.process_index == 0).read()
    if counts[-1] > len(rows.train):
        raise ValueError(
            f"{counts[-1]} labels were asked for, and there are {len(rows.train)} training rows: lower the largest number."
        )
    record = make_record(config, task, max_length)
    result = {
        "task": task.name,
        "metric": task.metrics[0],
        "model": config.model_name_or_path,
        "min_steps": min_steps,
        "test_rows": len(rows.test),
        "baselines": {
            name: score(task, answers, rows.test.examples)[task.metrics[0]]
            for name, answers in baselines(task, rows.train.examples, rows.test.examples).items()
        },
    }
    # By seeds, so that a curve that is stopped is a whole one of fewer seeds.
    wanted = [
        (seed, count, start) for seed in range(args.seed, args.seed + seeds) for count in counts for start in STARTS
    ]
    done = {(run["seed"], run["labels"], run["start"]): run for run in runs}
    for number, key in enumerate(wanted, start=1):
        if key in done:
            continue
        seed, count, start = key
        chosen = draw([example.label for example in rows.train.examples], count, seed)
        run_rows = replace(rows, train=_pick(rows.train, chosen), validation=None)
        steps = optimizer_steps(args, count, min_steps)
        run_config, run_args = _for_run(config, args, start, seed, steps, output)
        begun = time.perf_counter()
        scores = _train_and_score(run_config, run_args, record, tokenizer, run_rows, start == "random")
        run = {"start": start, "labels": count, "seed": seed, "steps": steps, **scores, "settings": settings}
        done[key] = run
        if args.process_index == 0:
            with open(output / RUNS_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
                file.flush()
                os.fsync(file.fileno())
            print(
                f"run {number} of {len(wanted)}: {start} weights, {count:,} labels, seed {seed}: {task.metrics[0]} "
                f"{scores[task.metrics[0]]:.4g} ({steps} steps, {time.perf_counter() - begun:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    result.update(summary([done[key] for key in wanted], task.metrics[0]))
    if args.process_index == 0:
        write_json(output / RESULT_FILE, result)
        draw_curve(output / PLOT_FILE, result)
    return result


def draw(labels: Sequence[Any], count: int, seed: int) -> list[int]:
    """Indices of so many rows: of each class in turn while it lasts, the same and in the same order for every `count`.

    Args:
        labels: Class of each row; all None where there are no classes.
        count: Rows to draw.
        seed: Of the draw.
    """
    generator = random.Random(seed)
    of_class: dict[Any, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    classes = list(of_class.values())
    generator.shuffle(classes)
    for members in classes:
        generator.shuffle(members)
    longest = max(map(len, classes))
    in_turn = [members[turn] for turn in range(longest) for members in classes if turn < len(members)]
    return in_turn[:count]


def optimizer_steps(args: FinetuningArguments, count: int, min_steps: int) -> int:
    """Optimizer steps of a run on `count` rows, of either start."""
    if args.max_steps > 0:
        return args.max_steps
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(min_steps, math.ceil(args.num_train_epochs * math.ceil(count / batch)))


def summary(runs: Sequence[dict[str, Any]], metric: str) -> dict[str, list[dict[str, Any]]]:
    """`points` and `differences` of finished runs, as `curve` returns them."""
    values: dict[tuple[str, int], dict[int, float]] = {}
    for run in runs:
        values.setdefault((run["start"], run["labels"]), {})[run["seed"]] = run[metric]
    steps = {run["labels"]: run["steps"] for run in runs}
    counts = sorted(steps)
    points = [
        {"start": start, "labels": count, "steps": steps[count], **_mean(list(values[start, count].values()))}
        for start in STARTS
        for count in counts
    ]
    differences = []
    for count in counts:
        pretrained, scratch = (values[start, count] for start in STARTS)
        differences.append({"labels": count, **_mean([pretrained[seed] - scratch[seed] for seed in pretrained])})
    return {"points": points, "differences": differences}


def draw_curve(path: str | Path, result: dict[str, Any]) -> None:
    """The points of both starts with their standard deviation over seeds, each run, and the baselines, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    # A little apart, so that bars of both starts are seen.
    for start, shift, color in zip(STARTS, (0.97, 1.03), ("C0", "C1")):
        points = [point for point in result["points"] if point["start"] == start]
        xs = [point["labels"] * shift for point in points]
        means, deviations = ([point[key] or 0.0 for point in points] for key in ("mean", "std"))
        axes.errorbar(
            xs, means, yerr=deviations, fmt="o-", color=color, capsize=3, linewidth=1.4, label=f"{start} weights"
        )
        for x, point in zip(xs, points):
            axes.plot([x] * len(point["values"]), point["values"], ".", color=color, alpha=0.4, markersize=4)
    for (name, value), style in zip(result["baselines"].items(), ("--", ":")):
        axes.axhline(value, color="gray", linestyle=style, linewidth=1.2, label=f"baseline: {name.replace('_', ' ')}")
    counts = sorted({point["labels"] for point in result["points"]})
    seeds = len(result["points"][0]["values"])
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set(
        xlabel="training rows with labels",
        ylabel=f"{result['metric'].replace('_', ' ')} on {result['test_rows']:,} test rows",
        title=f"{result['task']}: mean and standard deviation of {seeds} seed{'s' if seeds > 1 else ''}",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(Path(path)) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


# A run


def _train_and_score(
    config: FinetuneConfig, args: FinetuningArguments, record: Any, tokenizer: Any, rows: Rows, random_start: bool
) -> dict[str, float]:
    trainer = make_trainer(config, args, record, tokenizer, rows, random_start)
    trainer.remove_callback(PrinterCallback)
    loss = trainer.train().training_loss
    scores = score(record.task, trainer.predict_rows(rows.test), rows.test.examples)
    del trainer
    gc.collect()  # a trainer and its model hold each other
    return {**scores, "train_loss": loss}


def _for_run(
    config: FinetuneConfig, args: FinetuningArguments, start: str, seed: int, steps: int, output: Path
) -> tuple[FinetuneConfig, FinetuningArguments]:
    args = copy.copy(args)
    args.seed, args.data_seed, args.max_steps, args.output_dir = seed, seed, steps, str(output)
    args.disable_tqdm, args.report_to = True, []
    if start == "random" and config.use_peft:
        assert args.learning_rate is not None  # set by `set_defaults`
        args.learning_rate /= LORA_LEARNING_RATE_FACTOR
        config = replace(config, use_peft=False, load_in_4bit=False)
    return config, args


def _without_validation(
    config: FinetuneConfig, args: FinetuningArguments
) -> tuple[FinetuneConfig, FinetuningArguments]:
    args = copy.copy(args)
    args.eval_strategy, args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    args.load_best_model_at_end = False
    return replace(config, early_stopping_patience=None, random_start=False, compare_random_start=False), args


def _pick(rows: EncodedExamples, indices: Sequence[int]) -> EncodedExamples:
    return EncodedExamples([rows.examples[index] for index in indices], [rows.encoded[index] for index in indices])


# Runs that are kept


def _settings(config: FinetuneConfig, args: FinetuningArguments, min_steps: int) -> str:
    """A hash of all that the outcome of a run depends on, beside its start, labels and seed."""
    recipe = {key: value for key, value in dataclasses.asdict(config).items() if key not in OTHER_FIELDS}
    training = {name: str(getattr(args, name)) for name in SETTINGS}
    # Trained anew in the same folder a model is another one, and so is a file that was replaced.
    folder = Path(config.model_name_or_path)
    model = [f"{glob.escape(str(folder))}/*.{ending}" for ending in ("safetensors", "bin", "json")]
    files = file_states(*model, config.train_path, config.test_path, config.task)
    values = json.dumps([recipe, training, min_steps, files], sort_keys=True, default=str)
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def _read_runs(path: Path, settings: str) -> list[dict[str, Any]]:
    """Runs that were finished before; a line that was cut off is dropped.

    Raises:
        ValueError: They are of another recipe, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except OSError as error:
        raise ValueError(f"The folder {path.parent} cannot be used: {error.strerror}.") from None
    runs = []
    for line in lines:
        try:
            runs.append(json.loads(line))
        except ValueError:
            continue
    if any(run["settings"] != settings for run in runs):
        raise ValueError(
            f"{path} holds runs of another recipe (or of data or a model that were written anew since): choose another folder, or remove it."
        )
    if len(runs) < len(lines):
        with written_whole(path) as temporary:
            temporary.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")
    return runs


def _mean(values: list[float]) -> dict[str, Any]:
    """Values with their mean, standard deviation and the 95% interval of the mean."""
    from scipy.stats import t

    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return {"values": values, "mean": mean, "std": None, "low": None, "high": None}
    std = statistics.stdev(values)
    half = float(t.ppf(0.975, count - 1)) * std / math.sqrt(count)
    return {"values": values, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


__all__ = ["MIN_STEPS", "curve", "draw", "draw_curve", "optimizer_steps", "summary"]
