"""Fine-tune a causal language model for a task, all weights or LoRA."""

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from ..data.readers import RowErrors, read_rows
from ..tasks import ChoiceTask, get_task
from ..tasks.base import CompletionCollator
from .arguments import FinetuneConfig, FinetuningArguments, parse_mapping
from .callbacks import peak_host_memory_bytes
from .checkpoints import latest_complete_checkpoint
from .trainer import ChoiceTrainer


logger = logging.get_logger(__name__)


@dataclasses.dataclass
class Examples:
    """Tokenized rows: prompts and the class index of each."""

    prompts: list[list[int]]
    labels: list[int]


def finetune(config: FinetuneConfig, args: FinetuningArguments) -> dict[str, Any]:
    """Fine-tune, score the test split, and save.

    Leaves in `args.output_dir`: the model (or the LoRA adapter) with its tokenizer, and `all_results.json`.

    Returns:
        The metrics: `eval_accuracy`, `eval_macro_f1`, `eval_majority_accuracy`, with `compare_random_start` also
        `eval_random_start_accuracy` and `eval_random_start_macro_f1`, `peak_memory_bytes` and Trainer's own.

    Raises:
        ValueError: The model, the task and the data do not fit together.
    """
    task = make_task(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model_config = AutoConfig.from_pretrained(config.model_name_or_path)
    max_length = min(config.max_length or model_config.max_position_embeddings, model_config.max_position_embeddings)
    train, test = (read_examples(config, task, tokenizer, part, max_length) for part in ("train", "test"))

    checkpoint = args.resume_from_checkpoint or latest_complete_checkpoint(args.output_dir)
    if checkpoint is not None:
        logger.warning(f"Resuming from {checkpoint}.")
    trainer = _make_trainer(config, args, task, tokenizer, train, test, config.random_start)
    metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    trainer.save_model()
    metrics.update(trainer.evaluate())
    if config.compare_random_start:
        # The same steps from random weights; in a folder that goes away, so that nothing of it is taken for the model.
        with tempfile.TemporaryDirectory() as folder:
            other_args = copy.copy(args)
            other_args.output_dir, other_args.save_strategy = folder, SaveStrategy.NO
            if trainer.is_world_process_zero():
                print("The same from random weights, for comparison:", flush=True)
            other = _make_trainer(config, other_args, task, tokenizer, train, test, random_start=True)
            other.train()
            scores = other.evaluate()
        metrics.update({f"eval_random_start_{name}": scores[f"eval_{name}"] for name in ("accuracy", "macro_f1")})
    metrics.update(
        train_rows=len(train.labels), test_rows=len(test.labels), peak_memory_bytes=peak_host_memory_bytes()
    )
    trainer.log_metrics("all", metrics)
    trainer.save_metrics("all", metrics, combined=False)
    return metrics


def make_task(config: FinetuneConfig) -> ChoiceTask:
    """The recipe's task with its own prompt and label words, where it gives them."""
    task = get_task(config.task, config.language)
    changes: dict[str, Any] = {}
    if config.prompt is not None:
        changes["prompt"] = config.prompt
    if config.label_words is not None:
        changes["choices"] = config.label_words
    return dataclasses.replace(task, **changes)


def read_examples(config: FinetuneConfig, task: ChoiceTask, tokenizer: Any, part: Any, max_length: int) -> Examples:
    """Tokenize one part of the recipe's rows.

    Raises:
        ValueError: No rows, a label that is not the task's, or too many malformed rows.
    """
    label_map = {str(key): str(value) for key, value in (parse_mapping(config.label_map, "label_map") or {}).items()}
    errors = RowErrors(config.max_bad_rows)
    room = max_length - max(map(len, task.choice_ids(tokenizer)))
    examples = Examples([], [])
    rows = read_rows(config.source(part), errors)
    for row in tqdm(rows, desc=f"{task.name}, {part}", unit=" rows", disable=None):
        if config.label_field not in row:
            raise ValueError(
                f"No field `label_field: {config.label_field}`; the fields are {', '.join(map(str, row))}."
            )
        value = str(row[config.label_field])
        label = label_map.get(value, value)
        if label not in task.labels:
            raise ValueError(
                f"Label {value!r} in `{config.label_field}` is not one of {', '.join(task.labels)}: map it with "
                f"`label_map`, such as {{{value}: {task.labels[0]}}}, or leave such rows out with `where`."
            )
        examples.prompts.append(task.prompt_ids(tokenizer, row[config.text_field], room))
        examples.labels.append(task.labels.index(label))
    if not examples.labels:
        raise ValueError(f"No {part} rows ({errors.count} malformed): check the paths, `where` and `test_fraction`.")
    if errors.count:
        logger.warning(f"{errors.count} malformed {part} rows passed over, such as {errors.examples[0]}.")
    return examples


def load_base_model(config: FinetuneConfig, random_start: bool, seed: int) -> PreTrainedModel:
    """The pretrained model, or one of the same architecture with random weights; float32 either way."""
    set_seed(seed)
    name = config.model_name_or_path
    options: dict[str, Any] = {"dtype": "float32", "attn_implementation": config.attn_implementation}
    if random_start:
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), **options)
    return AutoModelForCausalLM.from_pretrained(name, **options)


def add_lora(model: PreTrainedModel, config: FinetuneConfig) -> Any:
    """`model` with trainable LoRA matrices and everything else frozen."""
    from peft import LoraConfig, get_peft_model

    modules = config.lora_target_modules
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
    )
    peft_model = get_peft_model(model, lora)
    # A relative folder would be looked for below whichever folder the adapter is loaded from.
    base = Path(config.model_name_or_path)
    if base.is_dir():
        for adapter in peft_model.peft_config.values():
            adapter.base_model_name_or_path = str(base.resolve())
    return peft_model


def _make_trainer(
    config: FinetuneConfig,
    args: FinetuningArguments,
    task: ChoiceTask,
    tokenizer: Any,
    train: Examples,
    test: Examples,
    random_start: bool,
) -> ChoiceTrainer:
    model: Any = load_base_model(config, random_start, args.seed)
    if config.use_peft:
        model = add_lora(model, config)
    choices = task.choice_ids(tokenizer)
    train_dataset = [
        {
            "prompt_ids": prompt,
            "completion_ids": choices[label],
            "input_ids": prompt,
        }  # input_ids: for grouping by length
        for prompt, label in zip(train.prompts, train.labels)
    ]
    args.remove_unused_columns = False
    return ChoiceTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        # Trainer asks for one where it evaluates during training; `ChoiceTrainer.evaluate` scores the test rows instead.
        eval_dataset=train_dataset[:1] if args.eval_strategy != "no" else None,
        data_collator=CompletionCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        task=task,
        test_prompts=test.prompts,
        test_labels=test.labels,
    )
