"""Untrained models of three architectures, and rows to fine-tune them on."""

import random

import pytest
import torch
from helpers import BAD, GOOD, THINGS, write_jsonl
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hfgpt import GPT3Config, GPT3ForCausalLM


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return AutoTokenizer.from_pretrained(corpus / "tokenizer")


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """Folder of an untrained model, by its architecture."""

    def make(kind):
        folder = tmp_path_factory.getbasetemp() / f"task-trainer-{kind}"
        if not folder.exists():
            torch.manual_seed(0)
            shared = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            if kind == "gpt3":
                model = GPT3ForCausalLM(GPT3Config(**shared, **sizes, max_position_embeddings=128, sliding_window=16))
            elif kind == "gpt2":
                model = GPT2LMHeadModel(GPT2Config(**shared, n_embd=32, n_layer=2, n_head=2, n_positions=128))
            else:
                model = LlamaForCausalLM(
                    LlamaConfig(**shared, **sizes, intermediate_size=64, max_position_embeddings=128)
                )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Questions whose answer is one word of a passage."""
    chooser, rows = random.Random(0), []
    for number in range(200):
        things, words = chooser.sample(THINGS, 3), chooser.sample(GOOD + BAD, 3)
        asked = chooser.randrange(3)
        passage = " ".join(f"The {thing} was {word}." for thing, word in zip(things, words))
        rows.append(
            {
                "id": number,
                "question": f"How was the {things[asked]}?",
                "context": passage,
                "answers": {"text": [words[asked]]},
            }
        )
    return write_jsonl(tmp_path_factory.mktemp("questions") / "questions.jsonl", rows)
