"""`hfgpt generate`: continue a prompt."""

import argparse
import json
import sys
from typing import Any


def add(commands: Any) -> None:
    generate = commands.add_parser(
        "generate",
        help="continue a prompt",
        allow_abbrev=False,
        description="Continue a prompt; text appears as it is generated.",
    )
    generate.add_argument("model", help="folder or Hub name of a model or a LoRA adapter")
    generate.add_argument("prompt", nargs="?", help="text to continue (default: standard input)")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens to generate at most (default: 64)")
    generate.add_argument("--min-new-tokens", type=int, metavar="N", help="tokens to generate at least (default: 0)")
    generate.add_argument("--beams", type=int, metavar="N", help="beam search with N beams (default: 1, none)")
    generate.add_argument("--sample", action="store_true", help="sample; implied by the four options below")
    generate.add_argument("--temperature", type=float, metavar="T", help="sharpen (below 1) or flatten (above 1)")
    generate.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest words")
    generate.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest words that hold P")
    generate.add_argument("--seed", type=int, help="seed of the sampling")
    generate.add_argument("--length-penalty", type=float, metavar="A", help="of beam search; above 0 favours length")
    generate.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repetition")
    generate.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator, if there is one)")
    generate.add_argument("--json", action="store_true", help="print prompt and text as JSON, at the end")
    generate.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..generation import generate, load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    for name, lowest in (("max_new_tokens", 1), ("beams", 1), ("top_k", 1)):
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {lowest}, got {value}.")
    if arguments.top_p is not None and not 0.0 < arguments.top_p <= 1.0:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {arguments.top_p}.")
    if arguments.temperature is not None and arguments.temperature <= 0.0:
        raise ValueError(f"--temperature must be above 0, got {arguments.temperature}; without it nothing is sampled.")
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
    model, tokenizer = load(arguments.model, arguments.device)

    def write(text: str) -> None:
        print(text, end="", flush=True)

    if not arguments.json:
        write(prompt)
    text = generate(
        model,
        tokenizer,
        prompt,
        arguments.max_new_tokens,
        write=None if arguments.json else write,
        seed=arguments.seed,
        **options,
    )
    print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) if arguments.json else "")
