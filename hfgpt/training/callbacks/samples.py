"""What the model writes while it is trained."""

import html
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_fsdp_managed_module

from .common import NeverFails, NotebookOutput, disk_may_be_full, in_notebook, logger, training_clock, write_line


SAMPLES_FILE = "samples.jsonl"
SHOWN_ROUNDS = 3  # of samples, in a notebook's table


class SampleCallback(TrainerCallback):
    """Continues prompts while a model is trained: printed, or in a notebook a table that is replaced in place.

    They are made at every evaluation, or every so many steps, or if neither happens at the end; appended to
    `output_dir/samples.jsonl`; and logged as text. It works with any Trainer of a model that generates.

    Training goes on as if it had not been: greedy by default, and whatever random numbers sampling draws are its own.
    Under ZeRO-3 all processes take part (and gather the weights once a token: keep it short); under FSDP and tensor
    parallelism there are no samples, with a warning.

    Args:
        tokenizer: The model's. Default: the Trainer's `processing_class`.
        prompts: Texts to continue, in any language; an empty one starts a document.
        max_new_tokens: Tokens of a continuation at most.
        log: Called with `{"samples": text}`, such as `trainer.log`, for TensorBoard and trackio.
        every_steps: Make them after every so many steps. Default: at evaluations.
        **options: For `model.generate`: `do_sample`, `top_p`, `temperature`, ...

    Raises:
        ValueError: There are no prompts, or a number is below 1. Before the first step: no tokenizer, a model that does
            not generate, or a prompt that leaves no position for a continuation.

    Example:
        ```python
        from hfgpt.training.callbacks import SampleCallback
        trainer.add_callback(SampleCallback(prompts=["The film", "영화는"], every_steps=100))
        trainer.train()
        ```
    """

    def __init__(
        self,
        tokenizer: Any = None,
        prompts: Sequence[str] = (),
        max_new_tokens: int = 64,
        log: Callable[[dict[str, Any]], None] | None = None,
        every_steps: int | None = None,
        **options: Any,
    ):
        if not prompts and isinstance(tokenizer, (str, list, tuple)):
            raise ValueError("The texts to continue are `prompts`: SampleCallback(prompts=[...]).")
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.prompts:
            raise ValueError("`prompts` is empty: give texts to continue, or [''] to start a document.")
        for name, value in (("max_new_tokens", max_new_tokens), ("every_steps", every_steps)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.tokenizer, self.max_new_tokens, self.log, self.every_steps = tokenizer, max_new_tokens, log, every_steps
        self.options = {"do_sample": False, **options}
        self._last_step: int | None = None
        self._warned = False
        self._output: NotebookOutput | None = None
        self._rounds: list[list[dict[str, Any]]] = []
        self._guard = NeverFails("No samples")
        self._show_guard = NeverFails("The samples could not be shown")
        self._log_guard = NeverFails("The samples could not be logged")

    def _ids(self, prompt: str) -> torch.Tensor:
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        if not ids.numel():  # an empty prompt, of a tokenizer that adds no token to begin with
            start = self.tokenizer.eos_token or self.tokenizer.bos_token
            ids = self.tokenizer(start or " ", return_tensors="pt")["input_ids"]
        return ids.long()

    def _set_tokenizer(self, processing_class: Any) -> None:
        found = getattr(processing_class, "tokenizer", processing_class)
        if self.tokenizer is None:
            if not callable(found) or not hasattr(found, "decode"):
                raise ValueError(
                    "SampleCallback needs a tokenizer: give the Trainer `processing_class=tokenizer`, or "
                    "SampleCallback(tokenizer, prompts)."
                )
            self.tokenizer = found

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the prompts.

        Raises:
            ValueError: There is no tokenizer, the model does not generate, or a prompt leaves no position for a
                continuation.
        """
        self._last_step, self._rounds = None, []
        self._output = NotebookOutput() if in_notebook() else None
        self._set_tokenizer(kwargs.get("processing_class"))
        model = kwargs["model"]
        if not (hasattr(model, "generate") and getattr(model, "can_generate", lambda: True)()):
            raise ValueError(
                f"SampleCallback continues texts, which {type(model).__name__} does not: leave it out, or train a "
                "causal language model."
            )
        limit = _positions(model)
        for prompt in self.prompts:
            length = self._ids(prompt).shape[1]
            if limit is not None and length >= limit + _has_decoder(model):
                raise ValueError(
                    f"The sample prompt {prompt[:40]!r} has {length} tokens, and the model {limit} positions: shorten it."
                )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the samples, where it is their step."""
        if self.every_steps is not None and state.global_step % self.every_steps == 0:
            self._sample(args, state, kwargs["model"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the samples, once a step."""
        if self.every_steps is None:
            self._set_tokenizer(kwargs.get("processing_class"))
            self._sample(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the samples, where there were none."""
        if self._last_step is None:
            self._sample(args, state, kwargs["model"])

    def _sample(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        if state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        by_all = any(hasattr(parameter, "ds_id") for parameter in model.parameters())  # ZeRO-3
        if not by_all and _is_sharded(model):
            if state.is_world_process_zero and not self._warned:
                self._warned = True
                logger.warning("No samples: this model's weights are spread over processes in a way they cannot use.")
            return
        if by_all or state.is_world_process_zero:
            with training_clock.stands_still(next(model.parameters()).device):
                self._write(args, state, model, by_all)

    def _write(self, args: TrainingArguments, state: TrainerState, model: Any, by_all: bool) -> None:
        texts: list[str] | None = None
        if by_all:  # an error of one process would leave the others waiting
            texts = self._continue_all(model)
        else:
            with self._guard():
                texts = self._continue_all(model)
        if texts is None or not state.is_world_process_zero:
            return
        tokens = next((entry["tokens"] for entry in reversed(state.log_history) if "tokens" in entry), None)
        rows = [
            {"step": state.global_step, "tokens": tokens, "prompt": prompt, "continuation": text}
            for prompt, text in zip(self.prompts, texts)
        ]
        with self._show_guard():
            self._show(rows)
        with disk_may_be_full("samples"):
            file = Path(args.output_dir) / SAMPLES_FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if self.log is not None:
            with self._log_guard():
                self.log({"samples": "\n\n".join(f"**{row['prompt']}**{row['continuation']}" for row in rows)})

    def _show(self, rows: list[dict[str, Any]]) -> None:
        if self._output is None:
            for row in rows:
                write_line(f"  sample  {row['prompt']}|{row['continuation']}".replace("\n", "\n          "))
            return
        self._rounds = [rows, *self._rounds][:SHOWN_ROUNDS]
        from IPython.display import HTML

        self._output.show(HTML(samples_table([row for shown in self._rounds for row in shown])))

    def _continue_all(self, model: Any) -> list[str]:
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        device = next(model.parameters()).device
        limit, has_decoder = _positions(model) or sys.maxsize, _has_decoder(model)
        texts = []
        with _leaving_no_trace(model):
            for prompt in self.prompts:
                ids = self._ids(prompt).to(device)
                begin = 1 if has_decoder else ids.shape[1]
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=min(self.max_new_tokens, limit - begin),
                    pad_token_id=pad,
                    **self.options,
                )
                texts.append(self.tokenizer.decode(output[0, begin:]))
        return texts


@contextmanager
def _leaving_no_trace(model: torch.nn.Module) -> Iterator[None]:
    """Evaluate within, with random numbers of its own; every module's mode and all generators are then as they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("cpu"), torch.device("meta")}
    python, numpy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # Of the devices in use alone: `torch.manual_seed` would seed all that this process sees.
    accelerators = [(torch.get_device_module(device), () if device.type == "mps" else (device,)) for device in devices]
    states = [module.get_rng_state(*where) for module, where in accelerators]
    model.eval()
    try:
        torch.default_generator.manual_seed(0)
        for module, where in accelerators:
            with module.device(*where) if where else nullcontext():
                module.manual_seed(0)
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(host)
        for (module, where), state in zip(accelerators, states):
            module.set_rng_state(state, *where)


def samples_table(rows: Sequence[dict[str, Any]]) -> str:
    """Samples as an HTML table, a row each."""
    lines = "".join(
        f"<tr><td>{row['step']:,}</td><td style='text-align:left;white-space:pre-wrap'><b>{html.escape(row['prompt'])}</b>"
        f"{html.escape(row['continuation'])}</td></tr>"
        for row in rows
    )
    return f"<table><thead><tr><th>step</th><th>sample</th></tr></thead><tbody>{lines}</tbody></table>"


def _positions(model: Any) -> int | None:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None  # XLNet's -1 is no limit


def _has_decoder(model: Any) -> bool:
    """Whether the prompt goes to an encoder, and what is generated begins with a token of the decoder's own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _is_sharded(model: Any) -> bool:
    """Whether a process holds only parts of the parameters, or must not use them alone."""
    from torch.distributed.tensor import DTensor

    return is_fsdp_managed_module(model) or any(isinstance(parameter, DTensor) for parameter in model.parameters())
