"""Shared fixtures: a tiny corpus, and a model trained on it by the real commands."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import launch, make_reviews, pretrain_arguments, write_jsonl


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def reviews_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 synthetic reviews with their verdicts, as JSONL."""
    return write_jsonl(tmp_path_factory.mktemp("reviews") / "reviews.jsonl", make_reviews(400, seed=0))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, reviews_file: Path) -> Path:
    """The reviews as a prepared corpus with a 400-word tokenizer."""
    from hfgpt.config import from_mapping
    from hfgpt.data.corpus import CorpusConfig, prepare

    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    recipe = {
        "sources": [{"name": "reviews", "path": str(reviews_file)}],
        # The reviews are made of the same few words.
        "deduplicate": "exact",
        "tokenizer": {"vocab_size": 400},
        "holdout_fraction": 0.1,
    }
    prepare(from_mapping(CorpusConfig, recipe, "the test's recipe"), folder)
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """Output folder of a finished tiny pretraining run, made by the recipe script through accelerate launch.

    Made once for all pytest-xdist workers; treat it as read-only.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "pretrained" / "model"
    with FileLock(shared / "pretrained.lock"):
        if not (folder / "all_results.json").exists():
            launch("recipes/pretrain.py", *pretrain_arguments(corpus, folder))
    return folder
