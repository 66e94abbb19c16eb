"""The documentation builds without a warning, leads nowhere that is not there, and what it says to type runs."""

import ast
import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import fields
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from documented import PAGES, Runner, blocks, check_launch, commands, inline_commands, lay_out
from helpers import ROOT

from hfgpt.cli import make_parser
from hfgpt.training.arguments import parse_arguments
from hfgpt.version import __version__


# Symptoms of comparable toolkits, in the order of tests/test_docs.py's page: one section each.
PAINS = [
    "zero-3-from-scratch-wrong-initial-weights",
    "zero-3-saves-empty-weights",
    "a-lora-adapter-or-its-merge-is-empty",
    "resume-on-another-number-of-gpus",
    "resume-repeats-or-skips-data",
    "weights-of-a-mixture",
    "gradient-accumulation-changes-the-loss",
    "nan-loss",
    "deepspeed-config-contradicts-trainingarguments",
    "a-batch-that-grows",
    "the-learning-rate-falls-too-fast",
    "timeout-while-rank-0-tokenizes",
    "packing-leaks-across-documents",
    "no-tokens-per-second",
    "cuda-out-of-memory",
    "a-half-written-checkpoint",
    "custom-model-code-is-missing",
    "left-padding-changes-the-output",
    "device-side-assert-triggered",
    "training-a-tokenizer-runs-out-of-memory",
    "scores-that-do-not-match-the-paper",
]
OPTIONS = {
    name: {word for option in parser._actions for word in option.option_strings}
    for action in make_parser()._subparsers._group_actions
    for name, parser in action.choices.items()
}
DATACLASSES = re.compile(r"<!-- fields (\S+) -->")


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors, where neither torch nor transformers can be imported."""
    folder = tmp_path_factory.mktemp("site")
    blocked = folder / "blocked"
    for name in ("torch", "transformers"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('the documentation is built without it')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "site"


class Links(HTMLParser):
    """The addresses that a page refers to, and the anchors that it has."""

    def __init__(self, page: Path):
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("script", "img", "link", "iframe", "source") and values.get("rel") != "canonical":
            self.sources += [values[name] for name in ("src", "href") if name in values]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    """Every page of the site."""
    return {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_and_anchor_is_there(site, pages):
    missing = []
    for path, page in pages.items():
        for link in page.links + page.sources:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                missing.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].anchors:
                missing.append(f"{path.relative_to(site)}: {link} (no such anchor)")
    assert not missing, "\n".join(missing)


def test_nothing_is_fetched_from_elsewhere(pages):
    for path, page in pages.items():
        outside = [source for source in page.sources if urlsplit(source).netloc]
        assert not outside, f"{path}: {outside}"


def test_every_page_has_one_title(site, pages):
    """A line that begins with the number of an issue is no heading."""
    for path in pages:
        titles = re.findall(r"<h1[ >].*?</h1>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert len(titles) == 1, f"{path.relative_to(site)}: {[plain(title) for title in titles]}"


def public_modules() -> list[str]:
    modules = []
    for path in sorted((ROOT / "hfgpt").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            modules.append(".".join(parts).removesuffix(".__init__"))
    return modules


def test_every_public_module_is_in_the_reference(pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    # The package itself is its parts; the command's modules are the reference of commands.
    missing = [
        name for name in public_modules() if name not in anchors and not re.match(r"hfgpt(\.cli(\.\w+)?)?$", name)
    ]
    assert not missing, "give them a `<!-- modules ... -->` on a page of docs/reference"


def test_public_functions_are_in_the_reference(pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    for name in (
        "model.configuration_gpt3.GPT3Config",
        "model.modeling_gpt3.GPT3ForCausalLM",
        "model.convert.convert",
        "data.corpus.prepare",
        "data.packing.as_dataset",
        "tasks.base.ChoiceTask",
        "training.pretrain.pretrain",
        "training.finetune.finetune",
        "training.callbacks.throughput.ThroughputCallback",
        "evaluation.evaluate.evaluate_from",
        "planner.plan",
        "generation.generate",
        "hub.transfer.push",
    ):
        assert f"hfgpt.{name}" in anchors


def plain(markup: str) -> str:
    """What HTML says, without its markup."""
    text = re.sub(r"<(script|style).*?</\1>", "", markup, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


def test_every_command_and_option_is_in_the_reference(site):
    text = plain((site / "reference/cli/index.html").read_text(encoding="utf-8"))
    for name, options in OPTIONS.items():
        assert f"hfgpt {name}" in text
        assert not [word for word in options if word not in text and word.startswith("--") and word != "--help"], name


@pytest.mark.parametrize("path", DATACLASSES.findall((ROOT / "docs/reference/recipes.md").read_text(encoding="utf-8")))
def test_the_fields_of_recipes_are_those_of_the_dataclasses(site, path):
    """Read from the source without running it, they are what they are when it runs: every field, help and default."""
    page = (site / "reference/recipes/index.html").read_text(encoding="utf-8")
    rows = {
        tuple(plain(cell) for cell in re.findall(r"<td>(.*?)</td>", row, flags=re.DOTALL))
        for row in re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)
    }
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    own = [field for field in fields(cls) if field.name in inspect.get_annotations(cls)]
    assert own
    for field in own:
        of_name = [row for row in rows if row and row[0] == field.name]
        if "help" in field.metadata:
            told = " ".join(field.metadata["help"].replace("`", "").split())
            of_name = [row for row in of_name if row[3] == told]
        if isinstance(field.default, (bool, int, float, type(None))):
            of_name = [row for row in of_name if yaml.safe_load(row[2]) == field.default]
        assert of_name, f"{path}.{field.name}"


# Pages


def test_every_pain_has_its_section_and_its_test():
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", text.partition("## hfgpt's own messages")[0], flags=re.MULTILINE)[1:]
    found = {re.search(r"\{ #([\w-]+) \}", section)[1]: section for section in sections}
    assert set(found) == set(PAINS) and len(found) == 21
    for name, section in found.items():
        assert "**Elsewhere:**" in section and "**Here:**" in section and "**Test:** `tests/" in section, name


@pytest.mark.parametrize("page", PAGES)
def test_files_and_tests_that_are_named_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for path, test in re.findall(r"`((?:tests|recipes|hfgpt|benchmarks|docs|ds_configs)/[\w./-]+)(?:::(\w+))?`", text):
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/")])
def test_links_of_the_repository_s_own_pages(page):
    """Of those that the site's own check does not see."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", link):
            target = (ROOT / page).parent / link.partition("#")[0]
            assert target.exists(), link


@cache
def messages() -> list[str]:
    """Every text of the sources, with an ellipsis in the place of each value, without backticks."""
    found = []
    for path in (ROOT / "hfgpt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [text.replace("`", "") for text in found]


def test_our_messages_are_those_of_the_code():
    table = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").partition("## hfgpt's own messages")[2]
    told = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert len(told) > 15
    for message in told:
        pieces = message.split("…")
        near = [text for text in messages() if all(piece in text for piece in pieces)]
        assert any(re.search(".*?".join(map(re.escape, pieces)), text, re.DOTALL) for text in near), message


def test_the_readmes_have_the_same_commands():
    """In English and in Korean, apart from comments."""
    english, korean = (
        [(block.language, re.sub(r"\s*#.*", "", block.text)) for block in blocks(page) if block.language]
        for page in ("README.md", "README.ko.md")
    )
    assert english == korean
    headings = [
        [
            line.partition(" ")[0]
            for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
            if line.startswith("#")
        ]
        for text in ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "README.ko.md"))
    ]
    assert headings[0] == headings[1]


def test_the_citation_is_valid():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["version"] == __version__
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["authors"] == [{"name": "hfgpt contributors"}]
    (paper,) = citation["references"]
    assert paper["title"] == "Language Models are Few-Shot Learners" and paper["year"] == 2020
    assert paper["type"] == "article" and paper["identifiers"][0]["value"] == "arXiv:2005.14165"


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in text or "## [Unreleased]" in text


# Commands


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A folder with what the documentation takes for given: the demo's runs, made by its own commands."""
    folder = tmp_path_factory.mktemp("documented")
    lay_out(folder)
    runner = Runner(folder)
    for command in (command for block in blocks("recipes/README.md") for command in commands(block)):
        if not command.needs and "demo" in command.text:
            runner.run(command)
    yield runner


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_python_run(runner, page):
    """In the order of the page; a block with a title is a file that they read."""
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.title:
            path = runner.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for command in commands(block):
                if not command.needs:
                    runner.run(command)
        elif block.language == "python" and not block.needs:
            with runner.inside():
                exec(compile(block.text, f"{page}, line {block.line}", "exec"), names)


def test_what_needs_a_gpu_or_the_hub_exists(runner):
    """Commands that cannot run here, and those in running text, are known to their parsers."""
    from test_recipes import SCRIPTS

    marked = [
        command for page in PAGES for block in blocks(page) if block.language == "bash" for command in commands(block)
    ]
    marked = [command for command in marked if command.needs]
    told = [words for page in PAGES for words in inline_commands(page)]
    assert marked and told
    for words in [command.words for command in marked] + told:
        if words[0] == "hfgpt" and words[2].startswith("--"):  # a mention of an option
            assert all(word in OPTIONS[words[1]] for word in words[2:] if word.startswith("--")), words
        elif words[0] == "hfgpt":
            with suppress(SystemExit) if "--help" in words else nullcontext():
                make_parser().parse_args(words[1:])
        elif words[:2] == ["accelerate", "launch"]:
            script = next((word for word in words if word in SCRIPTS), "")
            own = words[words.index(script) + 1 :] if script else []
            if own:  # else the script is but mentioned
                check_launch(words, words)
                parse_arguments(
                    *SCRIPTS[script], argv=[*own, "--output_dir", str(runner.folder / "x"), "--use_cpu", "true"]
                )
        else:
            assert words[0] in ("sbatch", "scancel", "torchrun", "hf"), words


def test_commands_of_the_hub_run_against_a_server(runner, tmp_path):
    """Push, pull and what follows, by the real client."""
    from hub_server import HubServer

    ran = 0
    with HubServer(tmp_path / "hub") as server:
        server.add_user("me", token="hf_documented")
        with server.in_process("hf_documented", home=tmp_path / "home"):
            for block in blocks("docs/how-to/hub.md"):
                for command in commands(block) if block.language == "bash" else []:
                    if command.words[0] == "hfgpt" and command.needs == "the Hub":
                        runner.run(command)
                        ran += 1
    assert ran >= 5
