"""Under DeepSpeed ZeRO-3 the loss without logits, and training by it, are those of the whole model.

The output layer's weight is whole only while it is used, and its gradient, made in the forward pass, must still reach
its partitions. Two processes over gloo, each with a row of its own; tied and untied heads, float32 and bfloat16, with
activations kept and recomputed. One launch makes all checks (zero3_checks.py); the tests here read its numbers.
"""

import importlib.util

import pytest
from checks import Results, launch_checks, numbers


# Not imported here: that takes seconds, and fixes the device for all other tests.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the package deepspeed")

EXACT = ["tied", "untied", "tied, checkpointed", "untied, checkpointed", "tied, one row without a loss"]
ROUNDED = ["tied, bfloat16", "untied, bfloat16"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each process found."""
    return launch_checks("zero3_checks.py", tmp_path_factory.mktemp("zero3"), DS_ACCELERATOR="cpu")


@pytest.mark.parametrize("check", EXACT + ROUNDED)
def test_each_process_holds_half_of_each_parameter_before_and_after_a_step(results, check):
    found = numbers(results, check)
    assert found["not partitioned at first"] == found["not partitioned at last"] == 0
    assert found["tied"] == check.startswith("tied")


@pytest.mark.parametrize("check", EXACT + ROUNDED)
def test_loss_without_logits_is_that_of_the_whole_model_with_them(results, check):
    """In bfloat16 too: the softmax of both is in float32."""
    found = numbers(results, check)
    assert found["rows differ by"] > 0.01
    assert found["logits in training"] == 0
    assert found["loss"] < 1e-5


@pytest.mark.parametrize(("check", "tolerance"), [*((check, 1e-5) for check in EXACT), *((c, 0.05) for c in ROUNDED)])
def test_gradients_are_the_mean_of_the_whole_model_s_over_processes(results, check, tolerance):
    """The tied weight's is the sum of those of the embeddings and of the head; a row without a loss adds nothing."""
    assert numbers(results, check)["gradients"] < tolerance


@pytest.mark.parametrize(("check", "tolerance"), [*((check, 1e-4) for check in EXACT), *((c, 0.05) for c in ROUNDED)])
def test_one_step_moves_the_weights_as_the_whole_model_s_gradients_say(results, check, tolerance):
    assert numbers(results, check)["step"] < tolerance


@pytest.mark.parametrize("check", EXACT + ROUNDED)
def test_evaluation_has_the_logits_of_the_whole_model(results, check):
    found = numbers(results, check)
    assert found["logits"] < 1e-5
    assert found["logits of few tokens"] < 1e-5
