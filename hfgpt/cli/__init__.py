"""The `hfgpt` command: each subcommand is a thin front on a public function, in a module of its own.

Such a module has `add(commands)`, which adds the subcommand's parser. What is heavy (torch, transformers, numpy) is imported
where a command runs, so that `--help` and completion answer at once.

Exit status: 0 done, 1 an unexpected failure, 2 bad input (with one message that says what to change), 130 interrupted.
"""

import argparse
import sys

from . import convert, demo, evaluate, generate, hub, plan, prepare, recipes


# In the order in which `hfgpt --help` lists them.
COMMANDS = (prepare, generate, demo, evaluate, convert, plan, hub, recipes)


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
    for command in COMMANDS:
        command.add(commands)
    return parser
