"""What the model says of how it may be split: over devices by tensors, by shards and by blocks, and to CPU and disk.

The plans themselves, against the model's modules. That a model split by them computes the same is shown with real
processes in tests/distributed/test_tensor_parallel.py.
"""

import inspect
import re

import pytest
import torch
from accelerate import (
    cpu_offload,
    dispatch_model,
    infer_auto_device_map,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)
from tiny_models import make_ids, make_model, tiny_config
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.distributed.fsdp import ALL_FSDP_STYLES, _resolve_tied_embed_lm_head_plan
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

from hfgpt import (
    GPT3Config,
    GPT3ForCausalLM,
    GPT3ForQuestionAnswering,
    GPT3ForSequenceClassification,
    GPT3ForTokenClassification,
    GPT3Model,
)


HEADS = [GPT3ForSequenceClassification, GPT3ForTokenClassification, GPT3ForQuestionAnswering]
MODELS = [GPT3Model, GPT3ForCausalLM, *HEADS]
every_model = pytest.mark.parametrize("model_class", MODELS, ids=lambda model_class: model_class.__name__)

# On every process whole: looked up by position, or as small as the hidden size, or as the number of labels.
REPLICATED = re.compile(
    r"(model\.)?(embed_positions|norm|layers\.\*\.\w+_layernorm)\.(weight|bias)|(score|qa_outputs)\..*"
)


def generic(name: str) -> str:
    """`layers.3.mlp` as plans write it."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def meta_model(model_class: type, **overrides) -> nn.Module:
    with torch.device("meta"):
        return model_class(tiny_config(**overrides))


# Tensor parallel


@every_model
def test_tensor_parallel_plan_names_modules_that_exist_and_styles_that_are_known(model_class):
    model = meta_model(model_class)
    assert model.supports_tp_plan
    modules = {generic(name) for name, _ in model.named_modules()}
    assert model.tp_plan.keys() <= modules
    assert set(model.tp_plan.values()) <= set(ALL_PARALLEL_STYLES)


@every_model
def test_tensor_parallel_plan_splits_every_matrix_but_those_replicated_on_purpose(model_class):
    model = meta_model(model_class, tie_word_embeddings=False)
    whole = {
        generic(name) for name, _ in model.named_parameters() if generic(name).rpartition(".")[0] not in model.tp_plan
    }
    assert [name for name in whole if not REPLICATED.fullmatch(name)] == []


def test_tensor_parallel_plan_splits_what_one_layer_makes_as_the_next_takes_it():
    """Columns into rows: each process holds whole heads, and the sum over processes is at the end of a branch."""
    plan = GPT3Config.base_model_tp_plan
    residual = {name for name, style in plan.items() if style == "rowwise"}
    assert residual == {"layers.*.self_attn.o_proj", "layers.*.mlp.down_proj"}
    assert {name for name, style in plan.items() if style == "colwise"} == {
        "layers.*.self_attn.q_proj",
        "layers.*.self_attn.k_proj",
        "layers.*.self_attn.v_proj",
        "layers.*.mlp.up_proj",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_tensor_parallel_plan_splits_the_head_as_the_embeddings_it_may_be_tied_to(tied):
    plan = meta_model(GPT3ForCausalLM, tie_word_embeddings=tied).tp_plan
    # Both by words; the head's slices of logits are gathered.
    assert plan["model.embed_tokens"] == "embedding_rowwise"
    assert plan["lm_head"] == "colwise_gather_output"


# Sharded data parallel


@every_model
def test_sharding_plan_names_modules_that_exist_and_covers_every_block(model_class):
    model = meta_model(model_class)
    modules = {generic(name) for name, _ in model.named_modules()}
    assert model.fsdp_plan.keys() <= modules
    assert set(model.fsdp_plan.values()) <= set(ALL_FSDP_STYLES)
    prefix = "" if model_class is GPT3Model else "model."
    assert {f"{prefix}{name}" for name in ("embed_tokens", "layers.*", "norm")} <= model.fsdp_plan.keys()


@pytest.mark.parametrize("tied", [True, False])
def test_sharding_plan_gathers_a_tied_weight_once(tied):
    model = meta_model(GPT3ForCausalLM, tie_word_embeddings=tied)
    plan = _resolve_tied_embed_lm_head_plan(model.fsdp_plan, model)
    assert plan["model.norm"] == "keep_full_weight"
    if tied:
        assert "lm_head" not in plan
        assert plan["model.embed_tokens"] == "keep_full_weight"
    else:
        assert plan["lm_head"] == "keep_full_weight"
        assert plan["model.embed_tokens"] == "free_full_weight"


# Pipeline parallel


@every_model
def test_pipeline_plan_names_modules_that_exist_in_the_order_in_which_they_run(model_class):
    model = meta_model(model_class)
    assert model.supports_pp_plan
    modules = [name for name, _ in model.named_modules()]
    assert [name for name in modules if name in model.pp_plan] == sorted(model.pp_plan, key=modules.index)
    assert model.pp_plan.keys() <= set(modules)
    # All that holds weights is on some stage (the heads of `Generic...` have no plan).
    prefix = "" if model_class is GPT3Model else "model."
    children = {f"{prefix}{name}" for name, _ in model.base_model.named_children()}
    assert children <= model.pp_plan.keys()


def test_pipeline_plan_chains_what_modules_return_to_what_the_next_take():
    model = meta_model(GPT3ForCausalLM)
    plan = model.pp_plan
    arguments = {"input_ids", "position_ids", "attention_mask", *inspect.signature(model.forward).parameters}
    # Made inside the base model's forward: the sum of the two embeddings.
    known = arguments | {"hidden_states"}
    for name in ("model.embed_tokens", "model.embed_positions", "model.layers", "model.norm", "lm_head"):
        inputs, outputs = plan[name]
        assert set(inputs) <= known, name
        known |= set(outputs)
    assert plan["lm_head"][1] == ["logits"]
    layer = inspect.signature(model.model.layers[0].forward).parameters
    assert set(plan["model.layers"][0]) <= layer.keys()


# Devices of one process


@every_model
def test_module_that_must_stay_on_one_device_is_the_block(model_class):
    model = meta_model(model_class)
    # Older transformers keep the class's list, newer ones make a set of it.
    assert set(model._no_split_modules) == {type(model.base_model.layers[0]).__name__}


@pytest.mark.parametrize("tied", [True, False])
def test_model_spread_over_memory_and_disk_gives_equal_logits(tmp_path, tied):
    model, ids = make_model(tie_word_embeddings=tied), make_ids(2, 20)
    expected = model(ids).logits
    with init_empty_weights():
        empty = GPT3ForCausalLM(model.config)
    empty.tie_weights()
    sizes = {"cpu": 150_000, "disk": 10**9}
    device_map = infer_auto_device_map(empty, max_memory=sizes, no_split_module_classes=model._no_split_modules)
    assert set(device_map.values()) == {"cpu", "disk"}
    blocks = {name for name in device_map if name.startswith("model.layers.")}
    assert all(re.fullmatch(r"model\.layers\.\d+", name) for name in blocks)  # none is cut

    dispatched = dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path)
    assert any(parameter.device.type == "meta" for parameter in dispatched.parameters())
    with torch.no_grad():
        assert torch.equal(dispatched(ids).logits, expected)
        prompt, mask = ids[:, :10], torch.ones(2, 10, dtype=torch.long)
        tokens = dispatched.generate(prompt, attention_mask=mask, max_new_tokens=4, do_sample=False)
    plain = make_model(tie_word_embeddings=tied)
    assert torch.equal(tokens, plain.generate(prompt, attention_mask=mask, max_new_tokens=4, do_sample=False))


def test_checkpoint_is_loaded_to_memory_and_disk_with_equal_logits(tmp_path):
    model, ids = make_model(), make_ids(2, 20)
    model.save_pretrained(tmp_path / "saved")
    parts = ["model.embed_tokens", "model.embed_positions", "model.norm", "lm_head"]
    device_map = dict.fromkeys(parts, "cpu") | {
        f"model.layers.{layer}": ("cpu", "disk")[layer % 2] for layer in range(4)
    }
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert loaded.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)

    with init_empty_weights():
        empty = GPT3ForCausalLM(model.config)
    empty.tie_weights()
    loaded = load_checkpoint_and_dispatch(
        empty, tmp_path / "saved", device_map={"": "cpu"}, no_split_module_classes=model._no_split_modules
    )
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_training_loss_of_weights_offloaded_layer_by_layer_is_that_of_those_in_memory():
    """The head makes the loss itself, so that its weight is there when hooks bring it in for its forward alone."""
    model, plain, ids = (
        make_model(tie_word_embeddings=False).train(),
        make_model(tie_word_embeddings=False),
        make_ids(2, 20),
    )
    cpu_offload(model, execution_device="cpu")
    assert model.lm_head.weight.device.type == "meta"
    with torch.no_grad():
        output = model(ids, labels=ids, use_cache=False, skip_logits=True)
        assert output.logits is None
        torch.testing.assert_close(output.loss, plain(ids, labels=ids).loss, rtol=0, atol=1e-5)


# The meta device


@pytest.mark.parametrize("model_class", HEADS, ids=lambda model_class: model_class.__name__)
def test_head_built_on_the_meta_device_is_whole_once_initialised(model_class):
    torch.manual_seed(0)
    model = meta_model(model_class, hidden_size=64, num_labels=3)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []
    head = next(module for name, module in model.named_children() if name != "model" and list(module.parameters()))
    assert head.weight.std().item() == pytest.approx(0.02, rel=5 / (2 * head.weight.numel()) ** 0.5)
    residual = model.model.layers[0].mlp.down_proj.weight
    assert residual.std().item() == pytest.approx(0.02 / 8**0.5, rel=5 / (2 * residual.numel()) ** 0.5)
    assert model(make_ids(1, 12))[0].isfinite().all()


@every_model
def test_model_has_no_buffers_that_a_checkpoint_would_have_to_hold(model_class):
    """What is not a parameter would stay unset after `to_empty`, and be sent by DDP at every step."""
    assert list(meta_model(model_class).buffers()) == []
