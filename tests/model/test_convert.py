"""Conversions between gpt3, gpt2 and gpt_neo: what is computed before and after, weights bit for bit, what is refused
and in which words, and the folder that `hfgpt convert` writes."""

import json
import os
import shutil

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny_models import BANDED, DENSE, TINY, make_ids, make_model, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedTokenizerFast,
)

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.cli import main
from hfgpt.model.convert import convert, convert_config, convert_state_dict


GPT2 = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4}
NO_IDS = {"bos_token_id": None, "eos_token_id": None}
IDS = make_ids(2, 40)

HEADS = {
    "base": AutoModel,
    "language model": AutoModelForCausalLM,
    "sequences": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
}


def with_noise(model):
    """`model`, in which every parameter matters, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1.0 if "ln_" in name and "weight" in name else noise)
    return model.eval()


def make_gpt2(**overrides):
    return with_noise(GPT2LMHeadModel(GPT2Config(**{**GPT2, **NO_IDS, **overrides})))


def make_gpt_neo(**overrides):
    """Two global and two local layers; the window is 8 of 64 positions."""
    fields = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
    }
    return with_noise(GPTNeoForCausalLM(GPTNeoConfig(**{**fields, **NO_IDS, **overrides})))


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def logits_of(folder_or_model):
    model = folder_or_model
    if not isinstance(model, torch.nn.Module):
        model = AutoModelForCausalLM.from_pretrained(folder_or_model)
    with torch.no_grad():
        return model.eval()(IDS).logits


def assert_same_logits(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def assert_same_weights(folder, other):
    ours, theirs = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit_config(folder, **fields):
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **fields}))
    return folder


# What is computed stays the same


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": False},
        {"n_inner": 48},
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 0.3},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
        {"reorder_and_upcast_attn": True},
    ],
    ids=str,
)
def test_gpt2_gives_the_same_logits_as_gpt3(tmp_path, fields):
    gpt2 = make_gpt2(**fields)
    convert(saved(gpt2, tmp_path / "gpt2"), tmp_path / "gpt3", "gpt3")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt3")
    assert model.config.model_type == "gpt3" and set(model.config.layer_types) == {"full_attention"}
    assert_same_logits(logits_of(model), logits_of(gpt2))


@pytest.mark.parametrize(
    "fields",
    [{}, {"tie_word_embeddings": False}, {"intermediate_size": 48}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.3}],
    ids=str,
)
def test_dense_gpt3_gives_the_same_logits_as_gpt2_and_returns_bit_for_bit(tmp_path, fields):
    model = make_model(layer_types=DENSE, **fields)
    done = convert(saved(model, tmp_path / "gpt3"), tmp_path / "gpt2", "gpt2")
    unusual = {"intermediate_size": "`n_inner` 48: ", "hidden_act": "`activation_function` relu: "}
    assert [note.split("read by")[0] for note in done.notes] == [unusual[name] for name in fields if name in unusual]
    assert_same_logits(logits_of(GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")), logits_of(model))

    convert(tmp_path / "gpt2", tmp_path / "back", "gpt3")
    assert_same_weights(tmp_path / "back", tmp_path / "gpt3")
    # A model without bands has no use for the width of one.
    assert {**config_of(tmp_path / "back"), "sliding_window": 8} == config_of(tmp_path / "gpt3")


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False, "n_inner": 48}], ids=str)
def test_gpt2_returns_bit_for_bit(tmp_path, fields):
    convert(saved(make_gpt2(**fields), tmp_path / "gpt2"), tmp_path / "gpt3", "gpt3")
    convert(tmp_path / "gpt3", tmp_path / "back", "gpt2")
    assert_same_weights(tmp_path / "back", tmp_path / "gpt2")
    added = {"n_ctx": 64, "classifier_dropout": 0.1}
    assert config_of(tmp_path / "back") == {**config_of(tmp_path / "gpt2"), **added}


@pytest.mark.parametrize("window", [2, 8, 64, 100])
def test_gpt_neo_gives_the_same_logits_past_its_window(tmp_path, window):
    gpt_neo = make_gpt_neo(window_size=window)
    done = convert(saved(gpt_neo, tmp_path / "gpt_neo"), tmp_path / "gpt3", "gpt3")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt3")
    assert model.config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert_same_logits(logits_of(model), logits_of(gpt_neo))
    assert done.notes == ("the scale of attention is folded into the queries (rounded once)",)


def test_gpt_neo_is_exact_where_the_root_of_its_heads_width_is_a_power_of_two():
    gpt_neo = make_gpt_neo(num_heads=2).to(torch.bfloat16)  # heads of 16: the factor is 4
    weights = gpt_neo.state_dict()
    converted = convert_state_dict(weights, gpt_neo.config, "gpt3")
    query = converted["model.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(query, 4 * weights["transformer.h.1.attn.attention.q_proj.weight"])
    assert {tensor.dtype for tensor in converted.values()} == {torch.bfloat16}
    assert not converted["model.layers.1.self_attn.k_proj.bias"].any()


def test_a_scale_that_16_bits_would_round_is_refused_until_a_type_is_named():
    gpt_neo = make_gpt_neo().to(torch.bfloat16)  # heads of 8: the factor is sqrt(8)
    with pytest.raises(ValueError, match=r"q_proj.*2\.8284.*--dtype float32"):
        convert_state_dict(gpt_neo.state_dict(), gpt_neo.config, "gpt3")
    wide = convert_state_dict(gpt_neo.state_dict(), gpt_neo.config, "gpt3", dtype=torch.float32)
    expected = gpt_neo.state_dict()["transformer.h.0.attn.attention.q_proj.weight"].float() * 8**0.5
    torch.testing.assert_close(wide["model.layers.0.self_attn.q_proj.weight"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_converts_both_ways(tmp_path, head):
    fields = {"num_labels": 3, "pad_token_id": 0, "layer_types": DENSE}
    model = with_noise(HEADS[head].from_config(tiny_config(**fields)))
    saved(model, tmp_path / "gpt3")
    convert(tmp_path / "gpt3", tmp_path / "gpt2", "gpt2")
    convert(tmp_path / "gpt2", tmp_path / "back", "gpt3")
    assert_same_weights(tmp_path / "back", tmp_path / "gpt3")
    gpt2, loading = HEADS[head].from_pretrained(tmp_path / "gpt2", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert gpt2.config.id2label == model.config.id2label
    with torch.no_grad():
        ours, theirs = model(IDS), gpt2.eval()(IDS)
    keys = [key for key in ours if key != "past_key_values"]
    assert keys
    for key in keys:
        assert_same_logits(theirs[key], ours[key])


@pytest.mark.parametrize("head", HEADS)
def test_every_head_of_gpt_neo_converts(tmp_path, head):
    fields = {"num_labels": 3, "pad_token_id": 0}
    model = with_noise(HEADS[head].from_config(make_gpt_neo(**fields).config))
    convert(saved(model, tmp_path / "gpt_neo"), tmp_path / "gpt3", "gpt3")
    gpt3, loading = HEADS[head].from_pretrained(tmp_path / "gpt3", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    with torch.no_grad():
        ours, theirs = gpt3.eval()(IDS), model(IDS)
    for key in [key for key in ours if key != "past_key_values"]:
        assert_same_logits(ours[key], theirs[key])


def test_a_band_as_wide_as_the_longest_input_is_none(tmp_path):
    model = make_model(sliding_window=64)
    convert(saved(model, tmp_path / "gpt3"), tmp_path / "gpt2", "gpt2")
    model_ids = make_ids(1, 64)
    gpt2 = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2")
    assert_same_logits(gpt2(model_ids).logits, model(model_ids).logits)


# Configurations


def test_settings_that_training_and_generation_read_come_along():
    fields = {"attn_pdrop": 0.1, "resid_pdrop": 0.2, "embd_pdrop": 0.3, "classifier_dropout": 0.4, "use_cache": False}
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4}
    common = {**ids, "initializer_range": 0.01, "id2label": {0: "bad", 1: "good", 2: "odd"}}
    gpt2 = GPT2Config(**GPT2, **fields, **common)
    gpt3 = convert_config(gpt2, "gpt3")
    assert (gpt3.attention_dropout, gpt3.residual_dropout, gpt3.embedding_dropout) == (0.1, 0.2, 0.3)
    assert gpt3.classifier_dropout == 0.4 and gpt3.use_cache is False
    back = convert_config(gpt3, "gpt2")
    for config in (gpt3, back):
        for name, value in common.items():
            assert getattr(config, name) == value, name
    for name, value in fields.items():
        assert getattr(back, name) == value, name

    dropouts = {"attention_dropout": 0.1, "resid_dropout": 0.2, "embed_dropout": 0.3, "classifier_dropout": 0.4}
    from_neo = convert_config(GPTNeoConfig(num_layers=24, **dropouts, **ids), "gpt3")
    names = ("attention_dropout", "residual_dropout", "embedding_dropout", "classifier_dropout")
    assert [getattr(from_neo, name) for name in names] == [0.1, 0.2, 0.3, 0.4]
    assert (from_neo.eos_token_id, from_neo.sliding_window, from_neo.hidden_size) == ([2, 3], 256, 2048)


def test_published_gpt2_has_the_size_of_a_dense_gpt3():
    config = convert_config(GPT2Config(), "gpt3")
    expected = GPT3Config(max_position_embeddings=1024, layer_types=["full_attention"] * 12, sliding_window=None)
    dropouts = {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1}
    assert config.to_dict() == {**expected.to_dict(), **dropouts}


def test_gpt2_says_its_length_where_its_readers_look_for_it():
    config = convert_config(tiny_config(layer_types=DENSE), "gpt2").to_dict()
    assert config["n_ctx"] == config["n_positions"] == 64
    assert config["activation_function"] == "gelu_new" and config["n_inner"] is None


@pytest.mark.parametrize(
    ("config", "to", "message"),
    [
        (GPT2Config(**GPT2, add_cross_attention=True), "gpt3", "`add_cross_attention`"),
        (GPT2Config(**GPT2, activation_function="prelu"), "gpt3", "`activation_function`: 'prelu'"),
        (GPT2Config(**GPT2, activation_function="xielu"), "gpt3", "`activation_function`: 'xielu'"),
        (GPT2Config(**GPT2, activation_function="gelo"), "gpt3", "`activation_function`: 'gelo'"),
        (GPT2Config(**GPT2, quantization_config={"bits": 4}), "gpt3", "`quantization_config`"),
        (GPT2Config(**{**GPT2, "n_head": 5}), "gpt3", "`num_attention_heads`"),
        (GPT2Config(**GPT2, attn_pdrop=1.0), "gpt3", "`attention_dropout`"),
        (GPTNeoConfig(num_layers=24, window_size=1), "gpt3", "`window_size`"),
        (
            GPTNeoConfig(num_layers=2, attention_types=[[["global", "sparse"], 1]]),
            "gpt3",
            r"`attention_types`.*'sparse'",
        ),
        (GPTNeoConfig(num_layers=24, activation_function="prelu"), "gpt3", "`activation_function`"),
        (
            tiny_config(layer_types=DENSE, classifier_pooling="mean", architectures=["GPT3ForSequenceClassification"]),
            "gpt2",
            "`classifier_pooling: mean`",
        ),
        (tiny_config(layer_types=DENSE, hidden_act="xielu"), "gpt2", "`hidden_act`: 'xielu'"),
        (tiny_config(layer_types=DENSE, quantization_config={"bits": 4}), "gpt2", "`quantization_config`"),
        (tiny_config(), "gpt2", r"`layer_types`.*layers 1, 3 see only the last 8 of 64 .*`sliding_window`"),
        (tiny_config(layer_types=BANDED, sliding_window=63), "gpt2", "layers 0, 1, 2, 3 see only the last 63 of 64"),
        (tiny_config(), "gpt3", "'gpt3' already"),
        (GPTNeoConfig(num_layers=24), "gpt2", "'gpt_neo' to 'gpt2'.*gpt2 -> gpt3, gpt_neo -> gpt3, gpt3 -> gpt2"),
        (AutoConfig.for_model("llama"), "gpt3", "'llama' to 'gpt3'"),
    ],
)
def test_what_has_no_equivalent_is_refused_by_the_name_of_its_field(config, to, message):
    with pytest.raises(ValueError, match=message):
        convert_config(config, to)


# Weights


def test_the_given_weights_stay_as_they_are():
    gpt2 = make_gpt2(scale_attn_weights=False)
    weights = gpt2.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    converted = convert_state_dict(weights, gpt2.config, "gpt3")
    for tensor in converted.values():
        assert tensor.is_contiguous()
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_keep_the_type_they_are_stored_in(tmp_path, dtype):
    saved(make_model(layer_types=DENSE).to(dtype), tmp_path / "gpt3")
    done = convert(tmp_path / "gpt3", tmp_path / "gpt2", "gpt2")
    convert(tmp_path / "gpt2", tmp_path / "back", "gpt3")
    assert_same_weights(tmp_path / "back", tmp_path / "gpt3")
    stored = {tensor.dtype for tensor in load_file(tmp_path / "gpt2" / "model.safetensors").values()}
    assert stored == {dtype} and config_of(tmp_path / "gpt2")["dtype"] == done.dtype
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2", dtype="auto").dtype == dtype


def test_weights_of_several_types_keep_each_its_own(tmp_path):
    saved(make_model(layer_types=DENSE).to(torch.bfloat16), tmp_path / "gpt3")
    file = tmp_path / "gpt3" / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor.float() if "norm" in name else tensor for name, tensor in weights.items()}, file)
    done = convert(tmp_path / "gpt3", tmp_path / "gpt2", "gpt2")
    for name, tensor in load_file(tmp_path / "gpt2" / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if ".ln_" in name else torch.bfloat16), name
    # Read as config.json says, no weight loses a bit.
    assert done.dtype == config_of(tmp_path / "gpt2")["dtype"] == "float32"
    assert done.notes == ("stored in several types, which are kept: bfloat16, float32",)


def test_a_type_that_is_named_is_written(tmp_path):
    convert(saved(make_gpt2(), tmp_path / "gpt2"), tmp_path / "gpt3", "gpt3", dtype="bfloat16")
    weights = load_file(tmp_path / "gpt3" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert config_of(tmp_path / "gpt3")["dtype"] == "bfloat16"


def test_a_value_too_large_for_a_type_is_refused():
    gpt2 = make_gpt2()
    weights = {**gpt2.state_dict(), "transformer.h.2.mlp.c_fc.bias": torch.full((128,), 7e4)}
    with pytest.raises(ValueError, match=r"'h.2.mlp.c_fc.bias' has values too large for float16"):
        convert_state_dict(weights, gpt2.config, "gpt3", dtype=torch.float16)


def test_an_old_gpt2_checkpoint_converts(tmp_path):
    """As published in 2019: a pickle, no prefix, causal masks among the weights, no class in the config."""
    gpt2 = make_gpt2()
    saved(gpt2, tmp_path / "gpt2")
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    (tmp_path / "gpt2" / "generation_config.json").unlink()
    weights = {name.removeprefix("transformer."): tensor for name, tensor in gpt2.state_dict().items()}
    for layer in range(4):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    config = config_of(tmp_path / "gpt2")
    for name in ("architectures", "dtype", "tie_word_embeddings"):
        del config[name]
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({**config, "n_ctx": 64}))
    for legacy in (False, True):
        file = tmp_path / "gpt2" / "pytorch_model.bin"
        torch.save(weights, file, _use_new_zipfile_serialization=not legacy)
        done = convert(tmp_path / "gpt2", tmp_path / "gpt3", "gpt3", overwrite=True)
        assert (done.source_class, done.target_class) == ("GPT2LMHeadModel", "GPT3ForCausalLM")
        assert_same_logits(logits_of(tmp_path / "gpt3"), logits_of(gpt2))


def test_tied_embeddings_may_be_stored_as_the_output_layer():
    gpt2 = make_gpt2()
    weights = gpt2.state_dict()
    expected = convert_state_dict(weights, gpt2.config, "gpt3")
    del weights["transformer.wte.weight"]
    converted = convert_state_dict(weights, gpt2.config, "gpt3")
    assert converted.keys() == expected.keys()
    assert torch.equal(converted["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])


def test_weights_in_parts_are_read_and_written(tmp_path):
    gpt2 = make_gpt2()
    gpt2.save_pretrained(tmp_path / "gpt2", max_shard_size="50KB")
    assert not (tmp_path / "gpt2" / "model.safetensors").exists()
    convert(tmp_path / "gpt2", tmp_path / "gpt3", "gpt3", max_shard_size="60KB")
    assert len(list((tmp_path / "gpt3").glob("model-*.safetensors"))) > 1
    assert_same_logits(logits_of(tmp_path / "gpt3"), logits_of(gpt2))

    next((tmp_path / "gpt2").glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match="model-00002-"):
        convert(tmp_path / "gpt2", tmp_path / "other", "gpt3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer.h.0.attn.lora_A.weight": torch.ones(2)}, r"'h.0.attn.lora_A.weight', which a causal language"),
        ({"transformer.h.4.ln_1.weight": torch.ones(32)}, r"'h.4.ln_1.weight'.*number of layers"),
        ({"score.weight": torch.ones(2, 32)}, r"'score.weight'.*`architectures`"),
        ({"transformer.h.1.ln_1.weight": None}, r"no tensor 'h.1.ln_1.weight'"),
        ({"transformer.wpe.weight": None}, r"no tensor 'wpe.weight'"),
        ({"lm_head.weight": torch.ones(97, 32)}, r"`tie_word_embeddings`.*'lm_head.weight' and 'wte.weight'"),
        ({"wpe.weight": torch.ones(64, 32)}, r"'wpe.weight' twice"),
        ({"transformer.wte.weight": torch.ones(97, 32, dtype=torch.int8)}, r"of type int8"),
    ],
)
def test_a_tensor_that_is_not_accounted_for_is_an_error(changes, message):
    gpt2 = make_gpt2()
    weights = {**gpt2.state_dict(), **changes}
    if "transformer.wte.weight" in changes:
        del weights["lm_head.weight"]
    with pytest.raises(ValueError, match=message):
        convert_state_dict({k: v for k, v in weights.items() if v is not None}, gpt2.config, "gpt3")


def test_an_untied_model_without_its_output_layer_is_an_error():
    model = make_model(layer_types=DENSE, tie_word_embeddings=False)
    weights = model.state_dict()
    del weights["lm_head.weight"]
    model.config.architectures = ["GPT3ForCausalLM"]
    with pytest.raises(ValueError, match=r"no tensor 'lm_head.weight'"):
        convert_state_dict(weights, model.config, "gpt2")


# Folders


@pytest.fixture(scope="module")
def trained_tokenizer():
    """A byte-level BPE that splits digits one by one, unlike GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the film of 1995 1995 1995 was the film of 2001 2001"] * 20, trainer)
    return tokenizer


TEXT = "The film of 1995\n\n  was good.<|endoftext|> 영화는 좋았다 🎬\tcafé 2001"


@pytest.mark.parametrize("named", [True, False], ids=["its class named", "its class not named"])
def test_the_tokenizer_of_a_gpt3_comes_along_to_gpt2(tmp_path, trained_tokenizer, named):
    source = saved(make_model(vocab_size=400, layer_types=DENSE), tmp_path / "gpt3")
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer, bos_token=end, eos_token=end, model_max_length=64, padding_side="left"
    )
    tokenizer.save_pretrained(source)
    if not named:
        settings = json.loads((source / "tokenizer_config.json").read_text())
        del settings["tokenizer_class"]
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert convert(source, tmp_path / "gpt2", "gpt2").tokenizer
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "gpt2"))
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert after.decode(after(TEXT)["input_ids"]) == TEXT
    assert (after.model_max_length, after.padding_side, after.eos_token) == (64, "left", end)
    # transformers 4 has no class `TokenizersBackend`.
    settings = json.loads((tmp_path / "gpt2" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == ("PreTrainedTokenizerFast" if named else "GPT2Tokenizer")

    convert(tmp_path / "gpt2", tmp_path / "back", "gpt3")
    assert AutoTokenizer.from_pretrained(tmp_path / "back")(TEXT)["input_ids"] == before(TEXT)["input_ids"]


def test_the_tokenizer_of_a_gpt2_comes_along_though_only_the_models_type_names_it(tmp_path, trained_tokenizer):
    source = saved(make_gpt2(vocab_size=400), tmp_path / "gpt2")
    trained_tokenizer.model.save(str(source))  # vocab.json and merges.txt, as published in 2019
    (source / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    before = AutoTokenizer.from_pretrained(source)
    assert type(before) is GPT2Tokenizer and len(before) == trained_tokenizer.get_vocab_size()
    convert(source, tmp_path / "gpt3", "gpt3")
    after = AutoTokenizer.from_pretrained(tmp_path / "gpt3")
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"]
    assert type(after) is GPT2Tokenizer and after.model_max_length == 64


def test_a_tokenizer_that_cannot_be_read_is_an_error(tmp_path):
    source = saved(make_gpt2(), tmp_path / "gpt2")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer cannot be read"):
        convert(source, tmp_path / "gpt3", "gpt3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2"]


def test_generation_settings_come_along(tmp_path):
    model = make_gpt2(eos_token_id=5, pad_token_id=0)
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, top_p=0.9, eos_token_id=5)
    convert(saved(model, tmp_path / "gpt2"), tmp_path / "gpt3", "gpt3")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt3").generation_config
    assert (after.max_new_tokens, after.do_sample, after.top_p, after.eos_token_id) == (7, True, 0.9, 5)


def test_a_converted_model_generates_the_same_text(tmp_path):
    gpt_neo = make_gpt_neo(eos_token_id=5, pad_token_id=0)
    convert(saved(gpt_neo, tmp_path / "gpt_neo"), tmp_path / "gpt3", "gpt3")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt3")
    prompt, options = IDS[:1, :12], {"max_new_tokens": 20, "do_sample": False, "min_new_tokens": 20}
    assert torch.equal(model.generate(prompt, **options), gpt_neo.generate(prompt, **options))


@pytest.fixture
def gpt2(tmp_path):
    return saved(make_gpt2(), tmp_path / "gpt2")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with the models in `hub/`; what was downloaded of the last one is in `cache/`."""

    def snapshot_download(name, allow_patterns, ignore_patterns):
        (tmp_path / "cache").mkdir(exist_ok=True)
        files = [str(path.relative_to(tmp_path / "hub" / name)) for path in (tmp_path / "hub" / name).rglob("*.*")]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            shutil.copy(tmp_path / "hub" / name / file, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr("hfgpt.model.convert.snapshot_download", snapshot_download)
    return tmp_path / "hub"


def test_a_model_of_the_hub_is_downloaded_in_one_format(tmp_path, hub):
    model = make_gpt2()
    saved(model, hub / "someone/model")
    torch.save(model.state_dict(), hub / "someone/model/pytorch_model.bin")
    shutil.copy(hub / "someone/model/model.safetensors", hub / "someone/model/model.fp16.safetensors")
    (hub / "someone/model/onnx").mkdir()
    (hub / "someone/model/onnx/config.json").write_text("{}")
    convert("someone/model", tmp_path / "gpt3", "gpt3")
    assert_same_logits(logits_of(tmp_path / "gpt3"), logits_of(model))
    files = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == files

    shutil.rmtree(tmp_path / "cache")
    (hub / "someone/model/model.safetensors").unlink()
    convert("someone/model", tmp_path / "gpt3", "gpt3", overwrite=True)
    assert_same_logits(logits_of(tmp_path / "gpt3"), logits_of(model))


def test_what_cannot_be_converted_is_refused_before_its_weights_are_downloaded(tmp_path, hub):
    saved(make_model(), hub / "someone/banded")
    with pytest.raises(ValueError, match="layers 1, 3"):
        convert("someone/banded", tmp_path / "gpt2", "gpt2")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def run_convert(*words):
    return main(["convert", *map(str, words)])


def test_the_command_says_what_it_did(tmp_path, gpt2, capsys):
    assert run_convert(gpt2, tmp_path / "deep" / "gpt3", "--to", "gpt3") == 0
    first, second = capsys.readouterr().out.splitlines()
    parameters = make_model(layer_types=DENSE).num_parameters()
    assert first.startswith("gpt2 -> gpt3 (GPT2LMHeadModel -> GPT3ForCausalLM)")
    assert f"{parameters:,} parameters in 68 tensors, float32" in first
    assert second == f"written to {tmp_path / 'deep' / 'gpt3'}, no tokenizer: the source has none"
    logits_of(tmp_path / "deep" / "gpt3")


def test_the_command_as_json_prints_nothing_else(tmp_path, gpt2, capsys, monkeypatch):
    write = GPT3ForCausalLM.save_pretrained

    def write_and_chatter(*arguments, **keywords):
        print("a library's word")
        write(*arguments, **keywords)

    monkeypatch.setattr(GPT3ForCausalLM, "save_pretrained", write_and_chatter)
    assert run_convert(gpt2, tmp_path / "gpt3", "--to", "gpt3", "--dtype", "float16", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["output"] == str(tmp_path / "gpt3") and done["dtype"] == "float16" and done["tensors"] == 68


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at-all", "OUT", "--to", "gpt3"], "No model 'nowhere/at-all'"),
        (["nowhere/at/all", "OUT", "--to", "gpt3"], "No model 'nowhere/at/all'"),
        (["EMPTY", "OUT", "--to", "gpt3"], "no config.json"),
        (["MODEL/config.json", "OUT", "--to", "gpt3"], "is a file"),
        (["MODEL", "OUT", "--to", "gpt2"], "'gpt2' already"),
        (["MODEL", "MODEL/config.json", "--to", "gpt3"], "is a file: choose another folder"),
        (["MODEL", "MODEL", "--to", "gpt3"], "is not empty"),
        (["MODEL", "MODEL", "--to", "gpt3", "--overwrite"], "is or holds the source"),
        (["MODEL", "OTHER", "--to", "gpt3", "--overwrite"], "something other than a model"),
        (["BANDED", "OUT", "--to", "gpt2"], "layers 1, 3"),
        (["BANDED", "OUT", "--to", "gpt3"], "'gpt3' already"),
    ],
)
def test_bad_input_is_one_message_and_exit_status_2(tmp_path, gpt2, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    saved(make_model(), tmp_path / "banded")
    names = {"EMPTY": tmp_path / "empty", "OTHER": tmp_path / "other", "BANDED": tmp_path / "banded", "MODEL": gpt2}
    names["OUT"] = tmp_path / "out"
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    assert run_convert(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("hfgpt convert: error: ") and message in err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "other" / "thesis.txt").exists() and (gpt2 / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: edit_config(folder, model_type="llama"), "type 'llama'; what can be converted: gpt2 -> gpt3"),
        (lambda folder: (folder / "config.json").write_text('{"n_embd": 32}'), "type None"),
        (lambda folder: (folder / "config.json").write_text("{"), "Cannot read config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "Cannot read config.json"),
        (lambda folder: edit_config(folder, n_embd="wide"), "config.json .* is not valid.*n_embd"),
        (lambda folder: edit_config(folder, n_embd=64), r"do not fit its config: 'model\..*\(97, 32\).*\(97, 64\)"),
        (lambda folder: edit_config(folder, n_layer=5), "no tensor 'h.4.ln_1.weight'"),
        (lambda folder: edit_config(folder, n_layer=3), "'h.3.*and 7 more"),
        (lambda folder: edit_config(folder, architectures=["GPT9"]), "`architectures`: GPT9 is not converted; GPT2LM"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter.*--merge"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights: looked for model.safetensors and"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10"), "Cannot read .*model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "Cannot read .*pytorch_model.bin",
        ),
    ],
)
def test_a_source_that_is_not_whole_is_refused(tmp_path, gpt2, spoil, message):
    spoil(gpt2)
    with pytest.raises(ValueError, match=message):
        convert(gpt2, tmp_path / "gpt3", "gpt3")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


def test_an_adapter_folder_is_refused(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match=r"is an adapter.*merge"):
        convert(tmp_path / "lora", tmp_path / "gpt3", "gpt3")


def test_a_pickle_of_something_else_is_refused(tmp_path, gpt2):
    torch.save({"model": {"wte.weight": torch.ones(2)}}, gpt2 / "pytorch_model.bin")
    (gpt2 / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="something other than tensors by name"):
        convert(gpt2, tmp_path / "gpt3", "gpt3")


def test_a_model_with_two_heads_is_refused(tmp_path):
    saved(GPT2DoubleHeadsModel(GPT2Config(**GPT2, **NO_IDS)), tmp_path / "gpt2")
    with pytest.raises(ValueError, match="`architectures`: GPT2DoubleHeadsModel"):
        convert(tmp_path / "gpt2", tmp_path / "gpt3", "gpt3")


@pytest.mark.parametrize("field", [{"to": "llama"}, {"dtype": "int8"}])
def test_an_unknown_choice_is_refused(tmp_path, gpt2, field):
    with pytest.raises(ValueError, match=f"`{next(iter(field))}` must be"):
        convert(**{"source": gpt2, "output": tmp_path / "gpt3", "to": "gpt3", **field})


def test_overwrite_replaces_the_whole_model(tmp_path, gpt2):
    output = saved(make_model(), tmp_path / "out")
    (output / "model-00001-of-00002.safetensors").write_text("of an earlier model")
    with pytest.raises(ValueError, match="--overwrite"):
        convert(gpt2, output, "gpt3")
    convert(gpt2, output, "gpt3", overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert_same_logits(logits_of(output), logits_of(gpt2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "out"]


def test_an_empty_folder_is_filled(tmp_path, gpt2):
    (tmp_path / "gpt3").mkdir()
    convert(gpt2, tmp_path / "gpt3", "gpt3")
    logits_of(tmp_path / "gpt3")


@pytest.mark.parametrize("when", ["while it writes", "while it renames"])
def test_an_interrupted_conversion_leaves_everything_as_it_was(tmp_path, gpt2, monkeypatch, when):
    output = saved(make_model(), tmp_path / "out")
    shutil.copytree(output, tmp_path / "before")

    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    if when == "while it writes":
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", interrupt)
    else:
        replace, calls = os.replace, []

        def replace_once(*arguments):
            calls.append(arguments)
            return interrupt() if len(calls) == 2 else replace(*arguments)

        monkeypatch.setattr("hfgpt.model.convert.os.replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        convert(gpt2, output, "gpt3", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "gpt2", "out"]
    assert_same_weights(output, tmp_path / "before")
    if when == "while it writes":
        with pytest.raises(KeyboardInterrupt):
            convert(gpt2, tmp_path / "new", "gpt3")
        assert not (tmp_path / "new").exists()


def test_the_sizes_of_the_tests_leave_something_to_see():
    """Forty tokens reach past the band of eight, and a changed mask changes what is computed."""
    assert IDS.shape[1] > TINY["sliding_window"]
    assert (logits_of(make_model()) - logits_of(make_model(layer_types=DENSE))).abs().max() > 0.01
