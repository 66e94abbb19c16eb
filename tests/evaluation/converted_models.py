"""A GPT-2 with random weights, the same model as gpt3, and what the tests of hfgpt.evaluation compute from its logits."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfgpt.data.tokenizer import train_tokenizer
from hfgpt.model.convert import convert


TEXTS = [
    "Review: The film was dull, and the music tedious.\nSentiment: negative\n\nReview: A warm, funny film.",
    "리뷰: 감동 그 자체입니다\n감정: 긍정\n\n리뷰: 지루하다\n감정: 부정",
    "Question: Who wrote it?\nPassage: Mary Shelley wrote it in Geneva in 1816.\nAnswer: Mary Shelley",
]
POSITIONS = 192


def save_pair(folder: Path) -> tuple[GPT2LMHeadModel, Any, Path]:
    """A GPT-2 as transformers computes it, its tokenizer, and the folder of its conversion to gpt3."""
    tokenizer = train_tokenizer(TEXTS, 340)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=POSITIONS,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    source = folder / "gpt2"
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    convert(source, folder / "gpt3", "gpt3")
    return model, tokenizer, folder / "gpt3"


@torch.no_grad()
def by_hand(model: GPT2LMHeadModel, tokenizer: Any, context: str, completion: str) -> tuple[float, int, bool]:
    """Log-likelihood of a completion's tokens, straight from the logits of one forward pass; their number; whether each
    is the likeliest."""
    before = tokenizer.encode(context, add_special_tokens=False)
    after = tokenizer.encode(completion, add_special_tokens=False)
    log_probabilities = torch.log_softmax(model(torch.tensor([before + after])).logits[0].double(), dim=-1)
    total, greedy = 0.0, True
    for place, token in enumerate(after):
        of_next = log_probabilities[len(before) + place - 1]
        total += of_next[token].item()
        greedy = greedy and of_next.argmax().item() == token
    return total, len(after), greedy


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
