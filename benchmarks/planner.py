"""Measured peak memory of training steps beside what `hfgpt plan` counts.

    python benchmarks/planner.py                # float32 and bf16 on a CPU, a few minutes
    python benchmarks/planner.py --device cuda  # larger batches on a GPU, by the allocator's own figures
    python benchmarks/planner.py --zero         # DeepSpeed with the shipped configs, 2 processes on a CPU, a few minutes

Each layout runs in a fresh process: a small model first, so that libraries have loaded what they load, then one step
that makes the optimizer's state, then the one that counts. On a CPU the figure is resident memory above what was there
before the model, with an allocator that returns what is freed. With `--zero` it is that of the process which holds more.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness import describe, pick_device, report, resident_bytes, save


ROOT = Path(__file__).resolve().parent.parent

SMALL = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 6, "max_position_embeddings": 1024}
WIDE = {
    "num_hidden_layers": 4,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
    "vocab_size": 8000,
}

# Model, and what a plan may vary: rows, their length, activation checkpointing, bf16 autocast, micro-batches in a step.
CASES: list[dict[str, Any]] = [
    {"model": SMALL, "batch": 1, "length": 512},
    {"model": SMALL, "batch": 4, "length": 512},
    {"model": SMALL, "batch": 2, "length": 1024, "passes": 2},
    {"model": SMALL, "batch": 4, "length": 1024, "checkpointing": True},
    {"model": WIDE, "batch": 4, "length": 512},
    {"model": WIDE, "batch": 1, "length": 1024},
    {"model": WIDE, "batch": 4, "length": 512, "checkpointing": True, "passes": 2},
    {"model": {**WIDE, "tie_word_embeddings": False}, "batch": 2, "length": 512, "passes": 2},
    {"model": WIDE, "batch": 2, "length": 512, "attention": "eager"},
    {"model": SMALL, "batch": 2, "length": 512, "bf16": True},
    {"model": WIDE, "batch": 4, "length": 512, "bf16": True},
]

# By DeepSpeed on two processes: stage, and the same.
ZERO_CASES: list[dict[str, Any]] = [
    {"model": WIDE, "zero": stage, "batch": 1, "length": 512, "bf16": True, "passes": passes}
    for stage in (1, 2, 3)
    for passes in (1, 2)
] + [
    {"model": WIDE, "zero": 2, "batch": 4, "length": 512, "bf16": True, "passes": 2},
    {"model": WIDE, "zero": 3, "batch": 4, "length": 512, "bf16": True, "passes": 2},
    {"model": WIDE, "zero": 3, "batch": 4, "length": 512, "bf16": True, "passes": 2, "checkpointing": True},
]

# Elements of a bucket of gradients at stages 1 and 2 here: pages of the shipped 200 million that nothing is written to
# would not count on a CPU.
BUCKET = 2_000_000

# Tensors of 64 KiB and more are mapped, and go back to the system when freed.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(case: dict[str, Any], device: str, threads: int = 1) -> dict[str, int]:
    """Peak memory of a training step in a process of its own: `measured_bytes` and `planned_bytes`."""
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", json.dumps(case), "--device", device]
    if "zero" in case:
        environment |= {"DS_ACCELERATOR": "cpu"}
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{case}: {result.stderr[-2000:]}")
    figures = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"measured_bytes"')]
    return max(figures, key=lambda one: one["measured_bytes"])


def _measure(case: dict[str, Any], device: str) -> dict[str, int]:
    import torch

    from hfgpt import GPT3Config, planner

    attention = case.get("attention", "sdpa")
    bf16 = case.get("bf16", False)

    def train(sizes: dict[str, Any], batch: int, length: int, steps: int) -> None:
        nonlocal base
        config = GPT3Config(
            **sizes, bos_token_id=None, eos_token_id=None, attn_implementation=attention, use_cache=False
        )
        if device == "cpu":
            base = resident_bytes("VmRSS")
        run_micro_batch, finish_step = (_zero_training if "zero" in case else _plain_training)(config, case, device)
        ids = torch.randint(config.vocab_size, (batch, length), device=device)
        for step in range(steps):
            if step == steps - 1:
                _reset_peak(device)
            for _ in range(case.get("passes", 1)):
                run_micro_batch(ids)
            finish_step()

    base = 0
    if "zero" in case:
        import deepspeed
        import deepspeed.ops

        # Without it DeepSpeed compiles its own communication for CPUs, for a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo")
        planner.REDUCE_BUCKET = BUCKET
    tiny = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 64}
    train({**tiny, "max_position_embeddings": 64, "sliding_window": 16}, 2, 64, 1)
    train(case["model"], case["batch"], case["length"], 2)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident_bytes("VmHWM") - base
    layout = planner.Layout(
        data_parallel=2 if "zero" in case else 1,
        zero_stage=case.get("zero", 0),
        activation_checkpointing=case.get("checkpointing", False),
        micro_batch=case["batch"],
        sequence_length=case["length"],
        bf16=bf16,
        accumulates=case.get("passes", 1) > 1,
        attn_implementation=attention,
        device_type=device,
    )
    parts = planner.memory_by_part(GPT3Config(**case["model"], bos_token_id=None, eos_token_id=None), layout)
    return {"measured_bytes": peak, "planned_bytes": sum(parts.values())}


def _plain_training(
    config: Any, case: dict[str, Any], device: str
) -> tuple[Callable[[Any], None], Callable[[], None]]:
    """What runs one micro-batch, and what ends a step: plain PyTorch, with autocast if the case says bf16."""
    import torch

    from hfgpt import GPT3ForCausalLM

    model = GPT3ForCausalLM(config).to(device).train()
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run_micro_batch(ids: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16) if case.get("bf16") else nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    def finish_step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return run_micro_batch, finish_step


def _zero_training(config: Any, case: dict[str, Any], device: str) -> tuple[Callable[[Any], None], Callable[[], None]]:
    """The same by DeepSpeed, with the shipped config of the stage."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    options = json.loads((ROOT / f"ds_configs/zero{case['zero']}.json").read_text())
    del options["train_batch_size"], options["fp16"]
    options |= {
        "train_micro_batch_size_per_gpu": case["batch"],
        "gradient_accumulation_steps": case.get("passes", 1),
        "gradient_clipping": 1.0,
        "bf16": {"enabled": case.get("bf16", False)},
    }
    width = config.hidden_size
    zero: dict[str, Any] = {"reduce_bucket_size": BUCKET}
    if case["zero"] == 3:  # what accelerate makes of "auto"
        zero = {
            "reduce_bucket_size": width**2,
            "stage3_prefetch_bucket_size": int(0.9 * width**2),
            "stage3_param_persistence_threshold": 10 * width,
        }
    options["zero_optimization"] |= zero
    keep = HfDeepSpeedConfig(options) if case["zero"] == 3 else None  # while it lives, models are partitioned as built
    dtype = torch.bfloat16 if case.get("bf16") else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=config._attn_implementation)
    del keep
    model.train()
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=options)

    def run_micro_batch(ids: torch.Tensor) -> None:
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()

    return run_micro_batch, lambda: None


def _reset_peak(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again at VmRSS


def describe_case(case: dict[str, Any]) -> str:
    """A row's name."""
    model = case["model"]
    words = [f"{model['num_hidden_layers']} x {model['hidden_size']}", f"{case['batch']} x {case['length']:,}"]
    words.append(("bf16" if "zero" in case else "bf16 autocast") if case.get("bf16") else "float32")
    words += [f"ZeRO-{case['zero']}"] if "zero" in case else []
    words += [case["attention"]] if "attention" in case else []
    words += ["untied"] if not model.get("tie_word_embeddings", True) else []
    words += ["checkpointing"] if case.get("checkpointing") else []
    words += [f"{case['passes']} accumulated"] if case.get("passes", 1) > 1 else []
    return ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", metavar="I", help="only these rows, counted from 0")
    parser.add_argument("--zero", action="store_true", help="DeepSpeed's stages on two processes of a CPU")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the results to FILE, one JSON object a line")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        figures = _measure(json.loads(arguments.measure), arguments.device)
        print("\n" + json.dumps(figures), flush=True)
        os._exit(0)  # gloo's threads can abort an interpreter that ends by itself
    device = "cpu" if arguments.zero else pick_device(arguments.device)
    machine = describe(device, {})
    cases = ZERO_CASES if arguments.zero else CASES
    cases = cases if arguments.cases is None else [cases[index] for index in arguments.cases]
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows.append({"name": describe_case(case), **measure(case, device)})
        print(f"{len(rows)} of {len(cases)}: {rows[-1]}", file=sys.stderr)
    columns = {
        "layers x width, rows x length": lambda row: row["name"],
        "measured, MB": lambda row: f"{row['measured_bytes'] / 1e6:,.0f}",
        "planned, MB": lambda row: f"{row['planned_bytes'] / 1e6:,.0f}",
        "planned / measured": lambda row: f"{row['planned_bytes'] / row['measured_bytes']:.2f}",
    }
    report("Peak memory of a training step", rows, columns)
    save(arguments.json, {"benchmark": "planner", **machine, "rows": rows})


if __name__ == "__main__":
    main()
