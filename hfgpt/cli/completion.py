"""`hfgpt completion`: what a shell needs to complete hfgpt's commands, options, choices and files."""

import argparse
from collections.abc import Iterator
from typing import Any


# How each shell is told; `hfgpt completion --help` shows these.
INSTALL = {
    "bash": "mkdir -p ~/.local/share/bash-completion/completions && "
    "hfgpt completion bash > ~/.local/share/bash-completion/completions/hfgpt",
    "zsh": "mkdir -p ~/.zfunc && hfgpt completion zsh > ~/.zfunc/_hfgpt\n"
    "        and in ~/.zshrc, before compinit: fpath+=~/.zfunc",
    "tcsh": "hfgpt completion tcsh > ~/.hfgpt.tcsh && echo source ~/.hfgpt.tcsh >> ~/.tcshrc",
}


def add(commands: Any) -> None:
    lines = "\n".join(f"  {shell:<5} {line}" for shell, line in INSTALL.items())
    completion = commands.add_parser(
        "completion",
        help="print a script that completes hfgpt's commands in bash, zsh or tcsh",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Print a script that completes commands, options, choices and files. Install it, once for each version of\n"
        "hfgpt, and start a new shell:\n\n" + lines + '\n\nIn this bash alone: eval "$(hfgpt completion bash)"',
    )
    completion.add_argument("shell", choices=tuple(INSTALL), help="shell that is to read it")
    completion.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    import shtab

    from . import make_parser

    parser = make_parser()
    for action in _arguments(parser):
        words = f"{action.metavar or ''} {action.dest}"
        if action.choices is None and action.nargs != 0:
            if "FILE" in words or action.dest in ("recipe", "curve", "tasks"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif any(word in words for word in ("DIR", "RUN", "model", "source", "output", "compare")):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
        else:
            yield action
