"""Weights in files of a size that uploads well, without the model and without holding more than one file's in memory."""

import json
from pathlib import Path
from typing import Any

from .files import WEIGHTS_INDEX


UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: int | str) -> int:
    """Bytes of a size such as "5GB" or "500MB".

    Raises:
        ValueError: It is none.
    """
    if isinstance(size, int):
        return size
    text = size.strip().upper()
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            try:
                return int(float(text.removesuffix(unit)) * factor)
            except (ValueError, OverflowError):
                break
    if text.isdigit():
        return int(text)
    raise ValueError(f"`max_shard_size` must be a size such as 5GB or 500MB, got {size!r}.")


def needs_sharding(folder: Path, names: tuple[str, ...], max_bytes: int) -> list[str]:
    """The files of weights, where one of them is larger than it should be and holds more than one tensor."""
    weights = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    return weights if any((folder / name).stat().st_size > max_bytes for name in weights) else []


def reshard(folder: Path, names: list[str], target: Path, max_bytes: int) -> tuple[str, ...]:
    """Write the same tensors in smaller files, with their index, in the order they have.

    Args:
        folder: Where the files of weights are.
        names: Those files.
        target: Folder to write into.
        max_bytes: Of a file at most; a single larger tensor has a file of its own.

    Returns:
        The names of the files written.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    sizes: list[tuple[str, str, int]] = []  # tensor, file, bytes
    metadata: dict[str, str] = {}
    for name in names:
        header = _header(folder / name)
        metadata.update(header.pop("__metadata__", {}))
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            sizes.append((key, name, end - begin))
    shards: list[list[tuple[str, str, int]]] = [[]]
    used = 0
    for item in sizes:
        if shards[-1] and used + item[2] > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(item)
        used += item[2]
    weight_map: dict[str, str] = {}
    written: list[str] = []
    for number, shard in enumerate(shards, start=1):
        shard_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors: dict[str, Any] = {}
        for file in dict.fromkeys(file for _, file, _ in shard):
            with safe_open(folder / file, framework="pt") as opened:
                tensors.update({key: opened.get_tensor(key) for key, of, _ in shard if of == file})
        save_file(tensors, target / shard_name, metadata={"format": "pt", **metadata})
        weight_map.update(dict.fromkeys(tensors, shard_name))
        written.append(shard_name)
    index = {"metadata": {"total_size": sum(size for _, _, size in sizes)}, "weight_map": weight_map}
    (target / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return (*written, WEIGHTS_INDEX)


def count_parameters(folder: Path, names: tuple[str, ...]) -> int:
    """Numbers in the safetensors files, by their headers alone."""
    total = 0
    for name in names:
        if name.endswith(".safetensors"):
            for key, entry in _header(folder / name).items():
                if key != "__metadata__":
                    count = 1
                    for size in entry["shape"]:
                        count *= size
                    total += count
    return total


def _header(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is cut short")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if 8 + length + max(ends, default=0) != path.stat().st_size:
            raise ValueError("it has not the bytes that its header says")
        return header
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): save the model again.") from None
