import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from hfgpt.data.tokenizer import train_tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Writes a file below `tmp_path` and returns its path as a recipe would give it."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of 300 words, English and Korean."""
    return train_tokenizer(["the cat sat on the mat and the cat ate", "고양이가 매트에 앉았다 고양이가"] * 4, 300)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`tokenizer`, saved."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def gpt2_files(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """`tokenizer` as GPT-2 publishes its own: a vocabulary and a list of merges."""
    folder = tmp_path_factory.mktemp("gpt2")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / "vocab.json"), str(folder / "merges.txt")
