"""Fine-tuning recipes of a few steps."""

from helpers import SENTIMENT

from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments
from hfgpt.training.finetune import finetune


QUESTIONS = {
    "task": "qa",
    "fields": {"answer": "answers.text"},
    "task_overrides": {"max_new_tokens": 8},
    "group_by": "id",
    "test_fraction": 0.25,
}


def recipe(base, path, output_dir, args=None, **config):
    values = {"output_dir": str(output_dir), "num_train_epochs": 2, "per_device_train_batch_size": 16}
    values |= {"learning_rate": 5e-3, "bf16": False, "save_strategy": "no", "logging_steps": 1, **(args or {})}
    values = {name: value for name, value in values.items() if value != "left out"}
    fields = {**(QUESTIONS if config.get("task") == "qa" else SENTIMENT), **config}
    return FinetuneConfig(str(base), train_path=str(path), **fields), FinetuningArguments(**values)


def run(*place, **fields):
    return finetune(*recipe(*place, **fields))
