"""Which checkpoints can be resumed from."""

import json
import re
import struct
import zipfile
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)

TRAINER_STATE_FILE = "trainer_state.json"


def latest_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint in `output_dir` that is whole; one that is not is passed over with a warning."""
    folders = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and folder.is_dir():
            folders[int(match.group(1))] = folder
    for step in sorted(folders, reverse=True):
        reason = why_incomplete(folders[step])
        if reason is None:
            return folders[step]
        logger.warning(f"{folders[step]} is not complete ({reason}): passed over.")
    return None


def why_incomplete(checkpoint: Path) -> str | None:
    """What is missing or cut short in a Trainer checkpoint; None where it is whole.

    The Trainer writes its state last, so a missing or unreadable state means that a save was cut off.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{TRAINER_STATE_FILE}: {error}"
    weights = sorted(checkpoint.glob("*.safetensors"))
    sharded_optimizer = any(checkpoint.glob("global_step*")) or any(checkpoint.glob("optimizer_*"))
    if not weights and not sharded_optimizer:
        return "no weights"
    for index in checkpoint.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError) as error:
            return f"{index.name}: {error}"
        missing = named - {file.name for file in weights}
        if missing:
            return f"missing {', '.join(sorted(missing))}"
    for file in weights:
        if not _is_whole_safetensors(file):
            return f"{file.name} is cut short"
    if not sharded_optimizer:
        for name in ("optimizer.pt", "scheduler.pt"):
            if not zipfile.is_zipfile(checkpoint / name):
                return f"{name} is missing or cut short"
    return None


def _is_whole_safetensors(file: Path) -> bool:
    """Whether the file is as long as its header says (format: 8 bytes of header length, JSON header, tensors)."""
    size = file.stat().st_size
    with open(file, "rb") as raw:
        start = raw.read(8)
        if len(start) < 8:
            return False
        (length,) = struct.unpack("<Q", start)
        if 8 + length > size:
            return False
        try:
            header = json.loads(raw.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)
