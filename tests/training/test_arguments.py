import dataclasses
import re

import pytest

from hfgpt.training.arguments import (
    FinetuneConfig,
    FinetuningArguments,
    PretrainConfig,
    PretrainingArguments,
    parse_arguments,
)


PRETRAIN = (PretrainConfig, PretrainingArguments)


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def refused(capsys, *argv, classes=PRETRAIN):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(*classes, argv=list(argv))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_defaults_are_the_papers(tmp_path):
    _, args = parse_arguments(*PRETRAIN, argv=["--corpus", "c", "--output_dir", str(tmp_path), "--use_cpu", "true"])
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (args.weight_decay, args.max_grad_norm) == (0.1, 1.0)
    assert (args.warmup_tokens, args.decay_tokens, args.train_tokens) == (
        375_000_000,
        260_000_000_000,
        300_000_000_000,
    )
    assert args.min_learning_rate_ratio == 0.1


def test_the_command_line_overrides_the_recipe(tmp_path):
    path = recipe(
        tmp_path, "corpus: here\nlearning_rate: 1e-3\ntrain_tokens: 1_000_000\nuse_cpu: true\nsave_steps: 7\n"
    )
    config, args = parse_arguments(
        *PRETRAIN, argv=["--config", path, "--learning_rate", "2e-4", "--output_dir", str(tmp_path)]
    )
    assert config.corpus == "here"
    assert (args.learning_rate, args.train_tokens, args.save_steps) == (2e-4, 1_000_000, 7)


def test_an_unknown_key_in_the_recipe_names_the_nearest(tmp_path, capsys):
    assert "did you mean `learning_rate`" in refused(
        capsys, "--config", recipe(tmp_path, "corpus: c\nlearning_rat: 1.0\n")
    )


def test_an_unknown_option_names_the_nearest(tmp_path, capsys):
    assert "did you mean `warmup_tokens`" in refused(capsys, "--corpus", "c", "--warmup_token", "5")


def test_a_wrong_type_in_the_recipe_names_the_field(tmp_path, capsys):
    error = refused(capsys, "--config", recipe(tmp_path, "corpus: c\nsave_total_limit: many\n"))
    assert "`save_total_limit`" in error and "'many'" in error


def test_a_missing_recipe_is_named(capsys):
    assert "nowhere.yaml" in refused(capsys, "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--num_train_epochs", "2"], "`train_tokens`"),
        (["--warmup_steps", "10"], "`warmup_tokens`"),
        (["--train_tokens", "0"], "`train_tokens`"),
        (["--label_smoothing_factor", "0.1"], "`label_smoothing_factor` cannot be used in pretraining"),
        (["--warmup_tokens", "300000000000"], "`decay_tokens`"),
        (["--model_overrides", '{"hidden_siez": 4}'], "did you mean `hidden_size`"),
        (["--model_overrides", "4"], "JSON object"),
    ],
)
def test_contradictions_are_refused(option, message, capsys):
    assert message in refused(capsys, "--corpus", "c", *option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ([], "`train_path` or `dataset`"),
        (["--train_path", "a.jsonl"], "`test_path` or a `test_fraction`"),
        (["--train_path", "a.jsonl", "--test_path", "b.jsonl", "--test_fraction", "0.1"], "one of them"),
    ],
)
def test_finetuning_needs_both_splits(option, message, capsys):
    classes = (FinetuneConfig, FinetuningArguments)
    assert message in refused(capsys, "--model_name_or_path", "m", *option, classes=classes)


def test_every_field_has_help():
    for cls in (PretrainConfig, FinetuneConfig):
        assert not [f.name for f in dataclasses.fields(cls) if not f.metadata.get("help")]


def test_config_fields_do_not_hide_training_arguments():
    for config, arguments in (PRETRAIN, (FinetuneConfig, FinetuningArguments)):
        assert not {f.name for f in dataclasses.fields(config)} & {f.name for f in dataclasses.fields(arguments)}


def test_help_lists_the_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(*PRETRAIN, argv=["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert re.search(r"--corpus", out) and re.search(r"--warmup_tokens", out)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activations_are_recomputed_by_either_name(tmp_path, name):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "true", f"--{name}", "true"]
    (args,) = parse_arguments(PretrainingArguments, argv=argv)
    assert getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing
    (args,) = parse_arguments(PretrainingArguments, argv=argv[:-2])
    assert not getattr(args, "activation_checkpointing", None) and not args.gradient_checkpointing
