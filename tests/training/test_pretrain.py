"""The recipe script as users run it: `accelerate launch ... recipes/pretrain.py`."""

import json
import math
import shutil

import pytest
import torch
from helpers import TINY_MODEL, launch, pretrain_arguments
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hfgpt
from hfgpt.config import from_mapping
from hfgpt.data.corpus import CorpusConfig, prepare
from hfgpt.data.packing import HeldOutDataset
from hfgpt.training.arguments import PretrainConfig, PretrainingArguments, parse_arguments
from hfgpt.training.pretrain import only_run_in, pretrain
from hfgpt.training.schedule import learning_rate_factor


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def losses(folder):
    return {entry["step"]: entry["loss"] for entry in history(folder) if "loss" in entry}


def test_it_learns_and_leaves_a_model_that_auto_classes_load(pretrained):
    results = json.loads((pretrained / "all_results.json").read_text())
    assert results["eval_loss"] < results["eval_loss_before"] - 0.5
    assert results["eval_loss_before"] == pytest.approx(math.log(400), rel=0.05)
    assert results["train_tokens"] == 12 * 4 * 32
    assert results["eval_perplexity"] == pytest.approx(math.exp(results["eval_loss"]))
    assert results["peak_memory_bytes"] > 10e6
    model = AutoModelForCausalLM.from_pretrained(pretrained)
    assert isinstance(model, hfgpt.GPT3ForCausalLM)
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert (pretrained / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_bits_per_byte_is_the_loss_over_the_bytes(pretrained, corpus):
    results = json.loads((pretrained / "all_results.json").read_text())
    split = json.loads((corpus / "metadata.json").read_text())["splits"]["validation"]
    nats = results["eval_loss"] * split["tokens"]
    assert results["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / split["bytes"])


def test_the_held_out_loss_is_the_mean_over_tokens(pretrained, corpus):
    model = AutoModelForCausalLM.from_pretrained(pretrained)
    nats = tokens = 0
    for row in HeldOutDataset(corpus, sequence_length=32, pad_token_id=0):
        kept = int(row["labels"][1:].ne(-100).sum())
        with torch.no_grad():
            nats += model(row["input_ids"][None], labels=row["labels"][None]).loss.item() * kept if kept else 0.0
        tokens += kept
    results = json.loads((pretrained / "all_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_the_learning_rate_is_a_function_of_tokens(pretrained):
    step_tokens = 4 * 32
    logged = {entry["step"]: entry for entry in history(pretrained) if "learning_rate" in entry}
    assert set(logged) == set(range(1, 13))
    for step, entry in logged.items():
        assert entry["tokens"] == step * step_tokens
        factor = learning_rate_factor(step * step_tokens, 2 * step_tokens, 12 * step_tokens, 0.1)
        assert entry["learning_rate"] == pytest.approx(3e-3 * factor)


def test_weight_decay_falls_on_matrices_alone(pretrained):
    optimizer = torch.load(pretrained / "checkpoint-12" / "optimizer.pt", weights_only=True)
    decayed, plain = optimizer["param_groups"]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.95)
    # Embeddings, positions, and six matrices a layer; six biases and two LayerNorms a layer, and the last LayerNorm.
    assert len(decayed["params"]) == 2 + 2 * 6
    assert len(plain["params"]) == 2 * (6 + 4) + 2


def test_an_interrupted_run_resumes_from_the_newest_complete_checkpoint(pretrained, corpus, tmp_path):
    """What an interruption leaves: some checkpoints, the last of them half-written."""
    for step in (4, 8):
        shutil.copytree(pretrained / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    broken = tmp_path / "checkpoint-8" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    done = launch("recipes/pretrain.py", *pretrain_arguments(corpus, tmp_path))
    assert "checkpoint-8 is not complete" in done.stderr
    assert "Resuming from" in done.stderr and "checkpoint-4" in done.stderr
    resumed, whole = losses(tmp_path), losses(pretrained)
    assert resumed == whole  # to the last digit that is logged
    a, b = load_file(tmp_path / "model.safetensors"), load_file(pretrained / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_is_left_as_it_is(pretrained, corpus):
    before = {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}
    metrics = pretrain(*arguments(corpus, pretrained))
    assert metrics == json.loads((pretrained / "all_results.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")} == before


def test_accumulation_does_not_change_the_loss(pretrained, corpus, tmp_path):
    launch(
        "recipes/pretrain.py",
        *pretrain_arguments(
            corpus, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, save_strategy="no"
        ),
    )
    assert losses(tmp_path) == pytest.approx(losses(pretrained), abs=2e-4)


def arguments(corpus, output_dir, **fields):
    return parse_arguments(PretrainConfig, PretrainingArguments, argv=pretrain_arguments(corpus, output_dir, **fields))


def test_too_long_a_sequence_names_the_fields(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"`sequence_length` \(128\).*`max_position_embeddings` 64"):
        pretrain(*arguments(corpus, tmp_path, sequence_length=128))


def test_a_folder_without_a_corpus_names_the_command_to_run(tmp_path):
    with pytest.raises(ValueError, match="run `hfgpt prepare` first"):
        pretrain(*arguments(tmp_path, tmp_path / "out"))


def test_too_small_a_vocabulary_is_refused(corpus, tmp_path):
    overrides = json.dumps({**TINY_MODEL, "vocab_size": 300})
    with pytest.raises(ValueError, match="`vocab_size` in `model_overrides`"):
        pretrain(*arguments(corpus, tmp_path, model_overrides=overrides))


def test_without_held_out_text_evaluation_must_be_turned_off(reviews_file, tmp_path):
    recipe = {
        "sources": [{"path": str(reviews_file)}],
        "tokenizer": {"vocab_size": 300},
        "holdout_fraction": 0.0,
    }
    prepare(from_mapping(CorpusConfig, recipe, "the test's recipe"), tmp_path / "corpus")
    fields = {"train_tokens": 2 * 4 * 32, "save_strategy": "no"}
    with pytest.raises(ValueError, match="raise its `holdout_fraction` or set `eval_strategy: no`"):
        pretrain(*arguments(tmp_path / "corpus", tmp_path / "out", **fields))
    metrics = pretrain(*arguments(tmp_path / "corpus", tmp_path / "out", eval_strategy="no", **fields))
    assert metrics["train_tokens"] == 2 * 4 * 32
    assert "eval_loss" not in metrics


def test_a_checkpoint_of_another_model_is_refused(pretrained, corpus, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", "all_results.json"))
    overrides = json.dumps({**TINY_MODEL, "num_attention_heads": 4, "sliding_window": 8})
    with pytest.raises(ValueError, match=r"`num_attention_heads` was 2 and is 4.*`sliding_window` was 16 and is 8"):
        pretrain(*arguments(corpus, tmp_path / "run", model_overrides=overrides))


def test_a_second_run_in_the_same_folder_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("hfgpt.training.pretrain.LOCK_SECONDS", 0.1)
    with (
        only_run_in(tmp_path, is_first_process=True),
        pytest.raises(ValueError, match="another run is writing to it"),
    ):
        pretrain(*arguments(corpus, tmp_path))


def test_a_folder_that_cannot_be_made_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`output_dir` .*file/run cannot be used"):
        pretrain(*arguments(corpus, tmp_path / "file" / "run"))


def test_a_run_within_its_warm_up_is_told(corpus, tmp_path, caplog):
    pretrain(*arguments(corpus, tmp_path, train_tokens=2 * 4 * 32, warmup_tokens=400, save_strategy="no"))
    assert "within its warm-up (`warmup_tokens`, 400)" in caplog.text


def test_another_tokenizer_is_refused_whatever_is_skipped(pretrained, corpus, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", "all_results.json"))
    other = shutil.copytree(corpus, tmp_path / "corpus")
    file = other / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match="another tokenizer"):
        pretrain(*arguments(other, tmp_path / "run", ignore_data_skip="true"))
