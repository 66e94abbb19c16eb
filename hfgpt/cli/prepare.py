"""`hfgpt prepare`: text to tokens."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
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
    prepare.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ..data.corpus import load_corpus_config, prepare
    from ..data.documents import read_json
    from ..data.executors import ExecutorConfig, parse_options
    from ..data.report import summary_lines

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
