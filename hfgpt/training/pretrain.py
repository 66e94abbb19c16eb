"""Pretrain a GPT-3 on a prepared corpus."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers import AutoTokenizer, TrainerCallback, default_data_collator
from transformers.utils import logging

from ..data.documents import write_json
from ..data.packing import TOKENIZER_FOLDER, HeldOutDataset, PackedDataset, read_metadata
from ..hub.card import LOSS_CURVE_FILE, RESULTS_FILE
from ..model import PRESETS, GPT3Config
from .arguments import PretrainConfig, PretrainingArguments
from .callbacks import (
    LossCurveCallback,
    LossWatchCallback,
    SampleCallback,
    loss_watch_stop_reason,
    peak_host_memory_bytes,
    require_reporters,
)
from .checkpoints import checkpoint_step, find_checkpoint, hash_file
from .interruption import INTERRUPTED_FILE, Interrupted
from .launch import tensor_parallel_size
from .pushing import fetch_checkpoint
from .run_record import RunRecordCallback, pretraining_record
from .schedule import BatchSchedule
from .steps import POSITION_FILE, Position
from .trainer import PretrainingTrainer
from .zero import initial_model


logger = logging.get_logger(__name__)

LOCK_FILE = ".lock"
LOCK_SECONDS = 15  # those that a killed run's loader workers may need to end
# What makes the weights of one model another's.
ARCHITECTURE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "layer_types", "sliding_window", "hidden_act", "layer_norm_eps", "tie_word_embeddings",
)  # fmt: skip
ENDLESS = sys.maxsize  # the schedule ends a run, not its data


def pretrain(
    config: PretrainConfig, args: PretrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """Pretrain, or resume from the newest complete checkpoint in `args.output_dir`; a finished run is left as it is.

    Leaves in `args.output_dir`: the model and tokenizer, `checkpoint-*`, `loss_curve.png`, `trainer_state.json`,
    `run.json` and `all_results.json`.

    Args:
        config: What, on which corpus.
        args: How.
        callbacks: Further ones, such as `LivePlotCallback()` in a notebook.

    Returns:
        The metrics: `eval_loss_before` (of the random weights), `eval_loss`, `eval_perplexity`,
        `eval_bits_per_byte`, `train_tokens`, `train_tokens_per_second`, `peak_memory_bytes` and Trainer's own; of a
        corpus with weights also `mixture`, what the run has read of each source (`Mixture.report`).

    Raises:
        ValueError: The corpus, the model and the arguments do not fit together.
        RuntimeError: The run gave up: steps were not finite (`max_nonfinite_steps`), or the loss jumped (`loss_spike`).
    """
    require_reporters(args.report_to)
    args.run_name = args.run_name or Path(args.output_dir).name
    with only_run_in(Path(args.output_dir), args.process_index == 0):
        return _pretrain(config, args, callbacks)


def _pretrain(
    config: PretrainConfig, args: PretrainingArguments, callbacks: Sequence[TrainerCallback]
) -> dict[str, Any]:
    metadata = read_metadata(config.corpus)
    tokenizer = AutoTokenizer.from_pretrained(Path(config.corpus) / TOKENIZER_FOLDER)
    model_config = make_model_config(config, metadata, tokenizer)
    sequence_length = config.sequence_length or model_config.max_position_embeddings
    if sequence_length > model_config.max_position_embeddings:
        raise ValueError(
            f"`sequence_length` ({sequence_length}) is past the model's positions "
            f"(`max_position_embeddings` {model_config.max_position_embeddings}; set it in `model_overrides`)."
        )
    tokenizer.model_max_length = model_config.max_position_embeddings

    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs: start one on each, `accelerate launch --config_file "
            "recipes/accelerate/ddp.yaml ...`, or show it one by CUDA_VISIBLE_DEVICES."
        )
    if args.learning_rate is None:
        args.learning_rate = PRESETS[config.preset].learning_rate
    order = data_order(config, args, metadata)
    fetch_checkpoint(args)
    checkpoint = find_checkpoint(args)
    position = starting_position(args, checkpoint, sequence_length, order)
    schedule = batch_schedule(args, position)
    steps_done = checkpoint_step(checkpoint) or 0 if checkpoint else 0
    if args.max_steps <= 0:
        args.max_steps = steps_done + schedule.steps_until(args.train_tokens, position.sequences_seen)
    else:
        end = schedule.position_after(max(args.max_steps - steps_done, 0), position.sequences_seen)
        args.train_tokens = end * sequence_length
    # The order of the samples is the dataset's own, and so is the place to go on from.
    args.train_sampling_strategy, args.ignore_data_skip = "sequential", True
    # To Trainer an optimizer step is one batch; the trainer divides it.
    args.gradient_accumulation_steps = 1
    # The loss is a mean over the tokens of all processes.
    args.average_tokens_across_devices = True
    # A skipped step is not to be hidden behind the losses before it.
    args.logging_nan_inf_filter = False

    train_dataset = PackedDataset(
        config.corpus,
        sequence_length,
        ENDLESS,
        seed=order["seed"],
        weights=config.mixture_weights,  # type: ignore[arg-type]
    )
    eval_dataset = HeldOutDataset(
        config.corpus, sequence_length, metadata["end_of_text_token_id"], config.max_eval_tokens
    )
    if args.eval_strategy != "no" and len(eval_dataset) == 0:
        raise ValueError(
            f"{config.corpus} has no held-out text: raise its `holdout_fraction` or set `eval_strategy: no`."
        )
    args.eval_on_start = args.eval_on_start and args.eval_strategy != "no" and len(eval_dataset) > 0

    results = Path(args.output_dir) / RESULTS_FILE
    [finished] = broadcast_object_list([steps_done >= args.max_steps and results.exists()])
    if checkpoint is not None and finished:
        logger.warning(f"{args.output_dir} is finished: {steps_done} steps are done. `train_tokens` would go on.")
        return json.loads(results.read_text(encoding="utf-8"))
    if checkpoint is not None:
        if args.process_index == 0:
            logger.warning(f"Resuming from {checkpoint}: {position.tokens_seen:,} tokens are done.")
        check_architecture(checkpoint, model_config)
        args.eval_on_start = False
    if args.train_tokens <= args.warmup_tokens and args.process_index == 0:
        logger.warning(
            f"The run ends at {args.train_tokens:,} tokens, within its warm-up (`warmup_tokens`, {args.warmup_tokens:,}): "
            "the learning rate never reaches its peak. The paper's warm-up is an eighth of a percent of the run."
        )
    mixture = train_dataset.mixture
    if mixture is not None and args.process_index == 0:
        logger.warning(mixture_table(mixture.report(args.train_tokens // sequence_length, sequence_length)))

    model = initial_model(model_config, args.seed, attn_implementation=config.attn_implementation)
    trainer = PretrainingTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset if len(eval_dataset) else None,
        processing_class=tokenizer,
        # The default for a tokenizer would turn each id into a Python number and back, and add a mask of ones.
        data_collator=default_data_collator,
        schedule=schedule,
        position=position,
        callbacks=[LossCurveCallback(Path(args.output_dir) / LOSS_CURVE_FILE)],
    )
    trainer.push_when_saved = False
    record = pretraining_record(config, args, metadata, schedule.full_sequences * sequence_length)
    trainer.add_callback(RunRecordCallback(record))
    if config.sample_prompts:
        trainer.add_callback(
            SampleCallback(tokenizer, config.sample_prompts, max_new_tokens=config.sample_tokens, log=trainer.log)
        )
    if args.loss_spike != "ignore":  # the trainer itself skips steps that are not finite
        trainer.add_callback(LossWatchCallback(nonfinite="ignore", spike=args.loss_spike))
    for callback in callbacks:
        trainer.add_callback(callback)
    if checkpoint is not None and any(checkpoint.glob("pytorch_model_fsdp*")) and not trainer.is_fsdp_enabled:
        raise ValueError(
            f"{checkpoint} is of a run with FSDP, from which only FSDP resumes, on any number of processes: launch with "
            "recipes/accelerate/fsdp2.yaml."
        )
    _forget_interruption(args)
    metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    metrics.pop("train_samples_per_second", None)  # Trainer counts by a constant batch
    _end_if_stopped(trainer)
    metrics["train_tokens"], metrics["sequence_length"] = trainer.tokens_seen, sequence_length
    rates = trainer.throughput.rates(trainer.throughput.overall())
    metrics.update({f"train_{name}": value for name, value in rates.items()})
    failed_saves = trainer.failed_saves
    trainer.save_model()
    if trainer.failed_saves > failed_saves:
        raise RuntimeError(f"The model could not be written to {args.output_dir}: make room and run the same again.")
    if len(eval_dataset):
        metrics.update(trainer.evaluate())
        before = [
            entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"] == 0
        ]
        if before:
            metrics["eval_loss_before"] = before[0]
    metrics["peak_memory_bytes"] = peak_host_memory_bytes()
    trainer.log_metrics("all", metrics)
    if mixture is not None:
        position = trainer.position
        metrics["mixture"] = mixture.report(position.sequences_seen + position.sequences_skipped, sequence_length)
    trainer.save_metrics("all", metrics, combined=False)
    trainer.save_state()
    if args.push_to_hub:
        trainer.push_saved("End of training")
    return metrics


def data_order(config: PretrainConfig, args: PretrainingArguments, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the order of the training data depends on, besides the length of a sequence."""
    split = metadata["splits"]["train"]
    sizes = {name: source["tokens"] for name, source in split.get("sources", {}).items()}
    return {
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "weights": config.mixture_weights if config.mixture_weights is not None else metadata.get("weights"),
        "tokens": sizes or split["tokens"],
        "tokenizer": hash_file(Path(config.corpus) / TOKENIZER_FOLDER / "tokenizer.json"),
    }


def starting_position(
    args: PretrainingArguments, checkpoint: Path | None, sequence_length: int, order: dict[str, Any]
) -> Position:
    """Where in the data the run begins.

    Raises:
        ValueError: The checkpoint's data is not this data, in this order.
    """
    fresh = Position(sequence_length=sequence_length, order=order)
    if checkpoint is None:
        return fresh
    position = Position.load(checkpoint)
    if position is None:
        raise ValueError(f"{checkpoint} does not say how much of the data it has seen ({POSITION_FILE} is missing).")
    changed = [name for name, value in order.items() if position.order.get(name) != value]
    if "tokenizer" in changed:
        raise ValueError(
            f"{checkpoint} was trained with another tokenizer than the corpus': its words are not these. Use a corpus "
            "prepared with the tokenizer of before, or another `output_dir`."
        )
    if position.sequence_length != sequence_length:
        changed.append("sequence_length")
    if changed and not args.ignore_data_skip:
        raise ValueError(
            f"{checkpoint} was trained on other data ({', '.join(changed)}): resuming would repeat or leave out some. Use "
            "the corpus, seed, `mixture_weights` and `sequence_length` of before, or begin this data at its first "
            "sequence with `ignore_data_skip: true`, or another run in another `output_dir`."
        )
    if changed:
        # The schedule's clock goes on; the data begins anew.
        seen = position.tokens_seen // sequence_length
        position = dataclasses.replace(
            position, sequence_length=sequence_length, sequences_seen=seen, sequences_skipped=-seen, order=order
        )
        if "sequence_length" in changed:
            position.batch_increment = 0  # counted in sequences
    return position


def check_architecture(checkpoint: Path, config: GPT3Config) -> None:
    """Refuse to put a checkpoint's weights into another model, also where they would fit.

    Raises:
        ValueError: A field of the architecture differs.
    """
    saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    now = config.to_dict()
    changed = [name for name in ARCHITECTURE if name in saved and saved[name] != now[name]]
    if changed:
        was = ", ".join(f"`{name}` was {saved[name]} and is {now[name]}" for name in changed)
        raise ValueError(
            f"{checkpoint} is of another model: {was}. Restore `preset` and `model_overrides`, or give another "
            "`output_dir`."
        )


@contextmanager
def only_run_in(output_dir: Path, is_first_process: bool) -> Iterator[None]:
    """Hold a run's folder: two runs in one would write each other's checkpoints.

    Raises:
        ValueError: Another run holds it, or it cannot be written.
    """
    lock, problem = None, None
    if is_first_process:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock = FileLock(output_dir / LOCK_FILE)
            lock.acquire(timeout=LOCK_SECONDS)
        except OSError as error:  # a time-out is one, too
            words = "another run is writing to it" if isinstance(error, Timeout) else error.strerror or str(error)
            problem = f"`output_dir` {output_dir} cannot be used: {words}. Give another, or end that run first."
    try:
        [problem] = broadcast_object_list([problem])
        if problem is not None:
            raise ValueError(problem)
        yield
    finally:
        if lock is not None:
            lock.release()


def batch_schedule(args: PretrainingArguments, position: Position) -> BatchSchedule:
    """The batch of every step, as the recipe says; what it leaves open is as it was when the run began.

    The choice is kept in `position`, and with it in every checkpoint.

    Raises:
        ValueError: The batch is smaller than its increment.
    """
    length, ranks = position.sequence_length, args.world_size // shared_data_processes(args)
    round_ = args.train_batch_size * ranks
    if args.batch_increment_tokens is not None:
        if args.batch_increment_tokens % length:
            raise ValueError(
                f"`batch_increment_tokens` ({args.batch_increment_tokens}) must be a multiple of the sequence length, "
                f"{length}."
            )
        position.batch_increment = args.batch_increment_tokens // length
    elif not position.batch_increment:
        position.batch_increment = round_
    if args.batch_size_tokens is not None:
        position.batch_size_tokens = args.batch_size_tokens
    elif not position.batch_size_tokens:
        position.batch_size_tokens = round_ * args.gradient_accumulation_steps * length
    schedule = BatchSchedule(
        sequence_length=length,
        increment=position.batch_increment,
        full_tokens=position.batch_size_tokens,
        start_tokens=args.batch_ramp_start_tokens,
        ramp_tokens=args.batch_ramp_tokens,
    )
    if args.process_index == 0:
        for sentence in batch_notes(schedule, round_, ranks, position):
            logger.warning(sentence)
    return schedule


def batch_notes(schedule: BatchSchedule, round_: int, ranks: int, position: Position) -> list[str]:
    """What a user should know of the batch: where it is not what was asked for, and where processes idle."""
    full, first = schedule.full_sequences, schedule.sequences(position.sequences_seen)
    notes = []
    if full * schedule.sequence_length != schedule.full_tokens:
        notes.append(
            f"A full batch has {full * schedule.sequence_length:,} tokens, the whole multiple of "
            f"{schedule.increment * schedule.sequence_length:,} (`batch_increment_tokens`) nearest to "
            f"{schedule.full_tokens:,}."
        )
    for name, count in (("next", first), ("full", full)):
        share = -(-count // ranks) * ranks
        if share != count:
            notes.append(
                f"The {name} batch of {count} sequences cannot be divided evenly among {ranks} processes: "
                f"{share - count} of {share} rows are idle."
            )
            break
    return notes


def shared_data_processes(args: PretrainingArguments) -> int:
    """Processes that read the same data: tensor, context and sequence parallelism together."""
    parallelism, shared = args.parallelism_config, tensor_parallel_size(args)
    if parallelism is not None:
        shared *= parallelism.tp_size * parallelism.cp_size * parallelism.sp_size
    return shared


def _forget_interruption(args: PretrainingArguments) -> None:
    if args.process_index == 0:
        (Path(args.output_dir) / INTERRUPTED_FILE).unlink(missing_ok=True)


def _end_if_stopped(trainer: PretrainingTrainer) -> None:
    """Leave where the run did not come to its end.

    Raises:
        Interrupted: It was told to stop, and has saved.
        RuntimeError: It gave up.
    """
    state, folder = trainer.state, Path(trainer.args.output_dir)
    stop_reason = trainer.stop_reason or loss_watch_stop_reason(trainer)
    if stop_reason:
        raise RuntimeError(f"{stop_reason.removesuffix('.')}.")
    if trainer.interrupted_by:
        saved = (folder / f"checkpoint-{state.global_step}").exists()
        if trainer.is_world_process_zero():
            what = {"signal": trainer.interrupted_by, "step": state.global_step, "saved": saved}
            try:
                write_json(folder / INTERRUPTED_FILE, what)
            except OSError as error:
                logger.warning(f"{INTERRUPTED_FILE} could not be written: {error}")
            logger.warning(
                f"{trainer.interrupted_by}: stopped after step {state.global_step} of {state.max_steps}"
                f"{', which is saved' if saved else ', which could not be saved'}. The same command again resumes."
            )
        trainer.accelerator.wait_for_everyone()
        raise Interrupted(f"{trainer.interrupted_by} after step {state.global_step}")


def mixture_table(report: list[dict[str, Any]]) -> str:
    """Lines for the log: what a run reads of each source."""
    width = max(len(row["source"]) for row in report)
    lines = [
        f"  {row['source']:<{width}}  {row['weight']:7.2%}  {row['tokens']:>17,} tokens  {row['epochs']:8.2f} epochs"
        for row in report
    ]
    return "\n".join(["The mixture of this run:", *lines])


def make_model_config(config: PretrainConfig, metadata: dict[str, Any], tokenizer: Any) -> GPT3Config:
    """The preset with the recipe's overrides and the corpus' vocabulary."""
    fields = {
        "vocab_size": metadata["vocab_size"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config.model_overrides,  # type: ignore[dict-item]
    }
    model_config = GPT3Config.from_preset(config.preset, **fields)
    if model_config.vocab_size < metadata["vocab_size"]:
        raise ValueError(
            f"`vocab_size` in `model_overrides` ({model_config.vocab_size}) is below the corpus' {metadata['vocab_size']} words."
        )
    return model_config
