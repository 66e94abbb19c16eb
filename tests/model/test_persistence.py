"""What outlives a process or a change of form: copies, files, half precision, recomputation, new words, adapters.

Of the heads, too. Copying and saving of GPT3ForCausalLM alone are in test_modeling_gpt3.py.
"""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import TINY, make_ids, make_model, tiny_config
from torch import nn
from transformers import AutoModelForCausalLM

from hfgpt import (
    GPT3ForCausalLM,
    GPT3ForQuestionAnswering,
    GPT3ForSequenceClassification,
    GPT3ForTokenClassification,
    GPT3Model,
)


VOCAB = TINY["vocab_size"]
IDS = make_ids(2, 20)
IDS.clamp_(min=1)  # 0 pads
LABELS: dict[type, dict[str, torch.Tensor]] = {
    GPT3ForCausalLM: {"labels": IDS},
    GPT3ForSequenceClassification: {"labels": torch.tensor([0, 2])},
    GPT3ForTokenClassification: {"labels": IDS % 3},
    GPT3ForQuestionAnswering: {"start_positions": torch.tensor([1, 4]), "end_positions": torch.tensor([5, 6])},
}
every_head = pytest.mark.parametrize("model_class", list(LABELS), ids=lambda model_class: model_class.__name__)
tied_or_not = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def make_head(model_class: type, **overrides: Any) -> nn.Module:
    """A model whose weights are random, the same at every call."""
    torch.manual_seed(0)
    model = model_class(tiny_config(num_labels=3, pad_token_id=0, **overrides))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def scores(output: Any) -> torch.Tensor:
    """The logits of any head, in one tensor."""
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits])


# Copies and files


def by_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def by_torch_save(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


every_copy = pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, by_pickle, by_torch_save], ids=["deepcopy", "pickle", "torch.save"]
)


@every_copy
@every_head
def test_copy_of_a_head_is_equal_and_independent(duplicate, model_class):
    model = make_head(model_class)
    other = duplicate(model)
    expected = scores(model(IDS))
    assert type(other) is model_class
    assert other.config.to_dict() == model.config.to_dict()
    assert torch.equal(scores(other(IDS)), expected)
    if model_class is GPT3ForCausalLM:
        assert other.lm_head.weight is other.model.embed_tokens.weight
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(scores(model(IDS)), expected)


@every_copy
def test_copy_of_an_output_goes_on_from_a_cache_of_its_own(duplicate):
    model = make_model()
    with torch.no_grad():
        output = model(IDS, labels=IDS, output_hidden_states=True)
        other = duplicate(output)
        assert torch.equal(other.loss, output.loss)
        assert len(other.hidden_states) == len(output.hidden_states)
        longer = torch.cat([IDS, IDS[:, :3]], dim=1)
        # Each goes on alone: what one adds is not in the other.
        first = model(longer[:, -3:], past_key_values=output.past_key_values).logits
        second = model(longer[:, -3:], past_key_values=other.past_key_values).logits
    assert torch.equal(first, second)
    assert other.past_key_values.get_seq_length() == longer.shape[1]
    torch.testing.assert_close(second, model(longer).logits[:, -3:], rtol=0, atol=1e-5)


@every_copy
def test_copy_of_a_configuration_is_equal_and_independent(duplicate):
    config = tiny_config(num_labels=3)
    other = duplicate(config)
    assert other.to_dict() == config.to_dict()
    other.layer_types[0] = "sliding_attention"
    assert config.layer_types[0] == "full_attention"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_head
def test_head_is_saved_and_loaded_in_the_dtype_it_has(tmp_path, model_class, dtype):
    model = make_head(model_class).to(dtype)
    model.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    loaded, info = model_class.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert torch.equal(scores(loaded(IDS)), scores(model(IDS)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@every_head
def test_half_precision_of_every_head_is_finite_and_close_to_float32(model_class, implementation, dtype, tolerance):
    model = make_head(model_class, attn_implementation=implementation)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    expected = scores(model(IDS, attention_mask=mask))
    output = model.to(dtype)(IDS, attention_mask=mask, **LABELS[model_class])
    found = scores(output)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert output.loss.isfinite()
    # Behind padding nothing is asked for.
    real = slice(None) if model_class is GPT3ForSequenceClassification else mask == 1
    if model_class is GPT3ForQuestionAnswering:
        found, expected = found[:, real], expected[:, real]
    else:
        found, expected = found[real], expected[real]
    assert (found.float() - expected).abs().mean() < tolerance * expected.abs().mean()


# Recomputation


def enable_checkpointing(model: nn.Module, use_reentrant: bool) -> None:
    kwargs = {"use_reentrant": use_reentrant}
    # The older name is deprecated where there is a newer one.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs)
    else:
        model.gradient_checkpointing_enable(kwargs)


def train_once(model: nn.Module, model_class: type) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(1)
    model.train()
    model(IDS, use_cache=False, **LABELS[model_class]).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensors", "reentrant"])
@every_head
def test_recomputed_layers_draw_the_same_dropout_and_give_equal_gradients(model_class, use_reentrant):
    dropout = {"attention_dropout": 0.3, "residual_dropout": 0.3, "embedding_dropout": 0.2}
    expected = train_once(make_head(model_class, **dropout), model_class)
    without = train_once(make_head(model_class), model_class)
    assert any(not torch.equal(without[name], gradient) for name, gradient in expected.items())
    model = make_head(model_class, **dropout)
    enable_checkpointing(model, use_reentrant)
    found = train_once(model, model_class)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensors", "reentrant"])
def test_recomputed_layers_train_above_frozen_embeddings(use_reentrant):
    """As with adapters: nothing below the layers needs a gradient, so one is asked of the inputs."""

    def frozen() -> GPT3ForCausalLM:
        model = make_model(tie_word_embeddings=False)
        model.model.embed_tokens.requires_grad_(False)
        model.model.embed_positions.requires_grad_(False)
        return model

    expected = train_once(frozen(), GPT3ForCausalLM)
    model = frozen()
    enable_checkpointing(model, use_reentrant)
    model.enable_input_require_grads()
    found = train_once(model, GPT3ForCausalLM)
    assert found["model.embed_tokens.weight"] is None
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=name)


# New words


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"new_num_tokens": 120}, 120),
        ({"new_num_tokens": 120, "mean_resizing": False}, 120),
        ({"new_num_tokens": 60}, 60),
        ({"pad_to_multiple_of": 64}, 128),
        ({"new_num_tokens": 100, "pad_to_multiple_of": 8}, 104),
    ],
    ids=str,
)
@tied_or_not
def test_model_trains_and_generates_with_a_resized_vocabulary(options, size, tied):
    model = make_model(tie_word_embeddings=tied)
    ids = make_ids(2, 20, vocab_size=min(size, VOCAB))
    model.resize_token_embeddings(**options)
    assert model.config.vocab_size == model.vocab_size == size
    assert model.lm_head.out_features == model.lm_head.weight.shape[0] == size
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    ids[1, -3] = size - 1  # the last word
    expected = nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    tokens = model.generate(ids[:, :5], attention_mask=torch.ones(2, 5), max_new_tokens=5, do_sample=False)
    assert tokens.shape == (2, 10)

    model.train()
    output = model(ids, labels=ids, use_cache=False, skip_logits=True)
    assert output.logits is None  # the loss in chunks has outlived the new head
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-5)
    output.loss.backward()
    assert model.lm_head.weight.grad.shape == (size, TINY["hidden_size"])
    assert model.lm_head.weight.grad[size - 1].abs().max() > 0


def test_words_added_without_their_mean_are_drawn_as_at_the_start():
    torch.manual_seed(0)
    model = make_model()
    model.resize_token_embeddings(VOCAB + 200, mean_resizing=False)
    new = model.get_input_embeddings().weight[VOCAB:]
    assert new.std().item() == pytest.approx(0.02, rel=5 / (2 * new.numel()) ** 0.5)


@pytest.mark.parametrize("model_class", [GPT3Model, *list(LABELS)[1:]], ids=lambda model_class: model_class.__name__)
def test_vocabulary_of_a_model_without_output_words_is_resized(model_class):
    model = make_head(model_class)
    before = model(IDS)[0]
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 120
    assert torch.equal(model(IDS)[0], before)
    assert model(IDS + 20)[0].isfinite().all()


# Adapters

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION},
    "all linear layers": {"target_modules": "all-linear"},
    "the head": {"target_modules": [*ATTENTION, "lm_head"]},
    "whole head and embeddings": {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens"]},
    "whole head": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "new words": {"target_modules": ATTENTION, "trainable_token_indices": [3, 90]},
}
# A head that is trained apart from the embeddings it is tied to is peft's affair, which it warns of.
SPLITS_THE_TIE = {"the head", "whole head and embeddings", "whole head"}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("adapter", ADAPTERS)
@tied_or_not
def test_adapter_trains_on_the_same_loss_and_is_saved_and_merged(tmp_path, adapter, tied):
    base = make_model(tie_word_embeddings=tied)
    expected = base(IDS, labels=IDS).loss.item()
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, **ADAPTERS[adapter]))
    model.train()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False, skip_logits=True).loss
    # Before the first step an adapter changes nothing.
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    training = model(input_ids=IDS, labels=IDS, use_cache=False, skip_logits=True).loss.item()
    model.eval()
    logits = model(input_ids=IDS).logits
    assert abs(training - expected) > 1e-3
    assert training == pytest.approx(model(input_ids=IDS, labels=IDS).loss.item(), abs=1e-5)

    if tied and adapter in SPLITS_THE_TIE:
        return
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(tie_word_embeddings=tied), tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, logits, rtol=0, atol=1e-5)
    merged = model.merge_and_unload()
    assert type(merged) is GPT3ForCausalLM
    torch.testing.assert_close(merged(IDS).logits, logits, rtol=0, atol=2e-5)
    assert merged.train()(IDS, labels=IDS, use_cache=False, skip_logits=True).loss.item() == pytest.approx(
        training, abs=1e-5
    )


# Eight bits


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_linear_layers_in_eight_bits_are_close_to_those_in_float32():
    model = make_model()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    # Quantizers look for `nn.Linear` itself, not for its subclasses.
    kinds = {
        name.rpartition(".")[2]
        for name, module in quantized.named_modules()
        if type(module).__module__.startswith("torch.ao.nn.quantized")
    }
    assert kinds >= {*ATTENTION, "up_proj", "down_proj"}
    expected = model(IDS).logits
    assert (quantized(IDS).logits - expected).abs().mean() < 0.1 * expected.abs().mean()


# What others ask of a model


def test_parts_of_a_model_are_found_and_can_be_replaced():
    model = make_model(tie_word_embeddings=False)
    assert model.get_decoder() is model.base_model is model.model
    assert model.get_input_embeddings() is model.model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    assert model.model.get_output_embeddings() is None
    embeddings, head = nn.Embedding(VOCAB, 32), nn.Linear(32, VOCAB, bias=False)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
    assert model.model.embed_tokens is embeddings
    assert model.lm_head is head
    # A head that is not ours makes logits, and the loss from them.
    model.train()
    output = model(IDS, labels=IDS, use_cache=False, skip_logits=True)
    assert output.logits.shape == (2, 20, VOCAB)
    expected = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-5)


@tied_or_not
def test_parameters_are_counted_once(tied):
    model = make_model(tie_word_embeddings=tied)
    width, layers = TINY["hidden_size"], TINY["num_hidden_layers"]
    block = 12 * width**2 + 13 * width
    total = VOCAB * width * (1 if tied else 2) + TINY["max_position_embeddings"] * width + layers * block + 2 * width
    assert model.num_parameters() == total
    model.model.embed_positions.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == total - TINY["max_position_embeddings"] * width
    assert model.get_memory_footprint() == 4 * total


def test_generation_is_configured_by_the_model_and_outlives_saving(tmp_path):
    model = make_model(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    assert model.can_generate()
    assert not GPT3Model(model.config).can_generate()
    expected = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (model, loaded):
        assert {key: getattr(each.generation_config, key) for key in expected} == expected
    assert loaded.generation_config.max_new_tokens == 7
    prompt = IDS[:1, :5]
    generate: Callable = partial(loaded.generate, prompt, attention_mask=torch.ones_like(prompt))
    assert generate(do_sample=False, eos_token_id=-1).shape == (1, 12)
