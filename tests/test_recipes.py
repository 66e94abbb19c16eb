"""Every recipe loads, every accelerate file is documented. What the documentation says to type: test_docs.py."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from hfgpt.data.corpus import load_corpus_config
from hfgpt.model import PRESETS, GPT3Config
from hfgpt.planner import PlanOptions, plan
from hfgpt.training.arguments import (
    FinetuneConfig,
    FinetuningArguments,
    PretrainConfig,
    PretrainingArguments,
    parse_arguments,
)
from hfgpt.training.finetune import check, make_task
from hfgpt.training.pretrain import batch_schedule
from hfgpt.training.steps import Position


RECIPES = ROOT / "recipes"
SCRIPTS = {
    "recipes/pretrain.py": (PretrainConfig, PretrainingArguments),
    "recipes/finetune.py": (FinetuneConfig, FinetuningArguments),
}


def names(folder):
    found = sorted(path.relative_to(RECIPES / folder).as_posix() for path in (RECIPES / folder).rglob("*.yaml"))
    assert found
    return found


@pytest.fixture(autouse=True)
def in_root(monkeypatch, tmp_path):
    """Paths in recipes are relative to the root; what TrainingArguments makes goes elsewhere."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", names("corpus"))
def test_corpus_recipes_load(name):
    config = load_corpus_config(RECIPES / "corpus" / name)
    assert config.output_dir.startswith("out/")


@pytest.mark.parametrize("name", names("pretrain"))
def test_pretraining_recipes_load(name, tmp_path):
    config, args = parse_arguments(
        *SCRIPTS["recipes/pretrain.py"],
        argv=["--config", f"recipes/pretrain/{name}", "--output_dir", str(tmp_path), "--use_cpu", "true"],
    )
    model = GPT3Config.from_preset(config.preset, **config.model_overrides)
    assert (config.sequence_length or 0) <= model.max_position_embeddings
    assert args.warmup_tokens < args.train_tokens


@pytest.mark.parametrize("preset", PRESETS)
def test_the_eight_recipes_carry_the_papers_numbers(preset, tmp_path):
    config, args = parse_arguments(
        *SCRIPTS["recipes/pretrain.py"],
        argv=["--config", f"recipes/pretrain/{preset}.yaml", "--output_dir", str(tmp_path), "--use_cpu", "true"],
    )
    assert (config.preset, config.model_overrides, config.sequence_length) == (preset, {}, None)
    assert (args.train_tokens, args.warmup_tokens, args.decay_tokens) == (300 * 10**9, 375 * 10**6, 260 * 10**9)
    assert args.min_learning_rate_ratio == 0.1
    size = PRESETS[preset]
    assert (args.learning_rate, args.batch_size_tokens) == (size.learning_rate, size.batch_size_tokens)
    assert (args.batch_ramp_start_tokens, args.batch_ramp_tokens) == (32_000, size.batch_ramp_tokens)
    assert 4 * 10**9 <= args.batch_ramp_tokens <= 12 * 10**9
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (args.weight_decay, args.max_grad_norm) == (0.1, 1.0)
    schedule = batch_schedule(args, Position(sequence_length=2048))
    assert schedule.sequences(0) * 2048 == pytest.approx(32_000, rel=0.03)
    assert schedule.full_sequences * 2048 == pytest.approx(size.batch_size_tokens, rel=0.02)


def test_what_the_175b_recipe_says_of_gpus_is_what_the_planner_says():
    text = (RECIPES / "pretrain" / "gpt3-175b.yaml").read_text(encoding="utf-8")
    gpus, days, fewest = (int(re.search(rf"(\d+) {words}", text)[1]) for words in ("H100s", "days", "are the fewest"))
    planned = plan(PlanOptions(recipe=str(RECIPES / "pretrain" / "gpt3-175b.yaml"), gpus=gpus, gpu="h100-80"))
    assert (planned.min_gpus, round(planned.days)) == (fewest, days)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_in_a_recipe_s_header_is_what_the_planner_says(preset):
    """On 8 H100s of 80 GB, the largest on 784."""
    path = RECIPES / "pretrain" / f"{preset}.yaml"
    header = next(line for line in path.read_text(encoding="utf-8").splitlines() if "accelerate launch" in line)
    written = shlex.split(header.replace("...", "").lstrip("# "))
    gpus = 784 if preset == "gpt3-175b" else 8
    planned = shlex.split(
        plan(PlanOptions(recipe=f"recipes/pretrain/{preset}.yaml", gpus=gpus, gpu="h100-80")).command
    )
    options = {"--config_file", "--config", *(word for word in written if word.startswith("--num_"))}
    for option in options:
        assert written[written.index(option) + 1] == planned[planned.index(option) + 1]
    assert ("--num_processes" in options) == (gpus != 8)  # the files of recipes/accelerate say 8


@pytest.mark.parametrize("name", names("finetune"))
def test_fine_tuning_recipes_load(name, tmp_path):
    config, args = parse_arguments(
        *SCRIPTS["recipes/finetune.py"],
        argv=["--config", f"recipes/finetune/{name}", "--output_dir", str(tmp_path), "--use_cpu", "true"],
    )
    task = make_task(config)
    check(config, args, task)
    for part in ("train", "test", *(["validation"] if config.has_validation else [])):
        config.source(part, task)


def test_the_demos_recipes_fit_together():
    """The corpus leaves out just the films that the sentiment recipes test on."""
    corpus = load_corpus_config(RECIPES / "corpus" / "demo.yaml")
    reviews = next(source for source in corpus.sources if source.name == "film-reviews")
    for name in ("full", "lora"):
        recipe = yaml.safe_load((RECIPES / "finetune" / f"sentiment-{name}.yaml").read_text())
        assert reviews.path == recipe["train_path"]
        assert (reviews.group_by, reviews.test_fraction) == (recipe["group_by"], recipe["test_fraction"])
        assert (reviews.part, reviews.split_seed) == ("train", recipe.get("split_seed", 0))


@pytest.mark.parametrize("name", names("accelerate"))
def test_accelerate_files_load_and_are_documented(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / "accelerate" / name))
    assert config.num_processes >= 1
    assert f"`{name}`" in (RECIPES / "accelerate" / "README.md").read_text(encoding="utf-8")


def test_the_demos_report(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("demo", RECIPES / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(demo, "OUT", tmp_path)
    scores = {"eval_accuracy": 0.7, "eval_macro_f1": 0.6, "eval_majority_accuracy": 0.5, "test_rows": 9}
    scores |= {"eval_random_start_accuracy": 0.6, "eval_random_start_macro_f1": 0.55}
    losses = {"train_tokens": 1, "eval_loss_before": 9.0, "eval_loss": 5.0, "eval_perplexity": 148.0}
    for name, result in (
        ("pretrain", losses | {"eval_bits_per_byte": 2.0}),
        ("sentiment-full", scores),
        ("sentiment-lora", scores | {"eval_accuracy": 0.65}),
    ):
        Path(tmp_path / name).mkdir()
        (tmp_path / name / "all_results.json").write_text(json.dumps(result))
    report = demo.make_report({"pretrain": {"seconds": 2.0, "peak_memory_bytes": 5}, "prepare": {"seconds": 1.0}})
    assert report["pretrain"]["eval_loss_before"] == 9.0
    assert report["pretrain"]["eval_loss_after"] == 5.0
    assert report["pretrain"]["bits_per_byte"] == 2.0
    assert report["sentiment"]["majority_accuracy"] == 0.5
    assert report["sentiment"]["full"]["accuracy"] == 0.7
    assert report["sentiment"]["lora"]["accuracy"] == 0.65
    assert report["sentiment"]["lora"]["random_start_accuracy"] == 0.6
    assert report["seconds"] == {"pretrain": 2.0, "prepare": 1.0}
    assert report["peak_memory_bytes"] == 5
    demo.print_table(report)
    assert "65.0%" in capsys.readouterr().out
