"""What tests share besides fixtures: made-up reviews, and the commands run as users run them."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent

GOOD = ["wonderful", "brilliant", "moving", "funny", "superb", "charming"]
BAD = ["dull", "awful", "boring", "clumsy", "dreadful", "tedious"]
THINGS = ["film", "story", "cast", "music", "script", "ending", "camera work", "dialogue"]


def make_reviews(count: int, seed: int) -> list[dict[str, str]]:
    """Reviews whose words tell their label, of `count // 4` films."""
    random_state = random.Random(seed)
    reviews = []
    for number in range(count):
        label = random_state.choice(["fresh", "rotten"])
        words = random_state.sample(GOOD if label == "fresh" else BAD, 2)
        things = random_state.sample(THINGS, 2)
        text = f"The {things[0]} was {words[0]} and the {things[1]} {words[1]}."
        reviews.append({"text": f"{text} ({number})", "verdict": label, "film": f"film {number % (count // 4)}"})
    return reviews


# A fine-tuning recipe's fields for them, in words that their tokenizer knows: the positions are few.
SENTIMENT = {
    "label_field": "verdict",
    "label_map": {"fresh": "positive", "rotten": "negative"},
    "prompt": "{text} The film was",
    "label_words": {"negative": " dull", "positive": " funny"},
    "group_by": "film",
    "test_fraction": 0.25,
}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write rows, one JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*command: str, cwd: Path = ROOT, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """Run a command of this Python in the project's root; its output is shown where it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def launch(*command: str, config: str = "recipes/accelerate/cpu.yaml", **kwargs) -> subprocess.CompletedProcess:
    """Run a recipe script by `accelerate launch`."""
    return run("-m", "accelerate.commands.launch", "--config_file", config, *command, **kwargs)


TINY_MODEL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "sliding_window": 16,
}


def pretrain_arguments(corpus: Path, output_dir: Path, **fields: object) -> list[str]:
    """Command line of a tiny float32 pretraining run of 12 steps."""
    values: dict[str, object] = {
        "corpus": corpus,
        "output_dir": output_dir,
        "model_overrides": json.dumps(TINY_MODEL),
        "sequence_length": 32,
        "per_device_train_batch_size": 4,
        "train_tokens": 12 * 4 * 32,
        "warmup_tokens": 2 * 4 * 32,
        "decay_tokens": 12 * 4 * 32,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "eval_steps": 6,
        "save_steps": 4,
        "save_total_limit": 10,
        "bf16": "false",
        "use_cpu": "true",
        **fields,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]
