"""What makes a checkpoint whole, which is resumed from, and which are deleted."""

import json
import re

import pytest
import torch
from fault_tools import flip_a_bit
from safetensors.torch import save_file

from hfgpt.training.checkpoints import (
    MANIFEST_FILE,
    files_below,
    fingerprints,
    hash_files,
    latest_complete_checkpoint,
    list_checkpoints,
    publish,
    remove_incomplete,
    rotate,
    weights_problem,
    why_incomplete,
    write_manifest,
)


NAMES = ["model.safetensors", "global_step4/optimizer.pt", "trainer_state.json"]


def make(folder):
    (folder / "global_step4").mkdir(parents=True)
    save_file({"weight": torch.ones(16, 16)}, folder / "model.safetensors")
    torch.save({"state": {}}, folder / "global_step4" / "optimizer.pt")
    (folder / "trainer_state.json").write_text("{}")
    write_manifest(folder, hash_files(folder, files_below(folder), sync=True))
    return folder


@pytest.fixture
def run_dir(tmp_path):
    for step in (4, 8, 12):
        make(tmp_path / f"checkpoint-{step}")
    return tmp_path


def steps(folder):
    return [int(found.name.split("-")[1]) for found in list_checkpoints(folder)]


def test_the_newest_is_by_step_not_by_name(run_dir):
    assert steps(run_dir) == [12, 8, 4]
    assert latest_complete_checkpoint(run_dir).name == "checkpoint-12"
    assert latest_complete_checkpoint(run_dir, up_to_step=11).name == "checkpoint-8"
    assert latest_complete_checkpoint(run_dir, up_to_step=3) is None


def test_none_where_there_is_none(tmp_path):
    assert latest_complete_checkpoint(tmp_path) is None
    assert latest_complete_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("damage", "words"),
    [("cut", r"has \d+ bytes, not \d+"), ("missing", "is missing"), ("flipped", "is not what was written")],
)
def test_a_damaged_checkpoint_is_passed_over_by_the_name_of_its_file(run_dir, name, damage, words):
    file = run_dir / "checkpoint-12" / name
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        flip_a_bit(file)

    assert re.fullmatch(f"{name} {words}", why_incomplete(run_dir / "checkpoint-12"))
    assert latest_complete_checkpoint(run_dir).name == "checkpoint-8"


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"files": {"a": 1}}', '{"files": {"a": {"bytes": 1}}}'])
def test_a_manifest_that_says_nothing_is_damage(run_dir, text):
    manifest = run_dir / "checkpoint-12" / MANIFEST_FILE
    manifest.unlink() if text is None else manifest.write_text(text)
    assert why_incomplete(run_dir / "checkpoint-12").startswith(f"{MANIFEST_FILE} ")
    assert latest_complete_checkpoint(run_dir).name == "checkpoint-8"


def test_a_file_that_cannot_be_read_is_damage(run_dir, monkeypatch):
    def failing(path, sync=False):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hfgpt.manifest.hash_file", failing)
    assert "cannot be read: [Errno 5]" in why_incomplete(run_dir / "checkpoint-12")


def test_folders_that_are_no_checkpoints_are_ignored(run_dir):
    for name in ("checkpoint-best", "checkpoint-99.tmp", "incomplete-checkpoint-99"):
        (run_dir / name).mkdir()
    (run_dir / "checkpoint-100").write_text("a file")
    assert latest_complete_checkpoint(run_dir).name == "checkpoint-12"


def test_publishing_takes_the_place_of_a_folder_of_that_name(run_dir):
    source = make(run_dir / "incomplete-checkpoint-12" / "checkpoint-12")
    (source / "new").write_text("")
    publish(source, run_dir / "checkpoint-12")
    assert (run_dir / "checkpoint-12" / "new").exists() and not source.exists()
    assert list(run_dir.glob("incomplete-deleted-*")) == []
    remove_incomplete(run_dir)
    assert steps(run_dir) == [12, 8, 4] and list(run_dir.glob("incomplete-*")) == []


@pytest.mark.parametrize(
    ("last", "every", "kept"),
    [(None, None, [12, 8, 4]), (2, None, [12, 8]), (1, 4, [12, 8, 4]), (1, 8, [12, 8]), (1, 5, [12]), (0, None, [12])],
)
def test_the_last_and_multiples_are_kept(run_dir, last, every, kept):
    deleted = rotate(run_dir, last, every)
    assert steps(run_dir) == kept
    assert sorted(int(folder.name.split("-")[1]) for folder in deleted) == sorted({4, 8, 12} - set(kept))


def test_weights_are_compared_with_what_was_to_be_saved(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}
    expected = fingerprints({**tensors, "tied": tensors["a"]})
    save_file(tensors, tmp_path / "model.safetensors")
    assert weights_problem(tmp_path, expected, tied={"tied"}) is None
    assert "tied" in weights_problem(tmp_path, expected)
    for name, wrong in (("a", tensors["a"] + 1), ("a", tensors["a"].reshape(3, 2)), ("b", torch.ones(2))):
        save_file({**tensors, name: wrong}, tmp_path / "model.safetensors")
        assert weights_problem(tmp_path, expected, tied={"tied"}).startswith(f"{name} was to be")
    save_file({**tensors, "more": torch.ones(1)}, tmp_path / "model.safetensors")
    assert weights_problem(tmp_path, expected, tied={"tied"}) == "more was not to be written"
    (tmp_path / "model.safetensors").unlink()
    assert "4 of 4 weights were not written" in weights_problem(tmp_path, expected)


def test_the_manifest_has_the_bytes_of_every_file(run_dir):
    files = json.loads((run_dir / "checkpoint-4" / MANIFEST_FILE).read_text())["files"]
    assert sorted(files) == sorted(NAMES)
    for name, entry in files.items():
        assert entry["bytes"] == (run_dir / "checkpoint-4" / name).stat().st_size
