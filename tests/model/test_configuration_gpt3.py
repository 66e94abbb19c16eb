"""GPT3Config: defaults, validation, and its way through JSON."""

import copy
import json
import pickle

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_models import TINY
from transformers import AutoConfig

from hfgpt import GPT3Config


def validation_message(arguments: dict) -> str:
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        GPT3Config(**arguments)
    return str(error.value)


def test_layers_alternate_dense_first():
    config = GPT3Config(**{**TINY, "num_hidden_layers": 5})
    dense, banded = "full_attention", "sliding_attention"
    assert config.layer_types == [dense, banded, dense, banded, dense]


def test_default_layer_types_are_not_shared_between_configs():
    first, second = GPT3Config(**TINY), GPT3Config(**TINY)
    first.layer_types[0] = "sliding_attention"
    assert second.layer_types[0] == "full_attention"


def test_sizes_are_derived_from_width_and_heads():
    config = GPT3Config(**TINY)
    assert (config.head_dim, config.intermediate_size, config.num_key_value_heads) == (8, 128, 4)


def test_given_sizes_are_kept():
    config = GPT3Config(**TINY, head_dim=8, intermediate_size=48, num_key_value_heads=4)
    assert (config.head_dim, config.intermediate_size, config.num_key_value_heads) == (8, 48, 4)


INVALID = [
    ({"num_attention_heads": 5}, "num_attention_heads"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"head_dim": 4}, "head_dim"),
    ({"num_key_value_heads": 2}, "num_key_value_heads"),
    ({"num_key_value_heads": 8}, "num_key_value_heads"),
    ({"layer_types": ["full_attention", "no_such_attention"] * 2}, "layer_types"),
    # A kind that transformers knows and GPT-3 does not.
    ({"layer_types": ["full_attention", "chunked_attention"] * 2}, "layer_types"),
    ({"layer_types": ["full_attention"] * 3}, "layer_types"),
    ({"layer_types": ["full_attention"] * 5}, "layer_types"),
    ({"layer_types": []}, "layer_types"),
    ({"sliding_window": 0}, "sliding_window"),
    ({"sliding_window": -8}, "sliding_window"),
    ({"sliding_window": None}, "sliding_window"),
    ({"sliding_window": 1}, "sliding_window"),  # transformers' sliding cache keeps keys[-0:], which is all
    ({"intermediate_size": 0}, "intermediate_size"),
    ({"attention_dropout": 1.5}, "attention_dropout"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"hidden_size": "32"}, "hidden_size"),
]


@pytest.mark.parametrize(("wrong", "field"), INVALID)
def test_invalid_config_is_refused_by_a_message_that_names_the_field(wrong, field):
    GPT3Config(**TINY)  # what is refused below is the change
    assert f"`{field}`" in (message := validation_message({**TINY, **wrong})) or f"'{field}'" in message


@pytest.mark.parametrize(
    "wrong", [{"num_attention_heads": 5}, {"layer_types": ["full_attention"] * 3}, {"sliding_window": 0}]
)
def test_invalid_config_raises_value_error(wrong):
    with pytest.raises(ValueError):
        GPT3Config(**{**TINY, **wrong})


def test_dense_config_needs_no_window():
    config = GPT3Config(**{**TINY, "layer_types": ["full_attention"] * 4, "sliding_window": None})
    assert config.sliding_window is None


@pytest.mark.parametrize(("vocab_size", "end_of_text"), [(97, None), (50256, None), (50257, 50256), (50304, 50256)])
def test_end_of_text_is_dropped_where_the_vocabulary_does_not_hold_it(vocab_size, end_of_text):
    config = GPT3Config(**{**TINY, "vocab_size": vocab_size})
    assert (config.bos_token_id, config.eos_token_id) == (end_of_text, end_of_text)


def test_given_special_tokens_of_a_small_vocabulary_are_kept():
    config = GPT3Config(**TINY, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, [2, 3], 0)


EVERY_FIELD = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_act": "relu",
    "max_position_embeddings": 17,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 5,
    "layer_norm_eps": 3e-6,
    "initializer_range": 0.3,
    "attention_dropout": 0.1,
    "residual_dropout": 0.2,
    "embedding_dropout": 0.4,
    "use_cache": False,
    "bos_token_id": 7,
    "eos_token_id": [8, 9],
    "pad_token_id": 10,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("loader", [GPT3Config, AutoConfig])
def test_saved_config_loads_unchanged(tmp_path, loader):
    config = GPT3Config(**EVERY_FIELD)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "gpt3"
    assert {name: written[name] for name in EVERY_FIELD} == EVERY_FIELD

    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is GPT3Config
    assert {name: getattr(loaded, name) for name in EVERY_FIELD} == EVERY_FIELD
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == written


def test_config_of_a_small_vocabulary_keeps_no_end_of_text_when_loaded(tmp_path):
    GPT3Config(**TINY).save_pretrained(tmp_path)
    loaded = GPT3Config.from_pretrained(tmp_path)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (None, None)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_config_survives_copy_and_pickle(duplicate):
    config = GPT3Config(**EVERY_FIELD)
    other = duplicate(config)
    assert other.to_dict() == config.to_dict()
    other.layer_types[0] = "full_attention"
    assert config.layer_types[0] == "sliding_attention"


def test_from_preset_with_an_unknown_field_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean `num_hidden_layers`"):
        GPT3Config.from_preset("gpt3-1.3b", num_hiden_layers=2)
    assert GPT3Config.from_preset("gpt3-1.3b", num_labels=5).num_labels == 5
