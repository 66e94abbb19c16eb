"""`hfgpt plan`: what a pretraining run takes."""

import argparse
import json
import math
from dataclasses import fields, replace
from typing import Any


def add(commands: Any) -> None:
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
    plan.set_defaults(run=_run)


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


def _run(arguments: argparse.Namespace) -> None:
    from ..planner import PlanOptions, plan, plan_lines

    options = PlanOptions(**{field.name: getattr(arguments, field.name) for field in fields(PlanOptions)})
    values: dict[str, Any] = {}
    lines: list[str] = []
    if arguments.fit:
        from ..scaling import draw, read_ladder, report, report_lines

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
