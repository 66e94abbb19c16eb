"""Fine-tune a language model for a task: all weights or LoRA, by completions, a classification layer or marked spans.

Notable: no row is cut, left out or repeated without a count in the metrics and a warning that names the first of them; and
the test rows are looked at once, at the end, while early stopping goes by validation rows.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from ..hub.card import LOSS_CURVE_FILE
from ..tasks import KINDS, ChoiceTask, Example, Task, TextTask, get_task, with_changes
from ..tasks.encoding import CompletionCollator, PackingCollator, PromptCollator
from ..tasks.metrics import Score, baselines, check_metrics, score, score_with_intervals
from ..tasks.saved import TaskRecord
from ..tasks.scoring import Prediction, answered_row
from .adapters import ADAPTER_CONFIG_FILE, MODEL_CLASSES, TASK_TYPES, add_adapter, load_base, quantization_config
from .arguments import FinetuneConfig, FinetuningArguments
from .callbacks import (
    LossCurveCallback,
    LossWatchCallback,
    SampleCallback,
    loss_watch_stop_reason,
    peak_device_memory_bytes,
    peak_host_memory_bytes,
)
from .checkpoints import find_checkpoint
from .pushing import fetch_checkpoint
from .recipe import check_recipe, recipe_of
from .run_record import RunRecordCallback, finetuning_record
from .task_rows import EncodedExamples, RowReader, Rows, training_rows
from .task_trainer import EarlyStopping, TaskTrainer


logger = logging.get_logger(__name__)

PREDICTIONS_FILE = "predictions.jsonl"
# Of attention, residual branches and embeddings: gpt3's and llama's names, then gpt2's, then others' of the Hub.
DROPOUT_FIELDS = (
    "attention_dropout", "residual_dropout", "embedding_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop",
    "hidden_dropout", "resid_dropout", "embed_dropout",
)  # fmt: skip
# GPT-1's rate for 117M weights, 768 wide, and what suits other widths; LoRA takes about ten times that.
LEARNING_RATE_TIMES_WIDTH = 0.05
LORA_LEARNING_RATE_FACTOR = 10.0


def finetune(
    config: FinetuneConfig, args: FinetuningArguments, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """Fine-tune, score the test split, and save.

    Leaves in `args.output_dir`: the model (or the adapter) with its tokenizer and `task.json`, `predictions.jsonl` with
    each test row, `all_results.json`, `loss_curve.png` and `run.json`.

    Args:
        config: What, for which task, on which data.
        args: How.
        callbacks: Further ones, such as `LivePlotCallback()` in a notebook.

    Returns:
        The metrics: for each of the task's own `eval_NAME` with the bootstrap interval `eval_NAME_low` and `_high`, the
        same of the baselines as `baseline_WHICH_NAME` and with `compare_random_start` as `eval_random_start_NAME`; numbers
        of rows; `trainable_parameters` and `trainable_share`; `nonfinite_steps`, which were skipped; `peak_memory_bytes`; and Trainer's own.

    Raises:
        ValueError: The model, the task and the data do not fit together.
        RuntimeError: The loss jumped, and `loss_spike` is stop.
    """
    trainer, rows = prepare(config, args)
    args, task = trainer.args, trainer.record.task
    trainer.add_callback(LossCurveCallback(Path(args.output_dir) / LOSS_CURVE_FILE))
    batch_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trainer.add_callback(RunRecordCallback(finetuning_record(config, args, task.name, batch_rows)))
    if config.sample_prompts:
        trainer.add_callback(
            SampleCallback(trainer.processing_class, config.sample_prompts, config.sample_tokens, log=trainer.log)
        )
    if args.loss_spike != "ignore":  # the trainer itself skips steps that are not finite
        trainer.add_callback(LossWatchCallback(nonfinite="ignore", spike=args.loss_spike))
    for callback in callbacks:
        trainer.add_callback(callback)
    fetch_checkpoint(args)
    checkpoint = find_checkpoint(args)
    if checkpoint is not None:
        check_recipe(checkpoint, trainer.recipe)
        logger.warning(f"Resuming from {checkpoint}.")
    sizes = count_parameters(trainer.model)
    metrics: dict[str, Any] = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    stop_reason = loss_watch_stop_reason(trainer)
    if stop_reason:
        raise RuntimeError(f"{stop_reason}.")
    trainer.save_model()

    predictions = trainer.predict_rows(rows.test)
    metrics.update(_on_main(trainer, lambda: final_scores(task, rows, predictions)))
    if trainer.is_world_process_zero():
        write_predictions(task, predictions, rows.test.examples, Path(args.output_dir) / PREDICTIONS_FILE)
    if config.compare_random_start:
        metrics.update(random_start_scores(config, args, trainer, rows))
    metrics.update(
        rows.counts, **sizes, nonfinite_steps=trainer.nonfinite_steps, peak_memory_bytes=peak_host_memory_bytes()
    )
    if peak_device_memory_bytes():
        metrics["peak_device_memory_bytes"] = peak_device_memory_bytes()
    trainer.log_metrics("all", metrics)
    trainer.save_metrics("all", metrics, combined=False)
    if args.push_to_hub:
        trainer.push_saved("End of training")
    return metrics


def prepare(config: FinetuneConfig, args: FinetuningArguments) -> tuple[TaskTrainer, Rows]:
    """Everything up to the first step: the task, the rows, and the model in its trainer.

    The arguments stay as they are; the trainer has a copy with what they leave open.

    Raises:
        ValueError: The model, the task and the data do not fit together.
    """
    args = copy.copy(args)
    task = make_task(config)
    check(config, args, task)
    tokenizer = load_tokenizer(config)
    model_config = AutoConfig.from_pretrained(config.model_name_or_path)
    max_length = longest_input(config, model_config)
    rows = RowReader(config, task, tokenizer, max_length, is_main=args.process_index == 0).read()
    check_ids(rows, model_config)
    set_defaults(config, args, task, model_config)
    record = make_record(config, task, max_length)
    return make_trainer(config, args, record, tokenizer, rows, config.random_start), rows


def random_start_scores(
    config: FinetuneConfig, args: FinetuningArguments, trainer: TaskTrainer, rows: Rows
) -> dict[str, float]:
    """Train the same way from random weights, and score the same rows."""
    with _random_start_folder(trainer) as folder:
        other_args = copy.copy(args)
        other_args.output_dir = str(folder)
        other_args.push_to_hub = False
        if not args.load_best_model_at_end:
            other_args.save_strategy = SaveStrategy.NO
        if trainer.is_world_process_zero():
            print("The same from random weights, for comparison:", flush=True)
        other = make_trainer(config, other_args, trainer.record, trainer.processing_class, rows, random_start=True)
        other.train()
        predictions = other.predict_rows(rows.test)
    scores = _on_main(trainer, lambda: score_with_intervals(trainer.record.task, predictions, rows.test.examples))
    return _flat("eval_random_start", scores)


# Task


def make_task(config: FinetuneConfig) -> Task:
    """The recipe's task with its own prompt, label words and other fields, where it gives them.

    Raises:
        ValueError: No such task, language or field.
    """
    task = get_task(config.task, config.language)
    changes: dict[str, Any] = {**config.task_overrides} if isinstance(config.task_overrides, dict) else {}
    for name, value in (("prompt", config.prompt), ("choices", config.label_words)):
        if value is None:
            continue
        if name == "choices" and not (isinstance(task, ChoiceTask) and task.choices):
            raise ValueError(
                f"`label_words` are for tasks with labels, and task {task.name!r} has none: leave it out."
            )
        if name in changes:
            raise ValueError(f"`task_overrides` has `{name}`, which the recipe also gives by itself: give one.")
        changes[name] = value
    return with_changes(task, changes, "the recipe's changes to the task") if changes else task


def check(config: FinetuneConfig, args: FinetuningArguments, task: Task) -> None:
    """Raise a `ValueError` for what does not go together, before anything is loaded."""
    check_metrics(task)
    _check_label_words(task)
    if args.process_index == 0:
        _warn_of_ignored(config)
    if Path(args.output_dir).resolve() == Path(config.model_name_or_path).resolve():
        raise ValueError(f"`output_dir` {args.output_dir} is the folder of the model itself: give another.")
    if config.head == "classification" and not (isinstance(task, ChoiceTask) and task.choices):
        raise ValueError(
            f"`head: classification` needs a task with labels; task {task.name!r} has none: use `head: lm`."
        )
    if config.head == "span":
        if not isinstance(task, TextTask) or not task.context_field:
            raise ValueError(
                f"`head: span` marks the answer in a passage, and task {task.name!r} names none (`context_field`): use "
                "`head: lm`, or task qa."
            )
        if (task.cut_field or task.prompt_fields[-1]) != task.context_field:
            raise ValueError(
                f"`head: span` needs the passage to be what is cut: set `cut_field: {task.context_field}` in "
                "`task_overrides`."
            )
        if task.cut_side == "start":
            raise ValueError(
                "`head: span` reads a passage from its start: set `cut_side: end` in `task_overrides`, or use `head: lm`."
            )
        if task.no_answer:
            raise ValueError(
                "`head: span` cannot say that there is no answer: use `head: lm`, or set `no_answer: ''` in "
                "`task_overrides`, and rows without an answer are left out as malformed."
            )
    if config.class_balance != "none" and not (isinstance(task, ChoiceTask) and task.choices):
        raise ValueError(f"`class_balance` needs a task with labels; task {task.name!r} has none: leave it out.")
    if config.packing and args.train_sampling_strategy == "batch_rebalance":
        raise ValueError("`packing` and `train_sampling_strategy: batch_rebalance` do the same: leave out the latter.")
    if config.use_peft and args.muon:
        raise ValueError("`muon` is for the matrices of a model, not an adapter's: leave out `muon` or `use_peft`.")
    if not config.has_validation:
        for name, asked in (
            ("early_stopping_patience", config.early_stopping_patience is not None),
            ("eval_strategy", args.eval_strategy != IntervalStrategy.NO),
            ("load_best_model_at_end", args.load_best_model_at_end),
            ("save_strategy: best", args.save_strategy == SaveStrategy.BEST),
        ):
            if asked:
                raise ValueError(
                    f"`{name}` needs validation rows: give `validation_path`, `validation_split` or a "
                    "`validation_fraction`. The test rows are scored once, at the end."
                )
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    if args.metric_for_best_model not in (None, "loss") and metric not in task.metrics:
        raise ValueError(
            f"`metric_for_best_model` must be one of the task's metrics, {', '.join(task.metrics)}, got {metric!r}."
        )
    if config.early_stopping_patience is not None:
        _check_strategies(args)
    config.field_map(task)


def _check_label_words(task: Task) -> None:
    labels: dict[str, str] = {}
    for label, words in task.choices.items() if isinstance(task, ChoiceTask) else ():
        other = labels.setdefault(words, label)
        if other != label:
            raise ValueError(
                f"`label_words`: {other} and {label} have the same completion, {words!r}, and could not be told apart."
            )


def _warn_of_ignored(config: FinetuneConfig) -> None:
    """Tell of fields that are set and do nothing without another."""
    adapter = [name for name in vars(config) if name.startswith("lora_")] + ["use_dora", "use_rslora"]
    for names, used, other in (
        (adapter, config.use_peft, "`use_peft: true`"),
        (["max_eval_rows"], config.has_validation, "validation rows"),
    ):
        given = [name for name in names if getattr(config, name) != getattr(type(config), name)]
        if given and not used:
            logger.warning(f"`{'`, `'.join(given)}`: ignored without {other}.")


def _check_strategies(args: FinetuningArguments) -> None:
    """Whether what the recipe says of evaluating and saving lets training stop early."""
    evaluated, saved = IntervalStrategy(args.eval_strategy), SaveStrategy(args.save_strategy)
    if "eval_strategy" in args.left_out:
        evaluated = IntervalStrategy.EPOCH
    elif evaluated == IntervalStrategy.NO:
        raise ValueError("`early_stopping_patience` and `eval_strategy: no` contradict each other: leave out one.")
    if "save_strategy" in args.left_out or saved == SaveStrategy.BEST:
        return
    by_steps = evaluated == IntervalStrategy.STEPS
    if saved.value != evaluated.value or (by_steps and args.save_steps % (args.eval_steps or args.logging_steps)):
        raise ValueError(
            "`early_stopping_patience` keeps the best model, which is saved where it is evaluated (`eval_strategy: "
            f"{evaluated.value}`): leave out `save_strategy: {saved.value}`."
        )


def make_record(config: FinetuneConfig, task: Task, max_length: int) -> TaskRecord:
    """What is kept of the task beside the weights."""
    kind = next(name for name, cls in KINDS.items() if type(task) is cls)
    field_map = config.field_map(task)
    return TaskRecord(
        task=task,
        kind=kind,
        language=config.language,
        head=config.head,
        classifier_pooling=config.classifier_pooling,
        max_length=max_length,
        fields=dict(field_map.fields),
        label_map=dict(field_map.label_map),
    )


def set_defaults(
    config: FinetuneConfig, args: FinetuningArguments, task: Task, model_config: PreTrainedConfig
) -> None:
    """Fill in what the recipe leaves to model and task: the learning rate, and what stopping early asks for."""
    args.remove_unused_columns = False
    if args.learning_rate is None:
        width = model_config.get_text_config().hidden_size
        args.learning_rate = LEARNING_RATE_TIMES_WIDTH / width * (LORA_LEARNING_RATE_FACTOR if config.use_peft else 1)
        if args.process_index == 0:
            logger.warning(
                f"`learning_rate` is {args.learning_rate:.3g}, for a width of {width}; a recipe can give its own."
            )
    if config.early_stopping_patience is not None:
        args.load_best_model_at_end = True
        if "eval_strategy" in args.left_out:
            args.eval_strategy = IntervalStrategy.EPOCH
        elif args.eval_strategy == IntervalStrategy.STEPS:
            args.eval_steps = args.eval_steps or args.logging_steps
        if "save_strategy" in args.left_out:
            args.save_strategy = SaveStrategy(IntervalStrategy(args.eval_strategy).value)
            if args.eval_steps:
                args.save_steps = args.eval_steps
    keeps_best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    if keeps_best and args.metric_for_best_model in (None, "loss"):  # which evaluation here does not compute
        args.metric_for_best_model, args.greater_is_better = task.metrics[0], True


# Model


def check_ids(rows: Rows, model_config: PreTrainedConfig) -> None:
    """Raise a `ValueError` for a token that the model has no embedding of: it would end in an index error, or worse."""
    words = model_config.get_text_config().vocab_size
    for part in (rows.train, rows.test, rows.validation or EncodedExamples()):
        for example, encoded in zip(part.examples, part.encoded):
            highest = max([0, *encoded.prompt_ids, *encoded.completion_ids, *chain.from_iterable(encoded.choice_ids)])
            if highest >= words:
                raise ValueError(
                    f"{example.where}: token {highest} is beyond the model's `vocab_size` of {words}: the tokenizer is "
                    "another model's, or has tokens that the model was not trained with."
                )


def load_tokenizer(config: FinetuneConfig) -> Any:
    """The model's tokenizer, with a token to pad with that the model has an embedding of.

    Raises:
        ValueError: It has none that would do, or there is no such model, or only an adapter.
    """
    name = config.model_name_or_path
    if (Path(name) / ADAPTER_CONFIG_FILE).is_file():
        raise ValueError(
            f"`model_name_or_path` {name} is an adapter: merge it first (hfgpt convert {name} OUT --merge), and name OUT."
        )
    try:
        words = AutoConfig.from_pretrained(name).get_text_config().vocab_size
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and not Path(name).is_dir():
            error = "no such folder, and the Hub has none or is not reachable"  # type: ignore[assignment]
        raise ValueError(f"`model_name_or_path` {name} cannot be loaded: {error}.") from None
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= words:
        # Such as one that was added for another model; any other does, as it is masked.
        known = tokenizer.eos_token_id is not None and tokenizer.eos_token_id < words
        tokenizer.pad_token = tokenizer.eos_token if known else tokenizer.convert_ids_to_tokens(0)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer of {config.model_name_or_path} has neither `pad_token` nor `eos_token`: set one in its "
                "tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def longest_input(config: FinetuneConfig, model_config: PreTrainedConfig) -> int:
    """Tokens of prompt and completion: `max_length`, or what the model takes if that is less.

    Raises:
        ValueError: Neither is known.
    """
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    known = [length for length in (config.max_length, positions) if length is not None]
    if not known:
        raise ValueError(f"{config.model_name_or_path} does not say how many positions it has: set `max_length`.")
    return min(known)


def load_model(
    config: FinetuneConfig, args: FinetuningArguments, task: Task, tokenizer: Any, random_start: bool
) -> Any:
    """The pretrained model with the recipe's head, or the same from random weights; float32, or a frozen base in 4 bits.

    Raises:
        ValueError: The architecture has no such head, or no dropout to set.
    """
    set_seed(args.seed)
    name = config.model_name_or_path
    model_config = AutoConfig.from_pretrained(name)
    if config.head == "classification":
        assert isinstance(task, ChoiceTask)
        model_config.id2label = dict(enumerate(task.labels))
        model_config.label2id = {label: index for index, label in enumerate(task.labels)}
        model_config.pad_token_id = tokenizer.pad_token_id
        if config.classifier_pooling != "last":
            if not hasattr(model_config, "classifier_pooling"):
                raise ValueError(
                    f"`classifier_pooling: {config.classifier_pooling}` needs a gpt3 model; the classifier of "
                    f"{model_config.model_type} reads the last token."
                )
            model_config.classifier_pooling = config.classifier_pooling
    if config.dropout is not None:
        set_dropout(model_config, config.dropout)
    cls = MODEL_CLASSES[TASK_TYPES[config.head]]
    if type(model_config) not in cls._model_mapping:
        raise ValueError(
            f"{name} ({model_config.model_type}) cannot be loaded with `head: {config.head}`: transformers has no "
            f"{cls.__name__} of it. Use `head: lm`."
        )
    options: dict[str, Any] = {"dtype": "float32"}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    if random_start:
        return cls.from_config(model_config, **options)
    if config.load_in_4bit:
        options["quantization_config"] = quantization_config(torch.bfloat16 if args.bf16 else torch.float32)
    return load_base(cls, name, config=model_config, **options)


def set_dropout(model_config: PreTrainedConfig, dropout: float) -> None:
    """Set every dropout that the model has.

    Raises:
        ValueError: It has none.
    """
    names = [name for name in DROPOUT_FIELDS if hasattr(model_config, name)]
    if not names:
        raise ValueError(f"`dropout` cannot be set: models of type {model_config.model_type} have none.")
    for name in names:
        setattr(model_config, name, dropout)


def own_dropout(config: FinetuneConfig) -> dict[str, float]:
    """The dropout that the model came with: what is saved is the model's own, and not that of the run."""
    own = AutoConfig.from_pretrained(config.model_name_or_path)
    return {name: getattr(own, name) for name in DROPOUT_FIELDS if hasattr(own, name)}


def count_parameters(model: Any) -> dict[str, Any]:
    """Weights that train and their share of all, those of a partitioned model in full."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trained, total = model.get_nb_trainable_parameters()
    else:
        sizes = [(parameter, getattr(parameter, "ds_numel", parameter.numel())) for parameter in model.parameters()]
        total = sum(size for _, size in sizes)
        trained = sum(size for parameter, size in sizes if parameter.requires_grad)
    return {"trainable_parameters": trained, "trainable_share": trained / total}


def make_trainer(
    config: FinetuneConfig,
    args: FinetuningArguments,
    record: TaskRecord,
    tokenizer: Any,
    rows: Rows,
    random_start: bool,
) -> TaskTrainer:
    """The model with its adapter, in a trainer."""
    model: Any = load_model(config, args, record.task, tokenizer, random_start)
    if config.use_peft:
        model = add_adapter(model, config, config.head)
    collator: Any
    assert record.max_length is not None
    dataset = training_rows(config, tokenizer, rows.train, record.max_length)
    if config.head != "lm":
        collator = PromptCollator(tokenizer.pad_token_id)
    else:
        # So much for each token that over the training rows the prompts' mean loss counts `lm_loss_weight` times the
        # completions'.
        prompts, completions = (
            sum(len(getattr(encoded, name)) for encoded in rows.train.encoded)
            for name in ("prompt_ids", "completion_ids")
        )
        weight = config.lm_loss_weight * completions / max(prompts - len(rows.train), 1)
        collator = (PackingCollator if config.packing else CompletionCollator)(tokenizer.pad_token_id, weight)
    trainer = TaskTrainer(
        record=record,
        recipe=recipe_of(config, args, record, rows),
        validation=rows.validation,
        own_dropout=own_dropout(config),
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.push_when_saved = False
    if config.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(str(args.metric_for_best_model), config.early_stopping_patience))
    return trainer


# Scores


def final_scores(task: Task, rows: Rows, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Metrics of the test rows with intervals, of the model and of the baselines."""
    test = rows.test.examples
    metrics = _flat("eval", score_with_intervals(task, predictions, test))
    for name, answers in baselines(task, rows.train.examples, test).items():
        metrics.update(_flat(f"baseline_{name}", score_with_intervals(task, answers, test)))
    if "baseline_majority_accuracy" in metrics:
        metrics["eval_majority_accuracy"] = metrics["baseline_majority_accuracy"]
    return metrics


def _flat(prefix: str, scores: dict[str, Score]) -> dict[str, float]:
    metrics = {}
    for name, found in scores.items():
        metrics[f"{prefix}_{name}"] = found.value
        metrics[f"{prefix}_{name}_low"], metrics[f"{prefix}_{name}_high"] = found.low, found.high
    return metrics


def write_predictions(task: Task, predictions: Sequence[Prediction], examples: Sequence[Example], path: Path) -> None:
    """One JSON object a row: where it is, what was asked, answered and expected, and how good that is."""
    first_metric = replace(task, metrics=task.metrics[:1])
    with open(path, "w", encoding="utf-8") as file:
        for prediction, example in zip(predictions, examples):
            row = answered_row(example, prediction)
            if example.label is not None:
                row["correct"] = prediction.label == example.label
            else:
                row["score"] = score(first_metric, [prediction], [example])[task.metrics[0]]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# Processes


def _on_main(trainer: TaskTrainer, compute: Any) -> Any:
    """What the first process computes, for all."""
    [result] = broadcast_object_list([compute() if trainer.is_world_process_zero() else None])
    return result


@contextmanager
def _random_start_folder(trainer: TaskTrainer) -> Iterator[Path]:
    """A folder for the run from random weights that goes away, so that nothing of it is taken for the model."""
    folder = Path(trainer.args.output_dir) / "random-start"
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    yield folder
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
