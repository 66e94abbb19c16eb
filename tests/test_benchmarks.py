"""The benchmarks run, compare every peer and say where they ran. What they measure is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
SIZES = ["--layers", "2", "--hidden", "32", "--heads", "2", "--vocab", "300"]
PEERS = ["GPT-2, sdpa", "GPT-Neo", "GPT-3, sdpa"]


def run(name: str, tmp_path: Path, *options: str) -> tuple[str, list[dict]]:
    """What one benchmark of a model prints, and its records."""
    return run_any(name, tmp_path, *options, "--dtypes", "bf16")


def run_any(name: str, tmp_path: Path, *options: str) -> tuple[str, list[dict]]:
    file = tmp_path / "results.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options]
    command += ["--rounds", "1", "--threads", "1", "--device", "cpu", "--json", str(file)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout, [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("training", ["--lengths", "64", "--batch-tokens", "128"]),
        pytest.param("decoding", ["--contexts", "64", "--new-tokens", "4"], marks=pytest.mark.slow),
    ],
)
def test_each_peer_has_its_row(tmp_path, name, options):
    printed, (record,) = run(name, tmp_path, *options, *SIZES)
    assert [row["name"] for row in record["rows"]] == PEERS
    for row in record["rows"]:
        assert "error" not in row and row["seconds"] > 0 and row["tokens_per_second"] > 0
        assert f"| {row['name']} |" in printed
    assert record["torch"] in printed and record["device"] in printed


@pytest.mark.slow
def test_a_banded_layer_is_timed_beside_a_dense_one_and_half_the_length(tmp_path):
    printed, (record,) = run("banded_attention", tmp_path, "--lengths", "128", "--window", "16")
    (row,) = record["rows"]
    assert set(row) >= {"banded", "banded, T/2", "dense", "dense, T/2"}
    assert "| 128 |" in printed


@pytest.mark.slow
def test_a_peer_that_fails_is_named_and_the_others_are_timed(tmp_path):
    """Width 30 does not divide by 4 heads."""
    printed, (record,) = run("training", tmp_path, *SIZES, "--hidden", "30", "--heads", "4", "--lengths", "64")
    assert all("error" in row for row in record["rows"])
    assert "ValueError" in printed


@pytest.mark.slow
def test_reading_is_timed_beside_a_training_step(tmp_path):
    options = ["--lengths", "64", "--batch-tokens", "128", "--batches", "3", "--corpus-bytes", "100000"]
    printed, (record,) = run("reading", tmp_path, *options, "--folder", str(tmp_path), *SIZES)
    step, *reading = record["rows"]
    assert step["name"] == "training step" and reading[0]["name"] == "reading, in memory"
    for row in record["rows"]:
        assert "error" not in row and row["seconds"] > 0 and row["tokens_per_second"] > 0
        assert f"| {row['name']} |" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.slow
def test_adapters_are_measured_beside_all_weights(tmp_path):
    printed, (record,) = run_any("adapters", tmp_path, *SIZES, "--length", "32", "--batch", "1")
    assert [row["name"] for row in record["rows"]] == ["all weights", "LoRA", "DoRA"]
    assert all("error" not in row and f"| {row['name']} |" in printed for row in record["rows"])


@pytest.mark.slow
def test_a_step_is_timed_beside_a_bare_loop(tmp_path):
    printed, (record,) = run_any("training_overhead", tmp_path, *SIZES, "--steps", "2")
    assert len(record["rows"]) == 3
    for row in record["rows"]:
        assert row["time_ratio"] and row["cpu_time_ratio"]
        assert f"| {row['name']} |" in printed


@pytest.mark.slow
def test_tokens_of_a_corpus_are_timed_beside_plain_tokenization(tmp_path):
    printed, (record,) = run_any("corpus", tmp_path, "--max-bytes", "100000")
    ours, *others = record["rows"]
    assert ours["name"].startswith("ours") and len(others) == 3
    for row in record["rows"]:
        assert "error" not in row and row["seconds"] > 0
        assert f"| {row['name']} |" in printed
    encoded, fast, blocks = (row["tokens"] for row in others)
    # An end-of-text token a document more; what is left of a last block less.
    assert encoded == fast < ours["tokens"] < 1.05 * fast
    assert 0.9 * encoded < blocks <= encoded


@pytest.mark.slow
def test_preparing_is_measured_by_memory_and_by_stage(tmp_path):
    small = ["--vocab", "300", "--folder", str(tmp_path)]
    if sys.platform == "linux":
        _, (record,) = run_any("corpus", tmp_path, "--memory", "20000", *small)
        (row,) = record["rows"]
        # Of Python with all libraries at least.
        assert row["bytes"] == 20000 and row["peak_memory_bytes"] > 50_000_000 and row["seconds"] > 0
    printed, records = run_any("corpus", tmp_path, "--stages", "20000", *small)
    stages = [row["name"] for row in records[-1]["rows"]]
    assert stages == ["read", "clean", "deduplicate", "tokenizer", "tokenize", "shards"]
    assert all(f"| {stage} |" in printed for stage in stages)
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
