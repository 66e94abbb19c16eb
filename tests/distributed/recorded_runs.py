"""Pretraining runs one after the other, each with a record of what it read; in one process or, as a script, in several.

Usage: `accelerate launch ... recorded_runs.py FOLDER`. FOLDER/runs.json is a list of {"name", "arguments", "signal_at"}:
the command line of recipes/pretrain.py, and the step in which the last process alone is told to stop (or null). Writes
FOLDER/NAME.rank<n>.json: the rows with a loss by step, how many had none, the weight decay of each parameter.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hfgpt.training import pretrain as pretraining
from hfgpt.training.arguments import PretrainConfig, PretrainingArguments, parse_arguments
from hfgpt.training.interruption import Interrupted
from hfgpt.training.processes import exit_cleanly
from hfgpt.training.trainer import PretrainingTrainer


def recorded_run(arguments: list[str], signal_at: int | None = None) -> dict[str, Any]:
    """Run `pretrain`; what this process did."""
    record: dict[str, Any] = {"rows": {}, "idle": {}, "micro_batches": {}, "interrupted": None}
    trainers = []

    class Recorded(PretrainingTrainer):
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            trainers.append(self)

        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> Any:
            step = self.state.global_step + 1
            kept = inputs["labels"][:, 0] != -100
            record["rows"][step] = inputs["input_ids"][kept].tolist()
            record["idle"][step] = int((~kept).sum())
            if step == signal_at and self.args.process_index == self.args.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(model, inputs, *args)

    original = pretraining.PretrainingTrainer
    pretraining.PretrainingTrainer = Recorded  # type: ignore[misc]
    try:
        pretraining.pretrain(*parse_arguments(PretrainConfig, PretrainingArguments, argv=arguments))
    except Interrupted as error:
        record["interrupted"] = str(error)
    finally:
        pretraining.PretrainingTrainer = original  # type: ignore[misc]
    record["weight_decay"] = weight_decay(trainers[0])
    return record


def weight_decay(trainer: PretrainingTrainer) -> dict[str, float]:
    """Of each parameter, as the optimizer that steps has it."""
    names = {
        id(parameter): name for name, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    }
    if trainer.is_deepspeed_enabled:  # ZeRO-3: groups are divided into smaller ones
        zero = trainer.model_wrapped.optimizer
        groups = [
            (group, zero.optimizer.param_groups[zero.sub_group_to_group_id[number]]["weight_decay"])
            for number, group in enumerate(zero.fp16_groups)
        ]
    else:
        groups = [(group["params"], group["weight_decay"]) for group in trainer.optimizer.param_groups]
    return {names[id(parameter)]: decay for group, decay in groups for parameter in group}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with exit_cleanly():
        for run in json.loads((folder / "runs.json").read_text()):
            record = recorded_run(run["arguments"], run["signal_at"])
            (folder / f"{run['name']}.rank{os.environ['RANK']}.json").write_text(json.dumps(record))
