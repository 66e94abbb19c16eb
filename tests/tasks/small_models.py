"""Small models of three architectures and a tokenizer, for the tests of hfgpt.tasks."""

from functools import cache
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
)

from hfgpt import (
    GPT3Config,
    GPT3ForCausalLM,
    GPT3ForQuestionAnswering,
    GPT3ForSequenceClassification,
)
from hfgpt.data.tokenizer import train_tokenizer


KINDS = ["gpt3", "gpt2", "llama"]
POSITIONS = 64
# The band is shorter than the prompts.
WINDOW = 8
CLASSES = {
    "lm": {"gpt3": GPT3ForCausalLM, "gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM},
    "classification": {
        "gpt3": GPT3ForSequenceClassification,
        "gpt2": GPT2ForSequenceClassification,
        "llama": LlamaForSequenceClassification,
    },
    "span": {"gpt3": GPT3ForQuestionAnswering, "gpt2": GPT2ForQuestionAnswering, "llama": LlamaForQuestionAnswering},
}

TEXTS = [
    "Review: The film was dull, and the music tedious.\nSentiment: negative",
    "리뷰: 감동 그 자체입니다\n감정: 긍정",
    "Question: Who wrote it?\nPassage: Mary Shelley wrote it in Geneva in 1816.\nAnswer: Mary Shelley",
]


def make_config(kind: str, vocab_size: int = 97, **fields: Any) -> Any:
    """A configuration of 3 layers and 64 positions, without dropout."""
    shared = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **fields}
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    }
    if kind == "gpt3":
        return GPT3Config(**{**sizes, "sliding_window": WINDOW, **shared})
    if kind == "llama":
        return LlamaConfig(**{**sizes, "intermediate_size": 64, "num_key_value_heads": 2, **shared})
    dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=POSITIONS, **dropout, **shared)


def make_model(kind: str, head: str = "lm", **fields: Any) -> Any:
    """A model in which every parameter matters, the same at every call."""
    torch.manual_seed(0)
    model = CLASSES[head][kind](make_config(kind, **fields))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


@cache
def make_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE of 300 words, the same at every call."""
    return train_tokenizer(TEXTS, 300)


def random_ids(*lengths: int, vocab_size: int = 97, seed: int = 2) -> list[list[int]]:
    """Random token ids without the one that pads."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (length,), generator=generator).tolist() for length in lengths]
