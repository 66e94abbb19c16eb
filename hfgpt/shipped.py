"""The recipes and DeepSpeed configs that come with hfgpt: found from anywhere, listed, and copied.

A checkout has them in its root, as recipes/ and ds_configs/; an installed hfgpt below its package. A path that begins
so and is not there in the current folder means theirs, so that `hfgpt prepare recipes/corpus/demo.yaml` works anywhere.
"""

import ast
import filecmp
import json
import shutil
from dataclasses import dataclass
from pathlib import Path


FOLDERS = ("recipes", "ds_configs")
SUFFIXES = (".json", ".md", ".py", ".sbatch", ".yaml")


@dataclass(frozen=True)
class Shipped:
    """One file: its `path` below recipes/ or ds_configs/, where it is, and what it is in one sentence."""

    path: str
    file: Path
    description: str


@dataclass(frozen=True)
class Copied:
    """What `copy_shipped` did: `written` (also those that were there already, the same) and `kept` (different ones)."""

    folder: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]


def shipped_root() -> Path:
    """The folder that holds recipes/ and ds_configs/.

    Raises:
        ValueError: There is none: hfgpt was installed without them.
    """
    package = Path(__file__).resolve().parent
    for root in (package, package.parent):
        if all((root / name).is_dir() for name in FOLDERS):
            return root
    raise ValueError(
        f"The recipes are not beside {package}: install hfgpt again, from its wheel or by `pip install -e`."
    )


def find_file(path: str | Path) -> Path:
    """`path`, or hfgpt's own file of that name where it begins with recipes/ or ds_configs/ and is not there.

    A file that is nowhere keeps its path: whoever reads it says so.
    """
    path = Path(path)
    if path.is_absolute() or path.parts[:1] not in [(name,) for name in FOLDERS] or path.exists():
        return path
    try:
        own = shipped_root() / path
    except ValueError:
        return path
    return own if own.is_file() else path


def shipped_files() -> list[Shipped]:
    """All of them, recipes/ first, without what Python or an editor left there.

    Raises:
        ValueError: hfgpt was installed without them.
    """
    root = shipped_root()
    files = [file for name in FOLDERS for file in sorted((root / name).rglob("*")) if file.suffix in SUFFIXES]
    return [Shipped(file.relative_to(root).as_posix(), file, describe(file)) for file in files if file.is_file()]


def describe(file: Path) -> str:
    """The first sentence of a file's first comment, docstring or paragraph; the ZeRO stage of a DeepSpeed config."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        zero = json.loads(text).get("zero_optimization", {})
        moved = [
            name for name in ("optimizer", "param") if zero.get(f"offload_{name}", {}).get("device", "none") != "none"
        ]
        words = {"optimizer": "the optimizer's states", "param": "the weights"}
        offload = f", {' and '.join(words[name] for name in moved)} in the machine's memory" if moved else ""
        return f"DeepSpeed ZeRO stage {zero.get('stage', 0)}{offload}"
    if file.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    elif file.suffix == ".md":
        lines = [line.lstrip("# ") for line in text.splitlines()]
    else:
        lines = []
        for line in text.splitlines():
            if line.startswith("#!"):
                continue
            # A deeper indented line is a command.
            if not line.startswith("#") or line.startswith("#  "):
                break
            lines.append(line[1:].strip())
    paragraph: list[str] = []
    for line in lines:
        if not line.strip() and paragraph:
            break
        paragraph.append(line.strip())
    # A sentence ends where the next begins: "GPT-3 1.3B" and "KorQuAD 1.0, from" go on.
    return " ".join(paragraph).strip().split(". ")[0].rstrip(".:")


def copy_shipped(folder: str | Path, overwrite: bool = False) -> Copied:
    """Write recipes/ and ds_configs/ into a folder, so that every documented command can be run there.

    Args:
        folder: Made if it is not there.
        overwrite: Also replace files that are there and differ, which are else kept.

    Raises:
        ValueError: `folder` cannot be written, or hfgpt was installed without them.
    """
    folder = Path(folder)
    written, kept = [], []
    for one in shipped_files():
        target = folder / one.path
        if target.exists() and not overwrite and not filecmp.cmp(one.file, target, shallow=False):
            kept.append(one.path)
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(one.file)):
                shutil.copyfile(one.file, target)
        except OSError as error:
            raise ValueError(f"Cannot write {target}: {error.strerror}. Give another folder.") from None
        written.append(one.path)
    return Copied(folder, tuple(written), tuple(kept))
