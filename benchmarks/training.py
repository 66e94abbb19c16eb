"""Training step: GPT-3 beside transformers' own GPT-2 (sdpa) and GPT-Neo (its one implementation).

    python benchmarks/training.py                          # 6 layers x 384, float32 and bf16, T = 512, 1024, 2048
    python benchmarks/training.py --preset gpt3-125m --batch-tokens 16384    # on a GPU

A step is forward with labels, backward, and fused AdamW over random tokens. bf16 is autocast over float32 weights, as
with `bf16: true` in the Trainer. On a GPU every peer also runs compiled, and GPT-3 with flex and flash attention.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from harness import add_arguments, compare, describe, pick_device, ratio, report, save


# Dense bf16 rates as their makers publish them, for model-FLOPs utilisation.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def make_model(kind: str, sizes: dict[str, int], attention: str) -> Any:
    """A model of one kind with random weights and no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

    from hfgpt import GPT3Config, GPT3ForCausalLM

    layers, width, heads, positions = sizes["layers"], sizes["hidden"], sizes["heads"], sizes["positions"]
    if kind == "gpt2":
        config = GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            n_positions=positions,
            vocab_size=sizes["vocab"],
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation=attention,
        )
        return GPT2LMHeadModel(config)
    if kind == "gpt_neo":
        config = GPTNeoConfig(
            num_layers=layers,
            attention_types=[[["global", "local"], layers // 2]],
            hidden_size=width,
            num_heads=heads,
            max_position_embeddings=positions,
            vocab_size=sizes["vocab"],
            window_size=256,
            bos_token_id=0,
            eos_token_id=0,
        )
        return GPTNeoForCausalLM(config)
    config = GPT3Config(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        vocab_size=sizes["vocab"],
        attn_implementation=attention,
    )
    return GPT3ForCausalLM(config)


def build_step(
    device: str, kind: str, attention: str, dtype: str, compiled: bool, sizes: dict[str, int], batch: int, length: int
) -> Callable[[], None]:
    """One training step, to be called again and again."""
    import torch

    model = make_model(kind, {**sizes, "positions": length}, attention).to(device).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(sizes["vocab"], (batch, length), device=device)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        context = torch.autocast(device, dtype=torch.bfloat16) if dtype == "bf16" else nullcontext()
        with context:
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def flops_per_token(sizes: dict[str, int], length: int) -> float:
    """Multiplications and additions of a dense decoder's training step: 6 per weight, 12 L T E for attention."""
    layers, width = sizes["layers"], sizes["hidden"]
    weights = 12 * layers * width**2 + sizes["vocab"] * width
    return 6 * weights + 12 * layers * width * length


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how large the models are."""
    parser.add_argument("--preset", help="sizes of one of the paper's models, such as gpt3-125m")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=50257)


def read_sizes(arguments: argparse.Namespace) -> dict[str, int]:
    """The sizes asked for."""
    sizes = {name: getattr(arguments, name) for name in ("layers", "hidden", "heads", "vocab")}
    if arguments.preset:
        from hfgpt import GPT3Config

        config = GPT3Config.from_preset(arguments.preset)
        sizes |= {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "heads": config.num_attention_heads,
        }
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048], metavar="T")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in a step (default: 2048)")
    add_sizes(parser)
    add_arguments(parser, rounds=5)
    arguments = parser.parse_args()
    sizes = read_sizes(arguments)
    device = pick_device(arguments.device)
    machine = describe(device, sizes)
    variants = [("GPT-2, sdpa", "gpt2", "sdpa", False), ("GPT-Neo", "gpt_neo", "eager", False)]
    variants.append(("GPT-3, sdpa", "gpt3", "sdpa", False))
    if device == "cuda":
        from transformers.utils import is_flash_attn_2_available

        variants += [(f"{name}, compiled", kind, attention, True) for name, kind, attention, _ in variants]
        variants.append(("GPT-3, flex, compiled", "gpt3", "flex_attention", True))
        if is_flash_attn_2_available():
            variants.append(("GPT-3, flash", "gpt3", "flash_attention_2", False))
    peak_flops = next((rate for name, rate in PEAK_FLOPS.items() if name in machine["device"]), None)
    for dtype in arguments.dtypes:
        for length in arguments.lengths:
            batch = max(arguments.batch_tokens // length, 1)
            peers = []
            for name, kind, attention, compiled in variants:
                if attention.startswith("flash") and dtype == "float32":
                    continue
                options = {"kind": kind, "attention": attention, "compiled": compiled, "dtype": dtype}
                peers.append((name, build_step, {**options, "sizes": sizes, "batch": batch, "length": length}))
            rows = compare(peers, arguments, warmup=3 if device == "cuda" else 1)
            for row in rows:
                if "seconds" in row:
                    row["tokens_per_second"] = batch * length / row["seconds"]
                    row["memory_ratio"] = row["peak_memory_bytes"] / rows[0].get("peak_memory_bytes", 1)
                    if peak_flops is not None and dtype == "bf16":
                        row["utilisation"] = row["tokens_per_second"] * flops_per_token(sizes, length) / peak_flops
            columns: dict[str, Callable[[dict[str, Any]], str]] = {
                "training step": lambda row: row["name"],
                "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
                "speed / GPT-2's": lambda row: ratio(row["time_ratio"], inverse=True),
                "peak memory, GiB": lambda row: f"{row['peak_memory_bytes'] / 2**30:.2f}",
                "memory / GPT-2's": lambda row: f"{row['memory_ratio']:.2f}",
            }
            if peak_flops is not None and dtype == "bf16":
                columns["model-FLOPs utilisation, as if dense"] = lambda row: f"{row['utilisation']:.1%}"
            report(f"{dtype}, batch {batch} x {length:,}", rows, columns)
            save(arguments.json, {"benchmark": "training", **machine, "dtype": dtype, "length": length, "rows": rows})


if __name__ == "__main__":
    main()
