"""Checkpoints on disk: what makes one whole, which to resume from, which to delete.

A checkpoint is written below a folder named `incomplete-...`, checked there, and renamed to `checkpoint-STEP` when it is
whole: so a folder of that name is whole, or was damaged later. Its `manifest.json` has the size and the hash of every
file, against which it is checked again before a run resumes from it.
"""

import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import safe_open
from transformers.utils import logging


logger = logging.get_logger(__name__)

TRAINER_STATE_FILE = "trainer_state.json"
MANIFEST_FILE = "manifest.json"
INCOMPLETE_PREFIX = "incomplete-"
CHUNK_BYTES = 16 * 2**20
HASHING_THREADS = 4

# What a tensor is known by: dtype, shape, hash of its bytes.
Fingerprint = tuple[str, tuple[int, ...], str]


def checkpoint_step(folder: Path) -> int | None:
    """The step of a folder named as checkpoints are; None for any other."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; whole or not."""
    found = {checkpoint_step(folder): folder for folder in Path(output_dir).glob("checkpoint-*") if folder.is_dir()}
    return [found[step] for step in sorted((step for step in found if step is not None), reverse=True)]


def latest_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint in `output_dir` that is whole; one that is not is passed over with a warning.

    In a run of several processes all must ask: the first lists the folders, and each checks its share of the files.
    """
    [folders] = broadcast_object_list([list_checkpoints(output_dir)])
    for folder in folders:
        reason = why_incomplete(folder)
        if reason is None:
            return folder
        if _rank_and_world()[0] == 0:
            logger.warning(f"{folder} is not complete ({reason}): passed over.")
    return None


def why_incomplete(checkpoint: str | Path) -> str | None:
    """What is missing, cut short or changed in a Trainer checkpoint; None where it is whole.

    All processes of a run must ask. Without a manifest (a checkpoint that transformers' Trainer wrote by itself) files
    are only checked for being there and being as long as they say.
    """
    checkpoint = Path(checkpoint)
    [problem] = broadcast_object_list([_structure_problem(checkpoint)])
    if problem is not None or not (checkpoint / MANIFEST_FILE).exists():
        return problem
    files = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    rank, world = _rank_and_world()
    mine = sorted(files)[rank::world]
    problems = [
        f"{name} is not what was written"
        for name, digest in hash_files(checkpoint, mine).items()
        if digest != files[name]["xxh3_128"]
    ]
    return next(iter(gather_object(problems)), None)


def _structure_problem(checkpoint: Path) -> str | None:
    # The Trainer writes its state last, so a missing or unreadable state means that a save was cut off.
    try:
        json.loads((checkpoint / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
        if (checkpoint / MANIFEST_FILE).exists():
            return _size_problem(checkpoint)
    except (OSError, ValueError, KeyError) as error:
        return f"{TRAINER_STATE_FILE} or {MANIFEST_FILE}: {error}"
    return _plain_problem(checkpoint)


def _size_problem(checkpoint: Path) -> str | None:
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
    for name, file in manifest["files"].items():
        try:
            size = (checkpoint / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != file["bytes"]:
            return f"{name} has {size} bytes, not {file['bytes']}"
    return None


def _plain_problem(checkpoint: Path) -> str | None:
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


def hash_files(folder: Path, names: Iterable[str], sync: bool = False) -> dict[str, str]:
    """The hash of each file below `folder`; `sync` also waits until the disk has it."""

    def digest(name: str) -> str:
        state = xxhash.xxh3_128()
        with open(folder / name, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                state.update(chunk)
            if sync:
                os.fsync(file.fileno())
        return state.hexdigest()

    names = list(names)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names)))


def files_below(folder: Path) -> list[str]:
    """The files in a folder and its folders, as relative names, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_manifest(folder: Path, hashes: Mapping[str, str]) -> None:
    """Write down the size and the hash of every file of a checkpoint, and wait until the disk has it."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "xxh3_128": digest} for name, digest in sorted(hashes.items())
    }
    with open(folder / MANIFEST_FILE, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def publish(source: Path, target: Path) -> None:
    """Give a whole folder its name, in place of any folder of that name."""
    if target.exists():
        remove(target)
    os.rename(source, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Delete a folder; it loses its name first, so that half of it is never taken for a checkpoint."""
    doomed = folder.with_name(f"{INCOMPLETE_PREFIX}deleted-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def rotate(output_dir: str | Path, keep_last: int | None, keep_every_steps: int | None) -> list[Path]:
    """Delete checkpoints but the newest `keep_last` (None: all stay) and those at multiples of `keep_every_steps`.

    Returns:
        The folders deleted.
    """
    if keep_last is None:
        return []
    deleted = []
    for folder in list_checkpoints(output_dir)[max(keep_last, 1) :]:
        step = checkpoint_step(folder)
        assert step is not None
        if not (keep_every_steps and step % keep_every_steps == 0):
            remove(folder)
            deleted.append(folder)
    return deleted


def fingerprints(tensors: Mapping[str, torch.Tensor]) -> dict[str, Fingerprint]:
    """What each tensor is known by."""

    def fingerprint(tensor: torch.Tensor) -> Fingerprint:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str(tensor.dtype), tuple(tensor.shape), xxhash.xxh3_128_hexdigest(flat.numpy())

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return dict(zip(tensors, pool.map(fingerprint, tensors.values())))


def weights_problem(folder: Path, expected: Mapping[str, Fingerprint], tied: Iterable[str] = ()) -> str | None:
    """What is wrong with the safetensors files in `folder`: every tensor there, with its dtype, shape and bytes.

    Args:
        folder: Where they are.
        expected: The tensors that were to be saved.
        tied: Names that are another tensor by definition, and so may be left out.
    """
    found: dict[str, Fingerprint] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found.update(fingerprints({name: opened.get_tensor(name) for name in opened.keys()}))  # noqa: SIM118
    missing = sorted(expected.keys() - found.keys() - set(tied))
    if missing or not found:
        return f"{len(missing)} of {len(expected)} weights were not written, such as {', '.join(missing[:3])}"
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            return f"{name} was to be {expected[name][:2]} and was written as {found[name][:2]} or with other numbers"
    unknown = sorted(found.keys() - expected.keys())
    return f"{unknown[0]} was not to be written" if unknown else None


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def tied_names(model: Any) -> set[str]:
    """Names of a transformers model's weights that are tied to another."""
    keys = getattr(model, "all_tied_weights_keys", None) or {}
    return set(keys)
