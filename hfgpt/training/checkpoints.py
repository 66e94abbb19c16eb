"""Checkpoints on disk: which is whole, which to resume from, and whether it holds what was to be saved.

A checkpoint is a folder of `hfgpt.manifest`: whole, or not there. All processes of a run ask about it together.
"""

import os
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

from .. import manifest
from ..manifest import (
    HASHING_THREADS,
    INCOMPLETE_PREFIX,
    MANIFEST_FILE,
    checkpoint_step,
    files_below,
    hash_file,
    hash_files,
    list_checkpoints,
    publish,
    remove,
    remove_incomplete,
    rotate,
    write_manifest,
)


__all__ = [
    "INCOMPLETE_PREFIX",
    "MANIFEST_FILE",
    "checkpoint_step",
    "files_below",
    "find_checkpoint",
    "fingerprints",
    "hash_file",
    "hash_files",
    "latest_complete_checkpoint",
    "list_checkpoints",
    "publish",
    "remove",
    "remove_incomplete",
    "rotate",
    "weights_problem",
    "why_incomplete",
    "write_manifest",
]

logger = logging.get_logger(__name__)

# What a tensor is known by: dtype, shape, hash of its bytes.
Fingerprint = tuple[str, tuple[int, ...], str]


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
    [(problem, digests)] = broadcast_object_list([manifest.sizes_problem(checkpoint)])
    if problem is not None:
        return problem
    rank, world = _rank_and_world()

    def file_problem(name: str) -> str | None:
        try:
            return (
                None if manifest.hash_file(checkpoint / name) == digests[name] else f"{name} is not what was written"
            )
        except OSError as error:  # of a failing disk: the other processes wait for what this one has found
            return f"{name} cannot be read: {error}"

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        problems = [found for found in pool.map(file_problem, sorted(digests)[rank::world]) if found]
    return next(iter(gather_object(problems)), None)


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
