"""GPT-3 as a transformers model: configuration, modeling, and the paper's eight sizes."""

from .configuration_gpt3 import GPT3Config
from .modeling_gpt3 import (
    GPT3ForCausalLM,
    GPT3ForQuestionAnswering,
    GPT3ForSequenceClassification,
    GPT3ForTokenClassification,
    GPT3Model,
    GPT3PreTrainedModel,
)
from .presets import PRESETS, Preset


__all__ = [
    "PRESETS",
    "GPT3Config",
    "GPT3ForCausalLM",
    "GPT3ForQuestionAnswering",
    "GPT3ForSequenceClassification",
    "GPT3ForTokenClassification",
    "GPT3Model",
    "GPT3PreTrainedModel",
    "Preset",
]
