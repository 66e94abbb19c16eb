"""A folder of files that is whole, or is not there: its manifest, and how it gets and loses its name.

A checkpoint is written below a folder named `incomplete-...`, checked there, and renamed to `checkpoint-STEP` when it is
whole: so a folder of that name is whole, or was damaged later. Its `manifest.json` has the size and the hash of every
file. Nothing here needs torch or other processes; `training.checkpoints` asks these together.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash


MANIFEST_FILE = "manifest.json"
INCOMPLETE_PREFIX = "incomplete-"
CHUNK_BYTES = 16 * 2**20
HASHING_THREADS = 4
END_BYTES = 2**20


def checkpoint_step(folder: Path) -> int | None:
    """The step of a folder named as checkpoints are; None for any other."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; whole or not."""
    found = {checkpoint_step(folder): folder for folder in Path(output_dir).glob("checkpoint-*") if folder.is_dir()}
    return [found[step] for step in sorted((step for step in found if step is not None), reverse=True)]


def sizes_problem(checkpoint: Path) -> tuple[str | None, dict[str, str]]:
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


def weights_state(folder: Path) -> str:
    """Tells a folder's weights from others, without reading all of them: sizes, and the ends of every file."""
    state = xxhash.xxh3_128()
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))):
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            state.update(f"{path.name} {size} ".encode())
            for start in (0, max(size - END_BYTES, 0)):
                file.seek(start)
                state.update(file.read(END_BYTES))
    return f"weights {state.hexdigest()[:16]}"
