"""What a step of `pretrain` takes beside the same step in a bare PyTorch loop, and in transformers' own Trainer.

    python benchmarks/training_overhead.py                  # 6 layers x 384, float32, 4 x 128 tokens, one thread
    python benchmarks/training_overhead.py --steps 1        # the ratio of single steps, log lines aside

All train the same model on as many tokens, by fused AdamW with the gradients' norm clipped. The bare loop does nothing
else, and has its tokens in a tensor. `pretrain` is the whole command: it reads a prepared corpus of two weighted
sources by their order, sets the learning rate, looks at the gradients, asks all processes for signals, calls its
callbacks, and logs every 10 steps. So does the Trainer with the same dataset and its own loader, schedule and callbacks.

The peers take turns by single steps, so that what else the machine does falls on all of them; a ratio is of the time
of `--steps` steps in a row, by default 10 with their log line. The time that a process itself has computed (of all its
threads) is given, too: where others compute on the same cores it is the steadier figure, but one without waiting.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from harness import Peer, Run, add_arguments, describe, pick_device, report, save
from training import add_sizes, read_sizes


STEPS = 10**6  # in a run; it is never finished


def write_corpus(folder: Path, vocab: int) -> Path:
    """Made-up text of two weighted sources, prepared by the package."""
    import json
    import random

    from hfgpt.config import from_mapping
    from hfgpt.data.corpus import CorpusConfig, prepare

    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnoprstuvwy", k=drawn.randint(2, 9))) for _ in range(2 * vocab)]
    sources = []
    for name, documents in (("web", 3000), ("books", 600)):
        file = folder / f"{name}.jsonl"
        texts = (" ".join(drawn.choices(words, k=200)) for _ in range(documents))
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources.append({"name": name, "path": str(file), "weight": 3 if name == "web" else 2})
    recipe = {"sources": sources, "deduplicate": "exact", "tokenizer": {"vocab_size": vocab}}
    with open(folder / "prepare.log", "w") as log, redirect_stdout(log), redirect_stderr(log):
        prepare(from_mapping(CorpusConfig, recipe, "the benchmark's recipe"), folder / "corpus")
    return folder / "corpus"


def overrides(sizes: dict[str, int], length: int) -> dict[str, int]:
    """Fields of GPT3Config."""
    return {
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "num_attention_heads": sizes["heads"],
        "max_position_embeddings": length,
    }


def make_model(corpus: str, sizes: dict[str, int], length: int) -> Any:
    """The model that `pretrain` makes."""
    from transformers import AutoTokenizer

    from hfgpt import GPT3ForCausalLM
    from hfgpt.data.packing import read_metadata
    from hfgpt.training.arguments import PretrainConfig
    from hfgpt.training.pretrain import make_model_config

    config = PretrainConfig(corpus=corpus, model_overrides=overrides(sizes, length))
    tokenizer = AutoTokenizer.from_pretrained(Path(corpus) / "tokenizer")
    return GPT3ForCausalLM(make_model_config(config, read_metadata(corpus), tokenizer))


def build_bare_loop(device: str, corpus: str, sizes: dict[str, int], batch: int, length: int, **_: Any) -> Run:
    """A step of a loop as short as it can be."""
    import torch

    from hfgpt.data.packing import PackedDataset

    model = make_model(corpus, sizes, length).to(device).train()
    model.config.use_cache = False
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == matrices], "weight_decay": decay}
        for matrices, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    data = PackedDataset(corpus, length, 64 * batch)
    batches = torch.stack([data[index]["input_ids"] for index in range(64 * batch)]).view(64, batch, length)

    def train(pause: Callable[[], None]) -> None:
        for turn in range(STEPS):
            pause()
            ids = batches[turn % 64].to(device)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return in_turns(train)


def in_turns(train: Callable[[Callable[[], None]], None]) -> Run:
    """Take single steps of a loop that has its own end: it runs in a thread, and calls `pause` where a step begins."""
    import torch

    threads, go, done = torch.get_num_threads(), threading.Semaphore(0), threading.Semaphore(0)
    errors: list[BaseException] = []

    def pause() -> None:
        done.release()
        go.acquire()

    def work() -> None:
        torch.set_num_threads(threads)  # each thread has its own number
        try:
            train(pause)
            raise RuntimeError("the run has ended")
        except BaseException as error:
            errors.append(error)
        done.release()

    def step() -> dict[str, float]:
        computed = time.process_time()
        go.release()
        done.acquire()
        if errors:
            raise errors[0]
        return {"cpu_seconds": time.process_time() - computed}

    threading.Thread(target=work, daemon=True).start()
    done.acquire()  # set up, before the first step
    if errors:
        raise errors[0]
    return step


@contextmanager
def pausing(trainer: type, pause: Callable[[], None]) -> Iterator[None]:
    """A class of trainers that pauses before every step."""
    original = trainer.get_batch_samples  # type: ignore[attr-defined]

    def get_batch_samples(self: Any, *args: Any) -> Any:
        pause()
        return original(self, *args)

    trainer.get_batch_samples = get_batch_samples  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.get_batch_samples = original  # type: ignore[attr-defined]


def build_transformers(device: str, corpus: str, sizes: dict[str, int], batch: int, length: int, output: str) -> Run:
    """A step of transformers' Trainer."""
    from transformers import Trainer, TrainingArguments, default_data_collator
    from transformers.utils import logging

    from hfgpt.data.packing import PackedDataset

    logging.disable_progress_bar()
    trainer = Trainer(
        model=make_model(corpus, sizes, length),
        args=TrainingArguments(
            output_dir=f"{output}/transformers",
            per_device_train_batch_size=batch,
            max_steps=STEPS,
            learning_rate=1e-4,
            weight_decay=0.1,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
            optim="adamw_torch_fused",
            use_cpu=device == "cpu",
        ),
        train_dataset=PackedDataset(corpus, length, STEPS * batch),
        data_collator=default_data_collator,
    )

    def train(pause: Callable[[], None]) -> None:
        with pausing(Trainer, pause):
            trainer.train()

    return in_turns(train)


def build_pretrain(device: str, corpus: str, sizes: dict[str, int], batch: int, length: int, output: str) -> Run:
    """A step of `pretrain`, as a recipe runs it."""
    from hfgpt.training.arguments import PretrainConfig, PretrainingArguments
    from hfgpt.training.pretrain import pretrain
    from hfgpt.training.trainer import PretrainingTrainer

    config = PretrainConfig(corpus=corpus, sequence_length=length, model_overrides=overrides(sizes, length))
    args = PretrainingArguments(
        output_dir=f"{output}/pretrain",
        per_device_train_batch_size=batch,
        train_tokens=STEPS * batch * length,
        learning_rate=1e-4,
        eval_strategy="no",
        save_strategy="no",
        bf16=False,
        use_cpu=device == "cpu",
    )

    def train(pause: Callable[[], None]) -> None:
        with pausing(PretrainingTrainer, pause):
            pretrain(config, args)

    return in_turns(train)


BUILDS = {
    "bare PyTorch loop": build_bare_loop,
    "transformers' Trainer": build_transformers,
    "pretrain": build_pretrain,
}


def words(ratio: list[float]) -> str:
    """`median (lowest to highest)`, in tenths of a per cent."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*ratio)


def ratio_of(mine: list[float], first: list[float]) -> list[float]:
    """Median, lowest and highest of the ratios of pairs."""
    ratios = [a / b for a, b in zip(mine, first)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def measure(
    options: dict[str, Any], device: str, rounds: int, steps: int, threads: int, warmup: int
) -> list[dict[str, Any]]:
    """For each peer its seconds a step (median over rounds), and the ratio of its time to the bare loop's."""
    peers: list[Peer] = []
    try:
        for name, build in BUILDS.items():
            peers.append(Peer(name, build, options, device, threads))
        times: list[list[float]] = [[] for _ in peers]
        cpu_times: list[list[float]] = [[] for _ in peers]
        for turn in range(warmup + rounds):
            spent = [0.0 for _ in peers]
            computed = [0.0 for _ in peers]
            for step in range(steps):
                order = list(enumerate(peers))
                for index, peer in order if (turn * steps + step) % 2 else reversed(order):
                    figures = peer.ask("run")
                    spent[index] += figures["seconds"] / steps
                    computed[index] += figures["cpu_seconds"] / steps
            if turn >= warmup:
                for index in range(len(peers)):
                    times[index].append(spent[index])
                    cpu_times[index].append(computed[index])
        rows = []
        for peer, mine, computed in zip(peers, times, cpu_times):
            rows.append(
                {
                    "name": peer.name,
                    "seconds": statistics.median(mine),
                    "cpu_seconds": statistics.median(computed),
                    "time_ratio": ratio_of(mine, times[0]),
                    "cpu_time_ratio": ratio_of(computed, cpu_times[0]),
                    **peer.ask("memory"),
                }
            )
        return rows
    finally:
        for peer in peers:
            peer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step (default: 4)")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence (default: 128)")
    parser.add_argument("--steps", type=int, default=10, help="steps of which a ratio is taken (default: 10)")
    parser.add_argument("--warmup", type=int, default=1, help="turns that do not count (default: 1)")
    add_sizes(parser)
    add_arguments(parser, rounds=20)
    parser.set_defaults(threads=1, vocab=4096)
    arguments = parser.parse_args()
    sizes = read_sizes(arguments)
    device = pick_device(arguments.device)
    machine = describe(device, {**sizes, "threads": arguments.threads})
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        corpus = write_corpus(Path(folder), sizes["vocab"])
        options = {"sizes": sizes, "batch": arguments.batch, "length": arguments.length}
        rows = measure(
            {**options, "corpus": str(corpus), "output": folder},
            device, arguments.rounds, arguments.steps, arguments.threads, arguments.warmup,
        )  # fmt: skip
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "training step": lambda row: row["name"],
        "ms / step": lambda row: f"{row['seconds'] * 1e3:,.1f}",
        "time / bare loop's": lambda row: words(row["time_ratio"]),
        "CPU ms / step": lambda row: f"{row['cpu_seconds'] * 1e3:,.1f}",
        "CPU time / bare loop's": lambda row: words(row["cpu_time_ratio"]),
        "peak memory, GiB": lambda row: f"{row['peak_memory_bytes'] / 2**30:.2f}",
    }
    title = (
        f"float32, batch {arguments.batch} x {arguments.length}, {arguments.rounds} rounds of {arguments.steps} steps"
    )
    report(title, rows, columns)
    record = {"benchmark": "training_overhead", **machine, **options, "steps": arguments.steps}
    save(arguments.json, {**record, "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
