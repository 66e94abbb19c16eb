"""Parts of pages that are made from the code when the site is built, so that they cannot be out of date.

A page asks for them by a comment on a line of its own:

    <!-- fields hfgpt.data.corpus.CorpusConfig -->    a table of a dataclass' fields, with the help of each
    <!-- commands -->                                 every command of `hfgpt` with its options
    <!-- modules hfgpt.data -->                       the docstrings of every public module of a package, or of a module
    <!-- others -->                                   those of hfgpt's modules that no other page asks for
    <!-- include benchmarks/RESULTS.md -->            a file of the repository, its links mended

All but the commands are read from the source without importing it: the build needs neither torch nor transformers.
"""

import argparse
import ast
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe


ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DIRECTIVE = re.compile(r"^<!-- (fields|commands|modules|others|include)(?: (\S+))? -->$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs calls this with the text of every page."""
    makers: dict[str, Callable[[str], str]] = {
        "fields": fields_table,
        "commands": lambda _: commands(),
        "modules": lambda package: "\n\n".join(map(module_entry, modules(package))),
        "others": lambda _: "\n\n".join(map(module_entry, others())),
        "include": lambda path: included(path, page.file.src_uri),
    }
    return DIRECTIVE.sub(lambda found: makers[found[1]](found[2] or ""), markdown)


# Fields of dataclasses


@cache
def _tree(module: str) -> tuple[ast.Module, bool]:
    """The syntax tree of a module, and whether it is a package."""
    path = ROOT.joinpath(*module.split("."))
    package = (path / "__init__.py").is_file()
    return ast.parse((path / "__init__.py" if package else path.with_suffix(".py")).read_text("utf-8")), package


class Names(dict[str, Any]):
    """What the names of a module are, as far as it can be told without running it."""

    def __init__(self, module: str):
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        tree, package = _tree(self.module)
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and any(getattr(t, "id", None) == name for t in targets):
                self[name] = self.value(node.value)
                return self[name]
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name and (
                        node.level or (node.module or "").startswith("hfgpt")
                    ):
                        parts = self.module.split(".")
                        base = parts[: len(parts) - node.level + package] if node.level else []
                        return Names(".".join([*base, *([node.module] if node.module else [])]))[alias.name]
        raise KeyError(name)

    def value(self, node: ast.expr | None) -> Any:
        """An expression's value; of a dictionary whose values cannot be told, the keys."""
        assert node is not None
        if isinstance(node, ast.Dict):
            return {self.value(key): _or_none(self.value, item) for key, item in zip(node.keys, node.values)}
        return eval(compile(ast.Expression(node), self.module, "eval"), {"__builtins__": {}}, self)


def _or_none(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except (NameError, KeyError, TypeError, AttributeError):
        return None


def dataclass_fields(path: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and help of each field that a dataclass declares itself."""
    module, _, name = path.rpartition(".")
    tree, _ = _tree(module)
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    names, described = Names(module), _attributes(node)
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        default, text = "required", described.get(line.target.id, "")
        call = line.value
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "field":
            for keyword in call.keywords:
                if keyword.arg == "default":
                    default = _shown(names, keyword.value)
                elif keyword.arg == "default_factory":
                    default = _factory(names, keyword.value)
                elif keyword.arg == "metadata" and "help" in (told := names.value(keyword.value)):
                    text = told["help"]
        elif call is not None:
            default = _shown(names, call)
        yield line.target.id, ast.unparse(line.annotation), default, text


def _attributes(node: ast.ClassDef) -> dict[str, str]:
    """What a class' docstring says of its attributes."""
    sections = griffe.Docstring(ast.get_docstring(node) or "").parse("google", warnings=False)
    return {
        item.name: item.description
        for section in sections
        if section.kind.value == "attributes"
        for item in section.value
    }


def _shown(names: Names, node: ast.expr) -> str:
    value = _or_none(names.value, node) if not isinstance(node, ast.Constant) else node.value
    if value is None and not isinstance(node, ast.Constant):
        return ast.unparse(node)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str) and (not value or value != value.strip()):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


def _factory(names: Names, node: ast.expr) -> str:
    if isinstance(node, ast.Lambda):
        return _shown(names, node.body)
    name = ast.unparse(node)
    return {"list": "[]", "dict": "{}"}.get(name, f"those of {name}")


def fields_table(path: str) -> str:
    """A table of the fields of a dataclass."""
    rows = ["| field | type | default | |", "|-|-|-|-|"]
    for name, kind, default, text in dataclass_fields(path):
        rows.append(f"| `{name}` | {_code(kind)} | {_code(default)} | {_cell(text)} |")
    return "\n".join(rows)


def _code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    """A help text as it is, in a cell of a table."""
    text = " ".join(text.split())
    # What stands in backticks is code already.
    parts = re.split(r"(`[^`]*`)", text)
    plain = [part if part.startswith("`") else re.sub(r"([*_<\[\]{}])", r"\\\1", part) for part in parts]
    return "".join(plain).replace("|", r"\|")


# Commands


def commands() -> str:
    """Every subcommand: what it does, how it is called, and its options."""
    sys.path.insert(0, str(ROOT))
    from hfgpt.cli import make_parser

    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        return "\n\n".join(_commands(make_parser(), 2))
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width


def _commands(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help for choice in action._choices_actions}
            for name, sub in action.choices.items():
                yield f"{'#' * level} `{sub.prog}`"
                told_here = (sub.description or told.get(name) or "") % {"prog": sub.prog}
                raw = issubclass(sub.formatter_class, argparse.RawDescriptionHelpFormatter)
                yield f"```text\n{told_here}\n```" if raw else _cell(told_here)
                yield f"```text\n{sub.format_usage().strip()}\n```"
                tables: dict[str, list[str]] = {}
                for group in sub._action_groups:
                    title = "" if group.title in ("positional arguments", "options") else str(group.title)
                    for option in group._group_actions:
                        hidden = option.help == argparse.SUPPRESS or isinstance(option, argparse._SubParsersAction)
                        if not hidden and option.dest != "help":
                            tables.setdefault(title, []).append(_option(option))
                for title, rows in tables.items():
                    yield "\n".join([f"| {_cell(title)} | |", "|-|-|", *rows])
                yield from _commands(sub, level + 1)


def _option(action: argparse.Action) -> str:
    metavar = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if action.option_strings:
        name = ", ".join(action.option_strings) + (f" {metavar}" if action.nargs != 0 else "")
    else:
        name = str(action.metavar or action.dest)
    return f"| {_code(name)} | {_cell((action.help or '').replace('%%', '%'))} |"


# Modules


def modules(package: str) -> list[str]:
    """The public modules of a package, itself first; or one module."""
    path = ROOT.joinpath(*package.split("."))
    if not (path / "__init__.py").is_file():
        return [package]
    files = [file for file in sorted(path.rglob("*.py")) if file.parent != path or file.name != "__init__.py"]
    found = [
        ".".join([package, *file.relative_to(path).with_suffix("").parts]).removesuffix(".__init__")
        for file in files
        if file.name == "__init__.py" or not file.name.startswith("_")
    ]
    return [package, *found]


# Files of the repository


def includes() -> dict[str, str]:
    """The page that each file of the repository is included in."""
    pages = {}
    for page in DOCS.rglob("*.md"):
        for kind, path in DIRECTIVE.findall(page.read_text("utf-8")):
            if kind == "include":
                pages[path] = page.relative_to(DOCS).as_posix()
    return pages


def others() -> list[str]:
    """Modules directly in hfgpt that have no page of their own."""
    asked = {
        name
        for page in DOCS.rglob("*.md")
        for kind, name in DIRECTIVE.findall(page.read_text("utf-8"))
        if kind == "modules"
    }
    files = sorted((ROOT / "hfgpt").glob("*.py"))
    return [name for file in files if file.name[0] != "_" and (name := f"hfgpt.{file.stem}") not in asked]


def module_entry(module: str) -> str:
    """What mkdocstrings makes a module's section of: what the module itself defines."""
    tree, _ = _tree(module)
    own = [
        node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_"
    ]
    return f"::: {module}\n    options:\n      members: [{', '.join(own)}]"


def included(path: str, page: str) -> str:
    """A file of the repository, to be part of a page: its links lead to the pages there are, other files are named."""
    pages = includes()

    def mend(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        file = f"{file}/README.md" if (ROOT / file / "README.md").is_file() else file
        target = file.removeprefix("docs/") if file.startswith("docs/") else pages.get(file, "")
        if not target:
            if not (ROOT / file).exists():
                raise ValueError(f"{path} links to {found[2]}, which is not there.")
            return text if text.strip("`") == file else f"{text} (`{file}`)"
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(mend, (ROOT / path).read_text("utf-8"))
