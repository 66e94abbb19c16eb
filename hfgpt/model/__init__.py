"""GPT-3 as a transformers model: configuration, modeling, and the paper's eight sizes.

Importing it registers `gpt3` with transformers' Auto classes.
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
    "Preset",
]
