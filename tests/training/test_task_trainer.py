"""TaskTrainer: what its losses are, what it evaluates, and which checkpoint it keeps."""

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch
from helpers import make_reviews, write_jsonl
from task_runs import SENTIMENT, recipe, run
from torch.nn import functional as F

from hfgpt.tasks.saved import saved_task
from hfgpt.training import finetune as module
from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments
from hfgpt.training.finetune import finetune, prepare
from hfgpt.training.optimizer import MuonAdam, is_muon
from hfgpt.training.task_rows import RowReader, oversample


def first_step(*place, args=None, **config):
    """The loss that the first step reports, the batches that it is of, and the model before it."""
    trainer, _ = prepare(*recipe(*place, args={"max_steps": 1, **(args or {})}, **config))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    batches, original = [], trainer.training_step

    def training_step(model, inputs, *rest):
        batches.append({name: value.clone() if torch.is_tensor(value) else value for name, value in inputs.items()})
        return original(model, inputs, *rest)

    trainer.training_step = training_step
    trainer.train()
    trainer.model.load_state_dict(before)
    return trainer.state.log_history[0]["loss"], batches, trainer.model.eval()


def completion_losses(model, batch):
    """Cross entropy of each label of a batch, and where it is, from logits of the whole input."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    kept = batch["labels"].shape[1]
    losses = F.cross_entropy(logits[:, -kept:-1].transpose(1, 2), batch["input_ids"][:, -kept + 1 :], reduction="none")
    return losses, batch["labels"][:, 1:].ne(-100)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["gpt3", "gpt2", "llama"])
def test_the_plain_loss_is_that_of_completions(kind, packing, base, questions, tmp_path):
    """Over two accumulated batches, divided by the tokens of both."""
    loss, batches, model = first_step(
        base(kind), questions, tmp_path, task="qa", packing=packing, dropout=0.0,
        args={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    )  # fmt: skip
    assert len(batches) == 2
    parts = [completion_losses(model, batch) for batch in batches]
    expected = sum(losses[told].sum() for losses, told in parts) / sum(told.sum() for _, told in parts)
    assert loss == pytest.approx(expected.item(), abs=2e-4)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["gpt3", "gpt2", "llama"])
def test_smoothed_labels_are_those_of_the_next_token(kind, packing, base, questions, tmp_path):
    """Trainer alone smooths gpt3's towards the token that was just read."""
    loss, batches, model = first_step(
        base(kind), questions, tmp_path, task="qa", packing=packing, dropout=0.0,
        args={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "label_smoothing_factor": 0.3},
    )  # fmt: skip
    total = told = 0
    for batch in batches:
        kept, labels = batch["labels"].shape[1], batch["labels"][:, 1:]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[:, -kept:-1]
        total += F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum", label_smoothing=0.3)
        told += labels.ne(-100).sum()
    assert loss == pytest.approx((total / told).item(), abs=2e-4)


def test_classes_weigh_alike(base, tmp_path):
    """The loss of a rare class counts as much as that of a frequent one."""
    rows = make_reviews(400, seed=1)
    rare = [row for row in rows if row["verdict"] == "rotten"][:20]
    path = write_jsonl(tmp_path / "reviews.jsonl", [row for row in rows if row["verdict"] == "fresh"] + rare)
    loss, [batch], model = first_step(
        base("gpt3"), path, tmp_path / "out", class_balance="weights",
        args={"per_device_train_batch_size": 400},
    )  # fmt: skip
    losses, told = completion_losses(model, batch)
    words = batch["input_ids"][:, -1]
    means = [losses[words == word][told[words == word]].mean() for word in words.unique()]
    assert len(means) == 2 and abs(means[0] - means[1]) > 1e-3
    assert loss == pytest.approx(sum(means).item() / 2, abs=2e-4)


def test_the_language_model_loss_of_prompts_comes_beside(base, questions, tmp_path):
    """Over all rows: mean of completions + weight x mean of prompts."""
    loss, [batch], model = first_step(
        base("gpt3"), questions, tmp_path, task="qa", lm_loss_weight=0.5,
        args={"per_device_train_batch_size": 400},
    )  # fmt: skip
    losses, told = completion_losses(model, batch)
    prompts = batch["attention_mask"][:, 1:].bool() & batch["attention_mask"][:, :-1].bool() & ~told
    assert prompts.sum() > 5 * told.sum()
    expected = losses[told].mean() + 0.5 * losses[prompts].mean()
    assert loss == pytest.approx(expected.item(), abs=2e-4)


@pytest.mark.parametrize("steps", [[2], [2, 3], [3, 4, 5]])
def test_a_step_that_is_not_finite_changes_nothing_and_is_told(steps, base, reviews_file, tmp_path, caplog):
    """Trainer alone hides it from the log, and the weights are lost from there on."""
    args = {"max_steps": 6, "max_nonfinite_steps": 3, "warmup_steps": 0}
    trainer, _ = prepare(*recipe(base("gpt3"), reviews_file, tmp_path, args=args))
    weights, original = [], trainer.compute_loss

    def compute_loss(model, inputs, *rest, **kwargs):
        weights.append(model.model.embed_tokens.weight.detach().clone())
        loss = original(model, inputs, *rest, **kwargs)
        if len(weights) in steps:
            loss.register_hook(lambda gradient: gradient * float("nan"))  # the loss itself is a number
        return loss

    trainer.compute_loss = compute_loss
    if len(steps) == 3:
        with pytest.raises(ValueError, match=r"3 steps in a row, the last being 5 \(`max_nonfinite_steps`\)"):
            trainer.train()
    else:
        trainer.train()
        assert trainer.nonfinite_steps == len(steps)
        assert all(weight.isfinite().all() for weight in weights)
    for number, (before, after) in enumerate(pairwise(weights), start=1):
        assert torch.equal(before, after) == (number in steps)
    told = [record.message for record in caplog.records if "not finite" in record.message]
    assert [f"Step {step}: " in message for step, message in zip(steps, told)] == [True] * len(steps)


def test_a_run_whose_every_step_was_skipped_is_an_error(base, reviews_file, tmp_path):
    """However short; and though a loss that is not finite has gradients that are."""
    trainer, _ = prepare(*recipe(base("gpt3"), reviews_file, tmp_path, args={"max_steps": 2}))
    trainer.compute_loss_func = lambda outputs, *args, **kwargs: outputs.logits.mean() + float("inf")
    with pytest.raises(ValueError, match=r"2 steps in a row, the last being 2 \(`max_nonfinite_steps`\)"):
        trainer.train()


def test_overflows_of_fp16_are_ordinary(base, reviews_file, tmp_path, monkeypatch):
    """DeepSpeed scales the loss by itself, without a scaler of accelerate's."""
    trainer, _ = prepare(
        *recipe(base("gpt3"), reviews_file, tmp_path, args={"max_steps": 2, "max_nonfinite_steps": 1})
    )
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", True)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    trainer._get_grad_norm(trainer.model, torch.tensor(float("inf")))
    assert trainer.nonfinite_steps == 0
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "bf16")
    with pytest.raises(ValueError, match="were not finite"):
        trainer._get_grad_norm(trainer.model, torch.tensor(1.0))


def test_muon_takes_the_matrices_of_the_blocks(base, reviews_file, tmp_path):
    trainer, _ = prepare(*recipe(base("gpt3"), reviews_file, tmp_path, args={"muon": True, "max_steps": 2}))
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, MuonAdam)
    assert all(not torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    assert [is_muon(group) for group in trainer.optimizer.param_groups] == [False, False, True]
    with pytest.raises(ValueError, match="`muon` needs a model whose blocks are `layers`"):
        run(base("gpt2"), reviews_file, tmp_path / "gpt2", args={"muon": True, "max_steps": 2})


@pytest.mark.parametrize("kind", ["gpt3", "gpt2", "llama"])
def test_the_loss_of_a_classification_head(kind, base, reviews_file, tmp_path):
    loss, batches, model = first_step(
        base(kind), reviews_file, tmp_path, head="classification", class_balance="weights", dropout=0.0,
        args={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 5},
    )  # fmt: skip
    total = 0.0
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        total += (F.cross_entropy(logits, batch["labels"], reduction="none") * batch["loss_weights"]).sum().item()
    assert loss == pytest.approx(total / 10, abs=2e-4)


def test_smoothed_spans(base, questions, tmp_path):
    loss, [batch], model = first_step(
        base("gpt3"), questions, tmp_path, task="qa", head="span", dropout=0.0, args={"label_smoothing_factor": 0.3}
    )
    with torch.no_grad():
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    ends = zip((outputs.start_logits, outputs.end_logits), batch["labels"].unbind(-1))
    expected = sum(F.cross_entropy(logits, places, label_smoothing=0.3) for logits, places in ends) / 2
    assert loss == pytest.approx(expected.item(), abs=2e-4)


@pytest.mark.parametrize("kind", ["gpt3", "gpt2"])
def test_the_loss_of_a_span_head(kind, base, questions, tmp_path):
    loss, [batch], model = first_step(base(kind), questions, tmp_path, task="qa", head="span", dropout=0.0)
    with torch.no_grad():
        outputs = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            start_positions=batch["labels"][:, 0],
            end_positions=batch["labels"][:, 1],
        )
    assert loss == pytest.approx(outputs.loss.item(), abs=2e-4)


def test_a_head_whose_decoder_would_be_random_is_refused(base, questions, tmp_path):
    """transformers names llama's decoder otherwise in a question answerer, and would make it up."""
    with pytest.raises(ValueError, match=r"no weights for transformer\.embed_tokens"):
        prepare(*recipe(base("llama"), questions, tmp_path, task="qa", head="span"))


def test_a_span_head_finds_answers(base, questions, tmp_path):
    scores = run(base("gpt3"), questions, tmp_path, {"num_train_epochs": 6}, task="qa", head="span")
    assert scores["eval_exact_match_low"] > scores["baseline_random_span_exact_match_high"]
    record = saved_task(tmp_path)
    assert (record.head, record.kind, record.language) == ("span", "text", "en")
    assert (record.fields, record.task.max_new_tokens) == ({"answer": "answers.text"}, 8)


def test_a_classification_head_keeps_names_of_labels(base, reviews_file, tmp_path):
    scores = run(
        base("gpt2"), reviews_file, tmp_path, {"num_train_epochs": 2}, head="classification", max_test_rows=40
    )
    assert scores["eval_accuracy"] > 0.9
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["pad_token_id"] is not None


def test_oversampling_makes_labels_as_frequent_as_the_most_frequent():
    labels = [0] * 10 + [1] * 3 + [2]
    chosen = oversample(labels, seed=0)
    assert [sum(labels[index] == label for index in chosen) for label in (0, 1, 2)] == [10, 10, 10]
    assert all(3 <= chosen.count(index) <= 4 for index in (10, 11, 12))
    assert sorted(set(chosen)) == list(range(14))
    assert chosen == oversample(labels, seed=0)


@pytest.fixture
def scripted(monkeypatch):
    """Evaluation gives the next of these values of accuracy; returns the steps at which it was asked."""

    def script(*values):
        steps = []

        def evaluate(self, *args, **kwargs):
            steps.append(self.state.global_step)
            metrics = {"eval_accuracy": values[len(steps) - 1]}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        monkeypatch.setattr(module.TaskTrainer, "evaluate", evaluate)
        return steps

    return script


EARLY = {"save_strategy": "left out", "eval_strategy": "steps", "eval_steps": 3, "num_train_epochs": 10}


@pytest.mark.parametrize("use_peft", [False, True])
def test_training_stops_early_and_the_best_model_is_what_is_saved(
    use_peft, base, reviews_file, tmp_path, scripted, monkeypatch
):
    steps = scripted(0.5, 0.7, 0.6, 0.65, 0.9)
    kept = []
    original = module.TaskTrainer._save_checkpoint

    def save(self, *arguments):
        original(self, *arguments)
        kept.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        best = self._unwrapped().state_dict()
        if self.state.global_step == 6:
            monkeypatch.setattr(module, "the_best", {k: v.clone() for k, v in best.items()}, raising=False)

    monkeypatch.setattr(module.TaskTrainer, "_save_checkpoint", save)
    trainers, make = [], module.make_trainer
    monkeypatch.setattr(module, "make_trainer", lambda *rest: trainers.append(make(*rest)) or trainers[-1])
    run(
        base("gpt3"), reviews_file, tmp_path, EARLY, early_stopping_patience=2, validation_fraction=0.2,
        use_peft=use_peft, max_test_rows=5,
    )  # fmt: skip
    assert steps == [3, 6, 9, 12]
    # The newest, and the best if it is another.
    assert kept == [
        ["checkpoint-3"],
        ["checkpoint-6"],
        ["checkpoint-6", "checkpoint-9"],
        ["checkpoint-12", "checkpoint-6"],
    ]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    for name, tensor in trainers[0]._unwrapped().state_dict().items():
        torch.testing.assert_close(tensor, module.the_best[name])
    assert saved_task(tmp_path / "checkpoint-6") == saved_task(tmp_path) is not None


def test_a_resumed_run_stops_where_it_would_have(base, reviews_file, tmp_path, scripted, monkeypatch):
    """The patience that is used up, and which checkpoint is the best, come with the checkpoint."""
    limit = {**EARLY, "save_total_limit": 5}
    config = {"early_stopping_patience": 2, "validation_fraction": 0.2, "max_test_rows": 5}
    steps = scripted(0.5, 0.7, 0.6, 0.65)
    run(base("gpt3"), reviews_file, tmp_path, limit, **config)
    assert steps == [3, 6, 9, 12]
    shutil.rmtree(tmp_path / "checkpoint-12")  # as if the run had been killed after step 9
    for step in (6, 9):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-6")
    steps = scripted(0.65, 0.9)
    loaded, original = [], module.TaskTrainer._load_best_model

    def load_best(self):
        loaded.append(self.state.best_model_checkpoint)
        original(self)

    monkeypatch.setattr(module.TaskTrainer, "_load_best_model", load_best)
    run(base("gpt3"), reviews_file, tmp_path, limit, **config)
    assert steps == [12]
    assert loaded == [str(tmp_path / "checkpoint-6")]


def test_validation_rows_are_none_of_the_others(base, reviews_file, tmp_path, tokenizer):
    def read(**fields):
        config = FinetuneConfig("nowhere", train_path=str(reviews_file), **{**SENTIMENT, **fields})
        rows = RowReader(config, module.make_task(config), tokenizer, 128).read()
        return {
            part: [] if (found := getattr(rows, part)) is None else [example.where for example in found.examples]
            for part in ("train", "validation", "test")
        }

    without, with_ = read(), read(validation_fraction=0.2)
    assert with_["test"] == without["test"]
    assert sorted(with_["train"] + with_["validation"]) == sorted(without["train"])
    assert 0.1 < len(with_["validation"]) / len(without["train"]) < 0.3
    assert set(with_["train"]) < set(without["train"])
    apart = read(validation_fraction=0.2, test_fraction=0.0, test_path=str(reviews_file))
    assert len(apart["test"]) == 400
    assert len(apart["train"]) + len(apart["validation"]) == 400
    few = read(validation_fraction=0.2, max_eval_rows=7, max_test_rows=3)
    assert set(few["validation"]) < set(with_["validation"]) and len(few["validation"]) == 7
    assert set(few["test"]) < set(with_["test"]) and len(few["test"]) == 3
    # A film is in one part only.
    films = [json.loads(line)["film"] for line in reviews_file.read_text().splitlines()]
    parts = {part: {films[int(place.rsplit(":")[-1]) - 1] for place in places} for part, places in with_.items()}
    assert not parts["train"] & parts["validation"] and not parts["validation"] & parts["test"]


def test_dropout_is_of_the_run_and_not_of_the_model(base, reviews_file, tmp_path):
    config, args = recipe(base("gpt2"), reviews_file, tmp_path, {"max_steps": 1}, dropout=0.35, max_test_rows=5)
    model = prepare(config, args)[0].model
    assert {model.transformer.drop.p, model.transformer.h[0].mlp.dropout.p} == {0.35}
    finetune(config, args)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["resid_pdrop"] == saved["embd_pdrop"] == saved["attn_pdrop"] == 0.1
    model = prepare(*recipe(base("gpt3"), reviews_file, tmp_path, dropout=0.35))[0].model
    assert model.model.layers[0].residual_dropout == model.model.layers[0].self_attn.attention_dropout == 0.35
    assert model.config.embedding_dropout == 0.35


@pytest.mark.parametrize("use_peft", [False, True])
def test_the_learning_rate_follows_the_width(use_peft, base, reviews_file, tmp_path):
    config, args = recipe(
        base("gpt2"), reviews_file, tmp_path, {"learning_rate": "left out"}, use_peft=use_peft, max_train_rows=9
    )
    trainer, _ = prepare(config, args)
    assert math.isclose(trainer.args.learning_rate, 0.05 / 32 * (10 if use_peft else 1))


def test_rows_that_were_cut_left_out_or_malformed_are_counted(base, tmp_path, tokenizer, caplog):
    long = " It was dull." * 60
    rows = [
        {"question": "Who?", "context": "Anna came." + long, "answer": "Anna"},
        {"question": "What?", "context": long + " Berta came.", "answer": "Berta"},
        {"question": "Where?", "context": "Here.", "answer": "There"},
        {"question": "When?", "context": "Now.", "answer": ""},
        {"question": "Why" * 300 + "?", "context": "Because.", "answer": "Because"},
        {"question": "How?", "context": "Well.", "answer": "Well"},
    ]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    test = write_jsonl(tmp_path / "test.jsonl", [rows[0], rows[1], rows[5]])

    def read(**fields):
        caplog.clear()
        config = FinetuneConfig("nowhere", task="qa", train_path=str(train), test_path=str(test), **fields)
        task = module.make_task(config)
        return RowReader(config, task, tokenizer, 128).read()

    found = read()
    assert [example.references for example in found.train.examples] == [("Anna",), ("Well",)]
    expected = {"train_rows": 2, "train_rows_cut": 2, "train_rows_answer_cut": 1, "train_rows_malformed": 3}
    expected |= {"test_rows": 3, "eval_rows_cut": 2, "test_rows_malformed": 0, "test_rows_in_train": 2}
    assert found.counts == expected
    for place, words in ((1, "lost the end"), (2, "answer stands"), (3, "malformed"), (5, "malformed")):
        assert any(f"{train}:{place}" in record.message and words in record.message for record in caplog.records)
    assert any(f"{test}:1" in record.message and "training row" in record.message for record in caplog.records)
    skipped = read(long_texts="skip")
    assert skipped.counts["train_rows_skipped"] == 2
    assert [example.references for example in skipped.test.examples] == [("Well",)]
    with pytest.raises(ValueError, match=r"train.jsonl:1: the text is \d+ tokens too long.*`long_texts`"):
        read(long_texts="error")
    with pytest.raises(ValueError, match="More than 2 malformed rows"):
        read(max_bad_rows=2)


@pytest.mark.parametrize(
    ("fields", "args", "message"),
    [
        ({"packing": True, "head": "classification"}, {}, "`packing` is for completions: use `head: lm`"),
        ({"lm_loss_weight": 0.5, "head": "classification"}, {}, "`lm_loss_weight` is for completions"),
        ({"head": "span"}, {}, "names none .`context_field`."),
        ({"task": "free-qa", "head": "span"}, {}, "names none .`context_field`."),
        ({"task": "qa", "head": "classification"}, {}, "needs a task with labels.*`head: lm`"),
        ({"task": "qa", "class_balance": "weights"}, {}, "`class_balance` needs a task with labels"),
        ({"task": "qa", "label_words": {"a": "b"}}, {}, "`label_words` are for tasks with labels"),
        ({"task": "qa", "label_map": {"a": "b"}}, {}, "`label_map` is for tasks with labels"),
        ({"label_map": {"fresh": "good"}}, {}, "names good.*its labels are negative, positive"),
        ({"fields": {"txt": "text"}}, {}, "`fields` names txt"),
        ({"fields": {"text": "review"}, "text_field": "text"}, {}, "name two fields for one"),
        ({"task_overrides": {"promt": "x"}}, {}, "did you mean `prompt`"),
        ({"task_overrides": {"metrics": ["bleurt"]}}, {}, "Unknown metric 'bleurt'"),
        ({"early_stopping_patience": 2}, {}, "`early_stopping_patience` needs validation rows.*`validation_fraction`"),
        ({}, {"eval_strategy": "epoch"}, "`eval_strategy` needs validation rows"),
        (
            {"early_stopping_patience": 2, "validation_fraction": 0.1},
            {"save_strategy": "no"},
            "leave out `save_strategy: no`",
        ),
        (
            {"early_stopping_patience": 2, "validation_fraction": 0.1},
            {"eval_strategy": "no"},
            "contradict each other",
        ),
        ({"early_stopping_patience": 0}, {}, "must be at least 1"),
        ({"dropout": 1.0}, {}, "`dropout` must be at least 0 and below 1"),
        ({"head": "lmm"}, {}, "`head` must be one of 'lm', 'classification', 'span'"),
        ({"load_in_4bit": True}, {}, "set `use_peft: true`"),
        ({"use_peft": True}, {"muon": True}, "leave out `muon` or `use_peft`"),
        ({}, {"max_nonfinite_steps": 0}, "`max_nonfinite_steps` must be at least 1"),
        ({"task": "qa", "task_overrides": {"max_new_tokens": 128}}, {}, "leaves nothing of `max_length: 128`"),
        ({"task": "qa", "head": "span", "task_overrides": {"cut_side": "start"}}, {}, "set `cut_side: end`"),
        ({"task_overrides": {"metrics": []}}, {}, "`metrics` of task 'sentiment' is empty"),
        ({"label_words": {"negative": " x", "positive": " x"}}, {}, "negative and positive have the same completion"),
        ({}, {"lr_scheduler_type": "reduce_lr_on_plateau"}, "`lr_scheduler_type: reduce_lr_on_plateau` goes by"),
        ({}, {"muon": True, "optim": "adamw_torch_8bit"}, "adamw_torch or adamw_torch_fused, got 'adamw_torch_8bit'"),
    ],
)
def test_what_does_not_go_together_is_explained(fields, args, message, base, reviews_file, tmp_path):
    values = {"train_path": str(reviews_file), "test_fraction": 0.25, **fields}
    arguments = {"output_dir": str(tmp_path), "bf16": False, **args}
    with pytest.raises(ValueError, match=message):
        prepare(FinetuneConfig(str(base("gpt3")), **values), FinetuningArguments(**arguments))
