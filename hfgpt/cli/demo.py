"""`hfgpt demo`: a local web page to try a model."""

import argparse
import sys
from typing import Any


def add(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="try a model in the browser",
        allow_abbrev=False,
        description="Serve a local web page: continue prompts, compare two models from the same prompt and seed, see the "
        "probability of each token, ask a fine-tuned model what it was tuned for. An adapter is compared with its base "
        "model. Needs gradio: pip install 'hfgpt[demo]'.",
    )
    demo.add_argument("model", help="folder or Hub name of a model or a LoRA adapter")
    demo.add_argument("--compare", metavar="MODEL", help="another model beside it (default: an adapter's base)")
    demo.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator, if there is one)")
    demo.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: 127.0.0.1, this machine alone)"
    )
    demo.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860")
    demo.add_argument("--share", action="store_true", help="also by a public address of gradio's server")
    demo.add_argument("--auth", metavar="USER:PASSWORD", help="ask for these (default: no password)")
    demo.add_argument("--no-browser", action="store_true", help="do not open a browser")
    demo.add_argument(
        "--task-example",
        action="append",
        default=[],
        metavar="FIELD=TEXT",
        help="what stands in a field of the fine-tuned model's task at first; repeatable",
    )
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    example = {}
    for pair in arguments.task_example:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--task-example takes FIELD=TEXT, such as text='A fine film.'; got {pair!r}.")
        example[name] = text
    auth = None
    if arguments.auth is not None:
        user, _, password = arguments.auth.partition(":")
        if not user or not password:
            raise ValueError("--auth takes USER:PASSWORD, with a colon between them and neither empty.")
        auth = (user, password)
    from transformers.utils import logging

    from ..web import launch

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    launch(
        [arguments.model, *([arguments.compare] if arguments.compare is not None else [])],
        device=arguments.device,
        host=arguments.host,
        port=arguments.port,
        share=arguments.share,
        open_browser=not arguments.no_browser,
        task_example=example,
        auth=auth,
    )
