"""`hfgpt push` and `hfgpt pull`: models, adapters, tokenizers and checkpoints to and from the Hub."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from typing import Any


# There is no option for a token: it would stay in the shell's history, and other users see a command's words.
_SIGN_IN = "The Hub's token is that of `hf auth login`, or HF_TOKEN in the environment."


def add(commands: Any) -> None:
    push = commands.add_parser(
        "push",
        help="upload a model, an adapter or a run to the Hub, with a model card written from the run",
        allow_abbrev=False,
        description="Upload a folder that a run, `convert` or `save_pretrained` wrote, with its tokenizer and a model card "
        f"made of what the run left there. The same command again goes on with an upload that was cut off. {_SIGN_IN}",
    )
    push.add_argument("model", metavar="MODEL", help="folder of a model, an adapter, a tokenizer or a checkpoint")
    push.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the Hub, made if there is none")
    visible = push.add_mutually_exclusive_group()
    visible.add_argument("--private", action="store_true", help="make it private (default: as the owner has it)")
    visible.add_argument("--public", action="store_true", help="make it public")
    push.add_argument("--revision", metavar="BRANCH", help="branch to write, made if there is none (default: main)")
    push.add_argument("--adapter-only", action="store_true", help="upload an adapter without what is beside it")
    push.add_argument(
        "--with-code",
        action="store_true",
        help="also the model's code: it then loads with trust_remote_code=True where hfgpt is not installed",
    )
    push.add_argument(
        "--base-model",
        metavar="OWNER/NAME",
        help="an adapter's base model on the Hub (default: as the adapter says, or where its folder was pushed to)",
    )
    push.add_argument("--license", metavar="ID", help="of the weights, for the card, such as apache-2.0")
    push.add_argument(
        "--carbon-intensity",
        type=float,
        metavar="GRAMS",
        help="of CO2 equivalent a kWh of the electricity used, for the card's estimate (default: 475, about the world's)",
    )
    push.add_argument("--max-shard-size", metavar="SIZE", help="largest file of weights (default: 5GB)")
    push.add_argument(
        "--overwrite", action="store_true", help="replace another model of that name, or a card written by hand"
    )
    push.add_argument("--message", metavar="TEXT", help="of the commit")
    push.add_argument("--json", action="store_true", help="print what was uploaded as JSON")
    push.set_defaults(run=_push)

    pull = commands.add_parser(
        "pull",
        help="download a model, an adapter or a run from the Hub",
        allow_abbrev=False,
        description="Download a repository of the Hub into a folder that every command takes. The same command again goes on "
        f"with a download that was cut off. {_SIGN_IN}",
    )
    pull.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the Hub")
    pull.add_argument("output", metavar="DIR", nargs="?", help="folder to write (default: NAME)")
    pull.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    pull.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")
    pull.add_argument("--json", action="store_true", help="print what was downloaded as JSON")
    pull.set_defaults(run=_pull)


def _push(arguments: argparse.Namespace) -> None:
    from ..hub import push

    _hide_bars()
    private = True if arguments.private else False if arguments.public else None
    with redirect_stdout(sys.stderr):
        done = push(
            arguments.model,
            arguments.repo_id,
            private=private,
            revision=arguments.revision,
            adapter_only=arguments.adapter_only,
            with_code=arguments.with_code,
            base_model=arguments.base_model,
            license=arguments.license,
            overwrite=arguments.overwrite,
            message=arguments.message,
            **{
                name: getattr(arguments, name)
                for name in ("carbon_intensity", "max_shard_size")
                if getattr(arguments, name) is not None
            },
        )
    _show(done, arguments.json)


def _pull(arguments: argparse.Namespace) -> None:
    from ..hub import pull

    _hide_bars()
    output = arguments.output or arguments.repo_id.rpartition("/")[2] or None
    with redirect_stdout(sys.stderr):
        done = pull(arguments.repo_id, output, revision=arguments.revision, overwrite=arguments.overwrite)
    _show(done, arguments.json)


def _hide_bars() -> None:
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def _show(done: Any, as_json: bool) -> None:
    print(json.dumps(done.as_dict(), ensure_ascii=False) if as_json else "\n".join(done.lines()))
