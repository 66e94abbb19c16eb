import json
import math
import sys

import pytest
import torch
from helpers import ROOT

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.cli import main
from hfgpt.model.presets import PRESETS
from hfgpt.planner import (
    GPUS,
    MAX_LIVE_PARAMETERS,
    REDUCE_BUCKET,
    SUB_GROUP_SIZE,
    Layout,
    PlanOptions,
    count_parameters,
    flops_per_token,
    largest_micro_batch,
    memory_by_part,
    peak_flops,
    plan,
    smallest_data_parallel,
    usable_bytes,
)
from hfgpt.training.schedule import BatchSchedule


SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": 128}


def total(config, **layout):
    return sum(memory_by_part(config, Layout(**layout)).values())


def run_json(capsys, *words):
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_paper_sizes(preset):
    assert count_parameters(GPT3Config.from_preset(preset)) == PRESETS[preset].num_parameters


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": False},
        {"intermediate_size": 100, "vocab_size": 123},
        {"layer_types": ["full_attention"] * 3, "max_position_embeddings": 17},
        {"num_hidden_layers": 1, "bos_token_id": None, "eos_token_id": None},
    ],
)
def test_parameters_equal_the_model_that_is_built(overrides):
    config = GPT3Config(**{**SMALL, **overrides})
    with torch.device("meta"):
        model = GPT3ForCausalLM(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_of_a_preset_equal_the_model_on_the_meta_device(preset):
    config = GPT3Config.from_preset(preset, tie_word_embeddings=False)
    with torch.device("meta"):
        model = GPT3ForCausalLM(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


def test_the_paper_s_training_compute_is_reproduced():
    """Table D.1: 3.14e23 FLOPs, 3,640 petaflop/s-days."""
    flops = 300e9 * flops_per_token(GPT3Config.from_preset("gpt3-175b"), 2048).paper
    assert float(f"{flops:.3g}") == 3.14e23
    assert round(flops / (1e15 * 86400), -1) == 3640


def test_flops_count_every_pair_of_query_and_key():
    """By brute force; a pair costs 12 x hidden_size, and all of them together are the dense count."""
    config = GPT3Config(**SMALL, sliding_window=16)
    length, hidden = 100, config.hidden_size
    position = torch.arange(length)
    distance = position[:, None] - position
    pairs = sum(
        int(((distance >= 0) & (distance < (16 if kind == "sliding_attention" else length))).sum())
        for kind in config.layer_types
    )
    flops = flops_per_token(config, length)
    weights = 6 * count_parameters(config)
    assert flops.paper == weights
    assert flops.dense == weights + 12 * 3 * hidden * length
    assert flops.banded == pytest.approx(weights + 12 * hidden * pairs / length, rel=1e-12)
    assert flops_per_token(config, 8).banded == weights + 12 * 3 * hidden * (8 * 9 / 2) / 8


def test_a_second_word_embedding_is_no_work():
    tied, untied = (GPT3Config(**SMALL, tie_word_embeddings=tie) for tie in (True, False))
    assert flops_per_token(tied, 64).dense == flops_per_token(untied, 64).dense
    assert flops_per_token(tied, 64).paper < flops_per_token(untied, 64).paper


def test_a_length_past_the_positions_is_refused():
    with pytest.raises(ValueError, match="128 positions"):
        flops_per_token(GPT3Config(**SMALL), 129)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
        ("NVIDIA H20", None),
        ("cpu", None),
    ],
)
def test_devices_are_known_by_their_names(name, flops):
    assert peak_flops(name) == flops


def test_states_shrink_with_the_stage_as_they_should():
    """Bytes of a parameter, of N processes: 20 under DDP (buckets too); 2 + 2 + 12/N; 2 + (4 + 12)/N; 18/N."""
    config = GPT3Config.from_preset("gpt3-13b")
    parameters, processes = count_parameters(config), 64
    parts = [
        memory_by_part(config, Layout(data_parallel=processes, zero_stage=stage, activation_checkpointing=True))
        for stage in range(4)
    ]
    assert parts[0]["optimizer"] == 8 * parameters and parts[0]["gradients"] == 4 * parameters
    assert parts[0]["communication"] == 4 * parameters
    for part in parts[1:]:
        assert part["optimizer"] == pytest.approx(12 * parameters / processes, rel=1e-6)
    assert [part["weights"] for part in parts[1:3]] == [2 * parameters] * 2
    assert [parts[stage]["gradients"] / parameters for stage in (1, 2, 3)] == pytest.approx(
        [2, 4 / processes, 4 / processes], rel=1e-6
    )
    assert parts[3]["weights"] < 0.2 * parts[2]["weights"]


def test_the_planner_counts_what_the_shipped_configs_say():
    """Sizes of buckets and what is kept gathered; and in which dtype micro-batches are summed, for each config."""
    for name, layout in {
        "zero1": Layout(zero_stage=1),
        "zero2": Layout(zero_stage=2),
        "zero3": Layout(zero_stage=3),
        "zero3_offload": Layout(zero_stage=3, offload="optimizer+params"),
    }.items():
        config = json.loads((ROOT / f"ds_configs/{name}.json").read_text())
        zero = config["zero_optimization"]
        assert zero["stage"] == layout.zero_stage
        in_float32 = config.get("data_types", {}).get("grad_accum_dtype") == "fp32"
        assert layout.accumulation_bytes == (4 if in_float32 else 2)
        if layout.zero_stage < 3:
            assert zero["reduce_bucket_size"] == REDUCE_BUCKET and zero["overlap_comm"]
        else:
            assert zero["reduce_bucket_size"] == "auto"
            assert zero["stage3_max_live_parameters"] == MAX_LIVE_PARAMETERS
            assert zero["sub_group_size"] == SUB_GROUP_SIZE
        assert ("offload_param" in zero) == (layout.offload == "optimizer+params")


def test_the_step_copies_what_is_not_flat_and_float32_already():
    """Gradients and copies at the step, bytes of a parameter: stage 1 sums and keeps bf16, stage 2 a flat float32 share,
    stage 3 one that it copies."""
    config = GPT3Config(
        hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, max_position_embeddings=64, vocab_size=2000
    )
    parameters = count_parameters(config)
    small = {"data_parallel": 2, "sequence_length": 8, "activation_checkpointing": True}
    at_most = [memory_by_part(config, Layout(zero_stage=stage, **small))["gradients"] for stage in (1, 2, 3)]
    assert [count / (parameters / 2) for count in at_most] == pytest.approx([2 + 6, 4, 4 + 4], rel=0.1)


def test_offloading_takes_memory_from_the_gpu():
    config = GPT3Config.from_preset("gpt3-6.7b")
    layout = {"data_parallel": 8, "zero_stage": 3, "activation_checkpointing": True}
    none, optimizer, both = (total(config, offload=offload, **layout) for offload in OFFLOADS_IN_ORDER)
    assert none > optimizer > both
    with pytest.raises(ValueError, match="needs `zero_stage` 3"):
        Layout(zero_stage=2, offload="optimizer+params")
    with pytest.raises(ValueError, match="DeepSpeed's"):
        Layout(zero_stage=0, offload="optimizer")


OFFLOADS_IN_ORDER = ("none", "optimizer", "optimizer+params")


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing_processes_and_tensor_parallelism():
    config = GPT3Config.from_preset("gpt3-1.3b")
    sizes = [total(config, micro_batch=size, zero_stage=1, data_parallel=8) for size in range(1, 9)]
    assert sizes == sorted(set(sizes))
    assert total(config, micro_batch=8, activation_checkpointing=True) < total(config, micro_batch=8)
    assert total(config, zero_stage=3, data_parallel=16) < total(config, zero_stage=3, data_parallel=2)
    whole, half = (memory_by_part(config, Layout(tensor_parallel=size, micro_batch=4)) for size in (1, 2))
    assert half["activations"] < whole["activations"] and half["optimizer"] < whole["optimizer"]


def test_the_largest_micro_batch_fits_and_one_more_does_not():
    config = GPT3Config.from_preset("gpt3-2.7b")
    layout = {"zero_stage": 2, "data_parallel": 8}
    largest = largest_micro_batch(config, Layout(**layout), GPUS["a100-80"])
    assert largest > 1
    fits = [total(config, micro_batch=largest + more, **layout) <= usable_bytes(GPUS["a100-80"]) for more in (0, 1)]
    assert fits == [True, False]


def test_the_fewest_processes_fit_and_one_fewer_does_not():
    config, gpu = GPT3Config.from_preset("gpt3-175b"), GPUS["h100-80"]
    layout = {"zero_stage": 3, "activation_checkpointing": True}
    fewest = smallest_data_parallel(config, Layout(**layout), gpu)
    fits = [total(config, data_parallel=fewest - fewer, **layout) <= usable_bytes(gpu) for fewer in (0, 1)]
    assert fits == [True, False]
    assert smallest_data_parallel(config, Layout(zero_stage=0), gpu) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_plan_is_within_15_percent_of_the_measured_peak(monkeypatch):
    """benchmarks/planner.py measures more, larger ones, and DeepSpeed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from planner import measure

    model = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 512}
    case = {"model": {**model, "vocab_size": 4000, "sliding_window": 64}, "batch": 4, "length": 512, "passes": 2}
    figures = measure(case, "cpu")
    assert figures["measured_bytes"] > 100e6
    assert figures["planned_bytes"] == pytest.approx(figures["measured_bytes"], rel=0.15)


def test_the_paper_s_largest_model_on_1024_gpus(capsys):
    words = ["gpt3-175b", "--gpus", "1024", "--gpu", "h100-80", "--nodes", "128"]
    result = run_json(capsys, *words, "--price-per-gpu-hour", "2.0", "--mfu", "0.5")
    assert result["parameters"] == 174_604_259_328 and float(f"{result['training_flops']:.3g}") == 3.14e23
    assert set(result["flops_per_token"]) == {"paper", "dense", "banded"}
    assert result["memory_per_gpu_bytes"] == sum(result["memory_by_part_bytes"].values()) < 80e9
    days = 300e9 * result["flops_per_token"]["dense"] / (1024 * 989.4e12 * 0.5) / 86400
    assert result["days"] == pytest.approx(days)
    assert result["energy_kwh"] == pytest.approx(days * 24 * 1024 * 0.7)
    assert result["cost"] == pytest.approx(days * 24 * 1024 * 2.0)
    assert len(result["layouts"]) == 8 and result["max_micro_batch"] >= 1
    assert "recipes/accelerate/zero3.yaml --num_machines 128 --num_processes 1024" in result["command"]
    assert any("1,568 sequences" in note and note.endswith(" 784 GPUs are as fast.") for note in result["notes"])
    assert result["batch_tokens"] == 1568 * 2048


@pytest.mark.parametrize(
    ("words", "stage", "checkpointing"),
    [
        (["--recipe", str(ROOT / "recipes/pretrain/gpt3-2.7b.yaml")], 1, False),  # DDP would fit with it
        (["--recipe", str(ROOT / "recipes/pretrain/gpt3-2.7b.yaml"), "--activation-checkpointing"], 0, True),
        (["gpt3-125m"], 0, False),
        (["gpt3-13b", "--micro-batch", "2"], 3, False),
        (["gpt3-13b", "--micro-batch", "4"], 2, True),
    ],
)
def test_sharing_more_comes_before_recomputing(capsys, words, stage, checkpointing):
    result = run_json(capsys, *words, "--gpus", "8")
    assert (result["layout"]["zero_stage"], result["layout"]["activation_checkpointing"]) == (stage, checkpointing)
    assert f"accelerate/{'ddp' if stage == 0 else f'zero{stage}'}.yaml" in result["command"]
    assert any("a third more work" in note for note in result["notes"]) == checkpointing


def test_the_corpus_vocabulary_counts_unless_the_recipe_says_another(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"preset": "gpt3-125m", "model_overrides": {"vocab_size": 700}}))
    embeddings = [
        plan(PlanOptions(gpus=1, vocab_size=500, **options)).parameters
        for options in ({"model": "gpt3-125m"}, {"recipe": str(recipe)})
    ]
    assert embeddings[1] - embeddings[0] == 200 * 768


def test_processes_beyond_the_batch_are_noted():
    assert any("480 of the 2,048" in note for note in plan(PlanOptions("gpt3-175b", gpus=2048)).notes)


@pytest.mark.parametrize("gpus", [256, 1024])
def test_the_days_that_the_ramp_adds_are_noted(gpus):
    result = plan(PlanOptions("gpt3-175b", gpus=gpus))
    note = next(note for note in result.notes if "begins at 16 sequences" in note)
    # By summing over the ramp: a batch of s sequences keeps s processes busy.
    parts = 10_000
    batches = [16 + (1568 - 16) * (part + 0.5) / parts for part in range(parts)]
    beyond = sum(max(gpus / batch - 1, 0) for batch in batches) / parts * 12e9 / 300e9 * result.days
    assert float(note.split("about ")[1].split()[0]) == pytest.approx(beyond, abs=0.01)


def test_micro_batches_of_one_step_are_even():
    result = plan(PlanOptions("gpt3-125m", gpus=1, gpu="rtx4090-24", zero_stage=0, activation_checkpointing=True))
    steps = math.ceil(240 / result.max_micro_batch)  # a batch of 0.5M tokens is 15 x 16 sequences
    assert result.accumulation_steps == steps > 1
    assert result.layout.micro_batch == math.ceil(240 / steps) < result.max_micro_batch


def test_what_cannot_fit_is_refused_with_what_would(capsys):
    assert main(["plan", "gpt3-175b", "--gpus", "8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hfgpt plan: error: gpt3-175b does not fit 8 x h100-80")
    count = int(error.split("--gpus ")[1].split()[0])
    assert plan(PlanOptions("gpt3-175b", gpus=count, zero_stage=3)).layout.activation_checkpointing
    with pytest.raises(ValueError, match="does not fit"):
        plan(PlanOptions("gpt3-175b", gpus=count - 8))


@pytest.mark.parametrize(
    ("words", "would"),
    [
        (["gpt3-13b", "--gpus", "64", "--zero-stage", "0"], "--zero-stage 1"),
        (
            ["gpt3-13b", "--gpus", "8", "--no-activation-checkpointing", "--zero-stage", "1", "--micro-batch", "4"],
            "--zero-stage 2 --activation-checkpointing",
        ),
        (["gpt3-13b", "--gpus", "8", "--no-activation-checkpointing", "--zero-stage", "1"], "--zero-stage 2 --no-act"),
        (["gpt3-1.3b", "--gpus", "8", "--micro-batch", "5000"], "--micro-batch "),
        (["gpt3-6.7b", "--gpus", "1"], "--offload optimizer"),
        (["gpt3-2.7b", "--gpus", "1", "--gpu", "a100-40", "--zero-stage", "0"], "--gpu "),
    ],
)
def test_a_refusal_names_the_option_that_helps(capsys, words, would):
    assert main(["plan", *words]) == 2
    assert would in capsys.readouterr().err.split("What would fit:")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name a model"),
        (["gpt3-13"], "gpt3-13b"),
        (["gpt3-125m"], "How many GPUs? Give `--gpus`"),
        (["gpt3-125m", "--gpus", "0"], "`--gpus` must be at least 1"),
        (["gpt3-125m", "--gpu", "H100"], "Did you mean h100-80 or h100-nvl-94 or h100-pcie-80?"),
        (["gpt3-125m", "--gpu", "rtx-4090"], "Did you mean rtx4090-24"),
        (["gpt3-125m", "--gpu", "tpu"], "known are b200-180"),
        (["gpt3-125m", "--gpus", "12", "--nodes", "5"], "multiple of `--nodes`"),
        (["gpt3-125m", "--sequence-length", "4096", "--gpus", "8"], "2048 positions"),
        (["gpt3-125m", "--mfu", "40", "--gpus", "8"], "--mfu"),
        (["gpt3-125m", "--tensor-parallel", "5", "--gpus", "8"], "--tensor-parallel"),
        (["gpt3-125m", "--tensor-parallel", "2", "--zero-stage", "1", "--gpus", "8"], "Tensor parallelism"),
        (["gpt3-125m", "--offload", "optimizer+params", "--zero-stage", "1", "--gpus", "8"], "`zero_stage` 3"),
        (["gpt3-125m", "--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["gpt3-125m", "--micro-batch", "0", "--gpus", "8"], "--micro-batch"),
        (["gpt3-125m", "--price-per-gpu-hour", "-1", "--gpus", "8"], "`--price-per-gpu-hour` must be at least 0"),
        (["gpt3-125m", "--price-per-gpu-hour", "nan", "--gpus", "8"], "`--price-per-gpu-hour` must be at least 0"),
        (["gpt3-125m", "--batch-tokens", "2047", "--gpus", "8"], "at least one sequence, 2048 tokens"),
    ],
)
def test_wrong_options_are_one_message(capsys, words, message):
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_is_read_and_options_override_it(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    fields = {
        "corpus": "somewhere",
        "preset": "gpt3-125m",
        "model_overrides": {"num_hidden_layers": 4},
        "sequence_length": 1024,
        "per_device_train_batch_size": 3,
        "train_tokens": 1000000,
        "batch_size_tokens": 98304,
        "activation_checkpointing": True,
    }
    recipe.write_text(json.dumps(fields))
    result = run_json(capsys, "--recipe", str(recipe), "--gpus", "8")
    assert result["parameters"] == count_parameters(GPT3Config.from_preset("gpt3-125m", num_hidden_layers=4))
    assert result["tokens"] == 1_000_000 and result["sequence_length"] == 1024
    assert result["layout"]["micro_batch"] == 3 and result["layout"]["activation_checkpointing"]
    assert result["accumulation_steps"] == 4  # 96 sequences on 8 GPUs, 3 at a time
    assert f"--config {recipe}" in result["command"]
    words = ["--micro-batch", "6", "--tokens", "5", "--no-activation-checkpointing", "--sequence-length", "512"]
    result = run_json(capsys, "--recipe", str(recipe), "--gpus", "8", *words)
    assert result["tokens"] == 5 and result["sequence_length"] == 512
    assert result["layout"]["micro_batch"] == 6 and not result["layout"]["activation_checkpointing"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_shipped_recipes_fit(preset):
    """On 64 GPUs, and the largest on 1,024."""
    gpus = 1024 if preset == "gpt3-175b" else 64
    result = plan(PlanOptions(recipe=str(ROOT / f"recipes/pretrain/{preset}.yaml"), gpus=gpus))
    assert result.model == preset and result.parameters == PRESETS[preset].num_parameters
    config = result.command.split("--config_file ")[1].split()[0]
    assert (ROOT / config).exists()


def test_a_folder_with_a_config_is_a_model(tmp_path, capsys):
    config = GPT3Config(**SMALL)
    config.save_pretrained(tmp_path)
    result = run_json(capsys, str(tmp_path), "--gpus", "1")
    assert result["parameters"] == count_parameters(config)
    assert result["batch_tokens"] is None and result["accumulation_steps"] is None
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert main(["plan", str(tmp_path)]) == 2
    assert "gpt2" in capsys.readouterr().err


def test_the_table_shows_every_layout_and_marks_the_chosen_one(capsys):
    assert main(["plan", "gpt3-13b", "--gpus", "64"]) == 0
    out = capsys.readouterr().out
    assert sum(line.startswith("*") for line in out.splitlines()) == 2
    assert out.count("does not fit") == 2 and "days at 40% of the GPUs' peak" in out
    assert out.splitlines()[-1].startswith("accelerate launch ")


def test_small_runs_are_not_rounded_to_nothing(capsys):
    assert main(["plan", "--recipe", str(ROOT / "recipes/pretrain/ladder/next-6x128.yaml"), "--gpus", "1"]) == 0
    out = capsys.readouterr().out
    assert "seconds at 40%" in out and " 0 kWh" not in out and " MB" in out
    assert "micro-batch 8 x 1 accumulated for a batch of 1,024 tokens" in out
    assert out.startswith(str(ROOT / "recipes/pretrain/ladder/next-6x128.yaml") + " (gpt3-125m): ")


@pytest.mark.parametrize("tokens", ["1.5", "many", "inf", "nan"])
def test_tokens_are_whole(capsys, tokens):
    with pytest.raises(SystemExit):
        main(["plan", "gpt3-125m", "--gpus", "8", "--tokens", tokens])
    assert "must be a whole number, such as 300000000000 or 3e11" in capsys.readouterr().err


def test_tokens_of_the_batch_and_of_the_run_are_in_the_command(capsys):
    result = run_json(capsys, "gpt3-125m", "--gpus", "8", "--tokens", "3e11", "--batch-tokens", "1e6")
    assert result["tokens"] == 300_000_000_000 and result["batch_tokens"] == 31 * 32_768
    assert "--train_tokens 300000000000 --batch_size_tokens 1000000" in result["command"]
    assert "--batch_size_tokens" not in run_json(capsys, "gpt3-125m", "--gpus", "8")["command"]


def test_a_gpu_without_bf16_trains_in_fp16():
    result = plan(PlanOptions("gpt3-125m", gpus=8, gpu="v100-32"))
    assert result.command.endswith(" --fp16 true --bf16 false")
    assert any("v100-32 has no bfloat16" in note for note in result.notes)
    assert "fp16" not in plan(PlanOptions("gpt3-125m", gpus=8, gpu="a100-40")).command


def test_fp16_in_a_recipe_is_not_float32(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"preset": "gpt3-125m", "fp16": True, "bf16": False}))
    assert plan(PlanOptions(recipe=str(recipe), gpus=8)).layout.bf16


@pytest.mark.parametrize(
    ("increment", "full"),
    [(1024, 100), (2048, 100), (7 * 1024, 98), (200 * 1024, 200), (201 * 1024, 201), (None, 96)],
)
def test_the_batch_is_that_of_training(tmp_path, increment, full):
    """A batch of 100 sequences nominally; by default a multiple of 3 on each of 8 processes."""
    recipe = tmp_path / "recipe.yaml"
    fields = {"preset": "gpt3-125m", "sequence_length": 1024, "batch_size_tokens": 100 * 1024}
    fields |= {"per_device_train_batch_size": 3, "batch_increment_tokens": increment}
    recipe.write_text(json.dumps(fields))
    result = plan(PlanOptions(recipe=str(recipe), gpus=8))
    assert result.batch_tokens == full * 1024
    assert result.accumulation_steps == math.ceil(full / 24)
    if increment:
        assert full == BatchSchedule(1024, increment // 1024, 100 * 1024).full_sequences


@pytest.mark.parametrize(
    ("gpus", "advice"),
    [
        (1024, " 784 GPUs are as fast."),
        (208, " On 112 or 224 GPUs it is even."),
        (600, " On 392 or 784 GPUs it is even."),
        (784, None),
    ],
)
def test_advice_divides_the_batch_on_whole_machines(gpus, advice):
    notes = [note for note in plan(PlanOptions("gpt3-175b", gpus=gpus)).notes if "is not a multiple" in note]
    assert [note.split("says.")[1] for note in notes] == ([] if advice is None else [advice])


def test_offloading_is_slower_than_the_mfu_says():
    result = plan(PlanOptions("gpt3-6.7b", gpus=8, offload="optimizer+params"))
    assert any("Offloading (optimizer+params) is slower than --mfu 0.4" in note for note in result.notes)
    assert not any("Offloading" in note for note in plan(PlanOptions("gpt3-6.7b", gpus=8)).notes)


def test_offloading_does_not_take_one_sequence_at_a_time_where_more_fit():
    options = {"model": "gpt3-6.7b", "gpus": 1, "gpu": "rtx4090-24", "offload": "optimizer+params"}
    result = plan(PlanOptions(**options))
    plain, checkpointed = result.layouts
    assert plain.max_micro_batch == 1 < checkpointed.max_micro_batch
    assert result.layout.activation_checkpointing
    assert not plan(PlanOptions(**options, micro_batch=1)).layout.activation_checkpointing


def test_tensor_parallelism_is_in_the_command():
    command = plan(PlanOptions("gpt3-13b", gpus=16, tensor_parallel=2, zero_stage=3)).command
    assert "fsdp2.yaml" in command and "--parallelism_config_tp_size 2" in command
    assert "--parallelism_config_dp_shard_size 8" in command
