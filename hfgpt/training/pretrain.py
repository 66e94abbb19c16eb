"""Pretrain a GPT-3 on a prepared corpus."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator, set_seed
from transformers.utils import logging

from ..data.packing import TOKENIZER_FOLDER, HeldOutDataset, PackedDataset, read_metadata
from ..model import PRESETS, GPT3Config
from .arguments import PretrainConfig, PretrainingArguments
from .callbacks import LossCurveCallback
from .checkpoints import latest_complete_checkpoint
from .trainer import PretrainingTrainer, peak_memory_bytes


logger = logging.get_logger(__name__)

LOSS_CURVE_FILE = "loss_curve.png"
RESULTS_FILE = "all_results.json"  # Trainer's name


def pretrain(config: PretrainConfig, args: PretrainingArguments) -> dict[str, Any]:
    """Pretrain, or resume from the newest complete checkpoint in `args.output_dir`; a finished run is left as it is.

    Leaves in `args.output_dir`: the model and tokenizer, `checkpoint-*`, `loss_curve.png`, `trainer_state.json` and
    `all_results.json`.

    Returns:
        The metrics: `eval_loss_before` (of the random weights), `eval_loss`, `eval_perplexity`,
        `eval_bits_per_byte`, `train_tokens`, `train_tokens_per_second`, `peak_memory_bytes` and Trainer's own; of a
        corpus with weights also `mixture`, what the run has read of each source (`Mixture.report`).

    Raises:
        ValueError: The corpus, the model and the arguments do not fit together.
    """
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

    tokens_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * sequence_length
    if args.max_steps <= 0:
        args.max_steps = math.ceil(args.train_tokens / tokens_per_step)
    if args.learning_rate is None:
        args.learning_rate = PRESETS[config.preset].learning_rate
    # The order of the samples is the dataset's own.
    args.train_sampling_strategy = "sequential"

    train_dataset = PackedDataset(
        config.corpus,
        sequence_length,
        args.max_steps * tokens_per_step // sequence_length,
        seed=args.seed if args.data_seed is None else args.data_seed,
        weights=config.mixture_weights,  # type: ignore[arg-type]
    )
    eval_dataset = HeldOutDataset(
        config.corpus, sequence_length, metadata["end_of_text_token_id"], config.max_eval_tokens
    )
    if args.eval_strategy != "no" and len(eval_dataset) == 0:
        raise ValueError(
            f"{config.corpus} has no held-out text: raise its `holdout_fraction` or set `eval_strategy: no`."
        )
    args.eval_on_start = args.eval_on_start and len(eval_dataset) > 0

    checkpoint = args.resume_from_checkpoint or latest_complete_checkpoint(args.output_dir)
    results = Path(args.output_dir) / RESULTS_FILE
    if isinstance(checkpoint, Path) and checkpoint.name == f"checkpoint-{args.max_steps}" and results.exists():
        logger.warning(f"{args.output_dir} is finished: {args.max_steps} steps are done. `train_tokens` would go on.")
        return json.loads(results.read_text(encoding="utf-8"))
    if checkpoint is not None:
        logger.warning(f"Resuming from {checkpoint}.")
        args.eval_on_start = False
    mixture = train_dataset.mixture
    if mixture is not None and args.process_index == 0:
        logger.warning(mixture_table(mixture.report(len(train_dataset), sequence_length)))

    set_seed(args.seed)
    model = AutoModelForCausalLM.from_config(model_config, attn_implementation=config.attn_implementation)
    trainer = PretrainingTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset if len(eval_dataset) else None,
        processing_class=tokenizer,
        # The default for a tokenizer would turn each id into a Python number and back, and add a mask of ones.
        data_collator=default_data_collator,
        tokens_per_step=tokens_per_step,
        callbacks=[LossCurveCallback(Path(args.output_dir) / LOSS_CURVE_FILE, tokens_per_step)],
    )
    metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    metrics["train_tokens"] = trainer.state.global_step * tokens_per_step
    speed = trainer.throughput.overall()
    if speed is not None:
        metrics["train_tokens_per_second"] = round(speed, 1)
    trainer.save_model()
    if len(eval_dataset):
        metrics.update(trainer.evaluate())
        before = [
            entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"] == 0
        ]
        if before:
            metrics["eval_loss_before"] = before[0]
    metrics["peak_memory_bytes"] = peak_memory_bytes()
    trainer.log_metrics("all", metrics)
    if mixture is not None:
        samples = trainer.state.global_step * tokens_per_step // sequence_length
        metrics["mixture"] = mixture.report(samples, sequence_length)
    trainer.save_metrics("all", metrics, combined=False)
    trainer.save_state()
    return metrics


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
