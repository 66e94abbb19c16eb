"""`hfgpt evaluate`: score a model."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model: its task on any rows, the paper's benchmarks with examples, perplexity, a learning curve",
        allow_abbrev=False,
        description="Score a model. A fine-tuned one is asked as it was fine-tuned (task.json beside its weights); any "
        "other by the task's own prompt, with --shots examples before each row as the paper has it. Rows come from files "
        "(JSONL, CSV, Parquet, .mo; anything fsspec opens), a Hub dataset, or for a benchmark from its place on the Hub.",
    )
    evaluate.add_argument(
        "model", nargs="?", help="folder or Hub name of a model or an adapter (not needed with --curve)"
    )
    evaluate.add_argument(
        "--tasks",
        metavar="NAME,...",
        help="tasks, benchmarks (kobest is all of kobest-*), or YAML files of tasks (default: what it was fine-tuned for)",
    )
    evaluate.add_argument("--lang", metavar="LANG", help="language of the prompt, or a pair: en, ko, en-ko, ...")

    rows = evaluate.add_argument_group("rows, read as fine-tuning recipes read them")
    rows.add_argument("--data", action="append", metavar="[TASK=]FILE", help="rows to score; repeatable")
    rows.add_argument("--dataset", metavar="NAME", help="Hub dataset, in place of --data")
    rows.add_argument("--dataset-config", metavar="NAME", help="configuration of the Hub dataset")
    rows.add_argument("--split", default="test", metavar="NAME", help="its split (default: test)")
    rows.add_argument(
        "--fields",
        action="append",
        metavar="FIELD=NAME,...",
        help="the data's name of a field: text=review,label=stars",
    )
    rows.add_argument(
        "--label-map",
        action="append",
        metavar="VALUE=LABEL,...",
        help="the task's label of a value: 5=positive,1=negative",
    )
    rows.add_argument("--where", metavar="JSON", help='keep rows with these values: {"stars": [1, 5]}')
    rows.add_argument(
        "--part", choices=("all", "train", "test"), default="all", help="side of --test-fraction to read"
    )
    rows.add_argument("--test-fraction", type=float, default=0.0, metavar="SHARE", help="share set apart for testing")
    rows.add_argument("--group-by", metavar="FIELD", help="field that is not in both parts")
    rows.add_argument("--split-seed", type=int, default=0, metavar="N", help="seed of that division (default: 0)")
    rows.add_argument("--max-rows", type=int, metavar="N", help="score the first N rows")
    rows.add_argument(
        "--max-bad-rows", type=int, default=100, metavar="N", help="more malformed rows fail (default: 100)"
    )

    few = evaluate.add_argument_group("examples before each row")
    few.add_argument(
        "--shots",
        default="0",
        metavar="K,...",
        help="how many; few: as table H.1 (default: 0). 0,1,few for its columns",
    )
    few.add_argument(
        "--train",
        action="append",
        metavar="[TASK=]FILE",
        help="rows they are drawn from (default: the other part, or the training split)",
    )
    few.add_argument("--train-split", default="train", metavar="NAME", help="of --dataset (default: train)")
    few.add_argument("--fixed-shots", action="store_true", help="draw once for all rows: faster, not the paper's way")

    how = evaluate.add_argument_group("how it is asked")
    how.add_argument(
        "--num-beams", type=int, metavar="N", help="of free text (default: the task's; the paper's are 4)"
    )
    how.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="of a written answer (default: the task's, at most half of the positions; of a fine-tuned model the task's)",
    )
    how.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens of a batch (default: by the memory there is)"
    )
    how.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: auto, as stored"
    )
    how.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator, if there is one)")
    how.add_argument("--seed", type=int, default=0, help="of examples, baselines and intervals (default: 0)")
    how.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the 95%% intervals (default: 1000)")

    more = evaluate.add_argument_group("more to score")
    more.add_argument(
        "--perplexity",
        action="append",
        metavar="FILE|DIR",
        help="of a text, or a prepared corpus' held-out split; without --tasks the options of rows are of the text's",
    )
    more.add_argument(
        "--stride", type=int, metavar="N", help="tokens its window moves by (default: half of the window)"
    )
    more.add_argument(
        "--contamination",
        metavar="[NAME=]DIR",
        help="corpus prepared with `decontaminate`: score clean and dirty rows apart (NAME: the benchmark's there)",
    )
    more.add_argument("--harness", action="store_true", help="also by lm-evaluation-harness, beside ours")
    more.add_argument(
        "--curve",
        metavar="RECIPE",
        help="fine-tune by this recipe with few and many labels, from the pretrained weights and from random ones",
    )
    more.add_argument("--labels", metavar="N,...", help="with --curve: numbers of labels (default: 16,64,256,1024)")
    more.add_argument("--seeds", type=int, metavar="N", help="with --curve: runs of each (default: 3)")

    evaluate.add_argument("--output", metavar="DIR", help="write results.json and every prediction")
    evaluate.add_argument("--json", action="store_true", help="print the results as JSON")
    evaluate.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if arguments.curve is None:
        for name in ("labels", "seeds"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"`--{name}` is of a learning curve: give `--curve RECIPE`.")
        if arguments.model is None:
            raise ValueError("Name the MODEL to score.")
    from ..evaluation.results import to_json

    # Standard output is for the results; libraries say a word there, too.
    with redirect_stdout(sys.stderr):
        values, lines, notes, unsaved = (_score if arguments.curve is None else _curve)(arguments)
    for note in notes:
        print(note, file=sys.stderr)
    print(to_json(values) if arguments.json else "\n".join(lines))
    if unsaved:
        raise ValueError(unsaved)


def _score(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[str], str]:
    from ..evaluation.evaluate import EvaluateOptions, evaluate_from

    names = {"lang": "language"}
    values = {names.get(name, name): value for name, value in vars(arguments).items()}
    known = {field.name for field in fields(EvaluateOptions)}
    values = {name: value for name, value in values.items() if name in known and value is not None}
    for name in ("tasks", "shots"):
        if name in values:
            values[name] = [part.strip() for part in values[name].split(",") if part.strip()]
    for name in ("fields", "label_map"):
        values[name] = _pairs(values.get(name, []), name)
    if "where" in values:
        try:
            values["where"] = json.loads(values["where"])
        except ValueError as error:
            raise ValueError(f"`--where` is not JSON ({error}): {values['where']}") from None
        if not isinstance(values["where"], dict):
            raise ValueError(f'`--where` must be a mapping, such as {{"stars": [1, 5]}}, got {values["where"]!r}.')
    result = evaluate_from(EvaluateOptions(**values))
    return result.as_dict(), result.lines(), result.notes(), result.unsaved


def _curve(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[str], str]:
    from . import make_parser

    defaults = vars(make_parser().parse_args(["evaluate"]))
    own = ("curve", "labels", "seeds", "output", "json")
    given = [name for name, value in vars(arguments).items() if name not in own and value != defaults[name]]
    if given:
        raise ValueError(
            "`--curve` takes model, rows and everything else from its recipe: leave out "
            f"{'MODEL' if given[0] == 'model' else '--' + given[0].replace('_', '-')}."
        )
    from ..evaluation.curve import PLOT_FILE, curve
    from ..evaluation.results import curve_lines
    from ..training.arguments import FinetuneConfig, FinetuningArguments, parse_arguments

    words = [word.strip() for word in (arguments.labels or "16,64,256,1024").split(",")]
    if not all(word.isdigit() for word in words):
        raise ValueError(f"`--labels` takes numbers, such as 16,64,256; got {arguments.labels!r}.")
    config, training = parse_arguments(FinetuneConfig, FinetuningArguments, argv=["--config", arguments.curve])
    output = Path(arguments.output or f"{training.output_dir}-curve")
    seeds = 3 if arguments.seeds is None else arguments.seeds
    result = curve(config, training, [int(word) for word in words], seeds, output)
    return result, curve_lines(result, output / PLOT_FILE), [], ""


def _pairs(words: list[str], option: str) -> dict[str, str]:
    """`{"a": "b", "c": "d"}` of `["a=b,c=d"]`."""
    pairs = {}
    for part in (part for word in words for part in word.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ValueError(f"`--{option.replace('_', '-')}` takes pairs, such as a=b,c=d; got {part!r}.")
        pairs[key.strip()] = value.strip()
    return pairs
