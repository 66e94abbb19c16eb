"""`hfgpt convert`: from and to GPT-2, ZeRO checkpoints made whole, adapters merged."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any


def add(commands: Any) -> None:
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
    convert.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..model.convert import convert
    from ..training.adapters import merge
    from ..training.zero import consolidate, saved_layout

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
        print(json.dumps({**asdict(done), "output": str(done.output)}))  # its notes are in it
        return
    print(
        f"{done.source_type} -> {done.target_type} ({done.source_class} -> {done.target_class}): "
        f"{done.parameters:,} parameters in {done.tensors:,} tensors, {done.dtype}"
    )
    print(
        f"written to {done.output}, {'with its tokenizer' if done.tokenizer else 'no tokenizer: the source has none'}"
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
