"""The paper's eight sizes."""

import dataclasses

import pytest
import torch

from hfgpt import PRESETS, GPT3Config, GPT3ForCausalLM


# Table 2.1 of Brown et al. 2020 with the two corrections of appendix D, typed from the paper and not from presets.py:
# layers, d_model, heads, d_head, batch in tokens, peak learning rate, exact parameters (tied, 50,257 words).
TABLE_2_1 = {
    "gpt3-125m": (12, 768, 12, 64, 0.5e6, 6.0e-4, 125_226_240),
    "gpt3-350m": (24, 1024, 16, 64, 0.5e6, 3.0e-4, 355_871_744),
    "gpt3-760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4, 760_300_032),
    "gpt3-1.3b": (24, 2048, 16, 128, 1e6, 2.0e-4, 1_315_723_264),
    "gpt3-2.7b": (32, 2560, 32, 80, 1e6, 1.6e-4, 2_651_553_280),
    "gpt3-6.7b": (32, 4096, 32, 128, 2e6, 1.2e-4, 6_658_404_352),
    "gpt3-13b": (40, 5120, 40, 128, 2e6, 1.0e-4, 12_853_386_240),
    "gpt3-175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4, 174_604_259_328),
}


def test_presets_are_table_2_1():
    assert {name: dataclasses.astuple(preset)[:-1] for name, preset in PRESETS.items()} == TABLE_2_1
    assert all(4e9 <= preset.batch_ramp_tokens <= 12e9 for preset in PRESETS.values())


@pytest.mark.parametrize("name", TABLE_2_1)
def test_model_of_preset_has_the_exact_number_of_parameters(name):
    with torch.device("meta"):
        model = GPT3ForCausalLM(GPT3Config.from_preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == TABLE_2_1[name][-1]


@pytest.mark.parametrize("name", TABLE_2_1)
def test_config_of_preset_is_the_architecture_of_the_paper(name):
    layers, width, heads, head_dim, *_ = TABLE_2_1[name]
    config = GPT3Config.from_preset(name)
    assert (config.num_hidden_layers, config.hidden_size) == (layers, width)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (heads, heads, head_dim)
    assert config.intermediate_size == 4 * width
    assert (config.vocab_size, config.max_position_embeddings) == (50257, 2048)
    assert config.layer_types == ["full_attention", "sliding_attention"] * (layers // 2)
    assert config.sliding_window == 256
    assert config.hidden_act == "gelu_pytorch_tanh"
    assert config.tie_word_embeddings is True
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (50256, 50256, None)
    assert (config.attention_dropout, config.residual_dropout, config.embedding_dropout) == (0, 0, 0)


def test_default_config_is_the_125m_preset():
    assert GPT3Config().to_dict() == GPT3Config.from_preset("gpt3-125m").to_dict()


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("gpt3-1.3B", "gpt3-1.3b"), ("gpt3_175b", "gpt3-175b"), ("gpt3-13", "gpt3-13b"), ("gpt-3-6.7b", "gpt3-6.7b")],
)
def test_unknown_preset_names_the_nearest_one(given, nearest):
    with pytest.raises(ValueError, match=f"{given!r}.*Did you mean {nearest!r}"):
        GPT3Config.from_preset(given)


def test_unknown_preset_lists_every_preset():
    with pytest.raises(ValueError) as error:
        GPT3Config.from_preset("bloom")
    assert all(name in str(error.value) for name in TABLE_2_1)
    assert "Did you mean" not in str(error.value)


def test_overrides_of_a_preset_derive_the_fields_that_follow():
    config = GPT3Config.from_preset("gpt3-1.3b", num_hidden_layers=3, hidden_size=1024, vocab_size=1000)
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (16, 64, 4096)
    assert (config.vocab_size, config.eos_token_id) == (1000, None)
    assert GPT3Config.from_preset("gpt3-1.3b").num_hidden_layers == 24
