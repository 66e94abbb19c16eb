"""The `hfgpt` command: each subcommand is a thin front on a public function, in a module of its own.

Such a module has `add(commands)`, which adds the subcommand's parser. What is heavy (torch, transformers, numpy) is imported
where a command runs, so that `--help` and completion answer at once. Standard output has results alone, with --json one
JSON document; notes, warnings and progress go to standard error, where progress bars show at a terminal only.
"""

import argparse
import logging
import os
import sys
from difflib import get_close_matches

from ..version import __version__
from . import completion, convert, demo, doctor, evaluate, generate, hub, plan, prepare, recipes


# In the order in which `hfgpt --help` lists them.
COMMANDS = (prepare, generate, demo, evaluate, convert, plan, hub, recipes, doctor, completion)

EPILOG = """\
exit status:
  0    done
  1    it failed: a full disk, no memory, a task of the pipeline; or `doctor` found a problem
  2    bad input: one message says what was given and what to change
  130  interrupted (Ctrl-C); `prepare`, `push` and `pull` go on from there
The training scripts in recipes/ leave these, and 75 where a signal stopped them after they saved: run them again.

`hfgpt COMMAND --help` has a command's options, `hfgpt recipes` what to run it on.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status.

    Args:
        argv: Command line. Default: `sys.argv[1:]`, as the command itself.
    """
    if argv is None:
        _quiet_unless_terminal()
        # On a processor it misses a faster kernel, and says so in every command: peft imports it where it is installed.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    _check_command(parser, words)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse(parser, arguments.command, unknown)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except ValueError as error:
        return _fail(arguments, error, 2)
    except BrokenPipeError:
        # The reader of our output has gone, as in `hfgpt generate ... | head`; nor would it be there at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        return _fail(arguments, f"{error}. `hfgpt doctor` says what is installed and what is wrong with it.", 1)
    except OSError as error:
        return _fail(arguments, error, 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _fail(arguments, f"out of memory: {str(error).splitlines()[0]}", 1)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line. Defaults that a library knows better are left to it."""
    parser = argparse.ArgumentParser(
        prog="hfgpt",
        description="GPT-3 as published, in the Hugging Face ecosystem.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hfgpt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _quiet_unless_terminal() -> None:
    """No progress bars in logs and pipes: libraries read these when they are imported, and child processes, too."""
    if sys.stderr is None or not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


def _fail(arguments: argparse.Namespace, error: Exception | str, status: int) -> int:
    print(f"hfgpt {arguments.command}: error: {error}", file=sys.stderr)
    return status


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def _check_command(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """End with the nearest command's name where a wrong one is given; argparse would list them all."""
    known = _subparsers(parser)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in known:
        near = get_close_matches(command, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the commands are {', '.join(known)}."
        parser.exit(2, f"hfgpt: error: there is no command `{command}`: {hint}\n")


def _refuse(parser: argparse.ArgumentParser, command: str, unknown: list[str]) -> None:
    """End with the nearest option's name for the first word that nothing takes."""
    own = _subparsers(parser)[command]
    word = next((word for word in unknown if word.startswith("-")), unknown[0])
    name = word.partition("=")[0]
    options = [option for action in own._actions for option in action.option_strings]
    near = get_close_matches(name, options, n=1) if name.startswith("-") else []
    hint = f"did you mean `{near[0]}`?" if near else f"`hfgpt {command} --help` lists what there is."
    what = f"there is no option `{name}`" if name.startswith("-") else f"{word!r} is one word too many"
    parser.exit(2, f"hfgpt {command}: error: {what}: {hint}\n")
