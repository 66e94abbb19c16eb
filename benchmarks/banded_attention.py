"""One banded layer's attention, forward and backward, beside dense attention through the same back end.

    python benchmarks/banded_attention.py                 # T = 1,024 to 16,384, window 256, 6 heads of 64

Query, key and value go in, the context comes out: no projections. Each length is also compared with half of it, which
shows how the cost grows. On a GPU also through flex attention (compiled) and, where installed, flash attention.
"""

import argparse
from collections.abc import Callable
from typing import Any

from harness import add_arguments, compare, describe, pick_device, ratio, report, save


def build_attention(
    device: str, attention: str, banded: bool, dtype: str, length: int, window: int, heads: int, head_dim: int
) -> Callable[[], None]:
    """Forward and backward of the attention of one layer, with the mask that the model makes for it."""
    import torch

    from hfgpt import GPT3Config
    from hfgpt.model.modeling_gpt3 import GPT3Attention, make_masks

    kind = "sliding_attention" if banded else "full_attention"
    config = GPT3Config(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        num_hidden_layers=1,
        layer_types=[kind],
        sliding_window=window,
        max_position_embeddings=length,
        attn_implementation=attention,
    )
    layer = GPT3Attention(config, layer_idx=0).to(device)
    number = torch.bfloat16 if dtype == "bf16" else torch.float32
    states = [
        torch.randn(1, length, heads, head_dim, device=device, dtype=number).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    gradient = torch.randn(1, length, heads, head_dim, device=device, dtype=number)

    def run() -> None:
        mask = make_masks(config, torch.empty(1, length, 0, dtype=number, device=device), None, None)[kind]
        output, _ = layer.attend(*states, mask)
        output.backward(gradient)
        for state in states:
            state.grad = None

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], metavar="T")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64)
    add_arguments(parser, rounds=5)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    shape = {"window": arguments.window, "heads": arguments.heads, "head_dim": arguments.head_dim}
    machine = describe(device, shape)
    backends = ["sdpa"]
    if device == "cuda":
        from transformers.utils import is_flash_attn_2_available

        backends += ["flex_attention"] + (["flash_attention_2"] if is_flash_attn_2_available() else [])
    for dtype in arguments.dtypes:
        for attention in backends:
            if attention.startswith("flash") and dtype == "float32":
                continue
            rows = []
            for length in arguments.lengths:
                options = {"attention": attention, "dtype": dtype, **shape}
                peers = [
                    ("banded", build_attention, {**options, "banded": True, "length": length}),
                    ("banded, T/2", build_attention, {**options, "banded": True, "length": length // 2}),
                    ("dense", build_attention, {**options, "banded": False, "length": length}),
                    ("dense, T/2", build_attention, {**options, "banded": False, "length": length // 2}),
                ]
                results = {row["name"]: row for row in compare(peers, arguments)}
                error = next((row["error"] for row in results.values() if "error" in row), None)
                rows.append({"name": f"{length:,}", **({"error": error} if error else {"length": length, **results})})
            columns: dict[str, Callable[[dict[str, Any]], str]] = {
                "T": lambda row: row["name"],
                "banded, ms": lambda row: f"{row['banded']['seconds'] * 1e3:.1f}",
                "dense, ms": lambda row: f"{row['dense']['seconds'] * 1e3:.1f}",
                "dense / banded": lambda row: ratio(row["dense"]["time_ratio"]),
                "banded, time T : T/2": lambda row: ratio(row["banded, T/2"]["time_ratio"], inverse=True),
                "dense, time T : T/2": lambda row: f"{row['dense']['seconds'] / row['dense, T/2']['seconds']:.2f}",
                "banded, memory, MiB": lambda row: f"{row['banded']['added_memory_bytes'] / 2**20:.0f}",
                "banded, memory T : T/2": lambda row: (
                    f"{row['banded']['added_memory_bytes'] / max(row['banded, T/2']['added_memory_bytes'], 1):.2f}"
                ),
            }
            report(f"{attention}, {dtype}, window {arguments.window}", rows, columns)
            save(arguments.json, {"benchmark": "banded_attention", **machine, "attention": attention, "rows": rows})


if __name__ == "__main__":
    main()
