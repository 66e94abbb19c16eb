"""The recipe script as users run it: `accelerate launch ... recipes/finetune.py`."""

import json

import pytest
import torch
from helpers import launch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hfgpt.generation import generate, load
from hfgpt.tasks.saved import saved_task
from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments
from hfgpt.training.finetune import finetune


PROMPT = "{text} The film was"
LABEL_WORDS = {"negative": " dull", "positive": " funny"}


def run_recipe(model, reviews_file, output_dir, **fields):
    values = {
        "model_name_or_path": model,
        "output_dir": output_dir,
        "train_path": reviews_file,
        "label_field": "verdict",
        "label_map": json.dumps({"fresh": "positive", "rotten": "negative"}),
        # Words this tokenizer knows: the positions are few.
        "prompt": PROMPT,
        "label_words": json.dumps(LABEL_WORDS),
        "group_by": "film",
        "test_fraction": 0.25,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "bf16": "false",
        "use_cpu": "true",
        "save_strategy": "no",
        **fields,
    }
    return launch(
        "recipes/finetune.py",
        *[word for key, value in values.items() for word in (f"--{key}", str(value))],
    )


@pytest.fixture(scope="module")
def full(pretrained, reviews_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "model"
    run_recipe(pretrained, reviews_file, folder, compare_random_start="true")
    return folder


@pytest.fixture(scope="module")
def lora(pretrained, reviews_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    run_recipe(pretrained, reviews_file, folder, use_peft="true", learning_rate=2e-2)
    return folder


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def test_full_fine_tuning_learns_the_task(full):
    scores = results(full)
    assert scores["eval_accuracy"] > 0.9 > 0.65 > scores["eval_majority_accuracy"] > 0.35
    assert scores["eval_accuracy_low"] > scores["baseline_majority_accuracy_high"]
    assert scores["eval_accuracy_low"] <= scores["eval_accuracy"] <= scores["eval_accuracy_high"]
    assert 0.0 <= scores["eval_random_start_accuracy_low"] <= scores["eval_random_start_accuracy"] <= 1.0
    assert scores["eval_macro_f1"] > 0.9
    assert (scores["trainable_share"], scores["train_rows_cut"], scores["test_rows_malformed"]) == (1.0, 0, 0)
    assert scores["train_rows"] + scores["test_rows"] == 400
    assert 50 < scores["test_rows"] < 150
    assert not (full / "random-start").exists()


def test_predictions_of_the_test_rows_are_kept(full, reviews_file):
    scores = results(full)
    rows = [json.loads(line) for line in (full / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == scores["test_rows"]
    assert sum(row["correct"] for row in rows) / len(rows) == pytest.approx(scores["eval_accuracy"])
    reviews = [json.loads(line) for line in reviews_file.read_text().splitlines()]
    for row in rows:
        review = reviews[int(row["where"].rsplit(":", 1)[1]) - 1]
        assert row["prompt"] == PROMPT.format(text=review["text"])
        assert row["references"] == [{"fresh": "positive", "rotten": "negative"}[review["verdict"]]]
        assert row["correct"] == (row["prediction"] in row["references"])
        best = max(range(2), key=row["scores"].__getitem__)
        assert row["prediction"] == ["negative", "positive"][best]


def test_the_task_is_kept_beside_the_weights(full, lora):
    for folder in (full, lora):
        record = saved_task(folder)
        assert (record.kind, record.language, record.head, record.max_length) == ("choice", "en", "lm", 64)
        assert (record.task.prompt, record.task.choices) == (PROMPT, LABEL_WORDS)
        assert record.fields == {"label": "verdict"}
        assert record.label_map == {"fresh": "positive", "rotten": "negative"}


def test_lora_learns_the_task_and_leaves_an_adapter(lora, pretrained):
    scores = results(lora)
    assert scores["eval_accuracy"] > scores["eval_majority_accuracy"] + 0.1
    assert 0 < scores["trainable_share"] < 0.5
    weights = load_file(lora / "adapter_model.safetensors")
    assert weights and all(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)
    modules = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in weights}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    assert not (lora / "model.safetensors").exists()
    config = json.loads((lora / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(pretrained.resolve())


def test_the_saved_model_answers_with_a_label_word(full):
    model, tokenizer = load(full, device="cpu")
    answers = {}
    for verdict, words in (("positive", "wonderful and the music superb"), ("negative", "dull and the music awful")):
        prompt = PROMPT.format(text=f"The cast was {words}.")
        answers[verdict] = generate(model, tokenizer, prompt, max_new_tokens=1)
    assert answers == LABEL_WORDS


def test_transformers_loads_the_adapter_by_itself(lora):
    model = AutoModelForCausalLM.from_pretrained(lora)
    ours, tokenizer = load(lora, device="cpu")
    assert isinstance(ours, PeftModel)
    ids = tokenizer("The film was", return_tensors="pt").input_ids
    assert torch.allclose(model(ids).logits, ours(ids).logits, atol=1e-5)
    with ours.disable_adapter():
        assert not torch.allclose(model(ids).logits, ours(ids).logits, atol=1e-2)


def test_adapter_and_base_that_moved_together_still_load(lora, pretrained, tmp_path):
    import shutil

    shutil.copytree(lora, tmp_path / "adapter")
    shutil.copytree(pretrained, tmp_path / pretrained.name, ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"/gone/{pretrained.name}"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    load(tmp_path / "adapter", device="cpu")
    shutil.rmtree(tmp_path / pretrained.name)
    with pytest.raises(ValueError, match="needs its base model /gone"):
        load(tmp_path / "adapter", device="cpu")


def test_the_same_recipe_fine_tunes_gpt2(pretrained, reviews_file, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=0, bos_token_id=0
        )
    )
    base.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    run_recipe(tmp_path / "gpt2", reviews_file, tmp_path / "out")
    assert results(tmp_path / "out")["eval_accuracy"] > 0.8


def test_an_unmapped_label_is_explained(pretrained, reviews_file, tmp_path):
    config = FinetuneConfig(
        str(pretrained),
        train_path=str(reviews_file),
        test_fraction=0.25,
        label_field="verdict",
        label_map={"fresh": "positive"},
        max_bad_rows=5,
    )
    with pytest.raises(ValueError, match=r"reviews.jsonl:\d+: Label 'rotten' in `verdict`.*`label_map`"):
        finetune(config, FinetuningArguments(output_dir=str(tmp_path)))


@pytest.mark.slow
def test_the_same_recipe_fine_tunes_a_llama(pretrained, reviews_file, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    base.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    run_recipe(tmp_path / "llama", reviews_file, tmp_path / "out", use_peft="true", learning_rate=2e-2)
    assert results(tmp_path / "out")["eval_accuracy"] > 0.8
