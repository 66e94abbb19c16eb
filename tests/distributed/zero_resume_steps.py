"""Run by test_zero_checkpoints.py in one or two processes: tiny models trained by DeepSpeed for a few steps each.

Usage: `DS_ACCELERATOR=cpu python -m torch.distributed.run --nproc_per_node N zero_resume_steps.py FOLDER PHASE`.
Phases are "first", "second" and "third", the last two of which resume from what the one before left, and the first of
which also runs undisturbed to the end. Writes FOLDER/PHASE.json, {case: {quantity: number or list}}.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model"))
from tiny_models import make_ids, make_model

from hfgpt.training.zero import MOMENTS, ZeroCheckpoint, load_resized, load_unpartitioned


deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes a minute

STEPS, ROWS = 2, 4  # a phase; over all processes
ODD = {"vocab_size": 93, "hidden_size": 36, "max_position_embeddings": 63}
# Stage (0: without DeepSpeed, one process), and whether the optimizer is offloaded, in each phase; bfloat16.
CASES: dict[str, dict[str, Any]] = {
    "stage 2": {"stages": (2, 2, 2)},
    "stage 3, odd sizes in small groups": {"stages": (3, 3, 3), "sub_group_size": 3000, **ODD},
    "stage 3, bfloat16": {"stages": (3, 3, 3), "bf16": True},
    "stages 3, 1, 2": {"stages": (3, 1, 2)},
    "stages 2, 3, 3 offloaded": {"stages": (2, 3, 3), "offload": True},
    "stages 1, none, 2": {"stages": (1, 0, 2)},
}


def groups_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Two groups with their own weight decay and learning rate, as a resume must keep them."""
    sizes = {name: len(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}
    return [
        {"params": [p for name, p in model.named_parameters() if sizes[name] > 1], "weight_decay": 0.1},
        {"params": [p for name, p in model.named_parameters() if sizes[name] < 2], "weight_decay": 0.0, "lr": 2e-3},
    ]


class Plain:
    """What is used here of an engine, without DeepSpeed."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer):
        self.module, self.base = model, optimizer

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.base.step()
        self.base.zero_grad()

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder)
        torch.save(self.base.state_dict(), folder / "optimizer.pt")


class Sharded:
    """The same of a DeepSpeed engine."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer):
        self.engine, self.module, self.base = engine, engine.module, optimizer

    def step(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss)
        self.engine.step()

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(folder)


def build(folder: Path, case: dict[str, Any], stage: int) -> Plain | Sharded:
    """The case's model, from the same weights at every call, and its optimizer."""
    offload, bf16 = case.get("offload", False), case.get("bf16", False)
    if stage == 0:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
        return Plain(model, torch.optim.AdamW(groups_of(model), lr=1e-3, betas=(0.9, 0.95)))
    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 100}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if "sub_group_size" in case:
        zero["sub_group_size"] = case["sub_group_size"]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
    }
    hf_config = HfDeepSpeedConfig(config) if stage == 3 else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if bf16 else torch.float32)
    optimizer = torch.optim.AdamW(groups_of(model), lr=1e-3, betas=(0.9, 0.95))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    del hf_config
    engine.train()
    return Sharded(engine, optimizer)


def train(run: Plain | Sharded, first: int, last: int) -> list[float]:
    """Losses of steps, over all processes."""
    found = []
    for step in range(first, last):
        # The learning rate changes from step to step, as a schedule would have it.
        for group in run.base.param_groups:
            group["lr"] *= 0.9
        # A process without DeepSpeed stands alone, whatever the number of the others.
        rank, world = (0, 1) if isinstance(run, Plain) else (dist.get_rank(), dist.get_world_size())
        ids = make_ids(ROWS, 20, 93, seed=100 + step)[rank::world]
        model = run.module if isinstance(run, Plain) else run.engine
        loss = model(ids, labels=ids, use_cache=False).loss
        run.step(loss)
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        found.append(total.item() / world)
    return found


def restored(run: Plain | Sharded, folder: Path) -> dict[str, float]:
    """How far the run is, just after it was resumed, from what the checkpoint says."""
    saved = ZeroCheckpoint(folder) if any(folder.glob("global_step*")) else None
    result: dict[str, float] = {}
    if saved is not None:
        worst = 0.0
        for name, parameter in run.module.named_parameters():
            whole = parameter if isinstance(run, Plain) else safe_get_full_fp32_param(parameter)
            worst = max(worst, (whole.detach().float() - saved.read(name)).abs().max().item())
        result["weights"] = worst
        result["hyperparameters"] = float(
            any(
                group[key] != value
                for number, group in enumerate(run.base.param_groups)
                for key, value in saved.hyperparameters(number).items()
            )
        )
    # Of a process's own: the sums over all processes are those of the moments.
    sums = torch.zeros(2, dtype=torch.float64)
    for state in run.base.state.values():
        sums += torch.tensor([state[moment].double().abs().sum().item() for moment in MOMENTS])
    if isinstance(run, Sharded):
        dist.all_reduce(sums)
    if saved is not None:
        wanted = torch.tensor(
            [sum(saved.read(name, moment).double().abs().sum().item() for name in saved.shapes) for moment in MOMENTS]
        )
        result["moments"] = (sums / wanted - 1).abs().max().item()
    steps = {float(state["step"]) for state in run.base.state.values()}
    result["steps"] = max(steps) if len(steps) == 1 else -1.0
    return result


def main() -> None:
    folder, phase = Path(sys.argv[1]), sys.argv[2]
    number = ["first", "second", "third"].index(phase)
    results: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        place = folder / name.replace(" ", "_")
        if number == 0 and dist.get_rank() == 0:
            make_model(**{key: case[key] for key in ODD if key in case}).save_pretrained(place / "start")
        dist.barrier()
        run = build(place / "start", case, case["stages"][number])
        found: dict[str, Any] = {}
        if number:
            before = place / ["first", "second"][number - 1]
            if isinstance(run, Plain):
                load_unpartitioned(run.module, run.base, before)
            else:
                load_resized(run.engine, before)
            found = restored(run, before)
        found["losses"] = train(run, number * STEPS, (number + 1) * STEPS)
        if number < 2:
            run.save(place / phase)
        if number == 0:
            found["undisturbed"] = found["losses"] + train(run, STEPS, 3 * STEPS)
        results[name] = found
        if isinstance(run, Sharded):
            run.engine.destroy()
        dist.barrier()
    if dist.get_rank() == 0:
        (folder / f"{phase}.json").write_text(json.dumps(results, indent=1))
    sys.stdout.flush()
    sys.stderr.flush()
    dist.barrier()
    os._exit(0)  # gloo's threads can abort the interpreter at exit


if __name__ == "__main__":
    # Where one process fails, the other is not to wait for it for long.
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    deepspeed.init_distributed("gloo", verbose=False)
    main()
