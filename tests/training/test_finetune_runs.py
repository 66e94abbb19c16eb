"""Runs of fine-tuning: what a second one in the same folder does, what a resume reads, what is saved, which rows are drawn."""

import copy
import dataclasses
import json
import logging
import shutil

import pytest
import torch
from helpers import make_reviews, write_jsonl
from safetensors.torch import load_file
from task_runs import SENTIMENT, recipe, run
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.training_args import OptimizerNames

from hfgpt.generation import load
from hfgpt.training import finetune as module
from hfgpt.training.adapters import add_adapter, load_adapter, merge
from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments, recipe_defaults
from hfgpt.training.finetune import finetune, load_tokenizer, prepare
from hfgpt.training.task_rows import RowReader
from hfgpt.training.task_trainer import GroupedByLength, TaskTrainer


FEW = {"max_train_rows": 64, "max_test_rows": 8}


def bytes_of(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


# Adapters


def test_an_adapter_of_the_embeddings_is_small_resumes_and_merges(base, reviews_file, tmp_path, tokenizer):
    """peft would write the whole embeddings into it, twice where they are tied."""
    fields = {"use_peft": True, "lora_r": 1, "lora_target_modules": ["embed_tokens", "q_proj"], **FEW}
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "save_total_limit": 3, "learning_rate": 0.05}
    whole = tmp_path / "whole"
    run(base("gpt3"), reviews_file, whole, args, **fields)
    for folder in (whole, whole / "checkpoint-2"):
        tensors = load_file(folder / "adapter_model.safetensors")
        assert all("lora_" in name for name in tensors)
        assert sum(tensor.nbytes for tensor in tensors.values()) < 0.05 * bytes_of(base("gpt3"))
        assert any("embed_tokens.lora_embedding_B" in name and tensor.any() for name, tensor in tensors.items())
    resumed = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    run(base("gpt3"), reviews_file, resumed, args, **fields)
    again = load_file(resumed / "adapter_model.safetensors")
    for name, tensor in load_file(whole / "adapter_model.safetensors").items():
        torch.testing.assert_close(again[name], tensor)
    merge(whole, tmp_path / "merged")
    ids = tokenizer("The film was dull and the story moving.", return_tensors="pt").input_ids
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        torch.testing.assert_close(merged, load_adapter(whole)(ids).logits, atol=1e-4, rtol=1e-4)
        untrained = AutoModelForCausalLM.from_pretrained(base("gpt3"))(ids).logits
        by_transformers = AutoModelForCausalLM.from_pretrained(whole)(ids).logits
    torch.testing.assert_close(by_transformers, merged, atol=1e-4, rtol=1e-4)
    assert (merged - untrained).abs().max() > 1e-2


def test_embeddings_that_are_trained_whole_are_saved_whole(base, reviews_file, tmp_path):
    fields = {"use_peft": True, "lora_target_modules": ["q_proj"], "lora_modules_to_save": ["embed_tokens"], **FEW}
    run(base("gpt3"), reviews_file, tmp_path, {"max_steps": 2}, **fields)
    [saved] = [t for n, t in load_file(tmp_path / "adapter_model.safetensors").items() if "embed_tokens" in n]
    before = load_file(base("gpt3") / "model.safetensors")["model.embed_tokens.weight"]
    assert saved.shape == before.shape and not torch.equal(saved, before)


def test_all_linear_goes_alone_as_a_text_and_beside_others(base, tmp_path):
    def targets(value):
        config = FinetuneConfig(
            str(base("gpt3")), train_path="t.jsonl", test_path="t.jsonl", use_peft=True, lora_target_modules=value
        )
        names = add_adapter(AutoModelForCausalLM.from_pretrained(base("gpt3")), config).state_dict()
        return {name.split(".lora_")[0].rsplit(".", 1)[1] for name in names if ".lora_" in name}

    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
    assert targets("all-linear") == targets(["all-linear"]) == linear
    assert targets(["all-linear", "embed_tokens"]) == linear | {"embed_tokens", "lm_head"}  # which is tied to it
    (tmp_path / "recipe.yaml").write_text("lora_target_modules: all-linear\n")
    assert recipe_defaults(tmp_path / "recipe.yaml", FinetuneConfig) == {"lora_target_modules": ["all-linear"]}


def test_a_tied_output_layer_that_peft_cannot_load_is_refused(base, reviews_file, tmp_path):
    with pytest.raises(ValueError, match=r"lm_head is tied to transformer.wte.*gpt2 model.*`lora_modules_to_save:"):
        run(base("gpt2"), reviews_file, tmp_path, use_peft=True, lora_target_modules=["c_attn", "lm_head"])


# One folder, several runs


def test_arguments_stay_as_the_caller_gave_them(base, reviews_file, tmp_path):
    config, args = recipe(
        base("gpt3"), reviews_file, tmp_path / "1", {"max_steps": 2, "learning_rate": "left out", "save_strategy": None},
        early_stopping_patience=1, validation_fraction=0.2, **FEW,
    )  # fmt: skip
    before = copy.copy(vars(args))
    finetune(config, args)
    assert vars(args) == before
    trainer, _ = prepare(dataclasses.replace(config, use_peft=True), args)
    assert trainer.args.learning_rate == pytest.approx(10 * 0.05 / 32)


def test_another_run_does_not_go_on_from_a_checkpoint(base, reviews_file, tmp_path, monkeypatch):
    def again(path=reviews_file, args=None, **fields):
        limits = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 4, **(args or {})}
        return run(base("gpt3"), path, tmp_path / "out", limits, **{**FEW, **fields})

    first = again()
    other = tmp_path / "other.jsonl"
    shutil.copy(reviews_file, other)
    for arguments, message in (
        ({"path": other}, r"`train_path` was .*reviews\.jsonl and is .*other\.jsonl"),
        ({"args": {"learning_rate": 1e-3}}, r"`learning_rate` was 0\.005 and is 0\.001"),
        ({"head": "classification"}, "`head` was lm and is classification"),
        ({"use_peft": True}, "`use_peft` was False and is True"),
        ({"label_words": {"negative": " bad", "positive": " good"}}, "`label_words` has changed, `task` has changed"),
        ({"args": {"seed": 1}}, "`seed` was 42 and is 1"),
    ):
        with pytest.raises(ValueError, match=rf"checkpoint-4 is of another run: .*{message}.*`output_dir`"):
            again(**arguments)
    trained, original = [], TaskTrainer.training_step
    monkeypatch.setattr(TaskTrainer, "training_step", lambda self, *args: trained.append(1) or original(self, *args))
    finished = again(compare_random_start=False, attn_implementation="eager")
    assert trained == [] and finished["eval_accuracy"] == first["eval_accuracy"]
    rows = [json.loads(line) for line in reviews_file.read_text().splitlines()]
    content = reviews_file.read_text()
    try:
        write_jsonl(reviews_file, [{**row, "text": f"Oh. {row['text']}"} for row in rows])
        with pytest.raises(ValueError, match=r"the training rows \(`train_path`\) are others"):
            again()
    finally:
        reviews_file.write_text(content)
    (tmp_path / "out" / "checkpoint-4" / "recipe.json").unlink()
    manifest = tmp_path / "out" / "checkpoint-4" / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({"files": {name: file for name, file in files.items() if name != "recipe.json"}}))
    with pytest.raises(ValueError, match="does not say of which run it is"):
        again()


def test_a_model_takes_the_place_of_an_adapter_and_the_other_way_round(base, reviews_file, tmp_path):
    out = tmp_path / "out"
    for use_peft in (True, False, True):
        run(base("gpt3"), reviews_file, out, {"max_steps": 3}, use_peft=use_peft, **FEW)
        assert (out / "adapter_config.json").exists() == (out / "adapter_model.safetensors").exists() == use_peft
        assert (out / "model.safetensors").exists() == (out / "config.json").exists() != use_peft
        assert (type(load(out, device="cpu")[0]).__name__ == "GPT3ForCausalLM") != use_peft
    with pytest.raises(ValueError, match="is the folder of the model itself"):
        run(base("gpt3"), reviews_file, base("gpt3"), {"max_steps": 1}, use_peft=True)


def test_weights_in_parts_do_not_stay_beside_whole_ones(base, reviews_file, tmp_path):
    out = tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(base("gpt3")).save_pretrained(out, max_shard_size="20KB")
    (out / "notes.txt").write_text("mine")
    assert len(list(out.glob("model-*"))) > 1
    run(base("gpt3"), reviews_file, out, {"max_steps": 1}, **FEW)
    assert [file.name for file in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert not (out / "model.safetensors.index.json").exists() and (out / "notes.txt").exists()


# The order of rows


def test_a_resumed_run_reads_the_rows_that_were_left(base, reviews_file, tmp_path, monkeypatch):
    """With dropout, which draws from the generator that transformers' order would draw from."""
    seen, original = [], TaskTrainer.training_step

    def training_step(self, model, inputs, *rest):
        seen.append(inputs["input_ids"].tolist())
        return original(self, model, inputs, *rest)

    monkeypatch.setattr(TaskTrainer, "training_step", training_step)
    args = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 9}
    place = (base("gpt3"), reviews_file, tmp_path, {**args, "per_device_train_batch_size": 8})
    run(*place, dropout=0.2, **FEW)
    whole, weights = list(seen), load_file(tmp_path / "model.safetensors")
    assert len(whole) == 24 and whole[:8] != whole[8:16]
    for step in (15, 18, 21, 24):  # as if it had been killed in the middle of the second epoch
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    seen.clear()
    run(*place, dropout=0.2, **FEW)
    assert seen == whole[12:]
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name])


def test_the_order_is_of_seed_and_epoch_and_groups_lengths():
    lengths = [number * 7 % 50 for number in range(400)]
    order = GroupedByLength(lengths, 8, seed=1)
    first = list(order)
    torch.rand(3)
    assert list(order) == first and sorted(first) == list(range(400)) and len(order) == 400
    order.set_epoch(1)
    assert list(order) != first and sorted(order) == list(range(400))
    assert list(GroupedByLength(lengths, 8, seed=2)) != first
    spreads = [max(part) - min(part) for part in ([lengths[i] for i in first[b : b + 8]] for b in range(0, 400, 8))]
    assert sum(spreads) / len(spreads) < 10


# Which rows


def read(base, path, **fields):
    config = FinetuneConfig(str(base("gpt3")), train_path=str(path), **fields)
    task = module.make_task(config)
    return RowReader(config, task, load_tokenizer(config), 128).read()


def test_rows_are_drawn_from_the_whole_file(base, tmp_path):
    """And not its head, which in a file sorted by label has one."""
    rows = sorted(make_reviews(400, seed=3), key=lambda row: row["verdict"])
    path = write_jsonl(tmp_path / "sorted.jsonl", rows)
    fields = {**SENTIMENT, "max_train_rows": 40, "max_test_rows": 30}
    found = read(base, path, **fields)
    assert (found.counts["train_rows"], found.counts["test_rows"], len(found.train)) == (40, 30, 40)
    for part in (found.train, found.test):
        assert 0.2 < sum(example.label for example in part.examples) / len(part) < 0.8
        lines = [int(example.where.rsplit(":")[-1]) for example in part.examples]
        assert lines == sorted(lines)
    assert read(base, path, **fields).train.examples == found.train.examples
    assert read(base, path, **fields, split_seed=1).train.examples != found.train.examples


def test_the_questions_of_a_passage_are_in_one_part(base, tmp_path):
    rows = [
        {"question": f"What is number {number} of {passage}?", "context": f"It is {passage}.", "answer": str(passage)}
        for passage in range(60)
        for number in range(3)
    ]
    path = write_jsonl(tmp_path / "qa.jsonl", rows)
    found = read(base, path, task="qa", test_fraction=0.3, task_overrides={"max_new_tokens": 8})
    train, test = ({example.text for example in part.examples} for part in (found.train, found.test))
    assert train and test and not train & test


def test_cloze_rows_need_a_passage_alone(base, tmp_path):
    texts = [f"The film that Anna made in {year} was a very long one. It was dull." for year in range(1950, 1990)]
    path = write_jsonl(tmp_path / "passages.jsonl", [{"passage": text} for text in texts])
    found = read(
        base, path, task="cloze-qa", text_field="passage", test_fraction=0.25, task_overrides={"max_new_tokens": 8}
    )
    assert len(found.train) > len(found.test) > 2


# Models


@pytest.mark.parametrize("kind", ["bloom", "opt", "mamba"])
def test_packing_is_refused_where_examples_would_see_each_other(kind, reviews_file, tmp_path, tokenizer):
    shared = {"vocab_size": len(tokenizer), "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    model = {
        "bloom": lambda: BloomForCausalLM(BloomConfig(**shared, n_layer=1, n_head=2)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(
                **shared, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=32,
                max_position_embeddings=128,
            )
        ),
        "mamba": lambda: MambaForCausalLM(MambaConfig(**shared, num_hidden_layers=1)),
    }[kind]()  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    place = (tmp_path / "base", reviews_file, tmp_path / "out", {"max_steps": 1})
    with pytest.raises(ValueError, match=f"`packing`: in a model of type {kind} .* leave it out"):
        prepare(*recipe(*place, packing=True, max_length=64, **FEW))
    run(*place, max_length=64, **FEW)  # at the default attention implementation, whatever the model has


def test_a_token_to_pad_with_is_one_that_the_model_has(base, reviews_file, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base("gpt3"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert (
        tokenizer.pad_token_id == len(tokenizer) - 1 >= json.loads((folder / "config.json").read_text())["vocab_size"]
    )
    run(folder, reviews_file, tmp_path / "out", {"max_steps": 1}, **FEW)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == 0
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    rows = [{**row, "text": f"zebra {row['text']}"} for row in make_reviews(200, seed=0)]
    path = write_jsonl(tmp_path / "zebra.jsonl", rows)
    with pytest.raises(ValueError, match=r"zebra\.jsonl:\d+: token \d+ is beyond the model's `vocab_size`"):
        run(folder, path, tmp_path / "out2", {"max_steps": 1})


def test_no_model_and_an_adapter_are_told(base, reviews_file, tmp_path):
    with pytest.raises(
        ValueError, match=r"`model_name_or_path` .*nowhere cannot be loaded: no such folder, and the Hub"
    ):
        run(tmp_path / "nowhere", reviews_file, tmp_path / "out")
    run(base("gpt3"), reviews_file, tmp_path / "adapter", {"max_steps": 1}, use_peft=True, **FEW)
    with pytest.raises(ValueError, match=r"is an adapter: merge it first \(hfgpt convert .*adapter OUT --merge\)"):
        run(tmp_path / "adapter", reviews_file, tmp_path / "out")


def test_a_checkpoint_has_the_models_own_dropout(base, reviews_file, tmp_path):
    args = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run(base("gpt2"), reviews_file, tmp_path, args, dropout=0.35, **FEW)
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        saved = json.loads((folder / "config.json").read_text())
        assert saved["resid_pdrop"] == saved["embd_pdrop"] == saved["attn_pdrop"] == 0.1


# Settings


def test_settings_without_effect_are_told(base, reviews_file, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hfgpt"), "propagate", True)
    place = (base("gpt3"), reviews_file, tmp_path)
    prepare(*recipe(*place, lora_r=4, use_dora=True, max_eval_rows=3, **FEW))
    told = [record.message for record in caplog.records if "ignored" in record.message]
    assert told == [
        "`lora_r`, `use_dora`: ignored without `use_peft: true`.",
        "`max_eval_rows`: ignored without validation rows.",
    ]
    caplog.clear()
    prepare(*recipe(*place, lora_r=4, use_peft=True, max_eval_rows=3, validation_fraction=0.2, **FEW))
    assert not [record for record in caplog.records if "ignored" in record.message]


def test_muon_takes_torchs_adam_by_any_of_its_names(tmp_path):
    given = {"output_dir": str(tmp_path), "muon": True, "bf16": False}
    for optim in ("adamw_torch", OptimizerNames.ADAMW_TORCH_FUSED):
        args = FinetuningArguments(**given, optim=optim)
        assert dataclasses.replace(args, learning_rate=1e-3).muon
    for optim in ("adamw_torch_4bit", OptimizerNames.ADAMW_TORCH_8BIT, "sgd"):
        with pytest.raises(ValueError, match="`optim` adamw_torch or adamw_torch_fused, got"):
            FinetuningArguments(**given, optim=optim)
