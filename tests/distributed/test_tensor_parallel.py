"""A model split over two processes, by tensors, by shards or by blocks, is the whole model.

Loaded by transformers' own plans (`DistributedConfig`): tensor parallel and FSDP2 forward, loss, gradients and saving,
pipelined inference. One launch makes all checks (parallel_checks.py); the tests here read its numbers.
"""

import json
from pathlib import Path

import pytest
from helpers import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("parallel")
    run(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
        str(Path(__file__).parent / "parallel_checks.py"), folder,
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    return json.loads((folder / "results.json").read_text())


def numbers(results: dict[str, dict], check: str) -> dict[str, float]:
    assert "error" not in results[check], results[check]["error"]
    return results[check]


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_tensor_parallel_model_is_the_whole_model(results, head):
    found = numbers(results, f"tensor parallel, {head}")
    assert found["embeddings are split"] == found["head is split"] == found["queries are split"] == 1
    assert found["tied"] == (head == "tied")
    assert found["logits"] < 1e-5
    assert found["generated"] == 0


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_tensor_parallel_training_is_that_of_the_whole_model(results, head):
    """In training the loss is made without logits where the head is whole; here it is split, which must be noticed."""
    found = numbers(results, f"tensor parallel, {head}")
    assert found["loss"] < 1e-5
    assert found["gradients"] < 1e-5


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_tensor_parallel_model_is_saved_whole(results, head):
    assert numbers(results, f"tensor parallel, {head}")["saved"] == 0


def test_tensor_parallel_classifier_is_the_whole_one(results):
    found = numbers(results, "tensor parallel, classifier")
    assert found["logits"] < 1e-5
    assert found["gradients"] < 1e-5


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("way", ["plan", "block"])
def test_sharded_training_is_that_of_one_process_over_both_rows(results, way, head):
    """Gradients are the mean over processes; the loss needs no logits, and finds the whole head all the same."""
    found = numbers(results, f"sharded by {'the ' if way == 'plan' else ''}{way}, {head}")
    assert found["embeddings are split"] == found["head is split"] == found["norm is split"] == 1
    assert found["logits"] < 1e-5
    assert found["logits in training"] == 0
    assert found["loss"] < 1e-5
    assert found["gradients"] < 1e-5


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_pipelined_inference_is_that_of_one_process(results, head):
    found = numbers(results, f"pipeline, {head}")
    assert found["blocks on this process"] == 2
    assert found["logits"] < 1e-5
    assert found["logits after padding"] < 1e-5
    assert found["generated"] == 0
