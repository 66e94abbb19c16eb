"""Which rows two processes fine-tune on, with dropout, at once and resumed; run by torchrun (test_row_order.py)."""

import shutil

import torch.distributed as dist
from accelerate.utils import gather_object
from checks import run_checks

from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments
from hfgpt.training.finetune import finetune
from hfgpt.training.task_trainer import TaskTrainer


STEPS = 4  # in an epoch: 64 rows, 2 processes, 8 rows each


def batches(folder):
    """The rows of each step of a run of 3 epochs, those of all processes together."""
    seen, original = [], TaskTrainer.training_step

    def training_step(self, model, inputs, *rest):
        seen.append([tuple(row) for row in inputs["input_ids"].tolist()])
        return original(self, model, inputs, *rest)

    TaskTrainer.training_step = training_step
    try:
        config = FinetuneConfig(
            str(folder.parent / "base"), train_path=str(folder.parent / "rows.jsonl"), label_field="verdict",
            test_path=str(folder.parent / "rows.jsonl"), max_test_rows=2, dropout=0.2,
            label_map={"fresh": "positive", "rotten": "negative"},
            prompt="{text} The film was", label_words={"negative": " dull", "positive": " funny"},
        )  # fmt: skip
        args = FinetuningArguments(
            output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=8, learning_rate=1e-3,
            save_strategy="steps", save_steps=2, save_total_limit=9, bf16=False, ddp_backend="gloo", use_cpu=True,
        )  # fmt: skip
        finetune(config, args)
    finally:
        TaskTrainer.training_step = original
    # Padding to the longest row of the batch is the token 0.
    steps = zip(*gather_object([seen]))
    return [sorted(tuple(id for id in row if id) for part in step for row in part) for step in steps]


def every_row_once(folder):
    """How many distinct rows each epoch has, and whether a resumed run reads those of the whole one."""
    whole = batches(folder)
    found = {
        f"epoch {number}": len({row for step in whole[number * STEPS : (number + 1) * STEPS] for row in step})
        for number in range(3)
    }
    if dist.get_rank() == 0:
        for step in (8, 10, 12):  # as if it had been killed in the middle of the second epoch
            shutil.rmtree(folder / f"checkpoint-{step}")
    dist.barrier()
    found["same"] = int(batches(folder) == whole[6:])
    return found


if __name__ == "__main__":
    run_checks({"rows": every_row_once})
