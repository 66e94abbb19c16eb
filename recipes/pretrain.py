"""Pretrain a GPT-3 on a corpus that `hfgpt prepare` wrote.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain.py --config recipes/pretrain/demo.yaml

Any field of the recipe can be given on the command line; `--help` lists them all. The same command again resumes.
"""

import hfgpt  # noqa: F401  (registers gpt3 with the Auto classes)
from hfgpt.training.arguments import PretrainConfig, PretrainingArguments, parse_arguments
from hfgpt.training.pretrain import pretrain
from hfgpt.training.processes import exit_cleanly


if __name__ == "__main__":
    with exit_cleanly():
        pretrain(*parse_arguments(PretrainConfig, PretrainingArguments))
