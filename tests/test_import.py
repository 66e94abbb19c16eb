"""`import hfgpt` in a fresh interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]

HEAVY = ["datasets", "datatrove", "deepspeed", "matplotlib", "pandas", "peft", "sklearn"]

SCRIPT = """
import importlib, json, sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

known_before = "gpt3" in CONFIG_MAPPING
import hfgpt
after = sorted(sys.modules)

config = AutoConfig.for_model("gpt3", vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
report = {
    "after": after,
    "known_before": known_before,
    "config": type(config).__qualname__,
    "model": type(AutoModel.from_config(config)).__qualname__,
    "causal_lm": type(AutoModelForCausalLM.from_config(config)).__qualname__,
    "missing": [name for name in hfgpt.__all__ if not hasattr(hfgpt, name)],
}
importlib.reload(hfgpt)  # as a notebook's autoreload does: registering twice is no error
print("REPORT" + json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path_factory.mktemp("elsewhere"),
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.split("REPORT")[-1])


@pytest.mark.parametrize("module", HEAVY)
def test_import_does_not_load(report, module):
    assert module not in report["after"]


def test_import_loads_nothing_of_hfgpt_but_the_model(report):
    ours = {name for name in report["after"] if name.startswith("hfgpt.")}
    assert "hfgpt.model" in ours
    assert {name.split(".")[1] for name in ours} == {"model", "version"}


def test_import_registers_gpt3_with_the_auto_classes(report):
    assert report["known_before"] is False
    assert (report["config"], report["model"], report["causal_lm"]) == ("GPT3Config", "GPT3Model", "GPT3ForCausalLM")


def test_every_public_name_exists(report):
    assert report["missing"] == []


def test_a_vocabulary_beside_a_gpt3_config_is_read_as_gpt2s(tmp_path):
    """Files of GPT-2's vocabulary name no tokenizer class."""
    from transformers import AutoTokenizer

    from hfgpt import GPT3Config

    GPT3Config(vocab_size=258).save_pretrained(tmp_path)
    alphabet = [chr(byte) for byte in range(33, 127)] + ["Ġ", "<|endoftext|>", "ab"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(alphabet)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("abc ab") == ["ab", "c", "Ġ", "ab"]
    assert tokenizer.eos_token == "<|endoftext|>"
