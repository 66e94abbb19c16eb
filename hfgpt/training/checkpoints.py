"""Checkpoints on disk: what makes one whole, which to resume from, which to delete.

A checkpoint is written below a folder named `incomplete-...`, checked there, and renamed to `checkpoint-STEP` when it is
whole: so a folder of that name is whole, or was damaged later. Its `manifest.json` has the size and the hash of every
file, against which it is checked again before a run resumes from it.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import safe_open
from transformers import TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)

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


def latest_complete_checkpoint(output_dir: str | Path, up_to_step: int | None = None) -> Path | None:
    """The newest checkpoint in `output_dir` that is whole; one that is not is passed over with a warning.

    In a run of several processes all must ask: the first lists the folders, and each checks its share of the files.

    Args:
        output_dir: Folder of the run.
        up_to_step: Leave out those of later steps.
    """
    [folders] = broadcast_object_list([list_checkpoints(output_dir)])
    for folder in folders:
        if up_to_step is not None and (checkpoint_step(folder) or 0) > up_to_step:
            continue
        reason = why_incomplete(folder)
        if reason is None:
            return folder
        if _rank_and_world()[0] == 0:
            logger.warning(f"{folder} is not complete ({reason}): passed over.")
    return None


def find_checkpoint(args: TrainingArguments) -> Path | None:
    """The checkpoint to go on from: the one that is asked for, or the newest whole one of the output folder.

    Raises:
        ValueError: The one that is asked for is not there or not whole, or there are some and none is.
    """
    asked = args.resume_from_checkpoint
    if asked is None or asked is True or str(asked).lower() == "true":
        found = latest_complete_checkpoint(args.output_dir)
        if found is None and list_checkpoints(args.output_dir):
            raise ValueError(
                f"None of the checkpoints in {args.output_dir} is whole. Give another `output_dir`, or begin anew by "
                "deleting them or with `resume_from_checkpoint: false`."
            )
        return found
    if asked is False or str(asked).lower() == "false":
        return None
    reason = why_incomplete(asked)
    if reason is not None or checkpoint_step(Path(asked)) is None:
        raise ValueError(
            f"`resume_from_checkpoint` ({asked}) is not a whole checkpoint ({reason or 'its name is not checkpoint-N'}): "
            "name another, or leave it out to take the newest whole one."
        )
    return Path(asked)


def why_incomplete(checkpoint: str | Path) -> str | None:
    """What is missing, cut short or changed in a checkpoint, going by its manifest; None where it is whole.

    All processes of a run must ask.
    """
    checkpoint = Path(checkpoint)
    [(problem, digests)] = broadcast_object_list([_sizes_checked(checkpoint)])
    if problem is not None:
        return problem
    rank, world = _rank_and_world()

    def file_problem(name: str) -> str | None:
        try:
            return None if hash_file(checkpoint / name) == digests[name] else f"{name} is not what was written"
        except OSError as error:  # of a failing disk: the other processes wait for what this one has found
            return f"{name} cannot be read: {error}"

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        problems = [found for found in pool.map(file_problem, sorted(digests)[rank::world]) if found]
    return next(iter(gather_object(problems)), None)


def _sizes_checked(checkpoint: Path) -> tuple[str | None, dict[str, str]]:
    """What is missing or cut short; the hash that each file is to have."""
    try:
        files = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        expected = {name: (file["bytes"], file["xxh3_128"]) for name, file in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing", {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{MANIFEST_FILE} cannot be read: {error}", {}
    for name, (bytes_, _) in expected.items():
        try:
            size = (checkpoint / name).stat().st_size
        except OSError:
            return f"{name} is missing", {}
        if size != bytes_:
            return f"{name} has {size} bytes, not {bytes_}", {}
    return None, {name: digest for name, (_, digest) in expected.items()}


def hash_files(folder: Path, names: Iterable[str], sync: bool = False) -> dict[str, str]:
    """The hash of each file below `folder`; `sync` also waits until the disk has it."""
    names = list(names)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: hash_file(folder / name, sync), names)))


def hash_file(path: Path, sync: bool = False) -> str:
    """The hash of a file; `sync` also waits until the disk has it."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
        if sync:
            os.fsync(file.fileno())
    return state.hexdigest()


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
    replaced = _take_name(target) if target.exists() else None
    os.rename(source, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder; it loses its name first, so that half of it is never taken for a checkpoint."""
    shutil.rmtree(_take_name(folder), ignore_errors=True)


def _take_name(folder: Path) -> Path:
    doomed = folder.with_name(f"{INCOMPLETE_PREFIX}deleted-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    return doomed


def remove_incomplete(output_dir: Path) -> None:
    """Delete what saves and deletions that were cut off have left."""
    for folder in output_dir.glob(f"{INCOMPLETE_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


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


def make_readable(folder: Path) -> None:
    """Give files of weights the permissions that the process gives new files; safetensors gives them to their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)


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
