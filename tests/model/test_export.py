"""Graphs of the model: exported by torch.export, to ONNX and for ExecuTorch, traced, and compiled for training.

A graph is made from one batch and must be right for others: other sizes, lengths below and above the window, padding.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, make_ids, make_model
from torch import nn
from torch.export import Dim

from hfgpt.model.banded_attention import block_size


LIMIT = TINY["max_position_embeddings"]
WINDOW = TINY["sliding_window"]
EXAMPLE = (2, 40)
# Batch and length: of one row, below the window, above it, of all positions.
OTHERS = [(1, 20), (3, WINDOW - 3), (2, LIMIT)]
assert EXAMPLE[1] > 2 * block_size(WINDOW)  # or a graph of the blocked band would not be noticed


def small_model(**overrides):
    """One dense and one banded layer, since graphs are slow to make."""
    return make_model(num_hidden_layers=2, **overrides)


def padded(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Ids, with padding on the left of the first row."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    return {"input_ids": make_ids(batch, length, seed=length), "attention_mask": mask}


class Logits(nn.Module):
    """The logits alone, of ids and mask alone: what a graph is asked for."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits


@torch.no_grad()
def assert_same_logits(graph: Callable, model: nn.Module, with_mask: bool = True, tolerance: float = 1e-5) -> None:
    for batch, length in [EXAMPLE, *OTHERS]:
        inputs = padded(batch, length)
        real = inputs["attention_mask"] == 1
        if not with_mask:
            del inputs["attention_mask"]
            real[:] = True
        logits, expected = graph(**inputs), model(**inputs).logits
        assert logits.shape == expected.shape
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=tolerance)


@torch.no_grad()
def export(model: nn.Module, strict: bool, with_mask: bool, length: Dim) -> torch.export.ExportedProgram:
    inputs = padded(*EXAMPLE)
    if not with_mask:
        del inputs["attention_mask"]
    shapes = {name: {0: Dim("batch") if length is not Dim.AUTO else Dim.AUTO, 1: length} for name in inputs}
    return torch.export.export(Logits(model), (), inputs, dynamic_shapes=shapes, strict=strict)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("implementation", "strict", "with_mask"),
    [("sdpa", True, True), ("eager", False, False)],
    ids=["sdpa, strictly", "eager"],
)
def test_exported_graph_is_the_model_at_every_length(tmp_path, implementation, strict, with_mask):
    model = small_model(attn_implementation=implementation)
    program = export(model, strict, with_mask, Dim("length", min=2, max=LIMIT))
    torch.export.save(program, tmp_path / "model.pt2")
    graph = torch.export.load(tmp_path / "model.pt2").module()
    assert_same_logits(graph, model, with_mask=with_mask)


def test_exported_graph_refuses_more_positions_than_the_model_has():
    graph = export(small_model(), strict=False, with_mask=False, length=Dim.AUTO).module()
    graph(input_ids=make_ids(2, LIMIT))
    with pytest.raises(AssertionError, match=f"<= {LIMIT}"):
        graph(input_ids=make_ids(2, LIMIT + 1))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced_graph_is_the_model_at_every_length():
    model = small_model()
    with torch.no_grad():
        graph = torch.jit.trace(Logits(model), tuple(padded(*EXAMPLE).values()))
    assert_same_logits(graph, model)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("cache", ["hybrid", "static"])
def test_step_exported_with_its_cache_decodes_past_the_window(cache):
    """What transformers prepares for ExecuTorch: a graph of one token, with the keys and values in its buffers."""
    from transformers.integrations.executorch import (
        TorchExportableModuleForDecoderOnlyLM,
        convert_and_export_with_cache,
    )

    model, ids = small_model(), make_ids(1, 3 * WINDOW)
    if cache == "hybrid":
        module = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=3 * WINDOW)
        program = module.export(ids[:, :1], cache_position=torch.tensor([0]), strict=False)
    else:
        model.generation_config.cache_implementation = "static"
        model.generation_config.cache_config = {"batch_size": 1, "max_cache_len": 3 * WINDOW}
        program = convert_and_export_with_cache(model, strict=False)
    step = program.module()
    logits = [step(input_ids=ids[:, at : at + 1], cache_position=torch.tensor([at])) for at in range(ids.shape[1])]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_graph_is_the_model_at_every_length(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = small_model(), padded(*EXAMPLE)
    torch.onnx.export(
        Logits(model),
        kwargs=inputs,
        f=str(tmp_path / "model.onnx"),
        dynamo=True,
        verbose=False,
        dynamic_shapes={name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs},
        input_names=list(inputs),
        output_names=["logits"],
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

    def graph(**inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["logits"], {name: ids.numpy() for name, ids in inputs.items()})[0])

    assert_same_logits(graph, model, tolerance=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["dynamo", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exporters_of_transformers_make_saved_graphs_of_the_model(tmp_path: Path, form):
    exporters = pytest.importorskip("transformers.exporters")
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        exporter, config = exporters.OnnxExporter(), exporters.OnnxConfig(dynamic=True)
    else:
        exporter, config = exporters.DynamoExporter(), exporters.DynamoConfig(dynamic=True)
    model = small_model()
    exporter.export(model, {**padded(*EXAMPLE), "use_cache": False}, config=config).save_pretrained(tmp_path)
    graph = exporters.ExportedModel.from_pretrained(tmp_path)
    assert graph.config.model_type == "gpt3"
    assert_same_logits(lambda **inputs: graph(**inputs).logits, model, tolerance=1e-4)


# Compiled


def training_step(model: Callable, length: int, batch: int = 2):
    ids = make_ids(batch, length, seed=length)
    labels = ids.clone()
    labels[:, :4] = -100
    output = model(ids, labels=labels, use_cache=False, skip_logits=True)
    output.loss.backward()
    return output


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_training_step_is_one_graph_with_equal_loss_and_gradients(fresh_compiler):
    model, plain = small_model().train(), small_model().train()
    # fullgraph raises at a graph break; aot_eager also differentiates the graph.
    output = training_step(torch.compile(model, fullgraph=True, backend="aot_eager"), 3 * WINDOW)
    expected = training_step(plain, 3 * WINDOW)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_compiled_training_step_is_not_compiled_again_for_another_number_of_tokens(fresh_compiler):
    """Fine-tuning pads each batch to a length of its own. One graph is for a dense band, one for a band in blocks,
    one for lengths that are whole blocks."""
    counter = torch._dynamo.testing.CompileCounter()
    model, plain = small_model().train(), small_model().train()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for batch, length in [(2, 20), (2, 37), (3, 41), (4, 22), (3, 48), (2, 64), (2, 51)]:
        loss, expected = training_step(compiled, length, batch).loss, training_step(plain, length, batch).loss
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert counter.frame_count <= 3
