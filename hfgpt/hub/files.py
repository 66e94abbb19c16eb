"""Which files of a folder are its model, adapter, tokenizer or checkpoint, and which stay at home."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..manifest import MANIFEST_FILE, checkpoint_step, files_below
from .errors import TOKEN_PATTERN


CARD_FILE = "README.md"
CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
)  # fmt: skip
MODEL_FILES = (CONFIG_FILE, "generation_config.json", "task.json")
# What a run leaves beside its model that people who find it want to see.
RUN_FILES = ("all_results.json", "run.json", "loss_curve.png")
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "adapter_model.bin")
TEXT_SUFFIXES = (".json", ".jsonl", ".md", ".txt", ".yaml", ".py", ".jinja")
# Of a checkpoint alone: Trainer's arguments, and the states without which a run cannot go on.
ARGUMENTS_FILE = "training_args.bin"


@dataclass(frozen=True)
class Contents:
    """What a folder is, and its files that are pushed.

    Attributes:
        folder: The folder.
        kind: "model", "adapter", "tokenizer" or "checkpoint".
        files: Relative names, in order, without the card.
    """

    folder: Path
    kind: str
    files: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        """Of the model or the adapter; empty for a tokenizer."""
        return read_json(self.folder / (ADAPTER_CONFIG_FILE if self.is_adapter else CONFIG_FILE))

    @property
    def is_adapter(self) -> bool:
        """Whether its weights are an adapter's."""
        return (self.folder / ADAPTER_CONFIG_FILE).is_file()


def contents(folder: str | Path, adapter_only: bool = False) -> Contents:
    """Look at a folder.

    Args:
        folder: Of a model, an adapter, a tokenizer, or a checkpoint of a run.
        adapter_only: The adapter's own two files, and nothing else.

    Raises:
        ValueError: There is nothing to push, or it is not as it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder: give the folder of a model, an adapter, a tokenizer or a checkpoint."
        )
    present = {path.name for path in folder.iterdir() if path.is_file()}
    if adapter_only and ADAPTER_CONFIG_FILE not in present:
        raise ValueError(
            f"{folder} holds no adapter ({ADAPTER_CONFIG_FILE} is not there): leave out `--adapter-only`."
        )
    if MANIFEST_FILE in present and checkpoint_step(folder) is not None and not adapter_only:
        return Contents(folder, "checkpoint", tuple(files_below(folder)))
    tokenizer = [name for name in TOKENIZER_FILES if name in present]
    if ADAPTER_CONFIG_FILE in present:
        weights = [ADAPTER_WEIGHTS] if ADAPTER_WEIGHTS in present else []
        names = [ADAPTER_CONFIG_FILE, *weights]
        if not adapter_only:
            names += [*tokenizer, *(name for name in ("task.json", *RUN_FILES) if name in present)]
        kind = "adapter"
    elif CONFIG_FILE in present:
        weights = _weights(folder, present)
        names = [*weights, *tokenizer, *(name for name in (*MODEL_FILES, *RUN_FILES) if name in present)]
        names += _custom_code(folder, present)
        kind = "model"
    elif tokenizer:
        return Contents(folder, "tokenizer", tuple(sorted(tokenizer)))
    else:
        models = [path for path in folder.iterdir() if (path / CONFIG_FILE).is_file()]
        inside = max(models, key=lambda path: (checkpoint_step(path) or 0, path.name)).name if models else None
        hint = f" Did you mean {folder / inside}?" if inside else ""
        raise ValueError(
            f"{folder} holds no model, adapter or tokenizer ({CONFIG_FILE}, {ADAPTER_CONFIG_FILE} or tokenizer.json).{hint}"
        )
    if not weights:
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        split = (
            " Its weights are split by DeepSpeed: `hfgpt convert SOURCE OUTPUT --to gpt3` makes them whole."
            if any(folder.glob("global_step*"))
            else ""
        )
        what = f"only {pickled[0]}, a pickle that nobody should load" if pickled else "no weights"
        raise ValueError(
            f"{folder} holds {what}: only safetensors are pushed.{split or ' Load and save it again with `save_pretrained`.'}"
        )
    return Contents(folder, kind, tuple(sorted(set(names))))


def _weights(folder: Path, present: set[str]) -> list[str]:
    if WEIGHTS_INDEX in present:
        names = sorted(set(read_json(folder / WEIGHTS_INDEX).get("weight_map", {}).values()))
        missing = [name for name in names if name not in present]
        if missing:
            raise ValueError(f"{folder} lacks {missing[0]}, which {WEIGHTS_INDEX} names: save the model again.")
        return [WEIGHTS_INDEX, *names]
    return ["model.safetensors"] if "model.safetensors" in present else []


def _custom_code(folder: Path, present: set[str]) -> list[str]:
    """The code that a model's `auto_map` names, where its folder brings it."""
    auto_map = read_json(folder / CONFIG_FILE).get("auto_map") or {}
    if not any("--" not in str(name) for name in auto_map.values()):
        return []
    return sorted(name for name in present if name.endswith(".py"))


def refuse_tokens(files: Mapping[str, bytes | Path], token: str | None) -> None:
    """See that nothing of what is pushed holds a token of the Hub.

    Weights and states are not looked at: what a person or a program writes a token into are texts, and arguments.

    Args:
        files: Names there, with their bytes or where they are.
        token: The one in use, which no file may hold; of others, what looks like one is refused in texts.

    Raises:
        ValueError: One does; the message has its name, not the token.
    """
    for name, source in files.items():
        suffix = Path(name).suffix
        if suffix not in TEXT_SUFFIXES and Path(name).name != ARGUMENTS_FILE:
            continue
        data = source if isinstance(source, bytes) else source.read_bytes()
        shown = name if isinstance(source, bytes) else source
        if token and token.encode() in data:
            raise ValueError(
                f"{shown} holds your token: nothing was pushed. Remove it from the file, and replace the token."
            )
        if suffix in TEXT_SUFFIXES and TOKEN_PATTERN.search(data.decode("utf-8", "replace")):
            raise ValueError(
                f"{shown} holds what looks like a token of the Hub (hf_...): nothing was pushed. Remove it."
            )


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; empty where there is no such file.

    Raises:
        ValueError: It is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(values).__name__}.")
    return values
