"""Load a model folder, an adapter folder or a Hub name, and continue a prompt."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TextStreamer, set_seed


ADAPTER_CONFIG_FILE = "adapter_config.json"
DEFAULT_NEW_TOKENS = 64


class _CallbackStreamer(TextStreamer):
    """Hands finished pieces of text to a function."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], Any]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._write(text)


def load(model_name_or_path: str | Path, device: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model, ready to generate, and its tokenizer.

    Args:
        model_name_or_path: Folder or Hub name of a model, or of a LoRA adapter; an adapter brings its base model.
        device: Where to put it. Default: an accelerator, if there is one.

    Raises:
        ValueError: There is no such model, or an adapter's base model cannot be found.
    """
    path = Path(model_name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
        if (path / ADAPTER_CONFIG_FILE).is_file():
            model = _load_adapter(path)
        else:
            # A Hub adapter is recognised by transformers itself, which loads its base first.
            model = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype="auto")
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and not path.is_dir():
            raise ValueError(
                f"No model {str(model_name_or_path)!r}: no such folder, and the Hub has none or is not reachable."
            ) from None
        raise ValueError(f"Cannot load a model from {model_name_or_path}: {error}") from None
    if device is None:
        device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _load_adapter(folder: Path) -> Any:
    from peft import PeftModel

    base = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    # Folders that were moved together are still side by side.
    sibling = folder.resolve().parent / Path(base).name
    if not Path(base).is_dir() and sibling.is_dir():
        base = str(sibling)
    elif Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(
            f"The adapter {folder} needs its base model {base}, which is not there: put it beside the adapter, or "
            f"change `base_model_name_or_path` in {folder / ADAPTER_CONFIG_FILE}."
        )
    with warnings.catch_warnings():
        # peft asks transformers by a name that is going away.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), folder)


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
