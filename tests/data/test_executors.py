"""One result wherever the tasks run, however often they are killed, and one clear message when they fail."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, run
from real_text import docstrings

from hfgpt.config import from_mapping
from hfgpt.data import executors
from hfgpt.data.corpus import CorpusConfig, prepare
from hfgpt.data.documents import Ledger, Step
from hfgpt.data.executors import ExecutorConfig, parse_options, run_tasks


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources in several parts, with duplicates across them, a benchmark, and a tokenizer to train."""
    folder = tmp_path_factory.mktemp("recipe")
    texts = docstrings()[:160]
    for name, part in (("wiki", texts[:60]), ("web", texts[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    (folder / "test.jsonl").write_text(json.dumps({"text": texts[70]}) + "\n")
    values = {
        "sources": [
            {"name": "web", "path": str(folder / "web.jsonl"), "weight": 0.7},
            {"name": "wiki", "path": str(folder / "wiki.jsonl"), "weight": 0.3},
        ],
        "decontaminate": {"benchmarks": [{"name": "test", "path": str(folder / "test.jsonl")}]},
        "tokenizer": {"vocab_size": 1000},
        "holdout_fraction": 0.05,
        "part_bytes": 40_000,
        "shard_tokens": 8_000,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def expected(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Checksums of the corpus as one process makes it."""
    return prepared(recipe, tmp_path_factory.mktemp("expected") / "corpus", ExecutorConfig(workers=1))


def prepared(recipe: Path, folder: Path, executor: ExecutorConfig) -> dict[str, int]:
    prepare(from_mapping(CorpusConfig, yaml.safe_load(recipe.read_text()), "recipe"), folder, executor=executor)
    return checksums(folder)


def checksums(folder: Path) -> dict[str, int]:
    files = [path for part in ("train", "validation", "tokenizer", "contamination") for path in (folder / part).rglob("*.*")]
    assert len(files) > 8
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in files}


def test_two_processes_give_the_same_bytes(recipe, expected, tmp_path):
    assert prepared(recipe, tmp_path / "corpus", ExecutorConfig(workers=2)) == expected


def test_a_ray_cluster_gives_the_same_bytes(recipe, expected, tmp_path):
    pytest.importorskip("ray")
    assert prepared(recipe, tmp_path / "corpus", ExecutorConfig("ray", workers=2)) == expected
