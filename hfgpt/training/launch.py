"""Checks of how a run was launched, made before anything is loaded: one message that names both of two fields at odds.

The launcher's settings reach its processes as environment variables, and DeepSpeed's as a JSON file. What a recipe owns
(batch, clipping, precision) is "auto" there, or the same. Heavy imports are inside functions: recipes/slurm/pretrain.sbatch
runs this module to learn where a run writes.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..config import read_yaml, unknown_key
from ..shipped import find_file


# Fields of a DeepSpeed config that this project takes, with the fields in them where DeepSpeed itself knows no better.
# Not among them: optimizers and schedulers, which are ours, and features that only inference has.
DEEPSPEED_FIELDS: dict[str, tuple[str, ...] | None] = {
    "train_batch_size": None,
    "train_micro_batch_size_per_gpu": None,
    "gradient_accumulation_steps": None,
    "managed_gradient_accumulation": None,
    "gradient_clipping": None,
    "bf16": None,
    "fp16": None,
    "zero_optimization": None,
    "zero_allow_untested_optimizer": None,
    "zero_force_ds_cpu_optimizer": None,
    "communication_data_type": None,
    "prescale_gradients": None,
    "gradient_predivide_factor": None,
    "data_types": ("grad_accum_dtype",),
    "checkpoint": ("tag_validation", "load_universal", "use_node_local_storage", "parallel_write", "writer"),
    "tensor_parallel": None,
    "aio": ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"),
    "comms_logger": None,
    "flops_profiler": None,
    "steps_per_print": None,
    "wall_clock_breakdown": None,
    "memory_breakdown": None,
    "dump_state": None,
    "disable_python_gc": None,
    "log_level": None,
}

# Fields that a recipe has its own names for.
OWNED_BY_RECIPE = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "bf16.enabled": "bf16",
    "fp16.enabled": "fp16",
}


def check_launch(args: Any) -> None:
    """Check the launcher's settings against `args`, TrainingArguments whose `__post_init__` has not run yet.

    Raises:
        ValueError: Two settings contradict each other, or a way of training in parallel that would be wrong here.
    """
    deepspeed = _is_set("ACCELERATE_USE_DEEPSPEED") or bool(args.deepspeed)
    fsdp = _is_set("ACCELERATE_USE_FSDP") or bool(args.fsdp)
    if deepspeed and fsdp:
        raise ValueError(
            "The launch asks for DeepSpeed and for FSDP: choose one accelerate config, and leave out `deepspeed` and "
            "`fsdp` in the recipe."
        )
    if (deepspeed or fsdp) and args.use_cpu:
        raise ValueError(
            f"`use_cpu: true` in the recipe would turn off {'DeepSpeed' if deepspeed else 'FSDP'}, which the launch asks "
            "for: leave it out. A machine without accelerators trains on its processors all the same."
        )
    _check_devices(args)
    _check_precision(args)
    if deepspeed:
        _find_shipped_configs(args)
        _check_deepspeed(args)
    if fsdp:
        _check_fsdp(args)
    check_parallelism(args)


def check_deepspeed_config(config: Mapping[str, Any], where: str) -> None:
    """Check the fields of a DeepSpeed config, which DeepSpeed itself takes without a word when it does not know them.

    Args:
        config: As read from JSON.
        where: Its file, for messages.

    Raises:
        ValueError: A field that is unknown, of a wrong type, or that this project does not take.
    """
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for name, own in (("optimizer", "`optim` and its settings"), ("scheduler", "schedule in tokens")):
        if name in config:
            raise ValueError(
                f"`{name}` in {where} would replace the recipe's own {own}; DeepSpeed's optimizers decay all weights "
                "alike, too. Take it out."
            )
    for name, value in config.items():
        if name not in DEEPSPEED_FIELDS:
            raise unknown_key(name, DEEPSPEED_FIELDS, where)
        known = DEEPSPEED_FIELDS[name]
        if known is not None:
            _check_fields(value, known, f"`{name}` in {where}")
    models = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    for name, model in models.items():
        if name in config:
            _check_model(config[name], model, f"`{name}` in {where}")
    # A step that is not finite is found by them; without, stages 1 and 2 take it.
    for block, name in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if config.get(block, {}).get(name) is False:
            raise ValueError(
                f"`{block}.{name}: false` in {where} would let steps that are not finite through: take it out."
            )


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """A DeepSpeed config file.

    Raises:
        ValueError: It cannot be read, or does not hold a JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        raise ValueError(f"Cannot read the DeepSpeed config {path}: {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"The DeepSpeed config {path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"The DeepSpeed config {path} must hold a JSON object, got a {type(config).__name__}.")
    return config


def check_parallelism(args: Any) -> None:
    """Refuse ways of splitting a model or a sequence that do not compute what one process computes.

    Tensor parallelism of DeepSpeed (`"tensor_parallel": {"autotp_size": N}`) passes: its losses are those of one process.
    Measured on two processes, Ulysses' sequence parallelism attends to everything in the banded layers, without a word,
    doubles the gradients, and fails for micro-batches above one; accelerate refuses banded layers in context
    parallelism.

    Raises:
        ValueError: One of them is asked for.
    """
    given = args.parallelism_config

    def size(name: str) -> int:
        value = getattr(given, f"{name}_size", None) if given is not None else None
        return int(value if value is not None else os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1"))

    if given is None and not _is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return
    for name, what, instead in (
        (
            "sp",
            "Sequence parallelism (Ulysses)",
            "it would train the banded layers as dense ones, on doubled gradients. Long sequences fit with "
            "`activation_checkpointing: true`, smaller micro-batches and ZeRO-3",
        ),
        (
            "cp",
            "Context parallelism",
            "ring attention knows no banded layers. Long sequences fit with `activation_checkpointing: true`, smaller "
            "micro-batches and ZeRO-3",
        ),
        (
            "tp",
            "accelerate's tensor parallelism",
            "it splits only models that were loaded split. DeepSpeed's does it: "
            '"tensor_parallel": {"autotp_size": N} in the DeepSpeed config',
        ),
    ):
        if size(name) > 1:
            raise ValueError(
                f"{what} is not supported (`{name}_size` {size(name)} in `parallelism_config`): {instead}."
            )


def tensor_parallel_size(args: Any) -> int:
    """Processes that hold one model together and read the same data, by DeepSpeed's `autotp_size`; 1 without it."""
    if not (_is_set("ACCELERATE_USE_DEEPSPEED") or args.deepspeed):
        return 1
    config, _ = _find_deepspeed_config(args)
    return int(config.get("tensor_parallel", {}).get("autotp_size", 1)) or 1


def output_dir_of(argv: list[str]) -> str:
    """The folder that recipes/pretrain.py with these arguments writes to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--output_dir")
    given, _ = parser.parse_known_args(argv)
    if given.output_dir is not None:
        return given.output_dir
    recipe = read_yaml(given.config) if given.config is not None else {}
    return str(recipe.get("output_dir", "out/run"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")


def _check_devices(args: Any) -> None:
    """accelerate would let several processes share a GPU."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() and not args.use_cpu else here
    if here > devices:
        raise ValueError(
            f"{here} processes were launched on this machine, which has {devices} accelerator"
            f"{'s' if devices > 1 else ''}: set `--num_processes` of accelerate launch to {devices} for each machine."
        )


def _check_precision(args: Any) -> None:
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    chosen = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    if launched not in ("no", chosen):
        raise ValueError(
            f"`mixed_precision: {launched}` in the accelerate config contradicts the recipe, whose `bf16` is "
            f"{str(bool(args.bf16)).lower()} and `fp16` {str(bool(args.fp16)).lower()}: leave `mixed_precision` out, the "
            "recipe decides."
        )


def _check_fsdp(args: Any) -> None:
    if _is_set("ACCELERATE_USE_FSDP"):
        version, saved = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_STATE_DICT_TYPE")
        if version != "2":
            raise ValueError(f"`fsdp_version` {version} in the accelerate config: only 2 is supported.")
        if saved != "FULL_STATE_DICT":
            raise ValueError(
                f"`fsdp_state_dict_type: {saved}` in the accelerate config would save no weights that from_pretrained "
                "loads: set it to FULL_STATE_DICT."
            )
        if args.fsdp:
            raise ValueError(
                "`fsdp` in the recipe and FSDP in the accelerate config: leave it to the accelerate config."
            )


def _check_deepspeed(args: Any) -> None:
    config, where = _find_deepspeed_config(args)
    check_deepspeed_config(config, where)
    _check_accelerate_fields(config, where)
    _check_owned(config, where, args)
    zero = config.get("zero_optimization", {})
    if tensor_parallel_size(args) > 1 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise ValueError(
            f'"autotp_size" in {where} splits the weights, and saving would write none: set '
            '"stage3_gather_16bit_weights_on_model_save": true in its "zero_optimization", whatever the stage.'
        )


def _find_shipped_configs(args: Any) -> None:
    """Let ds_configs/... mean hfgpt's own file where it is not in the current folder, for accelerate and DeepSpeed, too."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if path is not None:
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(find_file(path))
    if isinstance(args.deepspeed, str):
        args.deepspeed = str(find_file(args.deepspeed))


def _find_deepspeed_config(args: Any) -> tuple[dict[str, Any], str]:
    """The config that the launch or the recipe names, and where it is, for messages."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if args.deepspeed and path != "none" and args.deepspeed != path:
        raise ValueError(
            f"`deepspeed` in the recipe ({args.deepspeed}) and `deepspeed_config_file` in the accelerate config ({path}) "
            "name different configs: give one of them."
        )
    if isinstance(args.deepspeed, Mapping):
        config, where = dict(args.deepspeed), "`deepspeed` in the recipe"
    elif args.deepspeed or path != "none":
        where = args.deepspeed or path
        config = read_deepspeed_config(where)
    else:
        raise ValueError(
            "The accelerate config asks for DeepSpeed and names no `deepspeed_config_file`: take one of ds_configs/."
        )
    return config, where


def _check_accelerate_fields(config: Mapping[str, Any], where: str) -> None:
    """Settings of DeepSpeed in the accelerate config, beside the file: accelerate would let the file win."""
    zero = config.get("zero_optimization", {})
    for name, variable, value in (
        ("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", zero.get("stage", 0)),
        (
            "offload_optimizer_device",
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
            zero.get("offload_optimizer", {}).get("device", "none"),
        ),
        (
            "offload_param_device",
            "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
            zero.get("offload_param", {}).get("device", "none"),
        ),
        (
            "gradient_accumulation_steps",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            config.get("gradient_accumulation_steps"),
        ),
        ("gradient_clipping", "ACCELERATE_GRADIENT_CLIPPING", config.get("gradient_clipping")),
    ):
        given = os.environ.get(variable)
        if given is not None and given != str(value):
            raise ValueError(
                f"`{name}: {given}` in the accelerate config contradicts {where}, which has {value!r}: leave it out of "
                "the accelerate config."
            )
    known = {"deepspeed_config_file", "deepspeed_multinode_launcher", "deepspeed_hostfile", "zero3_init_flag", "zero_stage",
             "offload_optimizer_device", "offload_param_device", "gradient_accumulation_steps", "gradient_clipping",
             "mixed_precision", "deepspeed_exclusion_filter", "deepspeed_inclusion_filter", "zero3_save_16bit_model",
             "deepspeed_moe_layer_cls_names"}  # fmt: skip
    for name in filter(None, os.environ.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")):
        if name not in known:
            raise unknown_key(name, known - {"mixed_precision"}, "`deepspeed_config` of the accelerate config")


def _check_owned(config: Mapping[str, Any], where: str, args: Any) -> None:
    """What is not "auto" must be what the recipe says."""
    for path, name in OWNED_BY_RECIPE.items():
        block, _, key = path.rpartition(".")
        holder = config.get(block, {}) if block else config
        if key not in holder:
            if path == "gradient_clipping" and args.max_grad_norm != 1.0:
                raise ValueError(
                    f"{where} has no `gradient_clipping`, and DeepSpeed would clip at 1.0 where the recipe's "
                    f'`max_grad_norm` is {args.max_grad_norm}: add "gradient_clipping": "auto".'
                )
            continue
        value, own = holder[key], getattr(args, name)
        if value != "auto" and value != (bool(own) if isinstance(value, bool) else own):
            raise ValueError(
                f"`{path}` in {where} ({json.dumps(value)}) contradicts `{name}` of the recipe ({json.dumps(own)}): set "
                f'it to "auto", and the recipe decides.'
            )
    if config.get("train_batch_size", "auto") != "auto":
        raise ValueError(
            f'`train_batch_size` in {where} must be "auto": it follows from the recipe and the number of processes.'
        )


def _check_fields(value: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a JSON object, got {value!r}.")
    for name in value:
        if name not in known:
            raise unknown_key(name, known, where)


def _check_model(value: Any, model: Any, where: str) -> None:
    """A block of a DeepSpeed config against the pydantic model that reads it."""
    from pydantic import ValidationError

    known = {field.alias or name for name, field in model.model_fields.items()} | set(model.model_fields)
    _check_fields(value, tuple(known), where)
    for name, field in model.model_fields.items():
        inner = [part for part in getattr(field.annotation, "__args__", ()) if hasattr(part, "model_fields")]
        if inner and isinstance(value.get(name), Mapping):
            _check_model(value[name], inner[0], f"`{name}` of {where}")
    try:
        model(**{name: part for name, part in value.items() if part != "auto"})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"`{'.'.join(map(str, first['loc']))}` of {where}: {first['msg']}.") from None


if __name__ == "__main__":
    print(output_dir_of(sys.argv[1:]))
