"""`hfgpt recipes`: the recipes that come with hfgpt, listed or copied."""

import argparse
import json
import shutil
import sys
import textwrap
from typing import Any


def add(commands: Any) -> None:
    recipes = commands.add_parser(
        "recipes",
        help="list the recipes and launch configs that come with hfgpt, or copy them",
        allow_abbrev=False,
        description="List what comes with hfgpt: recipes (what to run), accelerate configs (where), DeepSpeed's configs. "
        "Every hfgpt command finds them by these paths in any folder; `accelerate launch` reads its own files itself, so "
        "copy them first, and run it in DIR.",
    )
    recipes.add_argument("--copy", metavar="DIR", help="write recipes/ and ds_configs/ into DIR")
    recipes.add_argument("--overwrite", action="store_true", help="with --copy: also replace files that differ")
    recipes.add_argument("--json", action="store_true", help="print the list, or what was copied, as JSON")
    recipes.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ..shipped import copy_shipped, shipped_files, shipped_root

    if arguments.copy is None:
        if arguments.overwrite:
            raise ValueError("`--overwrite` is of `--copy DIR`.")
        files = [one for one in shipped_files() if one.file.suffix != ".md"]
        if arguments.json:
            found = [{"path": one.path, "description": one.description} for one in files]
            print(json.dumps({"folder": str(shipped_root()), "files": found}, ensure_ascii=False))
            return
        width = max(len(one.path) for one in files) + 2
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        for one in files:
            line = f"{one.path:<{width}}{one.description}"
            print(textwrap.shorten(line, columns, placeholder=" ...") if 0 < columns < len(line) else line)
        return
    done = copy_shipped(arguments.copy, arguments.overwrite)
    if arguments.json:
        print(json.dumps({"folder": str(done.folder), "written": done.written, "kept": done.kept}, ensure_ascii=False))
        return
    for path in done.kept:
        print(f"note: kept {done.folder / path}, which differs; --overwrite replaces it", file=sys.stderr)
    print(
        f"{len(done.written)} files in {done.folder}/recipes and {done.folder}/ds_configs; run the commands in {done.folder}"
    )
