"""A model split over two processes, by tensors, by shards or by blocks, is the whole model.

Loaded by transformers' own plans (`DistributedConfig`): tensor parallel and FSDP2 forward, loss, gradients and saving,
pipelined inference; and by PyTorch's pipeline, which also trains. One launch makes all checks (parallel_checks.py); the
tests here read its numbers.
"""

import pytest
from checks import Results, launch_checks, numbers


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each process found."""
    return launch_checks("parallel_checks.py", tmp_path_factory.mktemp("parallel"))


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


def test_pipeline_of_a_traced_graph_trains_as_one_process(results):
    found = numbers(results, "pipeline of a traced graph")
    assert found["parameters missing"] == 0
    assert found["logits"] < 1e-5
    assert found["loss"] < 1e-5
    assert found["gradients"] < 1e-5
