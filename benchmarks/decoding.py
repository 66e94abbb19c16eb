"""Decoding: tokens per second and bytes of cache, GPT-3 beside transformers' own GPT-2 and GPT-Neo.

    python benchmarks/decoding.py                         # 6 layers x 384, float32 and bf16, context 1,024 and 2,048
    python benchmarks/decoding.py --preset gpt3-1.3b      # on a GPU

Greedy `generate()` of one sequence; the clock runs from the first new token to the last, so that the prompt is not
counted. On a GPU, GPT-3 is also compiled over a static cache (`cache_implementation="static"`).
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from harness import add_arguments, compare, describe, pick_device, ratio, report, save
from training import add_sizes, make_model, read_sizes


def build_decode(
    device: str, kind: str, attention: str, dtype: str, static: bool, sizes: dict[str, int], context: int, tokens: int
) -> Callable[[], dict[str, Any]]:
    """Decode `tokens` words after a prompt that ends that far before `context`."""
    import torch

    model = make_model(kind, {**sizes, "positions": context}, attention).to(device).eval()
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    prompt = torch.randint(sizes["vocab"], (1, context - tokens), device=device)
    options = {"cache_implementation": "static"} if static else {}

    class Clock:
        """A streamer: `generate` gives it the prompt, then each token."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def decode() -> dict[str, Any]:
        clock = Clock()
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=False,
            streamer=clock,
            return_dict_in_generate=True,
            **options,
        )
        layers = output.past_key_values.layers
        cache = sum(kept.untyped_storage().nbytes() for layer in layers for kept in (layer.keys, layer.values))
        return {"seconds": clock.times[-1] - clock.times[1], "cache_bytes": cache}

    return decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048], metavar="T")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens to decode in a turn (default: 64)")
    add_sizes(parser)
    add_arguments(parser, rounds=7)
    arguments = parser.parse_args()
    sizes = read_sizes(arguments)
    device = pick_device(arguments.device)
    machine = describe(device, sizes)
    variants = [
        ("GPT-2, sdpa", "gpt2", "sdpa", False),
        ("GPT-Neo", "gpt_neo", "eager", False),
        ("GPT-3, sdpa", "gpt3", "sdpa", False),
    ]
    if device == "cuda":
        variants += [("GPT-2, static cache, compiled", "gpt2", "sdpa", True)]
        variants += [("GPT-3, static cache, compiled", "gpt3", "sdpa", True)]
    for dtype in arguments.dtypes:
        for context in arguments.contexts:
            shared = {"dtype": dtype, "sizes": sizes, "context": context, "tokens": arguments.new_tokens}
            peers = [
                (name, build_decode, {"kind": kind, "attention": attention, "static": static, **shared})
                for name, kind, attention, static in variants
            ]
            rows = compare(peers, arguments, warmup=2 if device == "cuda" else 1)
            counted, cache = arguments.new_tokens - 1, rows[0].get("cache_bytes", 1)
            for row in rows:
                if "seconds" in row:
                    row["tokens_per_second"] = counted / row["seconds"]
                    row["cache_ratio"] = row["cache_bytes"] / cache
            columns: dict[str, Callable[[dict[str, Any]], str]] = {
                "decoding": lambda row: row["name"],
                "tokens/s": lambda row: f"{row['tokens_per_second']:,.1f}",
                "speed / GPT-2's": lambda row: ratio(row["time_ratio"], inverse=True),
                "cache, MiB": lambda row: f"{row['cache_bytes'] / 2**20:.1f}",
                "cache / GPT-2's": lambda row: f"{row['cache_ratio']:.2f}",
            }
            report(f"{dtype}, context {context:,}", rows, columns)
            save(
                arguments.json, {"benchmark": "decoding", **machine, "dtype": dtype, "context": context, "rows": rows}
            )


if __name__ == "__main__":
    main()
