"""Execute notebooks from the first cell to the last and keep what they print and draw.

    python notebooks/execute.py                                # all of them, in place
    python notebooks/execute.py notebooks/03*.ipynb            # some of them

The one that pushes to the Hub meets a server on this machine, unless `--real-hub` is given.

Each runs beside its file, as in Jupyter, in a new kernel of this Python; what its runs left before (`out/NAME`) is removed
first, so that nothing is resumed.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


FOLDER = Path(__file__).resolve().parent
TIMEOUT = 1800  # seconds a cell may take
# Else DeepSpeed, where it is installed, tells that it has found no GPU.
QUIET = {} if shutil.which("nvidia-smi") else {"DS_ACCELERATOR": "cpu"}


def read(path: str | Path) -> Any:
    """A notebook."""
    return nbformat.read(path, as_version=4)


def with_parameters(notebook: Any, parameters: dict[str, Any]) -> Any:
    """A copy with other values for names that its cell tagged "parameters" sets.

    Raises:
        ValueError: There is no such cell, or it does not set such a name.
    """
    notebook = nbformat.from_dict(notebook)
    place = next((i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])), None)
    if place is None:
        raise ValueError("The notebook has no cell tagged `parameters`: leave out the parameters, or tag one.")
    names: dict[str, Any] = {}
    exec(notebook.cells[place].source, names)
    unknown = sorted(set(parameters) - set(names))
    if unknown:
        known = ", ".join(name for name in names if name.isupper())
        raise ValueError(f"The notebook has no parameter {', '.join(unknown)}; its parameters are {known}.")
    source = "".join(f"{name} = {value!r}\n" for name, value in parameters.items())
    cell = nbformat.v4.new_code_cell(source.strip(), metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(place + 1, cell)
    return notebook


def digest(notebook: Any) -> str:
    """Of its code, to tell whether its outputs are of that code."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def execute(
    notebook: Any, folder: str | Path, timeout: int = TIMEOUT, environment: dict[str, str] | None = None
) -> Any:
    """The notebook, executed in place with `folder` as its working directory, and with the environment of this process
    unless another is given.

    Raises:
        RuntimeError: A cell fails; the notebook has the outputs up to there.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(env={**(environment or os.environ), **QUIET})
    except CellExecutionError:
        # The first error is told below: after one in a cell with `%%capture` the next cell runs all the same.
        if not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", [])):
            raise
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)  # times of day
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise RuntimeError(f"Cell {number}: {output.ename}: {output.evalue}")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "accelerator": "GPU",  # in Colab, if there is one
            "executed": digest(notebook),
        }
    )
    return notebook


@contextmanager
def local_hub() -> Iterator[dict[str, str]]:
    """A Hub on this machine with user kim, and the environment in which everything goes there."""
    sys.path.insert(0, str(FOLDER.parent / "tests"))
    from hub_server import HubServer

    with tempfile.TemporaryDirectory() as folder, HubServer(Path(folder) / "hub") as server:
        server.add_user("kim", token="hf_kim")
        yield server.environment("hf_kim", home=Path(folder) / "home")


def main(argv: list[str] | None = None) -> int:
    """Execute notebooks in place; 1 where one of them failed, whose file stays as it was."""
    parser = argparse.ArgumentParser(description="Execute notebooks and keep their outputs.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="Default: all in this folder.")
    parser.add_argument("--real-hub", action="store_true", help="Let 04 push to the real Hub, as who is logged in.")
    options, failed = parser.parse_args(argv), False
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        begun = time.perf_counter()
        shutil.rmtree(path.parent / "out" / path.stem, ignore_errors=True)
        notebook = read(path)
        try:
            with local_hub() if path.stem.endswith("hub") and not options.real_hub else nullcontext() as environment:
                execute(notebook, path.resolve().parent, environment=environment)
        except (CellExecutionError, RuntimeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        nbformat.write(notebook, path)
        print(
            f"{path}: {time.perf_counter() - begun:.0f} s, {path.stat().st_size / 1000:.0f} kB",
            file=sys.stderr,
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
