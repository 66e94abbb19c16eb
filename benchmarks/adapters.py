"""Fine-tuning all weights beside LoRA, DoRA and QLoRA: peak memory, speed, and what is saved.

    python benchmarks/adapters.py                          # 6 layers x 384, batch 4 x 256
    python benchmarks/adapters.py --preset gpt3-125m

A step is forward with labels, backward, and fused AdamW over random tokens, in float32 on a CPU and under bf16 autocast on
a GPU. QLoRA takes part on a GPU where bitsandbytes is installed.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness import add_arguments, compare, describe, pick_device, ratio, report, save
from training import add_sizes, make_model, read_sizes


def build_step(
    device: str, variant: dict[str, Any] | None, sizes: dict[str, int], batch: int, length: int
) -> Callable[[], dict[str, Any]]:
    """One training step of all weights, or of an adapter with the fields in `variant`."""
    import torch

    model = make_model("gpt3", {**sizes, "positions": length}, "sdpa")
    model.config.use_cache = False
    total = sum(parameter.numel() for parameter in model.parameters())
    if variant is not None:
        from hfgpt.training.adapters import add_adapter
        from hfgpt.training.arguments import FinetuneConfig

        config = FinetuneConfig("none", train_path="none", test_path="none", use_peft=True, **variant)
        if config.load_in_4bit:
            model = in_4_bits(model)
        model = add_adapter(model, config)
    model = model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=True)
    ids = torch.randint(sizes["vocab"], (batch, length), device=device)
    figures = {
        "trained_share": sum(parameter.numel() for parameter in trained) / total,
        "saved_bytes": saved_bytes(model),
        "model_bytes": 4 * total,
    }

    def step() -> dict[str, Any]:
        with torch.autocast(device, dtype=torch.bfloat16) if device == "cuda" else nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return figures

    return step


def in_4_bits(model: Any) -> Any:
    """The same weights, quantized as `load_in_4bit` does."""
    import torch
    from transformers import AutoModelForCausalLM

    from hfgpt.training.adapters import quantization_config

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = quantization_config(torch.bfloat16)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype="float32")


def saved_bytes(model: Any) -> int:
    """What `save_pretrained` writes of a model or an adapter; of the weights only, so that nothing large is written."""
    if not hasattr(model, "peft_config"):
        return 4 * sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step (default: 4)")
    parser.add_argument("--length", type=int, default=256, metavar="T", help="tokens of each (default: 256)")
    parser.add_argument("--rank", type=int, default=8, help="lora_r (default: 8)")
    add_sizes(parser)
    add_arguments(parser, rounds=3)
    arguments = parser.parse_args()
    sizes = read_sizes(arguments)
    device = pick_device(arguments.device)
    machine = describe(device, sizes)
    fields = {"lora_r": arguments.rank, "lora_alpha": 2 * arguments.rank}
    variants: list[tuple[str, dict[str, Any] | None]] = [
        ("all weights", None),
        ("LoRA", fields),
        ("DoRA", {**fields, "use_dora": True}),
    ]
    if device == "cuda" and importlib.util.find_spec("bitsandbytes"):
        variants.append(("QLoRA", {**fields, "load_in_4bit": True}))
    shape = {"sizes": sizes, "batch": arguments.batch, "length": arguments.length}
    peers = [(name, build_step, {"variant": variant, **shape}) for name, variant in variants]
    rows = compare(peers, arguments, warmup=1)
    for row in rows:
        if "seconds" in row:
            row["memory_ratio"] = row["peak_memory_bytes"] / rows[0].get("peak_memory_bytes", 1)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "fine-tuning": lambda row: row["name"],
        "trained": lambda row: f"{row['trained_share']:.2%}",
        "peak memory, GiB": lambda row: f"{row['peak_memory_bytes'] / 2**30:.2f}",
        "memory / all weights'": lambda row: f"{row['memory_ratio']:.2f}",
        "step time / all weights'": lambda row: ratio(row["time_ratio"]),
        "saved, MiB": lambda row: f"{row['saved_bytes'] / 2**20:.1f}",
        "saved / model": lambda row: f"{row['saved_bytes'] / row['model_bytes']:.1%}",
    }
    report(f"batch {arguments.batch} x {arguments.length}, rank {arguments.rank}", rows, columns)
    save(arguments.json, {"benchmark": "adapters", **machine, **shape, "rank": arguments.rank, "rows": rows})


if __name__ == "__main__":
    main()
