"""What a run was, for those who read of it later: `run.json`, from which the model card is written.

Data, schedule, hardware and time of every session of the run; no environment, no tokens, and of files the names alone. Each
checkpoint has it, too, so that a run that goes on elsewhere keeps the sessions of before.
"""

import json
import os
import platform
import time
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
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
# Of files that lie here, or in others: a ? or a # is part of their names, and elsewhere ends the path of an address.
LOCAL_PROTOCOLS = ("zip", "tar", "file", "local", "libarchive")


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
            before = _sessions_before(Path(args.output_dir), state.global_step) if state.global_step else []
            self.sessions = [*before, {**_hardware(args), "from_step": state.global_step}]
            self.began = time.monotonic()
            self._write(args, state)

    def save(self, state: TrainerState, folder: str | Path) -> None:
        """Write the run as it is now into a folder, by the first process alone.

        Raises:
            OSError: The folder cannot be written.
        """
        if state.is_world_process_zero and self.sessions:
            self.sessions[-1].update(to_step=state.global_step, seconds=round(time.monotonic() - self.began, 1))
            write_json(Path(folder) / RUN_FILE, {**self.record, "versions": _versions(), "sessions": self.sessions})

    def _write(self, args: TrainingArguments, state: TrainerState, control: Any = None, **kwargs: Any) -> None:
        try:
            self.save(state, args.output_dir)
        except OSError as error:
            logger.warning_once(f"{RUN_FILE} could not be written: {error}")

    on_save = _write
    on_train_end = _write


def save_record(trainer: Trainer, folder: Path) -> None:
    """Add the run's record, up to now, to a checkpoint that is being saved.

    Raises:
        OSError: The folder cannot be written.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, RunRecordCallback):
            callback.save(trainer.state, folder)


def _sessions_before(output_dir: Path, step: int) -> list[dict[str, Any]]:
    """Those of the output folder and of the checkpoint that the run goes on from, each once, as long as it is known to be.

    The two differ where the run went on elsewhere meanwhile, or has come from there.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for folder in (output_dir / f"checkpoint-{step}", output_dir):
        sessions = read_record(folder).get("sessions")
        for session in sessions if isinstance(sessions, list) else []:
            key = tuple(session.get(name) for name in ("started", "from_step", "device"))
            if key not in found or (session.get("seconds") or 0) >= (found[key].get("seconds") or 0):
                found[key] = session
    return sorted(found.values(), key=lambda session: str(session.get("started")))


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
            "name": _name(source),
            **_origin(source.get("dataset"), source.get("path")),
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
        "task": _public(task),
        "language": config.language,
        "base_model": _public(config.model_name_or_path),
        "data": _origin(config.dataset, config.train_path),
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


def _origin(dataset: str | None, path: str | list[str] | None) -> dict[str, Any]:
    """Where rows come from: the name of a Hub dataset, or those of files."""
    if dataset:
        return {"from": _public(dataset), "hub_dataset": None if _is_local(dataset) else dataset}
    names = [_file_name(part) for part in ([path] if isinstance(path, str) else path or [])]
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return {"from": ", ".join(names[:3]) + more, "hub_dataset": None}


def _name(source: dict[str, Any]) -> str:
    """A source's name, which without one of its own is the end of its address."""
    path, name = source.get("path") or "", str(source["name"])
    first = (path if isinstance(path, str) else path[0]).partition("::")[0]
    return _file_name(first) if "://" in first and name == PurePosixPath(first).name else name


def _is_local(name: str) -> bool:
    """Whether it is an address, a folder or a file, and no name of the Hub."""
    path = Path(name)
    return "://" in name or path.is_absolute() or name.startswith((".", "~")) or path.exists()


def _public(name: str) -> str:
    """A name of the Hub as it is, of anything else the end."""
    return _file_name(name) if _is_local(name) else name


def _file_name(address: str) -> str:
    """Of a path, a glob or an address inside an archive: where it lies, and how it is reached, is nobody's business."""
    return ": ".join(_last_part(part) for part in reversed(address.split("::")) if part)


def _last_part(address: str) -> str:
    scheme, colon, path = address.partition("://")
    if not colon:
        return Path(address).name
    if scheme in LOCAL_PROTOCOLS:
        return Path(path).name
    # Without user, password, query and fragment, any of which may be a secret.
    try:
        parts = urlsplit(address)
        return Path(parts.path).name or parts.hostname or scheme
    except ValueError:
        return scheme


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
