"""Reading: packed batches of a weighted corpus beside the training step that they feed.

    python benchmarks/reading.py                          # 6 layers x 384, bf16, T = 2048, 200 MB of tokens
    python benchmarks/reading.py --preset gpt3-125m --batch-tokens 16384 --corpus-bytes 20_000_000_000   # on a GPU

The corpus is random tokens in five sources, mixed by the paper's weights. Reading is what the Trainer does in the
process that trains: find each sample in the order, copy it out of the shards, make a batch of it. "On disk" drops the
corpus from the page cache before every turn, so that each sequence is a random access to the disk; "in memory" leaves
it there. A step is forward and backward of a GPT-3 on as many tokens, without the optimizer.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness import add_arguments, compare, describe, pick_device, report, save
from training import add_sizes, make_model, read_sizes


# Table 2.2 of the paper: tokens in billions, and weights.
SOURCE_TOKENS = {"common_crawl": 410, "webtext2": 19, "books1": 12, "books2": 55, "wikipedia": 3}
WEIGHTS = {"common_crawl": 60, "webtext2": 22, "books1": 8, "books2": 8, "wikipedia": 3}


def write_corpus(folder: Path, corpus_bytes: int, vocab: int, length: int) -> None:
    """Random tokens as `hfgpt prepare` lays them out, the sources in the paper's proportions."""
    import numpy as np

    from hfgpt.data.packing import token_dtype

    generator, dtype = np.random.default_rng(0), token_dtype(vocab)
    sources = {}
    for name, share in SOURCE_TOKENS.items():
        tokens = max(corpus_bytes // dtype.itemsize * share // sum(SOURCE_TOKENS.values()), length)
        path = folder / "train" / name / "00000.bin"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            for start in range(0, tokens, 10_000_000):
                count = min(10_000_000, tokens - start)
                file.write(generator.integers(vocab, size=count, dtype=dtype.type).astype(dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())  # a page that is not on disk cannot be dropped
        shards = [{"file": str(path.relative_to(folder)), "tokens": tokens}]
        sources[name] = {"documents": 1, "tokens": tokens, "bytes": tokens, "shards": shards}
    train = {key: sum(source[key] for source in sources.values()) for key in ("documents", "tokens", "bytes")}
    train["shards"] = [shard for source in sources.values() for shard in source["shards"]]
    train["sources"] = sources
    metadata = {"dtype": dtype.str, "splits": {"train": train}, "weights": WEIGHTS}
    (folder / "metadata.json").write_text(json.dumps(metadata))


def build_step(
    device: str, sizes: dict[str, int], dtype: str, batch: int, length: int, **_: Any
) -> Callable[[], None]:
    """Forward and backward on one batch."""
    import torch

    model = make_model("gpt3", {**sizes, "positions": length}, "sdpa").to(device).train()
    model.config.use_cache = False
    ids = torch.randint(sizes["vocab"], (batch, length), device=device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16) if dtype == "bf16" else nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def build_reading(
    device: str, corpus: str, on_disk: bool, batches: int, batch: int, length: int, **_: Any
) -> Callable[[], dict[str, float]]:
    """So many batches by the Trainer's loader; `seconds` are those of one."""
    import time

    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    from hfgpt.data.packing import PackedDataset

    files = sorted(Path(corpus).rglob("*.bin"))
    turn = 0

    def run() -> dict[str, float]:
        nonlocal turn
        # Nobody has the files mapped between turns: a mapped page stays in memory whatever is advised.
        for path in files:
            with path.open("rb") as file:
                if on_disk:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while file.read(2**24):
                        pass
        dataset = PackedDataset(corpus, length, num_samples=batch * batches, seed=turn)
        turn += 1
        # Its order of a block is drawn once in 65,536 samples: counted in the figure, by its share.
        start = time.perf_counter()
        dataset.locate(0)
        drawing = time.perf_counter() - start
        start = time.perf_counter()
        for _ in DataLoader(dataset, batch_size=batch, collate_fn=default_data_collator):
            pass
        reading = (time.perf_counter() - start) / batches
        return {"seconds": reading + drawing * batch / 65_536}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048], metavar="T")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bf16"], default=["bf16"])
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in a step (default: 2048)")
    parser.add_argument("--batches", type=int, default=500, help="batches read in a turn (default: 500)")
    parser.add_argument("--corpus-bytes", type=int, default=200_000_000, help="default: 200 MB")
    parser.add_argument("--folder", type=Path, help="where to write the corpus (default: the system's temporary one)")
    add_sizes(parser)
    add_arguments(parser, rounds=3)
    arguments = parser.parse_args()
    sizes = read_sizes(arguments)
    device = pick_device(arguments.device)
    machine = describe(device, sizes)
    for length in arguments.lengths:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="reading-") as folder:
            write_corpus(Path(folder), arguments.corpus_bytes, sizes["vocab"], length)
            for dtype in arguments.dtypes:
                measure(arguments, folder, dtype, length, sizes, machine)


def measure(
    arguments: argparse.Namespace, folder: str, dtype: str, length: int, sizes: dict[str, int], machine: dict[str, Any]
) -> None:
    """Measure and report for one length and precision."""
    batch = max(arguments.batch_tokens // length, 1)
    options = {"sizes": sizes, "dtype": dtype, "batch": batch, "length": length}
    reading = {**options, "corpus": folder, "batches": arguments.batches}
    peers: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [("training step", build_step, options)]
    peers.append(("reading, in memory", build_reading, {**reading, "on_disk": False}))
    if hasattr(os, "posix_fadvise"):
        peers.append(("reading, on disk", build_reading, {**reading, "on_disk": True}))
    else:
        print("The page cache cannot be dropped here: only reading from memory is measured.", file=sys.stderr)
    rows = compare(peers, arguments)
    for row in rows:
        if "seconds" in row:
            row["tokens_per_second"] = batch * length / row["seconds"]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "peer": lambda row: row["name"],
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "ms / batch": lambda row: f"{row['seconds'] * 1e3:,.3f}",
        "time / training step's": lambda row: "{:.3%} ({:.3%} to {:.3%})".format(*row["time_ratio"]),
    }
    report(f"{dtype}, batch {batch} x {length:,}, corpus of {arguments.corpus_bytes:,} bytes", rows, columns)
    save(arguments.json, {"benchmark": "reading", **machine, "dtype": dtype, "length": length, "rows": rows})


if __name__ == "__main__":
    main()
