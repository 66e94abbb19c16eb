"""Pretraining over weighted sources: the recipe's weights reach the order, and what was read is reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import pretrain_arguments

from hfgpt.data.packing import TOKENIZER_FOLDER, PackedDataset
from hfgpt.data.tokenizer import train_tokenizer
from hfgpt.training.arguments import PretrainConfig, PretrainingArguments, parse_arguments
from hfgpt.training.pretrain import mixture_table, pretrain
from hfgpt.training.trainer import PretrainingTrainer


TOKENS = {"crawl": 3200, "wiki": 320}


@pytest.fixture(scope="module")
def weighted_corpus(tmp_path_factory) -> Path:
    """Two sources of weights 3 and 1; ids of the second start at 150."""
    folder = tmp_path_factory.mktemp("weighted")
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 4, 300)
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    sources = {}
    for number, (name, size) in enumerate(TOKENS.items()):
        path = folder / "train" / name / "00000.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes((150 * number + np.arange(size) % 100).astype("<u2").tobytes())
        shards = [{"file": str(path.relative_to(folder)), "tokens": size}]
        sources[name] = {"documents": 1, "tokens": size, "bytes": size, "shards": shards}
    shards = [shard for source in sources.values() for shard in source["shards"]]
    train = {"documents": 2, "tokens": 3520, "bytes": 3520, "shards": shards, "sources": sources}
    held_out = {"documents": 0, "tokens": 0, "bytes": 0, "shards": [], "sources": {}}
    metadata = {
        "dtype": "<u2",
        "vocab_size": len(tokenizer),
        "end_of_text_token_id": tokenizer.eos_token_id,
        "splits": {"train": train, "validation": held_out},
        "weights": {"crawl": 3, "wiki": 1},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def arguments(corpus, output_dir, **fields):
    fields = {"eval_strategy": "no", "save_strategy": "no", "train_tokens": 10 * 4 * 32, **fields}
    return parse_arguments(PretrainConfig, PretrainingArguments, argv=pretrain_arguments(corpus, output_dir, **fields))


@pytest.mark.parametrize(
    ("fields", "samples"),
    [({}, {"crawl": 30, "wiki": 10}), ({"mixture_weights": '{"wiki": 4, "crawl": "1e0"}'}, {"crawl": 8, "wiki": 32})],
    ids=["the corpus' weights", "the recipe's"],
)
def test_a_run_reads_its_mixture_and_reports_it(weighted_corpus, tmp_path, monkeypatch, fields, samples):
    read, logged = [], []
    step = PretrainingTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        # A mask of ones would cost time and say nothing.
        assert set(inputs) == {"input_ids", "labels"}
        read.extend(inputs["input_ids"].tolist())
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(PretrainingTrainer, "training_step", training_step)
    monkeypatch.setattr("hfgpt.training.pretrain.logger.warning", logged.append)
    metrics = pretrain(*arguments(weighted_corpus, tmp_path, **fields))
    weights = {"crawl": 3, "wiki": 1} if not fields else {"crawl": 1, "wiki": 4}
    order = PackedDataset(weighted_corpus, 32, num_samples=40, seed=42, weights=weights)
    assert read == [sample["input_ids"].tolist() for sample in order]
    assert logged == [mixture_table(order.mixture.report(40, 32))]
    reported = {row["source"]: row for row in metrics["mixture"]}
    assert {source: row["samples"] for source, row in reported.items()} == samples
    for source, row in reported.items():
        assert row["epochs"] == samples[source] / (TOKENS[source] / 32)
        assert row["weight"] == row["realised_weight"] == samples[source] / 40
    assert json.loads((tmp_path / "all_results.json").read_text())["mixture"] == metrics["mixture"]


def test_the_table_of_the_mixture_says_weight_tokens_and_epochs():
    row = {"source": "wiki", "weight": 0.0297, "tokens": 8_910_891_008, "epochs": 2.97}
    table = mixture_table([row, {**row, "source": "web text"}])
    assert table.splitlines()[1].split() == ["wiki", "2.97%", "8,910,891,008", "tokens", "2.97", "epochs"]
    assert len({len(line) for line in table.splitlines()[1:]}) == 1


def test_weights_in_the_recipe_and_on_the_command_line_are_numbers(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: c\nuse_cpu: true\nmixture_weights:\n  web: 1e-1\n  wiki: 3\n")
    argv = ["--config", str(recipe), "--output_dir", str(tmp_path)]
    config, _ = parse_arguments(PretrainConfig, PretrainingArguments, argv=argv)
    assert config.mixture_weights == {"web": 0.1, "wiki": 3.0}
    for option, message in (
        ('{"web": "much"}', "`web` in `mixture_weights` must be float, got str 'much'"),
        ("3", "`mixture_weights` on the command line is a JSON object"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(PretrainConfig, PretrainingArguments, argv=[*argv, "--mixture_weights", option])
        assert message in capsys.readouterr().err
