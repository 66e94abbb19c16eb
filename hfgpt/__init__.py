"""hfgpt: GPT-3 as published, runnable in the Hugging Face ecosystem.

Importing it registers `gpt3` with transformers' Auto classes and does nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Tokenizer,
)

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
from .version import __version__


AutoConfig.register("gpt3", GPT3Config, exist_ok=True)
AutoModel.register(GPT3Config, GPT3Model, exist_ok=True)
AutoModelForCausalLM.register(GPT3Config, GPT3ForCausalLM, exist_ok=True)
AutoModelForQuestionAnswering.register(GPT3Config, GPT3ForQuestionAnswering, exist_ok=True)
AutoModelForSequenceClassification.register(GPT3Config, GPT3ForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(GPT3Config, GPT3ForTokenClassification, exist_ok=True)
# For a folder whose files name no tokenizer class: GPT-3's vocabulary is GPT-2's.
AutoTokenizer.register(GPT3Config, GPT2Tokenizer, exist_ok=True)

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
