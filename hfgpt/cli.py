"""The `hfgpt` command: each subcommand is a thin front on a public function.

Exit status: 0 done, 1 an unexpected failure, 2 bad input (with one message that says what to change), 130 interrupted.
"""

import argparse
import json
import math
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    arguments = make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ValueError as error:
        print(f"hfgpt {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone, as in `hfgpt generate ... | head`.
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line. Defaults that a library knows better are left to it."""
    parser = argparse.ArgumentParser(
        prog="hfgpt", description="GPT-3 as published, in the Hugging Face ecosystem.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    prepare = commands.add_parser(
        "prepare",
        help="text to tokens: prepare a corpus from a recipe",
        allow_abbrev=False,
        description="Prepare a corpus: read, clean, filter, deduplicate, decontaminate, tokenize, write memory-mapped "
        "shards with a held-out split, and a report. The same command again goes on where the last one stopped.",
    )
    prepare.add_argument("recipe", help="YAML file, such as recipes/corpus/demo.yaml")
    prepare.add_argument("--output", metavar="DIR", help="folder to write (default: `output_dir` of the recipe)")
    prepare.add_argument("--overwrite", action="store_true", help="replace a corpus made by another recipe")
    prepare.add_argument(
        "--stage", metavar="NAME", help="run this stage alone (a wrong name lists the recipe's stages)"
    )
    prepare.add_argument(
        "--executor", choices=("local", "ray", "slurm"), default="local", help="where tasks run (default: local)"
    )
    prepare.add_argument("--workers", type=int, metavar="N", help="tasks at once (default: local, one a core)")
    prepare.add_argument(
        "--executor-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of datatrove's executor, such as partition=cpu, time=12:00:00, address=auto; repeatable",
    )
    prepare.add_argument(
        "--discard-stages", action="store_true", help="delete DIR.stages (what each stage wrote) when DIR is whole"
    )
    prepare.add_argument("--json", action="store_true", help="print the metadata as JSON")
    prepare.set_defaults(run=_prepare)

    generate = commands.add_parser(
        "generate",
        help="continue a prompt",
        allow_abbrev=False,
        description="Continue a prompt; text appears as it is generated.",
    )
    generate.add_argument("model", help="folder or Hub name of a model or a LoRA adapter")
    generate.add_argument("prompt", nargs="?", help="text to continue (default: standard input)")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens to generate at most (default: 64)")
    generate.add_argument("--min-new-tokens", type=int, metavar="N", help="tokens to generate at least (default: 0)")
    generate.add_argument("--beams", type=int, metavar="N", help="beam search with N beams (default: 1, none)")
    generate.add_argument("--sample", action="store_true", help="sample; implied by the four options below")
    generate.add_argument("--temperature", type=float, metavar="T", help="sharpen (below 1) or flatten (above 1)")
    generate.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest words")
    generate.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest words that hold P")
    generate.add_argument("--seed", type=int, help="seed of the sampling")
    generate.add_argument("--length-penalty", type=float, metavar="A", help="of beam search; above 0 favours length")
    generate.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repetition")
    generate.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator, if there is one)")
    generate.add_argument("--json", action="store_true", help="print prompt and text as JSON, at the end")
    generate.set_defaults(run=_generate)

    _add_evaluate(commands)

    convert = commands.add_parser(
        "convert",
        help="turn gpt2 or gpt_neo into gpt3, a dense gpt3 into gpt2, a checkpoint of ZeRO into a whole model, or merge "
        "a LoRA adapter",
        allow_abbrev=False,
        description="Convert a checkpoint exactly, or say why that cannot be; its tokenizer comes along. A checkpoint that "
        "DeepSpeed ZeRO has split is made whole, in float32, on one processor. With --merge the source is an adapter: it "
        "is merged into its base model, of any architecture, and the result is converted if there is a --to.",
    )
    convert.add_argument(
        "source", help="folder or Hub name of the model (its type is read from its config) or adapter"
    )
    convert.add_argument("output", help="folder to write")
    convert.add_argument("--to", choices=("gpt3", "gpt2"), help="type to convert to; needed unless there is --merge")
    convert.add_argument("--merge", action="store_true", help="merge a LoRA adapter into its base model")
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights written (default: as stored)"
    )
    convert.add_argument("--max-shard-size", metavar="SIZE", help="largest file of weights, such as 5GB")
    convert.add_argument(
        "--overwrite", action="store_true", help="replace the whole output folder, if it holds a model"
    )
    convert.add_argument("--json", action="store_true", help="print what was done as JSON")
    convert.set_defaults(run=_convert)

    plan = commands.add_parser(
        "plan",
        help="what a pretraining run takes: memory, days, energy, cost, and the line to run",
        allow_abbrev=False,
        description="Plan a pretraining run from its config alone, without weights or a GPU. `training_flops` are 6 per "
        "parameter and token, the paper's count; days are those of the dense-equivalent model FLOPs (6 per parameter "
        "and 12 x layers x width x sequence length for attention, per token) at --mfu of the GPUs' bf16 peak. With --fit "
        "also, or alone, what loss to expect, from smaller runs.",
    )
    plan.add_argument("model", nargs="?", help="preset, or folder with config.json (default: the recipe's preset)")
    plan.add_argument("--recipe", metavar="FILE", help="pretraining recipe, whose fields the options override")
    plan.add_argument("--gpus", type=int, metavar="N", help="GPUs in all; needed unless there is --fit")
    plan.add_argument(
        "--gpu", default="h100-80", metavar="NAME", help="kind (default: h100-80; a wrong name lists them)"
    )
    plan.add_argument("--nodes", type=int, metavar="N", help="machines (default: 8 GPUs in each)")
    plan.add_argument(
        "--zero-stage",
        type=int,
        choices=(0, 1, 2, 3),
        help="what is shared out over the GPUs: 0 nothing (DDP), 1 optimizer states, 2 and gradients, 3 and weights "
        "(default: the lowest that fits without activation checkpointing, else with it)",
    )
    plan.add_argument(
        "--offload",
        choices=("none", "optimizer", "optimizer+params"),
        default="none",
        help="kept in the machines' memory, slower (default: none)",
    )
    plan.add_argument(
        "--activation-checkpointing",
        action=argparse.BooleanOptionalAction,
        help="compute activations again in the backward pass (default: the recipe's, or where it must be)",
    )
    plan.add_argument(
        "--micro-batch", type=int, metavar="N", help="sequences at once on a GPU (default: the recipe's, or what fits)"
    )
    plan.add_argument(
        "--sequence-length",
        type=int,
        metavar="N",
        help="tokens of a sequence (default: the recipe's, or the model's max_position_embeddings)",
    )
    plan.add_argument(
        "--tokens", type=_whole_number, metavar="N", help="tokens to train on (default: the recipe's, or 300 billion)"
    )
    plan.add_argument(
        "--batch-tokens",
        type=_whole_number,
        metavar="N",
        help="tokens of a full batch (default: the recipe's, or table 2.1's)",
    )
    plan.add_argument(
        "--vocab-size", type=int, metavar="N", help="words of the corpus (default: the preset's, or the fitted runs')"
    )
    plan.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="GPUs that share each matrix (default: 1)"
    )
    plan.add_argument("--mfu", type=float, default=0.4, help="share of the GPUs' peak that is reached (default: 0.4)")
    plan.add_argument(
        "--price-per-gpu-hour", type=float, metavar="DOLLARS", help="rent (default: a rough one of the kind of GPU)"
    )
    plan.add_argument(
        "--fit",
        nargs="+",
        metavar="RUN",
        help="folders of finished runs of four or more sizes: fit loss = a + b C^-k to their compute C, and predict the "
        "loss of the model or recipe",
    )
    plan.add_argument("--plot", metavar="FILE", help="with --fit: draw the runs and the curve, such as ladder.png")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(run=_plan)
    return parser


def _add_evaluate(commands: Any) -> None:
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
    evaluate.set_defaults(run=_evaluate)


def _prepare(arguments: argparse.Namespace) -> None:
    from .data.corpus import load_corpus_config, prepare
    from .data.documents import read_json
    from .data.executors import ExecutorConfig, parse_options
    from .data.report import summary_lines

    # With --json, standard output is for the machine that reads it.
    report = sys.stderr if arguments.json else sys.stdout
    executor = ExecutorConfig(arguments.executor, arguments.workers, parse_options(arguments.executor_option))
    config = load_corpus_config(arguments.recipe)
    try:
        done = prepare(
            config, arguments.output, arguments.overwrite, executor, arguments.stage, arguments.discard_stages
        )
    except RuntimeError as error:
        # Of a task: where it failed is in the file that the message names, not here.
        print(f"hfgpt prepare: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if arguments.stage is None:
        bad = done["bad_rows"]
        if bad["count"]:
            shown = "\n  ".join(bad["examples"])
            print(f"{bad['count']} malformed rows passed over, such as\n  {shown}", file=sys.stderr)
        folder = Path(arguments.output or config.output_dir or "")
        for line in summary_lines(read_json(folder / "report.json"), folder):
            print(line, file=report)
        for name, split in done["splits"].items():
            print(
                f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, {split['bytes']:,} bytes",
                file=report,
            )
    if arguments.json:
        print(json.dumps(done))


def _generate(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from .generation import generate, load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    for name, lowest in (("max_new_tokens", 1), ("beams", 1), ("top_k", 1)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {lowest}, got {value}.")
    if arguments.top_p is not None and not 0.0 < arguments.top_p <= 1.0:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {arguments.top_p}.")
    if arguments.temperature is not None and arguments.temperature <= 0.0:
        raise ValueError(f"--temperature must be above 0, got {arguments.temperature}; without it nothing is sampled.")
    prompt = arguments.prompt if arguments.prompt is not None else sys.stdin.read().rstrip("\n")
    names = {"beams": "num_beams"}
    options: dict[str, Any] = {
        names.get(name, name): getattr(arguments, name)
        for name in (
            "min_new_tokens",
            "beams",
            "temperature",
            "top_k",
            "top_p",
            "length_penalty",
            "repetition_penalty",
        )
        if getattr(arguments, name) is not None
    }
    sampled = (arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    options["do_sample"] = arguments.sample or any(value is not None for value in sampled)
    model, tokenizer = load(arguments.model, arguments.device)

    def write(text: str) -> None:
        print(text, end="", flush=True)

    if not arguments.json:
        write(prompt)
    text = generate(
        model,
        tokenizer,
        prompt,
        arguments.max_new_tokens,
        write=None if arguments.json else write,
        seed=arguments.seed,
        **options,
    )
    print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) if arguments.json else "")


def _evaluate(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if arguments.curve is None:
        for name in ("labels", "seeds"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"`--{name}` is of a learning curve: give `--curve RECIPE`.")
        if arguments.model is None:
            raise ValueError("Name the MODEL to score.")
    from .evaluation.results import to_json

    # Standard output is for the results; libraries say a word there, too.
    with redirect_stdout(sys.stderr):
        values, lines, notes, unsaved = (_score if arguments.curve is None else _curve)(arguments)
    for note in notes:
        print(note, file=sys.stderr)
    print(to_json(values) if arguments.json else "\n".join(lines))
    if unsaved:
        raise ValueError(unsaved)


def _score(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[str], str]:
    from .evaluation.evaluate import EvaluateOptions, evaluate_from

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
    defaults = vars(make_parser().parse_args(["evaluate"]))
    own = ("curve", "labels", "seeds", "output", "json")
    given = [name for name, value in vars(arguments).items() if name not in own and value != defaults[name]]
    if given:
        raise ValueError(
            "`--curve` takes model, rows and everything else from its recipe: leave out "
            f"{'MODEL' if given[0] == 'model' else '--' + given[0].replace('_', '-')}."
        )
    from .evaluation.curve import PLOT_FILE, curve
    from .evaluation.results import curve_lines
    from .training.arguments import FinetuneConfig, FinetuningArguments, parse_arguments

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


def _convert(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from .model.convert import convert
    from .training.adapters import merge
    from .training.zero import consolidate, saved_layout

    if arguments.to is None and not arguments.merge:
        raise ValueError("Give --to, the type to convert to, or --merge for a LoRA adapter.")
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    # Saving imports what is installed, and DeepSpeed says a word on standard output.
    with redirect_stdout(sys.stderr):
        # The shards hold the weights that were trained, in float32; a model.safetensors beside them may be rounded.
        write = merge if arguments.merge else convert if saved_layout(arguments.source) is None else consolidate
        done = write(
            arguments.source,
            arguments.output,
            arguments.to,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
            max_shard_size=arguments.max_shard_size,
        )
    if arguments.json:
        print(json.dumps({**asdict(done), "output": str(done.output)}))
        return
    print(
        f"{done.source_type} -> {done.target_type} ({done.source_class} -> {done.target_class}): "
        f"{done.parameters:,} parameters in {done.tensors:,} tensors, {done.dtype}"
    )
    print(
        f"written to {done.output}, {'with its tokenizer' if done.tokenizer else 'no tokenizer: the source has none'}"
    )
    for note in done.notes:
        print(f"note: {note}")


def _whole_number(text: str) -> int:
    """An integer, also as "3e11"."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, such as 300000000000 or 3e11, got {text!r}")
    return int(value)


def _plan(arguments: argparse.Namespace) -> None:
    from .planner import PlanOptions, plan, plan_lines

    options = PlanOptions(**{field.name: getattr(arguments, field.name) for field in fields(PlanOptions)})
    values: dict[str, Any] = {}
    lines: list[str] = []
    if arguments.fit:
        from .scaling import draw, read_ladder, report, report_lines

        ladder = read_ladder(arguments.fit, options)
        options = replace(options, vocab_size=ladder.vocab_size)
        fitted = report(ladder.runs, ladder.target)
        values["fit"] = {**fitted, "notes": ladder.notes}
        lines += [*report_lines(fitted), *(f"note: {note}" for note in ladder.notes)]
        if arguments.plot:
            draw(arguments.plot, ladder.runs, ladder.target, fitted.get("predicted_loss"))
    elif arguments.plot:
        raise ValueError("`--plot` draws what `--fit` found: give `--fit` the folders of finished runs.")
    if arguments.gpus is not None or not arguments.fit:
        result = plan(options)
        values = {**result.as_dict(), **values}
        lines = [*plan_lines(result), *([""] if lines else []), *lines]
    print(json.dumps(values) if arguments.json else "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
