"""Fine-tuning in two processes is fine-tuning in one: losses, scores of written answers, early stopping, what is saved."""

import json
import random

import pytest
import torch
from helpers import BAD, GOOD, THINGS, run, write_jsonl
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments, parse_arguments
from hfgpt.training.finetune import finetune


def test_two_processes_fine_tune_as_one(corpus, tmp_path):
    """13 test rows: one process has a row more than the other."""
    chooser, rows = random.Random(0), []
    for number in range(120):
        thing, word = chooser.choice(THINGS), chooser.choice(GOOD + BAD)
        passage = f"The {thing} was {word}."
        rows.append({"id": number, "question": f"How was the {thing}?", "context": passage, "answer": word})
    path = write_jsonl(tmp_path / "questions.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    model = GPT3ForCausalLM(
        GPT3Config(vocab_size=len(tokenizer), sliding_window=16, bos_token_id=0, eos_token_id=0, **sizes)
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for processes in (1, 2):
        values = {
            "model_name_or_path": tmp_path / "base",
            "output_dir": tmp_path / str(processes),
            "task": "qa",
            "task_overrides": '{"max_new_tokens": 6}',
            "train_path": path,
            "group_by": "id",
            "test_fraction": 0.2,
            "validation_fraction": 0.2,
            "max_test_rows": 13,
            "early_stopping_patience": 1,
            "packing": "true",
            "max_length": 64,
            "train_sampling_strategy": "sequential",
            "dataloader_drop_last": "true",  # else the last batch of an epoch is filled up for two processes
            "per_device_train_batch_size": 8 // processes,
            "learning_rate": 0.01,
            "num_train_epochs": 4,
            "logging_steps": 1,
            "bf16": "false",
        }
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        if processes == 1:
            finetune(*parse_arguments(FinetuneConfig, FinetuningArguments, argv=[*words, "--use_cpu", "true"]))
            continue
        run(
            "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu-ddp.yaml",
            "--main_process_port", "0", "recipes/finetune.py", *words,
        )  # fmt: skip
    alone, both = (tmp_path / str(processes) for processes in (1, 2))
    scores = [json.loads((folder / "all_results.json").read_text()) for folder in (alone, both)]
    compared = [name for name in scores[0] if name.startswith(("eval_", "baseline_")) or "rows" in name]
    assert len(compared) > 15
    assert {name: scores[0][name] for name in compared} == pytest.approx({name: scores[1][name] for name in compared})
    answers = [(folder / "predictions.jsonl").read_text() for folder in (alone, both)]
    assert answers[0] == answers[1] and answers[0].count("\n") == 13
    histories = []
    for folder in (alone, both):
        [checkpoint] = folder.glob("checkpoint-*")
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        histories.append([entry.get("loss", entry.get("eval_f1")) for entry in history])
    assert histories[0] == pytest.approx(histories[1], abs=2e-4)
    weights = [load_file(folder / "model.safetensors") for folder in (alone, both)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-3, rtol=1e-2)
