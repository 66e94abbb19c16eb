"""What a run was, for those who read of it later: `run.json`, from which the model card is written.

Data, schedule, hardware and time of every session of the run; no environment, no tokens, and of local files the names
alone.
"""

import json
import os
import platform
import time
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..data.documents import write_json
from ..hub.card import RUN_FILE
from .arguments import FinetuneConfig, PretrainConfig, PretrainingArguments


logger = logging.get_logger(__name__)

PACKAGES = ("hfgpt", "torch", "transformers", "accelerate", "deepspeed", "peft", "tokenizers")
# How a run was trained; of TrainingArguments and of its fine-tuning.
COMMON_FIELDS = (
    "learning_rate", "optim", "muon", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "bf16",
    "fp16", "seed",
)  # fmt: skip
PRETRAINING_FIELDS = (
    "train_tokens", "warmup_tokens", "decay_tokens", "min_learning_rate_ratio", "batch_ramp_start_tokens",
    "batch_ramp_tokens",
)  # fmt: skip
FINETUNING_FIELDS = ("num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "label_smoothing_factor")
LORA_FIELDS = ("lora_r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "load_in_4bit")


class RunRecordCallback(TrainerCallback):
    """Keeps `run.json` in the output folder, at every save and at the end; each start of the run is a session of its own.

    Args:
        record: What the run is: `pretraining_record` or `finetuning_record`.
    """

    def __init__(self, record: dict[str, Any]):
        self.record = record
        self.sessions: list[dict[str, Any]] = []
        self.began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin a session, after those of before where the run goes on."""
        if state.is_world_process_zero:
            before = read_record(args.output_dir) if state.global_step else {}
            self.sessions = [*before.get("sessions", []), {**_hardware(args), "from_step": state.global_step}]
            self.began = time.monotonic()
            self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState, control: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not self.sessions:
            return
        self.sessions[-1].update(to_step=state.global_step, seconds=round(time.monotonic() - self.began, 1))
        try:
            write_json(
                Path(args.output_dir) / RUN_FILE, {**self.record, "versions": _versions(), "sessions": self.sessions}
            )
        except OSError as error:
            logger.warning_once(f"{RUN_FILE} could not be written: {error}")

    on_save = _write
    on_train_end = _write


def pretraining_record(
    config: PretrainConfig, args: PretrainingArguments, metadata: dict[str, Any], batch_tokens: int
) -> dict[str, Any]:
    """What a pretraining run is.

    Args:
        config: The recipe.
        args: Its arguments, with a learning rate and `train_tokens`.
        metadata: The corpus' `metadata.json`.
        batch_tokens: Tokens of a full batch.
    """
    recipe = metadata.get("recipe") or {}
    sources = [
        {
            "name": source["name"],
            "from": source.get("dataset") or _file_name(source.get("path") or ""),
            "hub_dataset": source.get("dataset"),
            **{
                name: metadata["sources"].get(source["name"], {}).get(name)
                for name in ("documents", "tokens", "bytes")
            },
        }
        for source in recipe.get("sources", [])
    ]
    return {
        "kind": "pretraining",
        "preset": config.preset,
        "data": {
            "sources": sources,
            "deduplicate": (recipe.get("deduplicate") or {}).get("method"),
            "decontaminated": bool(recipe.get("decontaminate")),
        },
        "batch_tokens": batch_tokens,
        **_values(args, (*COMMON_FIELDS, *PRETRAINING_FIELDS)),
    }


def finetuning_record(config: FinetuneConfig, args: TrainingArguments, task: str, batch_rows: int) -> dict[str, Any]:
    """What a fine-tuning run is.

    Args:
        config: The recipe.
        args: Its arguments, with a learning rate.
        task: Name of the task.
        batch_rows: Rows of an optimizer step, over all processes.
    """
    return {
        "kind": "fine-tuning",
        "task": task,
        "language": config.language,
        "base_model": _file_name(config.model_name_or_path)
        if Path(config.model_name_or_path).is_dir()
        else config.model_name_or_path,
        "data": {"from": config.dataset or _file_name(config.train_path or ""), "hub_dataset": config.dataset},
        "head": config.head,
        "lora": _values(config, LORA_FIELDS) if config.use_peft else None,
        "batch_rows": batch_rows,
        **_values(args, (*COMMON_FIELDS, *FINETUNING_FIELDS)),
    }


def read_record(folder: str | Path) -> dict[str, Any]:
    """A run's `run.json`; empty where there is none that can be read."""
    try:
        values = json.loads((Path(folder) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _values(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
    known = {field.name for field in fields(source)}
    values = {name: getattr(source, name) for name in names if name in known}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def _file_name(address: str) -> str:
    """Of a path, a glob or an address inside an archive: where it lies on this machine is nobody's business."""
    inside, _, archive = address.partition("::")
    names = [Path(part.removeprefix("zip://").rstrip("/")).name for part in (archive, inside) if part]
    return ": ".join(names)


def _hardware(args: TrainingArguments) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and not args.use_cpu else _processor()
    return {
        "device": device,
        "devices": args.world_size,
        "cpu_cores": os.cpu_count() or 1,
        "on_cpu": args.device.type == "cpu",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
