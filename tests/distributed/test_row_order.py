"""Two processes that fine-tune read every row once in each epoch, also where the run was interrupted."""

import torch
from checks import launch_checks, numbers
from helpers import make_reviews, write_jsonl
from transformers import AutoTokenizer

from hfgpt import GPT3Config, GPT3ForCausalLM


def test_two_processes_read_every_row_once_in_each_epoch(corpus, tmp_path):
    """With dropout each process draws other random numbers, and an order of them would be another one in each."""
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
    model = GPT3ForCausalLM(GPT3Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **sizes))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    write_jsonl(tmp_path / "rows.jsonl", make_reviews(64, seed=0))
    found = numbers(launch_checks("row_order_checks.py", tmp_path), "rows")
    assert found == {"epoch 0": 64, "epoch 1": 64, "epoch 2": 64, "same": 1}
