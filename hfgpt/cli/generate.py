"""`hfgpt generate`: continue a prompt."""

import argparse
import json
import math
import sys
from contextlib import redirect_stdout
from typing import Any


def add(commands: Any) -> None:
    generate = commands.add_parser(
        "generate",
        help="continue a prompt",
        allow_abbrev=False,
        description="Continue a prompt; text appears as it is generated. With --interactive a conversation: at a terminal "
        "with line editing and commands (/help), through pipes with a message in each line of standard input.",
    )
    generate.add_argument("model", help="folder or Hub name of a model or a LoRA adapter")
    generate.add_argument("prompt", nargs="?", help="text to continue (default: standard input)")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens to generate at most (default: 64)")
    generate.add_argument("--min-new-tokens", type=int, metavar="N", help="tokens to generate at least (default: 0)")
    generate.add_argument("--beams", type=int, metavar="N", help="beam search with N beams (default: 1, none)")
    generate.add_argument("--sample", action="store_true", help="sample; implied by the four options below")
    generate.add_argument("--temperature", type=float, metavar="T", help="sharpen (below 1) or flatten (above 1)")
    generate.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    generate.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that hold P")
    generate.add_argument("--seed", type=int, help="seed of the sampling")
    generate.add_argument("--length-penalty", type=float, metavar="A", help="of beam search; above 0 favours length")
    generate.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repetition")
    generate.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before TEXT in the new text, where \\n is a new line; repeatable (default with --interactive: the "
        "user's next turn)",
    )
    generate.add_argument(
        "--interactive",
        action="store_true",
        help="a conversation; sampled with --top-p 0.9 unless told otherwise",
    )
    generate.add_argument(
        "--template",
        metavar="T",
        help="how turns become text: qa, qa-ko, dialogue, continue, chat (the tokenizer's own), or a text with {user} and "
        "{model}, where \\n is a new line (default: chat where the tokenizer has a template, else qa)",
    )
    generate.add_argument("--system", metavar="TEXT", help="text before the conversation")
    generate.add_argument("--context", metavar="FILE", help="file with the text before the conversation")
    generate.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator, if there is one)")
    generate.add_argument(
        "--json",
        action="store_true",
        help="print prompt and text as JSON, at the end (with --interactive: of each answer)",
    )
    generate.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..generation import generate, load_writer

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    _check(arguments)
    if arguments.interactive:
        _talk(arguments)
        return
    for name in ("template", "system", "context"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} is of a conversation: add --interactive.")
    if arguments.prompt is None and sys.stdin.isatty():
        print("Reading the prompt from standard input; Ctrl-D ends it.", file=sys.stderr)
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
    # Libraries say a word on standard output when they are imported.
    with redirect_stdout(sys.stderr):
        model, tokenizer = load_writer(arguments.model, arguments.device)

    shown = False

    def write(text: str) -> None:
        nonlocal shown
        # The prompt comes with the first piece: an error before that stands alone.
        print(text if shown else prompt + text, end="", flush=True)
        shown = True

    text = generate(
        model,
        tokenizer,
        prompt,
        arguments.max_new_tokens,
        write=None if arguments.json else write,
        seed=arguments.seed,
        stop=_stop(arguments),
        **options,
    )
    if arguments.json:
        print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
    else:
        print("" if shown else prompt)


def _check(arguments: argparse.Namespace) -> None:
    """Raise a `ValueError` for a number that is out of range, before anything is loaded."""
    from ..generation import DEFAULT_NEW_TOKENS

    for name, lowest in (("max_new_tokens", 1), ("min_new_tokens", 0), ("beams", 1), ("top_k", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {lowest}, got {value}.")
    if arguments.seed is not None and arguments.seed >= 2**32:
        raise ValueError(f"--seed must be at most {2**32 - 1}, got {arguments.seed}.")
    if arguments.top_p is not None and not 0.0 < arguments.top_p <= 1.0:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {arguments.top_p}.")
    if arguments.temperature is not None and not 0.0 < arguments.temperature < math.inf:
        raise ValueError(f"--temperature must be above 0, got {arguments.temperature}; without it nothing is sampled.")
    if arguments.repetition_penalty is not None and not 0.0 < arguments.repetition_penalty < math.inf:
        raise ValueError(f"--repetition-penalty must be above 0 (1 is none), got {arguments.repetition_penalty}.")
    if arguments.length_penalty is not None and not math.isfinite(arguments.length_penalty):
        raise ValueError(f"--length-penalty must be a finite number, got {arguments.length_penalty}.")
    most = arguments.max_new_tokens if arguments.max_new_tokens is not None else DEFAULT_NEW_TOKENS
    if arguments.min_new_tokens is not None and arguments.min_new_tokens > most:
        default = "" if arguments.max_new_tokens is not None else ", its default"
        raise ValueError(
            f"--min-new-tokens {arguments.min_new_tokens} is more than --max-new-tokens {most}{default}: raise this one "
            "or lower the other."
        )


def _stop(arguments: argparse.Namespace) -> list[str] | None:
    return [_unescaped(text) for text in arguments.stop] if arguments.stop is not None else None


def _unescaped(text: str) -> str:
    """What a shell leaves of a text with new lines and tabs."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _talk(arguments: argparse.Namespace) -> None:
    from ..chat import Conversation, Session, Settings
    from ..generation import load_writer

    if arguments.system is not None and arguments.context is not None:
        raise ValueError("Give --system or --context, one of them.")
    opening = arguments.system or ""
    if arguments.context is not None:
        try:
            with open(arguments.context, encoding="utf-8") as file:
                opening = file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"--context {arguments.context} cannot be read: {reason}.") from None
    sampled = [name for name in ("sample", "temperature", "top_k", "top_p") if getattr(arguments, name)]
    if arguments.beams not in (None, 1) and sampled:
        given_names = ", ".join(f"--{name.replace('_', '-')}" for name in sampled)
        raise ValueError(
            f"A conversation is sampled or searched by --beams, one of them: leave out --beams or {given_names}."
        )
    names = {"min_new_tokens": "min_new_tokens", "beams": "num_beams", "length_penalty": "length_penalty"}
    options = {names[name]: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    given = {
        name: getattr(arguments, name)
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
        if getattr(arguments, name) is not None
    }
    # All of the likeliest K tokens, where K alone is given.
    top_p = {} if arguments.top_k is None else {"top_p": 1.0}
    settings = Settings(options=options, **{**top_p, **given})
    template = _unescaped(arguments.template) if arguments.template is not None else None
    # Libraries say a word on standard output when they are imported.
    with redirect_stdout(sys.stderr):
        model, tokenizer = load_writer(arguments.model, arguments.device)
    conversation = Conversation(model, tokenizer, template, opening, _stop(arguments), settings)
    failed = Session(conversation, as_json=arguments.json).run(arguments.prompt)
    if failed and not sys.stdin.isatty():
        raise ValueError(f"{failed} of the lines could not be answered: see above.")
