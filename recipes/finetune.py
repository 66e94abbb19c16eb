"""Fine-tune a causal language model for a task, all weights or LoRA.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/finetune.py \
        --config recipes/finetune/sentiment-full.yaml

Any field of the recipe can be given on the command line; `--help` lists them all. The same command again resumes.
"""

import hfgpt  # noqa: F401  (registers gpt3 with the Auto classes)
from hfgpt.training.arguments import FinetuneConfig, FinetuningArguments, parse_arguments
from hfgpt.training.finetune import finetune
from hfgpt.training.processes import exit_cleanly


if __name__ == "__main__":
    with exit_cleanly():
        finetune(*parse_arguments(FinetuneConfig, FinetuningArguments))
