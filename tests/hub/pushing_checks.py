"""Two processes push: run by `torch.distributed.run`; each writes down what came of it."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from transformers import AutoTokenizer, TrainingArguments

from hfgpt import GPT3ForCausalLM
from hfgpt.hub import HubError
from hfgpt.training.saving import SavingTrainer


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = torch.full((8,), index)
        return {"input_ids": ids, "labels": ids}


if __name__ == "__main__":
    folder, model = map(Path, sys.argv[1:])
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, ddp_backend="gloo", report_to=[],
        save_strategy="no", hub_model_id="kim/two", disable_tqdm=True,
    )  # fmt: skip
    trainer = SavingTrainer(
        GPT3ForCausalLM.from_pretrained(model), arguments, train_dataset=Rows(),
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    trainer.train()
    found = {}
    trainer.push_to_hub("By two processes")  # nobody had opened the repository before
    found["repo"] = trainer.hub_model_id
    trainer.hub_model_id, trainer.args.hub_model_id = None, "lee/two"
    try:
        trainer.push_to_hub()
    except HubError as error:
        found["refused"] = str(error)
    found["failed_pushes"] = trainer.failed_pushes
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads can abort the interpreter at exit
