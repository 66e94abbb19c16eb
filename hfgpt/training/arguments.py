"""The fields of a training recipe, and how YAML and the command line become them.

`--config recipe.yaml` sets defaults, any `--field value` overrides them, an unknown key is an error that names the
nearest known one. Every field is documented once, in its help: `recipes/pretrain.py --help`.
"""

import argparse
import dataclasses
import json
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging

from ..config import coerce, read_yaml, unknown_key
from ..data.readers import SourceConfig
from ..model import GPT3Config
from ..model.presets import PRESETS
from ..planner import PAPER_FIRST_BATCH_TOKENS, PAPER_TRAIN_TOKENS
from ..tasks import TASKS, ChoiceTask, Task
from ..tasks.rows import FieldMap
from .launch import check_launch
from .processes import prepare_cpu_processes


# The paper's, in tokens (appendix B).
PAPER_WARMUP_TOKENS = 375_000_000
PAPER_DECAY_TOKENS = 260_000_000_000

MUON_COMPANIONS = ("adamw_torch", "adamw_torch_fused")

# Fields of TrainingArguments that pretraining would not honour, or not safely.
UNSUPPORTED = {
    "save_on_each_node": "a checkpoint is whole in one folder that all machines share",
    "auto_find_batch_size": "the batch is exact in tokens; `hfgpt plan` tells what fits",
    "load_best_model_at_end": "the model of the last token is the result",
    "save_only_model": "such a checkpoint could not be resumed from",
    "label_smoothing_factor": "its loss is the plain one, computed without all logits",
}


def has_fast_bf16(use_cpu: bool) -> bool:
    """Whether the device that training will use computes in bfloat16 natively."""
    if not use_cpu and torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    x86 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return bool(x86 or amx)


def parse_mapping(value: dict | str | None, name: str) -> dict[str, Any] | None:
    """A mapping given as such, or as JSON on the command line.

    Raises:
        ValueError: It is neither.
    """
    if value is None or isinstance(value, dict):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError(
            f'`{name}` on the command line is a JSON object such as \'{{"key": "value"}}\', got {value!r}.'
        )
    return parsed


@dataclass
class CommonArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults that both kinds of training share."""

    disable_tqdm: bool | None = field(
        default=None, metadata={"help": "No progress bars. Default: where standard error is not a terminal."}
    )
    output_dir: str = field(
        default="out/run", metadata={"help": "Folder of the model, its checkpoints, metrics and plot."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Compute in bfloat16. Default: where the device does so natively (and fp16 is not asked for)."
        },
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second beta; the paper's is 0.95."})
    weight_decay: float = field(
        default=0.1, metadata={"help": "Weight decay of matrices, not of biases and LayerNorms; the paper's is 0.1."}
    )
    muon: bool = field(
        default=False,
        metadata={
            "help": "Muon for the matrices of the blocks, and Adam for the rest, at one learning rate: several times fewer "
            "tokens to the same loss in small models. Not the paper's. Not with DeepSpeed or FSDP."
        },
    )
    # Newer transformers' name, which older ones do not have yet.
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Keep only the inputs of blocks, and compute the rest again: less memory, a third more work.",
            "nargs": "?",
            "const": True,
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for weights without a gradient in each step: no model of ours has any."}
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many steps (a share of the run below 1)."}
    )
    loss_spike: Literal["ignore", "warn", "stop"] = field(
        default="ignore",
        metadata={
            "help": "What to do where a logged loss jumps far above those before it: warn tells, and writes "
            "loss_events.jsonl; stop also ends the run after three in a row, without saving."
        },
    )

    resume_from_hub: str | None = field(
        default=None,
        metadata={
            "help": "Repository (owner/name, or owner/name@branch) whose newest checkpoint the run goes on from, unless "
            "`output_dir` has one as new: of a run with `push_to_hub` and `hub_strategy: checkpoint` (or all_checkpoints), "
            "or of `hfgpt push OUTPUT_DIR/checkpoint-STEP`. A large one is better pulled before (`hfgpt pull`)."
        },
    )

    def __post_init__(self) -> None:
        asked = parse_flag_from_env("ACCELERATE_USE_CPU")
        sharded = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if self.muon and (sharded or self.deepspeed or self.fsdp):
            raise ValueError(
                "`muon` needs whole matrices: use DDP or one process, or leave it out under DeepSpeed and FSDP."
            )
        if self.muon and self.optim not in MUON_COMPANIONS:
            raise ValueError(
                f"`muon` goes with torch's Adam for the other weights, `optim` {' or '.join(MUON_COMPANIONS)}, got "
                f"{str(getattr(self.optim, 'value', self.optim))!r}."
            )
        if asked or not (torch.accelerator.is_available() or sharded):
            # Where to run is the accelerate config's business; TrainingArguments does not read it from there.
            self.use_cpu = True
        prepare_cpu_processes(self)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and has_fast_bf16(self.use_cpu)
        check_launch(self)
        if self.disable_tqdm is None and not sys.stderr.isatty():
            # In a log file a line for each logging step says more than a thousand redrawn bars.
            self.disable_tqdm = True
            logging.disable_progress_bar()
        super().__post_init__()
        if "activation_checkpointing" not in {f.name for f in dataclasses.fields(TrainingArguments)}:
            asked = vars(self).get("gradient_checkpointing")
            self.gradient_checkpointing = bool(self.activation_checkpointing or asked)


@dataclass
class PretrainConfig:
    """What to pretrain, on what."""

    corpus: str = field(metadata={"help": "Folder that `hfgpt prepare` wrote."})
    preset: str = field(default="gpt3-125m", metadata={"help": f"Size of the model: {', '.join(PRESETS)}."})
    model_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "GPT3Config fields that differ from the preset, such as {num_hidden_layers: 4}."},
    )
    sequence_length: int | None = field(
        default=None, metadata={"help": "Tokens in a training sequence. Default: max_position_embeddings."}
    )
    mixture_weights: dict | str | None = field(
        default=None,
        metadata={
            "help": "Weight of every source in training, of any sum: {wikipedia: 3, books: 8}. Default: the corpus' own."
        },
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "eager, sdpa, flash_attention_2, flex_attention, ..."}
    )
    max_eval_tokens: int | None = field(
        default=None, metadata={"help": "Held-out tokens to evaluate on at most. Default: all."}
    )
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "Texts to continue at every evaluation, for people to read. Default: none."}
    )
    sample_tokens: int = field(default=64, metadata={"help": "Tokens of such a continuation."})

    def __post_init__(self) -> None:
        self.model_overrides = parse_mapping(self.model_overrides, "model_overrides") or {}
        weights = parse_mapping(self.mixture_weights, "mixture_weights")
        if weights is not None:
            weights = {name: coerce(value, float, f"`{name}` in `mixture_weights`") for name, value in weights.items()}
        self.mixture_weights = weights
        # Checked here, before anything is loaded.
        GPT3Config.from_preset(self.preset, **self.model_overrides)


@dataclass
class PretrainingArguments(CommonArguments):
    """TrainingArguments whose length and schedule are counted in tokens; defaults are the paper's."""

    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate. Default: the preset's in table 2.1."}
    )
    train_tokens: int = field(
        default=PAPER_TRAIN_TOKENS, metadata={"help": "Tokens to train on; `max_steps` overrides it."}
    )
    warmup_tokens: int = field(
        default=PAPER_WARMUP_TOKENS, metadata={"help": "Tokens over which the learning rate rises linearly."}
    )
    decay_tokens: int = field(
        default=PAPER_DECAY_TOKENS, metadata={"help": "Tokens at which its cosine ends; constant from there on."}
    )
    min_learning_rate_ratio: float = field(
        default=0.1, metadata={"help": "Where the cosine ends, as a share of the peak."}
    )
    batch_size_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a full optimizer step over all processes; accumulation follows from it. Default: what "
            "per_device_train_batch_size, gradient_accumulation_steps and the processes make (when the run began)."
        },
    )
    batch_ramp_start_tokens: int = field(
        default=PAPER_FIRST_BATCH_TOKENS, metadata={"help": "Tokens of the first steps, where the batch grows."}
    )
    batch_ramp_tokens: int = field(
        default=0,
        metadata={"help": "Tokens over which the batch grows linearly to its full size; the paper's are 4B to 12B."},
    )
    batch_increment_tokens: int | None = field(
        default=None,
        metadata={
            "help": "The batch is a whole multiple of so many tokens. Default: a micro-batch on every process (when "
            "the run began; its checkpoints keep it)."
        },
    )
    optim: str = field(default="adamw_torch_fused", metadata={"help": "Optimizer; the paper's is Adam."})
    project: str = field(default="hfgpt", metadata={"help": "Project that trackio files the run under."})
    max_nonfinite_steps: int = field(
        default=10,
        metadata={
            "help": "Stop after so many steps in a row whose loss or gradients are not finite. Each is tried twice, then "
            "skipped and logged."
        },
    )
    rollback_after: int | None = field(
        default=None,
        metadata={
            "help": "After so many such steps in a row return to the last checkpoint, and go on behind the data that "
            "was read since. Default: never."
        },
    )
    keep_every_steps: int | None = field(
        default=None, metadata={"help": "Keep the checkpoint of every multiple of so many steps for good."}
    )
    loss_spike: Literal["ignore", "warn", "stop"] = field(
        default="warn",
        metadata={
            "help": "What to do where a logged loss jumps far above those before it: warn tells, and writes "
            "loss_events.jsonl; stop also ends the run after three in a row, without saving."
        },
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(default=1000, metadata={"help": "Evaluate every so many steps."})
    eval_on_start: bool = field(default=True, metadata={"help": "Evaluate before the first step."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Newest checkpoints to keep."})

    def __post_init__(self) -> None:
        for name in (
            "train_tokens", "decay_tokens", "max_nonfinite_steps", "batch_size_tokens", "batch_increment_tokens",
            "rollback_after", "keep_every_steps",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.batch_size_tokens is not None and self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"`batch_size_tokens` ({self.batch_size_tokens}) and `gradient_accumulation_steps` "
                f"({self.gradient_accumulation_steps}) both say how large the batch is: give one of them."
            )
        if self.rollback_after is not None and self.rollback_after >= self.max_nonfinite_steps:
            raise ValueError(
                f"`rollback_after` ({self.rollback_after}) must be below `max_nonfinite_steps` "
                f"({self.max_nonfinite_steps}), at which the run stops."
            )
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name, False):
                raise ValueError(f"`{name}` cannot be used in pretraining: {reason}.")
        if not 0 <= self.warmup_tokens < self.decay_tokens:
            raise ValueError(
                f"`warmup_tokens` ({self.warmup_tokens}) must be at least 0 and below `decay_tokens` ({self.decay_tokens})."
            )
        if not 0.0 <= self.min_learning_rate_ratio <= 1.0:
            raise ValueError(f"`min_learning_rate_ratio` must be from 0 to 1, got {self.min_learning_rate_ratio}.")
        if self.num_train_epochs != type(self).num_train_epochs:
            raise ValueError(
                "Pretraining is counted in tokens: set `train_tokens` (or `max_steps`), not `num_train_epochs`."
            )
        if self.warmup_steps:
            raise ValueError("Pretraining warms up by tokens: set `warmup_tokens`, not `warmup_steps`.")
        super().__post_init__()


@dataclass
class FinetuneConfig:
    """What to fine-tune, for which task, on which data."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of the pretrained model."})
    task: str = field(default="sentiment", metadata={"help": f"{', '.join(TASKS)}, or the path of a YAML file."})
    language: str = field(default="en", metadata={"help": "Language of the prompt, or a pair: en, ko, en-ko, ..."})
    prompt: str | None = field(default=None, metadata={"help": "A prompt over the task's fields in place of its own."})
    label_words: dict | str | None = field(
        default=None,
        metadata={"help": "Completion of each label in place of the task's own: {negative: ' bad', ...}."},
    )
    task_overrides: dict | str | None = field(
        default=None, metadata={"help": "Any other fields of the task: {max_new_tokens: 32, metrics: [chrf]}."}
    )
    head: Literal["lm", "classification", "span"] = field(
        default="lm",
        metadata={
            "help": "What answers: the language model by completing the prompt, a new classification layer on the "
            "prompt's last token, or a new layer that marks the answer in the passage."
        },
    )
    classifier_pooling: Literal["last", "mean"] = field(
        default="last",
        metadata={
            "help": "What a new classification layer reads: the last token, or the mean of all (gpt3 alone), which small "
            "models learn better from."
        },
    )
    train_path: str | None = field(default=None, metadata={"help": "Training rows: a file, glob or fsspec address."})
    validation_path: str | None = field(
        default=None, metadata={"help": "Rows for evaluation during training, which early stopping goes by."}
    )
    test_path: str | None = field(
        default=None, metadata={"help": "Test rows. Default: `test_fraction` of the training file."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Hub dataset with its splits, in place of paths."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Training split of the Hub dataset."})
    validation_split: str | None = field(default=None, metadata={"help": "Validation split of the Hub dataset."})
    test_split: str = field(default="test", metadata={"help": "Test split of the Hub dataset."})
    fields: dict | str | None = field(
        default=None,
        metadata={"help": "The data's field for each of the task's, where they differ: {answer: answers.text}."},
    )
    text_field: str | None = field(default=None, metadata={"help": "Short for `fields` of the prompt's first field."})
    label_field: str | None = field(default=None, metadata={"help": "Short for `fields` of the label or answer."})
    label_map: dict | str | None = field(
        default=None,
        metadata={"help": "The task's label for each value of `label_field`: {fresh: positive, rotten: negative}."},
    )
    where: dict | str | None = field(default=None, metadata={"help": "Keep rows whose fields have these values."})
    group_by: str | None = field(
        default=None,
        metadata={
            "help": "Field whose values must not be in two of training, validation and test rows. Default: the passage, or the text."
        },
    )
    test_fraction: float = field(default=0.0, metadata={"help": "Share of groups (or rows) set apart for testing."})
    validation_fraction: float = field(
        default=0.0, metadata={"help": "Share of the training groups (or rows) set apart for validation."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of these divisions."})
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Use so many training rows at most, drawn by `split_seed`."}
    )
    max_eval_rows: int | None = field(
        default=None, metadata={"help": "Evaluate on so many validation rows at most, the same each time."}
    )
    max_test_rows: int | None = field(
        default=None, metadata={"help": "Use so many test rows at most, drawn by `split_seed`."}
    )
    max_bad_rows: int | None = field(default=100, metadata={"help": "More malformed rows than this fail the run."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of prompt and completion. Default: what the model takes."}
    )
    long_texts: Literal["cut", "skip", "error"] = field(
        default="cut",
        metadata={
            "help": "What happens to rows that are longer: their text loses its end, they are left out, or the run ends. "
            "They are named and counted."
        },
    )
    packing: bool = field(
        default=False, metadata={"help": "Put several examples in one sequence of max_length; none sees another."}
    )
    class_balance: Literal["none", "weights", "oversample"] = field(
        default="none",
        metadata={"help": "Make classes count alike: by weights in the loss, or by repeating rows of the rarer ones."},
    )
    lm_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the language-model loss on the prompts beside that on the completions; GPT-1: 0.5."
        },
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout while fine-tuning, wherever the model has any. Default: the model's."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations without a better value of the task's first metric, and keep the best "
            "model."
        },
    )
    sample_prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Texts to continue at every evaluation (without any: at the end), for people to read, with `head: lm`. "
            "Default: none."
        },
    )
    sample_tokens: int = field(default=64, metadata={"help": "Tokens of such a continuation."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "eager, sdpa, flash_attention_2, flex_attention, ... Default: sdpa, or eager where the model lacks it."
        },
    )
    random_start: bool = field(default=False, metadata={"help": "Start from random weights of the same architecture."})
    compare_random_start: bool = field(
        default=False,
        metadata={"help": "Also train from random weights, the same way, and report its scores; not saved."},
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter in place of all weights."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the LoRA update, over the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the LoRA matrices."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Layers that get an adapter: names, or all-linear. Default: those of the architecture."},
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Layers that are trained whole, beside the adapter, and saved with it."}
    )
    use_dora: bool = field(default=False, metadata={"help": "DoRA: the adapter learns magnitudes apart."})
    use_rslora: bool = field(default=False, metadata={"help": "rsLoRA: the scale is over the root of the rank."})
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "QLoRA: the frozen weights in 4 bits; needs bitsandbytes (pip install hfgpt[qlora])."},
    )

    def __post_init__(self) -> None:
        for name in ("where", "label_map", "label_words", "fields", "task_overrides"):
            setattr(self, name, parse_mapping(getattr(self, name), name))
        for name in ("lora_target_modules", "lora_modules_to_save", "sample_prompts"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        for name in ("head", "classifier_pooling", "long_texts", "class_balance"):
            setattr(self, name, coerce(getattr(self, name), typing.get_type_hints(type(self))[name], f"`{name}`"))
        self._check_places()
        for name in ("test_fraction", "validation_fraction", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {value}.")
        if self.lm_loss_weight < 0:
            raise ValueError(f"`lm_loss_weight` must be at least 0, got {self.lm_loss_weight}.")
        for name in ("early_stopping_patience", "max_eval_rows", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        for name in ("packing", "lm_loss_weight", "sample_prompts"):
            if getattr(self, name) and self.head != "lm":
                raise ValueError(
                    f"`{name}` is for completions: use `head: lm`, or leave it out with `head: {self.head}`."
                )
        if self.classifier_pooling != "last" and self.head != "classification":
            raise ValueError("`classifier_pooling` is of the classification layer: set `head: classification`.")
        if self.random_start and self.use_peft:
            raise ValueError(
                "`use_peft` saves an adapter without its base, so `random_start` would lose the weights it goes with: "
                "leave out one of them (`compare_random_start` scores such a run and does not keep it)."
            )
        if self.load_in_4bit and not self.use_peft:
            raise ValueError("`load_in_4bit` trains an adapter on frozen weights: set `use_peft: true` as well.")
        if self.load_in_4bit and (self.random_start or self.compare_random_start):
            raise ValueError("`load_in_4bit` needs weights to load: leave out the random start.")

    def _check_places(self) -> None:
        if (self.train_path is None) == (self.dataset is None):
            raise ValueError("Give `train_path` or `dataset`, one of them.")
        if self.dataset is None and (self.test_path is None) == (self.test_fraction == 0.0):
            raise ValueError("The test split needs `test_path` or a `test_fraction` above 0, one of them.")
        if self.dataset is not None:
            for name in ("test_path", "validation_path"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` goes with `train_path`: with `dataset` name its split.")
        elif self.validation_split is not None:
            raise ValueError("`validation_split` is of a Hub `dataset`: with `train_path` give `validation_path`.")
        if self.validation_fraction > 0 and (self.validation_path or self.validation_split):
            raise ValueError("Give `validation_fraction` or rows of their own for validation, one of them.")

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to look at during training."""
        return bool(self.validation_fraction or self.validation_path or self.validation_split)

    def field_map(self, task: Task) -> FieldMap:
        """The names of fields and labels in the data.

        Raises:
            ValueError: They contradict each other, or the task has no such field or label.
        """
        answer = task.label_field if isinstance(task, ChoiceTask) else getattr(task, "target_field", "")
        fields = {str(key): str(value) for key, value in (self.fields or {}).items()}  # type: ignore[union-attr]
        for short, name in (("text_field", first_field(task)), ("label_field", answer)):
            value = getattr(self, short)
            if value is not None and fields.setdefault(name, value) != value:
                raise ValueError(
                    f"`{short}: {value}` and `fields: {{{name}: {fields[name]}}}` name two fields for one: give one."
                )
        labels = {str(key): str(value) for key, value in (self.label_map or {}).items()}  # type: ignore[union-attr]
        known = task.labels if isinstance(task, ChoiceTask) else []
        unknown = sorted(set(labels.values()) - set(known))
        if unknown and known:
            raise ValueError(
                f"`label_map` names {', '.join(unknown)}, which task {task.name!r} does not have; its labels are "
                f"{', '.join(known)}."
            )
        if unknown:
            raise ValueError(f"`label_map` is for tasks with labels, and task {task.name!r} has none: leave it out.")
        found = FieldMap(fields, labels)
        found.check(task)
        return found

    def source(self, part: Literal["train", "validation", "test"], task: Task) -> SourceConfig:
        """Where the rows of one part come from.

        Rows are divided by one hash each, so that the test rows are the same with and without validation rows. Where
        both are shares of one file, those for validation come here with the test rows among them.
        """
        test_apart = self.test_path is not None or (self.dataset is not None and self.test_fraction == 0.0)
        fraction = 0.0 if test_apart else self.test_fraction
        if part != "test":
            fraction += (1.0 - fraction) * self.validation_fraction
        path, split = self.train_path, self.train_split
        if part == "test" and test_apart:
            path, split, fraction = self.test_path, self.test_split, 0.0
        elif part == "validation" and not self.validation_fraction:
            path, split, fraction = self.validation_path, self.validation_split or "", 0.0
        place: dict[str, Any] = {"path": path}
        if self.dataset is not None:
            place = {"dataset": self.dataset, "dataset_config": self.dataset_config, "dataset_split": split}
        # Rows are told apart by the passage where there is one: it may have several questions.
        first = getattr(task, "context_field", "") or first_field(task)
        return SourceConfig(
            name=part,
            text_field=self.field_map(task).fields.get(first, first),
            where=self.where,  # type: ignore[arg-type]
            group_by=self.group_by,
            part="all" if fraction == 0.0 else "train" if part == "train" else "test",
            test_fraction=fraction,
            split_seed=self.split_seed,
            **place,
        )


def first_field(task: Task) -> str:
    """The first field of a prompt that rows have; a task may make up others."""
    return next(name for name in task.prompt_fields if name in task.fields)


@dataclass
class FinetuningArguments(CommonArguments):
    """TrainingArguments with defaults for fine-tuning."""

    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate. Default: 0.05 / hidden_size, and ten times that for an adapter."},
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "Times to go through the training rows."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of matrices."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up (a share of the run below 1)."})
    optim: str = field(default="adamw_torch_fused", metadata={"help": "Optimizer."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Order of the examples."})
    eval_strategy: str | None = field(
        default=None,
        metadata={"help": "When to score the validation rows: no, steps or epoch. Default: no; epoch to stop early."},
    )
    save_strategy: str | None = field(
        default=None,
        metadata={"help": "When to save: no, steps, epoch or best. Default: steps; with evaluations to stop early."},
    )
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep."})
    max_nonfinite_steps: int = field(
        default=10,
        metadata={
            "help": "Stop after so many steps in a row whose loss or gradients are not finite. Each is skipped and logged."
        },
    )

    def __post_init__(self) -> None:
        if self.max_nonfinite_steps < 1:
            raise ValueError(f"`max_nonfinite_steps` must be at least 1, got {self.max_nonfinite_steps}.")
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise ValueError(
                "`lr_scheduler_type: reduce_lr_on_plateau` goes by a loss that evaluation here does not compute: use "
                "cosine, linear, constant_with_warmup, ..."
            )
        # What stopping early asks for is known where the arguments meet the config, in `finetune`.
        self.left_out = {name for name in ("eval_strategy", "save_strategy") if getattr(self, name) is None}
        self.eval_strategy, self.save_strategy = self.eval_strategy or "no", self.save_strategy or "steps"
        super().__post_init__()


def parse_arguments(*classes: type, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Dataclass instances from `--config recipe.yaml` and `--field value` on the command line.

    A mistake ends the program with a message and exit status 2.

    Args:
        *classes: Dataclasses; no two share a field.
        argv: Command line. Default: `sys.argv[1:]`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    chosen, rest = first.parse_known_args(argv)
    parser = HfArgumentParser(classes, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of defaults for the fields below.")
    try:
        if chosen.config is not None:
            defaults = recipe_defaults(chosen.config, *classes)
            parser.set_defaults(**defaults)
            for action in parser._actions:
                if action.dest in defaults:
                    action.required = False
        *instances, unknown = parser.parse_args_into_dataclasses(
            rest, return_remaining_strings=True, look_for_args_file=False
        )
        for word in unknown:
            if word.startswith("--"):
                known = {f.name for cls in classes for f in dataclasses.fields(cls)}
                raise unknown_key(word.lstrip("-").split("=")[0], known, "the command line")
        if unknown:
            raise ValueError(f"Not understood on the command line: {' '.join(unknown)}")
    except ValueError as error:
        parser.exit(2, f"{Path(sys.argv[0]).name}: error: {error}\n")
    # HfArgumentParser adds a namespace for `--config`, which is read above.
    return tuple(instance for instance in instances if not isinstance(instance, argparse.Namespace))


def recipe_defaults(path: str | Path, *classes: type) -> dict[str, Any]:
    """The fields a YAML recipe sets, checked for name and type.

    Raises:
        ValueError: An unknown key or a value of the wrong type.
    """
    hints = {}
    for cls in classes:
        annotations = typing.get_type_hints(cls)
        hints.update({f.name: annotations[f.name] for f in dataclasses.fields(cls) if f.init})
    defaults = {}
    for key, value in read_yaml(path).items():
        if key not in hints:
            raise unknown_key(key, hints, str(path))
        if isinstance(value, str) and hints[key] in (list[str], list[str] | None):
            value = [value]
        defaults[key] = coerce(value, hints[key], f"`{key}` in {path}")
    return defaults
