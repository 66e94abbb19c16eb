"""Asking a model: likelihoods of completions and written answers, beside the plain way of each.

    python benchmarks/scoring.py                         # 6 layers x 384, float32
    python benchmarks/scoring.py --preset gpt3-125m --dtypes bf16

Three questions. `choices`: prompts of 32 to 160 tokens with 4 completions of 4 to 24, as HellaSwag has them; the plain way
runs each prompt with each completion, sorted by length, in batches of 16. `shots`: as many prompts behind the same 512
tokens, each with two completions of one token. `answers`: 24 tokens written for each prompt, the plain way one prompt at a
time. Ours is also run with other sizes of batches.
"""

import argparse
from collections.abc import Callable
from typing import Any

from harness import add_arguments, compare, describe, pick_device, ratio, report, save
from training import add_sizes, make_model, read_sizes


QUESTIONS = ["choices", "shots", "answers"]
SHOTS, NEW_TOKENS = 512, 24


def build_asking(
    device: str,
    question: str,
    way: str,
    kind: str,
    dtype: str,
    sizes: dict[str, int],
    prompts: int,
    tokens: int | None,
) -> Callable[[], None]:
    """Ask one question the "plain" way or as "ours", the same prompts in each process."""
    import random

    import torch

    model = make_model(kind, sizes, "sdpa").to(device).eval()
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    chance = random.Random(0)

    def draw(shortest: int, longest: int) -> list[int]:
        return [chance.randrange(1, sizes["vocab"]) for _ in range(chance.randint(shortest, longest))]

    start = draw(SHOTS, SHOTS) if question == "shots" else []
    contexts = [start + draw(32, 160) for _ in range(prompts)]
    if question == "answers":
        return _answers(model, way, contexts, tokens)
    choices = [[[1], [2]] if question == "shots" else [draw(4, 24) for _ in range(4)] for _ in contexts]
    return _plain_likelihoods(model, contexts, choices) if way == "plain" else _ours(model, contexts, choices, tokens)


def _ours(model: Any, contexts: list[list[int]], choices: list[list[list[int]]], tokens: int | None) -> Any:
    from hfgpt.tasks.scoring import log_likelihoods

    def ask() -> None:
        log_likelihoods(model, contexts, choices, pad_token_id=0, max_batch_tokens=tokens, progress=False)

    return ask


def _plain_likelihoods(model: Any, contexts: list[list[int]], choices: list[list[list[int]]], rows: int = 16) -> Any:
    """Each completion with its prompt, the longest first; logits of completions alone."""
    import torch

    from hfgpt.tasks.encoding import CompletionCollator

    collate = CompletionCollator(pad_token_id=0)
    pairs = [
        {"prompt_ids": prompt, "completion_ids": choice} for prompt, row in zip(contexts, choices) for choice in row
    ]
    pairs.sort(key=lambda pair: len(pair["prompt_ids"]) + len(pair["completion_ids"]), reverse=True)

    @torch.no_grad()
    def ask() -> None:
        for start in range(0, len(pairs), rows):
            batch = collate(pairs[start : start + rows])
            labels = batch.pop("labels")[:, 1:].to(model.device)
            inputs = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
            log_probs = model(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            (log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * labels.ge(0)).sum(-1).tolist()

    return ask


def _answers(model: Any, way: str, contexts: list[list[int]], tokens: int | None) -> Any:
    import torch

    from hfgpt.tasks.scoring import generate_texts

    class Words:
        """A tokenizer whose words are their numbers: every answer is as long as it may be."""

        pad_token_id, eos_token_id = 0, None

        def decode(self, ids: list[int], **options: Any) -> str:
            return " ".join(map(str, ids))

    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None

    def ask() -> None:
        if way == "ours":
            words: Any = Words()
            options: dict[str, Any] = {"max_batch_tokens": tokens, "progress": False, "stop": ["\n"]}
            generate_texts(model, words, contexts, max_new_tokens=NEW_TOKENS, **options)
            return
        for context in contexts:
            ids = torch.tensor([context], device=model.device)
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["float32"])
    parser.add_argument("--model", choices=["gpt3", "gpt2"], default="gpt3")
    parser.add_argument("--prompts", type=int, default=32, help="prompts of a turn (default: 32)")
    parser.add_argument(
        "--batch-tokens", type=int, nargs="*", default=[1024, 16384], metavar="N", help="other sizes of our batches"
    )
    add_sizes(parser)
    add_arguments(parser, rounds=5)
    arguments = parser.parse_args()
    sizes = {**read_sizes(arguments), "positions": 1024}
    device = pick_device(arguments.device)
    machine = describe(device, sizes)
    ways = [("plain", "plain", None), ("ours", "ours", None)]
    ways += [(f"ours, {tokens:,} tokens", "ours", tokens) for tokens in arguments.batch_tokens]
    for dtype in arguments.dtypes:
        for question in arguments.questions:
            shared = {"question": question, "kind": arguments.model, "dtype": dtype, "sizes": sizes}
            shared["prompts"] = arguments.prompts
            peers = [(name, build_asking, {"way": way, "tokens": tokens, **shared}) for name, way, tokens in ways]
            rows = compare(peers, arguments)
            for row in rows:
                if "seconds" in row:
                    row["prompts_per_second"] = arguments.prompts / row["seconds"]
            columns: dict[str, Callable[[dict[str, Any]], str]] = {
                question: lambda row: row["name"],
                "prompts/s": lambda row: f"{row['prompts_per_second']:,.1f}",
                "speed / plain": lambda row: ratio(row["time_ratio"], inverse=True),
                "added memory, MiB": lambda row: f"{row['added_memory_bytes'] / 2**20:,.0f}",
            }
            report(f"{question}, {arguments.model}, {dtype}", rows, columns)
            save(
                arguments.json, {"benchmark": "scoring", **machine, "dtype": dtype, "question": question, "rows": rows}
            )


if __name__ == "__main__":
    main()
