"""Tiny models for the tests of hfgpt.model.

Plain functions in a module of their own: a second conftest.py would hide tests/conftest.py from `from conftest import`.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import logging as transformers_logging

from hfgpt import GPT3Config, GPT3ForCausalLM


# Two dense and two banded layers; the band is 8 of 64 positions.
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "sliding_window": 8,
}
DENSE = ["full_attention"] * 4
BANDED = ["sliding_attention"] * 4

transformers_logging.disable_progress_bar()


def tiny_config(**overrides: Any) -> GPT3Config:
    """A configuration of `TINY` sizes."""
    return GPT3Config(**{**TINY, **overrides})


def make_model(**overrides: Any) -> GPT3ForCausalLM:
    """A tiny model in which every parameter matters, the same at every call.

    At the initial weights attention is close to uniform, biases are zero and LayerNorms are one: a model that forgot
    any of them would still pass.
    """
    model = GPT3ForCausalLM(tiny_config(**overrides))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1.0 if "norm.weight" in name else noise)
    return model.eval()


def make_ids(batch: int, length: int, vocab_size: int = TINY["vocab_size"], seed: int = 2) -> torch.Tensor:
    """Random token ids, (batch, length), the same at every call."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def largest_tensor(run: Callable[[], Any]) -> int:
    """Elements of the largest tensor that any operation of `run` returns."""

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            Watch.largest = max([Watch.largest, *sizes])
            return result

    with Watch() as watch:
        run()
    return watch.largest


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]):
        super().__init__(level=logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def collect_complaints() -> Iterator[list[str]]:
    """What transformers logs at WARNING or above, and every Python warning, while the context is open."""
    messages: list[str] = []
    handler = _Collector(messages)
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    transformers_logging.warning_once.cache_clear()  # it remembers what it said in earlier tests
    try:
        with warnings.catch_warnings(record=True) as python_warnings:
            warnings.simplefilter("always")
            yield messages
        messages += [f"{warning.category.__name__}: {warning.message}" for warning in python_warnings]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
