import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from hfgpt.training.checkpoints import latest_complete_checkpoint, why_incomplete


@pytest.fixture
def run_dir(tmp_path):
    for step in (4, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.ones(16, 16)}, folder / "model.safetensors")
        torch.save({"state": {}}, folder / "optimizer.pt")
        torch.save({"last_epoch": step}, folder / "scheduler.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_is_by_step_not_by_name(run_dir):
    assert latest_complete_checkpoint(run_dir).name == "checkpoint-12"


def test_none_where_there_is_none(tmp_path):
    assert latest_complete_checkpoint(tmp_path) is None
    assert latest_complete_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_is_passed_over(run_dir, name, damage):
    file = run_dir / "checkpoint-12" / name
    cut(file) if damage == "cut" else file.unlink()
    assert why_incomplete(run_dir / "checkpoint-12")
    assert latest_complete_checkpoint(run_dir).name == "checkpoint-8"


def test_a_missing_shard_is_noticed(run_dir):
    folder = run_dir / "checkpoint-12"
    shutil.move(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"weight": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in why_incomplete(folder)


def test_folders_that_are_no_checkpoints_are_ignored(run_dir):
    (run_dir / "checkpoint-best").mkdir()
    (run_dir / "checkpoint-99.tmp").mkdir()
    assert latest_complete_checkpoint(run_dir).name == "checkpoint-12"
