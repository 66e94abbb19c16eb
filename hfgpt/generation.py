"""Load a model folder, an adapter folder or a Hub name, and continue a prompt."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TextStreamer, set_seed

from .training.adapters import ADAPTER_CONFIG_FILE, MODEL_CLASSES, TASK_TYPES, load_adapter


DEFAULT_NEW_TOKENS = 64


class _CallbackStreamer(TextStreamer):
    """Hands finished pieces of text to a function."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], Any]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._write(text)


def load(
    model_name_or_path: str | Path, device: str | None = None, head: str = "lm", dtype: str = "auto"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model, ready to be asked, and its tokenizer.

    Args:
        model_name_or_path: Folder or Hub name of a model, or of an adapter; an adapter brings its base model and its head.
        device: Where to put it. Default: an accelerator, if there is one.
        head: "lm" to write, "classification" or "span".
        dtype: "float32", "bfloat16", "float16", or "auto": as stored.

    Raises:
        ValueError: There is no such model or device, or an adapter's base model cannot be found.
    """
    path, device = Path(model_name_or_path), _device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
        if (path / ADAPTER_CONFIG_FILE).is_file():
            model = load_adapter(path, dtype)
        else:
            # A Hub adapter is recognised by transformers itself, which loads its base first.
            model = MODEL_CLASSES[TASK_TYPES[head]].from_pretrained(model_name_or_path, dtype=dtype)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and not path.is_dir():
            raise ValueError(
                f"No model {str(model_name_or_path)!r}: no such folder, and the Hub has none or is not reachable."
            ) from None
        raise ValueError(f"Cannot load a model from {model_name_or_path}: {error}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def _device(name: str | None) -> torch.device:
    """Where to put a model.

    Raises:
        ValueError: There is no such device here.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(name) if name is not None else found or torch.device("cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = f"cpu or {found.type}" if found is not None else "cpu"
        said = re.split(r"\. |\n", str(error).strip())[0]
        raise ValueError(f"`--device {name}` cannot be used here ({said}): give {here}.") from None
    return device


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int | None = None,
    write: Callable[[str], Any] | None = None,
    seed: int | None = None,
    **options: Any,
) -> str:
    """Continue `prompt`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: Text to continue; empty starts a new document.
        max_new_tokens: Tokens to generate at most. Default: 64, or what the model's positions leave.
        write: Called with each piece of new text as it comes; beam search has only one, at its end.
        seed: Seed of the sampling.
        **options: For `model.generate`: `do_sample`, `num_beams`, `top_k`, `top_p`, `temperature`, ...

    Returns:
        The new text, without the prompt.

    Raises:
        ValueError: Prompt and new tokens go past the model's positions, or an option is out of range.
    """
    if seed is not None:
        set_seed(seed)
    inputs = tokenizer(prompt or tokenizer.eos_token, return_tensors="pt").to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    if max_new_tokens is None:
        limit = getattr(model.config, "max_position_embeddings", None) or prompt_tokens + DEFAULT_NEW_TOKENS
        max_new_tokens = max(min(DEFAULT_NEW_TOKENS, limit - prompt_tokens), 1)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    streams = write is not None and options.get("num_beams", 1) == 1
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            streamer=_CallbackStreamer(tokenizer, write) if streams and write else None,
            **options,
        )
    text = tokenizer.decode(output[0, prompt_tokens:], skip_special_tokens=True)
    if write is not None and not streams:
        write(text)
    return text
