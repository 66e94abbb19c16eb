"""LoRA adapters: where they go, what of the model trains, and what a merge leaves."""

import json
import logging
import shutil
import warnings

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers import logging as transformers_logging
from transformers.utils import is_bitsandbytes_available

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.tasks import get_task
from hfgpt.tasks.saved import TaskRecord, save_task, saved_task
from hfgpt.training import adapters
from hfgpt.training.adapters import add_adapter, load_adapter, load_base, merge, quantization_config, trainable_share
from hfgpt.training.arguments import FinetuneConfig


LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
WORDS = 60

transformers_logging.disable_progress_bar()


needs_bitsandbytes = pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")


def settings(base="/nowhere/at-all", **fields):
    return FinetuneConfig(str(base), train_path="train.jsonl", test_path="test.jsonl", use_peft=True, **fields)


def make_gpt3(**fields):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    return GPT3ForCausalLM(GPT3Config(**{"vocab_size": WORDS, "sliding_window": 8, **sizes, **fields}))


def make_gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    )


def make_llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )


ARCHITECTURES = {"gpt3": make_gpt3, "gpt2": make_gpt2, "llama": make_llama}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of random models by architecture, each with a tokenizer; noise in every parameter."""
    folders = {}
    for name, make in ARCHITECTURES.items():
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folders[name] = tmp_path_factory.mktemp("bases") / name
        model.save_pretrained(folders[name])
        make_tokenizer().save_pretrained(folders[name])
    return folders


def make_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w0")


def make_ids(batch=2, length=24):
    return torch.randint(WORDS, (batch, length), generator=torch.Generator().manual_seed(1))


def train(model, steps=2, learning_rate=0.05, **inputs):
    """A few steps on one batch; returns the names of what changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0)
    model.train()
    inputs = inputs or {"input_ids": make_ids(), "attention_mask": torch.ones_like(make_ids()), "labels": make_ids()}
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    assert losses[-1] < losses[0]
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def save_adapter(base, folder, config=None, head="lm", **fields):
    """A trained adapter of `base` in `folder`, with its tokenizer as the Trainer leaves it."""
    kinds = {
        "lm": AutoModelForCausalLM,
        "classification": AutoModelForSequenceClassification,
        "span": AutoModelForQuestionAnswering,
    }
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    more = {"num_labels": 3} if head == "classification" else {}
    model = kinds[head].from_pretrained(base, dtype="float32", pad_token_id=tokenizer.pad_token_id, **more)
    if config is None:
        model = add_adapter(model, settings(base, **{"lora_r": 4, "lora_alpha": 8, **fields}), head)
    else:
        model = get_peft_model(model, config)
    inputs = {"input_ids": make_ids(), "attention_mask": torch.ones_like(make_ids())}
    inputs |= {
        "lm": {"labels": make_ids()},
        "classification": {"labels": torch.tensor([0, 2])},
        "span": {"start_positions": torch.tensor([3, 4]), "end_positions": torch.tensor([5, 9])},
    }[head]
    train(model, **inputs)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def logits_of(model):
    with torch.inference_mode():
        output = model(input_ids=make_ids())
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits])


# Targets that need not be named


def forget_gpt3():
    for table in vars(constants).values():
        if isinstance(table, dict):
            table.pop("gpt3", None)


def test_lora_finds_gpt3s_layers_unnamed():
    forget_gpt3()  # as after `import hfgpt` before peft
    model = get_peft_model(make_gpt3(), LoraConfig(r=8))
    assert set(model.peft_config["default"].target_modules) == LINEAR
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * len(LINEAR)


def test_the_table_is_what_all_linear_gives():
    named = get_peft_model(make_gpt3(), LoraConfig())
    linear = get_peft_model(make_gpt3(), LoraConfig(target_modules="all-linear"))
    assert {name for name, _ in named.named_parameters()} == {name for name, _ in linear.named_parameters()}


def test_transformers_own_add_adapter_finds_them_too():
    forget_gpt3()
    model = make_gpt3()
    model.add_adapter(LoraConfig(r=2))
    assert {name.rsplit(".", 4)[-4] for name, _ in model.named_parameters() if "lora_A" in name} == LINEAR
    forget_gpt3()
    assert "lora_A" in "".join(name for name, _ in inject_adapter_in_model(LoraConfig(), make_gpt3()).named_modules())


def test_a_users_own_entry_stays(monkeypatch):
    monkeypatch.setitem(constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, "gpt3", ["q_proj"])
    assert get_peft_model(make_gpt3(), LoraConfig()).peft_config["default"].target_modules == {"q_proj"}


def test_gpt3_is_in_every_table():
    forget_gpt3()
    make_gpt3().config.to_dict()
    tables = {name: table for name, table in vars(constants).items() if name.endswith("_MODULES_MAPPING")}
    assert len(tables) > 10
    assert [name for name, table in tables.items() if "gpt3" not in table] == []


# What peft's defaults are too large for, in a model of width 32.
SIZES = {
    "ADALORA": {"total_step": 10, "tinit": 1, "tfinal": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "VBLORA": {"vector_length": 8},
    "WAVEFT": {"n_frequency": 64},
}
# These name no layers by a table of model types, or want a task's id or other adapters with each call.
OTHERS = {
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING",
    "P_TUNING", "SHADOW", "TRAINABLE_TOKENS", "XLORA",
}  # fmt: skip
KINDS = sorted({str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - OTHERS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_trains_gpt3(kind):
    forget_gpt3()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**SIZES.get(kind, {}))
        model = get_peft_model(make_gpt3(), config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed = set()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        model(input_ids=make_ids(), labels=make_ids()).loss.backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and changed <= trained
    targets = set(model.peft_config["default"].target_modules)
    own = {
        "IA3": {"k_proj", "v_proj", "down_proj"},
        "LN_TUNING": {"input_layernorm", "post_attention_layernorm", "norm"},
        "BEFT": {"v_proj"},
    }
    assert targets == own.get(kind, LINEAR)


def test_ia3_scales_what_goes_into_the_feed_forward_layer():
    model = get_peft_model(make_gpt3(), IA3Config())
    assert set(model.peft_config["default"].feedforward_modules) == {"down_proj"}
    sizes = {
        name.split(".ia3_l")[0].rsplit(".", 1)[1]: p.numel() for name, p in model.named_parameters() if "ia3" in name
    }
    assert sizes == {"k_proj": 32, "v_proj": 32, "down_proj": 128}


def test_prefix_tuning_goes_through_the_banded_layers():
    model = get_peft_model(make_gpt3(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    changed = train(model, learning_rate=0.5)
    assert len(changed) == 1 and "prompt_encoder" in changed.pop()
    ids = make_ids(1, 5)
    assert model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, eos_token_id=None
    ).shape == (1, 11)


# What trains


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"use_rslora": True, "lora_dropout": 0.1}])
def test_an_adapter_trains_its_own_weights_alone(architecture, fields, recwarn):
    torch.manual_seed(0)
    model = add_adapter(ARCHITECTURES[architecture](), settings(lora_r=4, **fields))
    changed = train(model)
    assert changed and all("lora_" in name for name in changed)
    assert any("magnitude" in name for name in changed) == bool(fields.get("use_dora"))
    layer = next(module for name, module in model.named_modules() if name.endswith(("q_proj", "c_attn")))
    rank = 2 if fields.get("use_rslora") else 4
    assert layer.scaling["default"] == model.peft_config["default"].lora_alpha / rank
    assert [str(warning.message) for warning in recwarn] == []


def test_targets_default_to_the_architectures_table_and_then_to_all_linear_layers(monkeypatch):
    assert add_adapter(make_gpt2(), settings()).peft_config["default"].target_modules == {"c_attn"}
    assert add_adapter(make_llama(), settings()).peft_config["default"].target_modules == {"q_proj", "v_proj"}
    monkeypatch.delitem(constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, "llama")
    names = [name for name, _ in add_adapter(make_llama(), settings()).named_modules() if name.endswith("lora_A")]
    assert len(names) == 2 * 7  # and not the output layer
    chosen = add_adapter(make_gpt3(), settings(lora_target_modules=["v_proj"]))
    assert sum("lora_A" in name for name, _ in chosen.named_parameters()) == 2


@pytest.mark.parametrize("field", ["lora_target_modules", "lora_modules_to_save"])
def test_a_layer_that_is_not_there_is_named_with_those_that_are(field):
    with pytest.raises(ValueError, match=rf"`{field}`: .*'w_proj'.*down_proj, .*q_proj"):
        add_adapter(make_gpt3(), settings(**{field: ["q_proj", "w_proj"]}))


@pytest.mark.parametrize(("head", "layer"), [("classification", "score"), ("span", "qa_outputs")])
@pytest.mark.parametrize("targets", [None, ["all-linear"]])
def test_a_new_head_trains_and_is_saved(bases, tmp_path, head, layer, targets):
    model = save_adapter(bases["gpt3"], tmp_path, head=head, lora_target_modules=targets)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert any(name.endswith(f"{layer}.weight") for name in weights)
    assert not any(f"{layer}.lora" in name for name in weights)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in weights if "lora_" in name} == LINEAR
    assert torch.allclose(logits_of(load_adapter(tmp_path)), logits_of(model), atol=1e-5)


def test_a_125m_model_trains_at_most_2_percent_into_an_adapter_of_less_than_5(tmp_path):
    with torch.device("meta"):
        model = GPT3ForCausalLM(GPT3Config.from_preset("gpt3-125m"))
        size = sum(parameter.numel() * 4 for parameter in model.parameters())
        peft_model = add_adapter(model, settings(lora_r=8))
    assert 0.005 < trainable_share(peft_model) <= 0.02
    trained = sum(parameter.numel() * 4 for parameter in peft_model.parameters() if parameter.requires_grad)
    assert trained < 0.05 * size


def test_an_adapter_folder_is_under_5_percent_of_its_model(tmp_path):
    torch.manual_seed(0)
    # The ratio of rank to width of a 125M model with 4 times the default rank.
    base = make_gpt3(hidden_size=192, num_hidden_layers=4, num_attention_heads=4)
    base.save_pretrained(tmp_path / "base")
    model = add_adapter(base, settings(tmp_path / "base", lora_r=2))
    model.save_pretrained(tmp_path / "adapter")
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).rglob("*")) for name in ("adapter", "base")]
    assert sizes[0] < 0.05 * sizes[1]
    assert trainable_share(model) < 0.02


def test_a_large_share_of_a_small_model_is_told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hfgpt.training.adapters"), "propagate", True)
    transformers_logging.warning_once.cache_clear()  # it remembers what it said in earlier tests
    with caplog.at_level(logging.WARNING, logger="hfgpt.training.adapters"):
        add_adapter(make_gpt3(), settings(lora_r=16))
    assert "of the model's weights" in caplog.text and "`lora_r` (16)" in caplog.text


def test_a_folder_is_remembered_by_its_whole_path(bases, tmp_path, monkeypatch):
    monkeypatch.chdir(bases["gpt3"].parent)
    model = add_adapter(AutoModelForCausalLM.from_pretrained("gpt3"), settings("gpt3"))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bases["gpt3"])
    assert config["task_type"] == "CAUSAL_LM"


def test_4_bits_without_bitsandbytes_say_what_to_install(monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *args: False)
    with pytest.raises(ValueError, match=r"`load_in_4bit` needs bitsandbytes.*hfgpt\[qlora\]"):
        quantization_config()


@needs_bitsandbytes
def test_qlora_trains_over_a_base_in_4_bits(tmp_path):
    torch.manual_seed(0)
    make_gpt3(hidden_size=64).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=quantization_config(), dtype="float32"
    )
    assert type(base.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    model = add_adapter(base, settings(tmp_path / "base", lora_r=4))
    changed = train(model)
    assert changed and all("lora_" in name for name in changed)
    model.save_pretrained(tmp_path / "adapter")
    assert merge(tmp_path / "adapter", tmp_path / "merged").dtype == "float32"


@needs_bitsandbytes
@pytest.mark.parametrize("architecture", ["gpt3", "gpt2"])
@pytest.mark.parametrize(
    ("head", "kind", "labels"),
    [
        ("classification", AutoModelForSequenceClassification, {"labels": torch.tensor([0, 1])}),
        (
            "span",
            AutoModelForQuestionAnswering,
            {key: torch.tensor([1, 2]) for key in ("start_positions", "end_positions")},
        ),
    ],
)
def test_a_new_head_of_a_model_in_4_bits_is_not_quantized(bases, architecture, head, kind, labels):
    base = kind.from_pretrained(
        bases[architecture], quantization_config=quantization_config(), dtype="float32", pad_token_id=0
    )
    model = add_adapter(base, settings(bases[architecture], lora_r=4), head)
    inputs = {"input_ids": make_ids(), "attention_mask": torch.ones_like(make_ids()), **labels}
    changed = train(model, steps=8, learning_rate=0.002, **inputs)
    assert any("score" in name or "qa_outputs" in name for name in changed)


def test_a_decoder_that_would_be_random_is_refused(bases):
    # transformers keeps llama's decoder under another name in its question answerer than in the language model.
    with pytest.raises(ValueError, match="cannot be loaded as LlamaForQuestionAnswering: there are no weights for tr"):
        load_base(AutoModelForQuestionAnswering, bases["llama"])
    load_base(AutoModelForSequenceClassification, bases["llama"])
    load_base(AutoModelForQuestionAnswering, bases["gpt2"])
    load_base(AutoModelForCausalLM, bases["gpt3"])


# Merging


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("gpt3", {}),
        ("gpt3", {"use_dora": True}),
        ("gpt3", {"use_rslora": True, "lora_modules_to_save": ["norm"]}),
        ("gpt3", {"lora_modules_to_save": ["embed_tokens"]}),
        ("gpt3", {"lora_target_modules": ["q_proj", "lm_head"]}),
        ("gpt2", {"use_dora": True}),
        ("gpt2", {"lora_target_modules": ["all-linear"]}),
        ("llama", {}),
        ("llama", {"use_dora": True, "lora_target_modules": ["all-linear"]}),
    ],
)
def test_merged_and_unmerged_logits_are_equal(bases, tmp_path, architecture, fields):
    model = save_adapter(bases[architecture], tmp_path / "adapter", **fields)
    done = merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert done.source_class == type(merged).__name__ and done.tokenizer
    assert torch.allclose(logits_of(merged), logits_of(model), atol=1e-4)
    with model.disable_adapter():
        assert not torch.allclose(logits_of(merged), logits_of(model), atol=1e-2)
    assert merged.config.tie_word_embeddings == model.config.tie_word_embeddings  # also where it is they that train
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == WORDS
    assert (tmp_path / "merged" / "generation_config.json").exists()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_an_adapter_of_one_of_two_tied_layers_unties_them(bases, tmp_path):
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.warns(UserWarning):
        model = save_adapter(bases["gpt3"], tmp_path / "adapter", config=config)
    done = merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not merged.config.tie_word_embeddings and any("tie_word_embeddings" in note for note in done.notes)
    assert torch.allclose(logits_of(merged), logits_of(model), atol=1e-4)
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "config", [IA3Config(task_type="CAUSAL_LM"), AdaLoraConfig(task_type="CAUSAL_LM", total_step=9)]
)
def test_other_kinds_of_adapters_are_merged_as_well(bases, tmp_path, config):
    model = save_adapter(bases["gpt3"], tmp_path / "adapter", config=config)
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits_of(merged), logits_of(model), atol=1e-4)


def test_a_classifier_is_merged_with_its_head_and_its_task(bases, tmp_path):
    model = save_adapter(bases["gpt3"], tmp_path / "adapter", head="classification")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.num_labels == 3 and merged.config.pad_token_id == 0
    assert torch.allclose(logits_of(merged), logits_of(model), atol=1e-4)


def test_labels_of_a_task_are_the_classifiers(bases, tmp_path):
    task = get_task("sentiment")
    tokenizer = AutoTokenizer.from_pretrained(bases["llama"])
    base = AutoModelForSequenceClassification.from_pretrained(bases["llama"], num_labels=2, pad_token_id=0)
    model = add_adapter(base, settings(bases["llama"]), "classification")
    inputs = {"input_ids": make_ids(), "labels": torch.tensor([0, 1])}
    train(model, **inputs)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    save_task(TaskRecord(task, "choice", "en", head="classification"), tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").config
    assert config.id2label == {0: "negative", 1: "positive"}
    assert saved_task(tmp_path / "merged") == saved_task(tmp_path / "adapter") is not None


def test_a_question_answerer_is_merged_with_its_head(bases, tmp_path):
    model = save_adapter(bases["gpt2"], tmp_path / "adapter", head="span")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits_of(merged), logits_of(model), atol=1e-4)


def test_the_type_of_the_weights_is_the_bases_or_the_one_asked_for(bases, tmp_path):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(bases["gpt3"], dtype="bfloat16").save_pretrained(half)
    make_tokenizer().save_pretrained(half)
    model = save_adapter(half, tmp_path / "adapter")
    done = merge(tmp_path / "adapter", tmp_path / "merged")
    assert done.dtype == "bfloat16" and any("rounded to bfloat16" in note for note in done.notes)
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert merge(tmp_path / "adapter", tmp_path / "whole", dtype="float32").dtype == "float32"
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    assert torch.allclose(logits_of(whole), logits_of(model), atol=1e-4)


def spoil(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(change(weights), folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    save_adapter(bases["gpt3"], folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {n: t * 0 if "lora_B" in n else t for n, t in weights.items()}, "is empty: all its `lora_B`"),
        (lambda weights: {n: t[:0] for n, t in weights.items()}, r"is empty: .*has the shape \(0, "),
        (lambda weights: {n: t / 0 for n, t in weights.items()}, "is broken: .* not finite"),
        (lambda weights: {}, "is empty, without a tensor"),
        (lambda weights: {n: t for n, t in weights.items() if "layers.0" in n}, "does not fit .* it lacks .*layers.1"),
        (lambda weights: {**weights, "base_model.model.extra": torch.ones(1)}, "does not fit .* it has .*extra"),
        (lambda weights: {n: torch.cat([t, t], -1) for n, t in weights.items()}, "does not fit its base model"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(trained, tmp_path, change, message):
    shutil.copytree(trained, tmp_path / "adapter")
    spoil(tmp_path / "adapter", change)
    with pytest.raises(ValueError, match=message):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_that_changes_nothing_is_refused(bases, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["gpt3"]), IA3Config(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is empty: the model with it is the model without it"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_a_prefix_cannot_be_merged(bases, tmp_path):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(bases["gpt3"]), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="PREFIX_TUNING, which adds to the input and cannot be merged"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_a_merge_that_is_another_model_is_not_written(trained, tmp_path, monkeypatch):
    save = GPT3ForCausalLM.save_pretrained

    def save_spoiled(model, *args, **kwargs):
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0] += 1.0
        save(model, *args, **kwargs)

    monkeypatch.setattr(GPT3ForCausalLM, "save_pretrained", save_spoiled)
    with pytest.raises(ValueError, match="is not the same model: its logits differ"):
        merge(trained, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_gone_is_named_and_one_beside_the_adapter_is_found(trained, bases, tmp_path):
    shutil.copytree(trained, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/gone/gpt3"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="needs its base model /gone/gpt3"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    shutil.copytree(bases["gpt3"], tmp_path / "gpt3")
    merge(tmp_path / "adapter", tmp_path / "merged")


def test_what_is_no_adapter_and_where_nothing_may_be_written(bases, trained, tmp_path):
    with pytest.raises(ValueError, match=r"is no adapter: it has no adapter_config\.json"):
        merge(bases["gpt3"], tmp_path / "merged")
    with pytest.raises(ValueError, match="No adapter 'nowhere/at-all'"):
        merge("nowhere/at-all", tmp_path / "merged")
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        merge(trained, tmp_path / "merged", dtype="int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        merge(trained, tmp_path / "full")
    with pytest.raises(ValueError, match="is or holds"):
        merge(trained, bases["gpt3"], overwrite=True)


def test_merged_and_converted_in_one_go(bases, tmp_path):
    torch.manual_seed(0)
    make_gpt3(layer_types=["full_attention"] * 2).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model = save_adapter(tmp_path / "base", tmp_path / "adapter")
    done = merge(tmp_path / "adapter", tmp_path / "merged", to="gpt2")
    assert (done.source_type, done.target_type) == ("gpt3", "gpt2")
    merged = GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits_of(merged), logits_of(model), atol=1e-4)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "base", "merged"]


def test_the_probe_reads_logits_of_every_head():
    assert adapters._logits(make_gpt3(max_position_embeddings=16)).shape == (1, 16, WORDS)
