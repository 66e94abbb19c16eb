"""Real text that every Python has: the docstrings of its standard library."""

import ast
import sysconfig
from functools import cache
from pathlib import Path


@cache
def docstrings(min_characters: int = 400) -> list[str]:
    """Docstrings of the standard library's modules, classes and functions, no two equal, in a fixed order."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) >= min_characters:
                    found[text] = None
    return list(found)


def nsmc_folder() -> Path | None:
    """Korean film reviews beside the checkout, where they are."""
    folder = Path(__file__).resolve().parents[3] / "shared/data/nsmc"
    return folder if folder.is_dir() else None
