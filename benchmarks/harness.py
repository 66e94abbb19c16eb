"""Peers beside each other: each in a process of its own, timed in turn, compared by medians of ratios.

A shared machine drifts by tens of per cent within a minute. Peers that take turns drift together, so that the ratio of
neighbouring turns means something where a time alone does not; and a process of its own makes peak memory a figure of
one peer. This module imports no torch: the parent process must stay small beside its peers.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


# Runs once. May return figures, among them the `seconds` that count if those are not the whole run's.
Run = Callable[[], "dict[str, Any] | None"]


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """The arguments that every benchmark takes."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"turns of each peer that count (default: {rounds})"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of a peer on a CPU (default: 2)")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the results to FILE, one JSON object a line")


class Peer:
    """A process that builds something once and runs it when asked.

    Args:
        name: As printed.
        build: A function at a module's top level; it gets `options` and `device`, and its result is called to run.
    """

    def __init__(self, name: str, build: Callable[..., Run], options: dict[str, Any], device: str, threads: int):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, options, device, threads), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, request: str) -> Any:
        """The peer's answer to "run" (its figures) or "memory" (bytes: highest so far, and how much of it by running)."""
        try:
            with suppress(BrokenPipeError):  # one that has failed has said why before it went
                self.connection.send(request)
            status, answer = self.connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}: the process ended (exit code {self.process.exitcode})") from None
        if status == "error":
            raise RuntimeError(f"{self.name}: {answer}")
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()


def _serve(connection: Any, build: Callable[..., Run], options: dict[str, Any], device: str, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        run = build(device=device, **options)
        built = torch.cuda.memory_allocated() if device == "cuda" else resident_bytes("VmRSS")
        while True:
            if connection.recv() == "memory":
                peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident_bytes("VmHWM")
                connection.send(("ok", {"peak_memory_bytes": peak, "added_memory_bytes": peak - built}))
                continue
            _synchronize(device)
            start = time.perf_counter()
            figures = run() or {}
            _synchronize(device)
            connection.send(("ok", {"seconds": time.perf_counter() - start, **figures}))
    except EOFError:
        return
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def resident_bytes(field: str) -> int:
    """Resident memory of this process, now (`VmRSS`) or the highest so far (`VmHWM`).

    Not by `getrusage`, whose maximum includes the parent's before exec. Elsewhere than on Linux there is only that.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def compare(
    peers: Sequence[tuple[str, Callable[..., Run], dict[str, Any]]],
    arguments: argparse.Namespace,
    warmup: int = 1,
) -> list[dict[str, Any]]:
    """Run peers in turn, the first being the one that the others are compared with.

    Returns:
        For each peer its name and last figures; seconds (median); peak_memory_bytes, and added_memory_bytes, by how
        much the peak is above what was there before the first run; and time_ratio, its seconds over the first peer's:
        the median over rounds, the lowest and the highest. A peer that fails has `error` instead.
    """
    device = pick_device(arguments.device)
    results: list[dict[str, Any]] = [{"name": name} for name, _, _ in peers]
    running: list[Peer | None] = []
    times: list[list[float]] = [[] for _ in peers]
    try:
        for name, build, options in peers:
            running.append(Peer(name, build, options, device, arguments.threads))
        for turn in range(warmup + arguments.rounds):
            for index, peer in enumerate(running):
                if peer is None:
                    continue
                try:
                    figures = peer.ask("run")
                except RuntimeError as error:
                    print(error, file=sys.stderr)
                    results[index]["error"] = str(error)
                    peer.close()
                    running[index] = None
                    continue
                results[index].update(figures)
                if turn >= warmup:
                    times[index].append(figures["seconds"])
            if sys.stderr.isatty():
                print(f"\rround {turn + 1} of {warmup + arguments.rounds}", end="", file=sys.stderr)
        if sys.stderr.isatty():
            print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
        for index, peer in enumerate(running):
            if peer is None:
                continue
            results[index]["seconds"] = statistics.median(times[index])
            results[index].update(peer.ask("memory"))
            if running[0] is not None:
                ratios = [mine / first for mine, first in zip(times[index], times[0])]
                results[index]["time_ratio"] = [statistics.median(ratios), min(ratios), max(ratios)]
    finally:
        for peer in running:
            if peer is not None:
                peer.close()
    return results


def pick_device(asked: str) -> str:
    """`cuda` or `cpu`. In a process of its own, so that this one stays without torch."""
    if asked != "auto":
        return asked
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return "cuda" if pool.apply(_cuda_is_available) else "cpu"


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def describe(device: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Device, versions and sizes: printed, and returned for the record."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        machine = pool.apply(_describe, (device,))
    for described in (machine, sizes):
        print(", ".join(f"{name} {value}" for name, value in described.items()))
    return {**machine, **sizes}


def _describe(device: str) -> dict[str, str]:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "device": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    special = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(special)})" if special else name


def report(title: str, rows: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "-|" * len(columns))
    for row in rows:
        if "error" in row:
            print(f"| {row['name']} | {row['error']}" + " |" * (len(columns) - 1))
        else:
            print("| " + " | ".join(make(row) for make in columns.values()) + " |")
    sys.stdout.flush()


def ratio(values: list[float], inverse: bool = False) -> str:
    """`median (lowest to highest)`; the inverse of a ratio of times is one of speeds."""
    median, low, high = (1.0 / values[0], 1.0 / values[2], 1.0 / values[1]) if inverse else values
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def save(path: Path | None, record: dict[str, Any]) -> None:
    """Append one result."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
