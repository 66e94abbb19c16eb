"""A local Hub with its users, and small things to push."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from hub_users import OTHER_TOKEN, READ_TOKEN, TOKEN
from transformers import AutoTokenizer

from hfgpt import GPT3Config, GPT3ForCausalLM


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """The Hub, which this process is logged in to as kim."""
    with HubServer(tmp_path / "hub") as server:
        server.add_user("kim", token=TOKEN, organizations=("startup",))
        server.add_user("kim", token=READ_TOKEN, role="read")
        server.add_user("lee", token=OTHER_TOKEN)
        with server.in_process(TOKEN, home=tmp_path / "home"):
            yield server


@pytest.fixture
def run_folder(pretrained: Path, tmp_path: Path) -> Path:
    """A finished run's folder, to be changed at will."""
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


@pytest.fixture
def model_folder(tmp_path: Path, corpus: Path) -> Path:
    """A saved model with its tokenizer, without a run."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    config = GPT3Config.from_preset(
        "gpt3-125m", vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, sliding_window=16,
    )  # fmt: skip
    GPT3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of `model_folder`, with weights that change what it says."""
    from peft import LoraConfig, get_peft_model

    base = GPT3ForCausalLM.from_pretrained(model_folder)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder)
    return folder
