"""Checks that run in two processes: each writes down what it found, and a test reads both.

A script of checks ends with `run_checks(CHECKS)`; its test starts it by `launch_checks` and reads `numbers`.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist


Results = list[dict[str, dict]]


def run_checks(checks: dict[str, Callable[[Path], dict[str, float]]]) -> None:
    """In each process, once `torch.distributed` is set up: run the checks in order, then end the process.

    Writes FOLDER/rank<n>.json, {check: {quantity: number}}, after each. A check that raises leaves its traceback under
    "error" in place of numbers.
    """
    folder = Path(sys.argv[1])
    results: dict[str, dict[str, float] | dict[str, str]] = {}
    for number, (name, check) in enumerate(checks.items()):
        try:
            results[name] = check(folder / str(number))
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results, indent=1))
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads can abort the interpreter at exit


def launch_checks(script: str, folder: Path, **env: str) -> Results:
    """What each of two processes that run a script of this folder found."""
    from helpers import run

    done = run(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
        str(Path(__file__).parent / script), folder,
        check=False, HF_HUB_OFFLINE="1", **env,
    )  # fmt: skip
    files = sorted(folder.glob("rank*.json"))
    assert len(files) == 2, done.stderr
    return [json.loads(file.read_text()) for file in files]


def numbers(results: Results, check: str) -> dict[str, float]:
    """The worst of both processes; fails with their words where one failed, or did not come so far."""
    failures = [rank.get(check, {"error": "did not run"}).get("error") for rank in results]
    assert failures == [None, None], "\n".join(filter(None, failures))
    return {quantity: max(rank[check][quantity] for rank in results) for quantity in results[0][check]}
