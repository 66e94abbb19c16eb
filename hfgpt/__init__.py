"""hfgpt: GPT-3 as published, runnable in the Hugging Face ecosystem.

Importing it registers `gpt3` with transformers' Auto classes and does nothing else: at once if transformers is loaded,
else as soon as it is. The names below load torch and transformers when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers
from .version import __version__


if TYPE_CHECKING:
    from .model import (
        PRESETS,
        GPT3Config,
        GPT3ForCausalLM,
        GPT3ForQuestionAnswering,
        GPT3ForSequenceClassification,
        GPT3ForTokenClassification,
        GPT3Model,
        GPT3PreTrainedModel,
    )

__all__ = [
    "PRESETS",
    "GPT3Config",
    "GPT3ForCausalLM",
    "GPT3ForQuestionAnswering",
    "GPT3ForSequenceClassification",
    "GPT3ForTokenClassification",
    "GPT3Model",
    "GPT3PreTrainedModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(".model", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_transformers()
