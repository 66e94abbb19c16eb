"""What ZeRO must not change: a run's first weights, the model that comes of its checkpoints, and how it is resumed.

A checkpoint of DeepSpeed ZeRO holds, for each process, a flat float32 tensor for each group of parameters, and Adam's two
moments of the same length. `ZeroCheckpoint` finds the pieces of a parameter in them; the files are mapped, so that no
more than what is asked for is read.

DeepSpeed's own ways are not enough here: `zero_to_fp32` drops the moments, writes tied weights twice and holds a whole
model in memory at stages 1 and 2; `ds_to_universal` needs the checkpoint's size on disk again, and gives all groups the
first one's weight decay.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
from transformers.initialization import no_init_weights
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..model.convert import (
    DTYPES,
    VOCABULARY_FILES,
    Conversion,
    check_output,
    convert,
    convert_config,
    copy_tokenizer,
    write_folder,
)


LATEST_FILE = "latest"
OPTIMIZER_FILE = "optimizer.pt"
WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
MAX_SHARD_SIZE = "5GB"
# What resuming takes from a checkpoint of each group, as DeepSpeed itself does on the same number of processes.
HYPERPARAMETERS = ("lr", "initial_lr", "betas", "eps", "weight_decay")


@dataclass(frozen=True)
class ZeroLayout:
    """How a checkpoint is split.

    Attributes:
        world_size: Number of processes that wrote it.
        stage: Of ZeRO: 1, 2 or 3.
    """

    world_size: int
    stage: int


def saved_layout(checkpoint: str | Path) -> ZeroLayout | None:
    """How a checkpoint folder of the Trainer is split by ZeRO; None where it is not.

    Raises:
        ValueError: A file of it cannot be read.
    """
    folder = _step_folder(Path(checkpoint))
    if folder is None or not any(folder.glob("*_optim_states.pt")):
        return None
    return ZeroCheckpoint(checkpoint).layout


class ZeroCheckpoint:
    """A ZeRO checkpoint (stages 1, 2 and 3), one parameter at a time.

    Args:
        checkpoint: Folder that the Trainer or `DeepSpeedEngine.save_checkpoint` wrote, or its `global_step*`.

    Attributes:
        layout: Number of processes and stage.
        groups: Names of the trained parameters in each of the optimizer's parameter groups.
        shapes: Shape of each trained parameter.

    Raises:
        ValueError: No such checkpoint, a file is missing or cut short, or it was also split by tensors.
    """

    def __init__(self, checkpoint: str | Path):
        folder = _step_folder(Path(checkpoint))
        if folder is None:
            raise ValueError(f"{checkpoint} is not a checkpoint of DeepSpeed: it has no global_step* folder.")
        self.folder = folder
        files = _in_order(folder, "*_optim_states.pt")
        if not files:
            raise ValueError(f"{folder} has no *_optim_states.pt: it is not a checkpoint of ZeRO.")
        first = _load(files[0])["optimizer_state_dict"]
        count = first["partition_count"]
        world_size = max(count) if isinstance(count, list) else int(count)
        if any("mp_rank_00" not in file.name for file in files):
            raise ValueError(f"{folder} is split by tensor parallelism as well, which is not read here.")
        if len(files) != world_size:
            raise ValueError(
                f"{folder} was written by {world_size} processes and holds the optimizer states of {len(files)}: "
                "copy the missing *_optim_states.pt (each machine of a run may have kept its own), or use another checkpoint."
            )
        # BF16_Optimizer, which DeepSpeed takes for stage 1 with gradients accumulated in float32, does not say.
        stage = int(first.get("zero_stage", 1))
        self.layout = ZeroLayout(world_size, stage)
        self._files = files
        self._first = first
        self._model_files = _in_order(folder, "*_model_states.pt")
        if not self._model_files:
            raise ValueError(f"{folder} has no *_model_states.pt.")
        self._model = _load(self._model_files[0])
        group_shapes = self._model["param_shapes"]
        self.shapes = {name: torch.Size(shape) for group in group_shapes for name, shape in group.items()}
        # At stage 3 a group of the optimizer can have several flat tensors.
        self.groups: list[list[str]] = [
            [name for flat in group["params"] for name in group_shapes[flat]] for group in self._param_groups
        ]

    @property
    def _adam(self) -> dict[str, Any]:
        """torch's state dict of the first process's optimizer."""
        return self._first["optimizer_state_dict" if self.layout.stage == 3 else "base_optimizer_state"]

    @property
    def _param_groups(self) -> list[dict[str, Any]]:
        return self._adam["param_groups"]

    @property
    def counters(self) -> dict[str, int]:
        """The engine's `global_steps`, `global_samples` and `skipped_steps`."""
        return {name: self._model[name] for name in ("global_steps", "global_samples", "skipped_steps")}

    @property
    def scheduler(self) -> dict[str, Any] | None:
        """State of the learning rate's schedule, where the engine had one."""
        return self._model.get("lr_scheduler")

    @property
    def loss_scaler(self) -> Any:
        """DeepSpeed's, of float16; None where there was none."""
        return self._first.get("loss_scaler")

    @property
    def frozen(self) -> set[str]:
        """Names of the parameters that were saved, and not trained."""
        if self.layout.stage == 3:
            return set(self._model.get("frozen_param_shapes") or {})
        # A shared parameter is trained under another name.
        return set(self._model["module"]) - {*self.shapes, *self._model["shared_params"], *self._model["buffer_names"]}

    def hyperparameters(self, group: int) -> dict[str, Any]:
        """Learning rate, weight decay, ... of a parameter group."""
        return {name: value for name, value in self._param_groups[group].items() if name in HYPERPARAMETERS}

    def step(self, group: int) -> float:
        """Updates that Adam has made to a parameter group; 0 where it has not been run yet."""
        for flat in self._param_groups[group]["params"]:
            if flat in self._adam["state"]:
                return float(self._adam["state"][flat]["step"])
        return 0.0

    def read(self, name: str, what: str = WEIGHT) -> torch.Tensor | None:
        """One parameter whole.

        Args:
            name: As in the model; of one of `shapes` or `frozen`.
            what: `"weight"` (the float32 one that is trained), `"exp_avg"` or `"exp_avg_sq"`.

        Returns:
            A tensor of the parameter's shape (of a frozen one in the model's precision); None where there is no such
            state, as before the first step.
        """
        if name not in self.shapes:
            return self._read_frozen(name)
        pieces = [self._flat(rank, flat, what) for rank, flat, _, _ in self._pieces[name]]
        if any(piece is None for piece in pieces):
            return None
        cut = [piece[start : start + count] for piece, (_, _, start, count) in zip(pieces, self._pieces[name])]  # type: ignore[index]
        shape = self.shapes[name]
        whole = torch.cat(cut)[: shape.numel()]
        if whole.numel() != shape.numel():
            raise ValueError(f"{self.folder} holds {whole.numel()} of the {shape.numel()} numbers of {name!r}.")
        return whole.view(shape)

    def _read_frozen(self, name: str) -> torch.Tensor:
        if self.layout.stage < 3:
            return self._model["module"][name]
        shape = torch.Size(self._model["frozen_param_shapes"][name])
        parts = [_load(file)["frozen_param_fragments"][name] for file in self._model_files]
        return torch.cat(parts)[: shape.numel()].view(shape)

    @cached_property
    def _shards(self) -> list[dict[str, Any]]:
        return [_load(file)["optimizer_state_dict"] for file in self._files]

    def _flat(self, rank: int, flat: int, what: str) -> torch.Tensor | None:
        """One process's part of one flat tensor."""
        shard, stage3 = self._shards[rank], self.layout.stage == 3
        if what == WEIGHT:
            return shard["fp32_flat_groups" if stage3 else "single_partition_of_fp32_groups"][flat]
        state = shard["optimizer_state_dict" if stage3 else "base_optimizer_state"]["state"]
        return state.get(flat, {}).get(what)

    @cached_property
    def _pieces(self) -> dict[str, list[tuple[int, int, int, int]]]:
        """Of each parameter in order: process, number of the flat tensor, offset in it, length."""
        pieces: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in self.shapes}
        for rank in range(self.layout.world_size):
            if self.layout.stage == 3:
                # Each parameter is split evenly, the last part padded.
                for flat, shapes in enumerate(self._model["param_shapes"]):
                    start = 0
                    for name, shape in shapes.items():
                        count = -(-torch.Size(shape).numel() // self.layout.world_size)
                        pieces[name].append((rank, flat, start, count))
                        start += count
                continue
            # A group laid end to end is split evenly, wherever that cuts a parameter.
            for flat, addresses in enumerate(self._shards[rank]["param_slice_mappings"]):
                for name, address in addresses.items():
                    pieces[name].append((rank, flat, address.start, address.numel))
        return pieces


def _step_folder(checkpoint: Path) -> Path | None:
    """The folder of shards that the file `latest` names, else the newest."""
    if checkpoint.name.startswith("global_step") and checkpoint.is_dir():
        return checkpoint
    latest = checkpoint / LATEST_FILE
    if latest.is_file():
        folder = checkpoint / latest.read_text(encoding="utf-8").strip()
        return folder if folder.is_dir() else None
    folders = _in_order(checkpoint, "global_step*")
    return folders[-1] if folders else None


def _in_order(folder: Path, pattern: str) -> list[Path]:
    """Matching paths by the numbers in their names: 2 before 10."""
    return sorted(folder.glob(pattern), key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def _load(file: Path) -> dict[str, Any]:
    """A file of a checkpoint, mapped; nothing but tensors, plain values and the few classes DeepSpeed writes is accepted."""
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        raise ValueError("A checkpoint of ZeRO is read with the package deepspeed: pip install deepspeed.") from None
    classes: list[Any] = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    try:
        with torch.serialization.safe_globals(classes):
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing.") from None
    except Exception as error:  # zip, pickle and torch raise many kinds
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"Cannot read {file}: cut short or damaged ({reason[0] if reason else type(error).__name__}). Use another checkpoint."
        ) from None


# Begun


def initial_model(config: Any, seed: int, **options: Any) -> Any:
    """A causal language model with random weights, the same from a seed whether ZeRO-3 splits it as it is made or not.

    transformers makes layers under ZeRO-3 without their own initialization, which elsewhere draws random numbers before
    the model's does. Here it is left out everywhere.

    Args:
        config: Of the model.
        seed: Of all random numbers, also those drawn afterwards.
        **options: As for `AutoModelForCausalLM.from_config`.
    """
    if is_deepspeed_zero3_enabled():
        set_seed(seed)
        return AutoModelForCausalLM.from_config(config, **options)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, **options)
    set_seed(seed)
    model.init_weights()
    return model


# Made whole


def consolidate(
    checkpoint: str | Path,
    output: str | Path,
    to: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_size: str | None = None,
) -> Conversion:
    """Write the float32 weights of a ZeRO checkpoint as safetensors, with config and tokenizer, and check the files.

    Needs no accelerator and no other process, and not the `model.safetensors` beside the shards. The folder appears only
    when it is whole. Memory: one file of weights at a time; with `to` of another type than the model's, the whole model.

    Args:
        checkpoint: Folder with config.json, and `global_step*` or `latest`.
        output: Folder to write.
        to: Model type, as for `hfgpt.model.convert.convert`. Default: the model's own.
        dtype: `"float32"` (the default: what was trained), `"bfloat16"` or `"float16"`.
        overwrite: Replace `output`, with everything in it, if it holds a model.
        max_shard_size: Largest file of weights. Default: 5GB.

    Raises:
        ValueError: A shard is missing or damaged (the message names the file), or it is not the model of config.json.
    """
    dtype = dtype or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    source, output = Path(checkpoint), Path(output).resolve()
    check_output(output, overwrite)
    if source.resolve().is_relative_to(output):
        raise ValueError(f"The output {output} is or holds the source: choose another folder.")
    if (source / "adapter_config.json").is_file():
        raise ValueError(
            f"{source} is of a LoRA run: its adapter is whole already (adapter_model.safetensors), and the base model's "
            "weights are not in it. Merge it into its base model: `hfgpt convert ADAPTER OUTPUT --merge`."
        )
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} has no config.json, which the Trainer writes beside the shards: copy it there.")
    config = AutoConfig.from_pretrained(source)
    shards = ZeroCheckpoint(source)
    layout = f"made whole from ZeRO-{shards.layout.stage} of {shards.layout.world_size} processes"
    if to is not None and to != config.model_type:
        convert_config(config, to)  # refused before anything is written
        return _consolidate_and_convert(source, output, to, dtype, overwrite, max_shard_size, layout)

    model = _empty_model(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}  # a tied one once
    _check_names(shapes, shards, source)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    tokenizer = any((source / name).is_file() for name in VOCABULARY_FILES)

    def write(staging: Path) -> None:
        _write_weights(staging, shapes, shards, DTYPES[dtype], max_shard_size or MAX_SHARD_SIZE)
        config.save_pretrained(staging)
        if (source / GENERATION_CONFIG_NAME).is_file():
            shutil.copyfile(source / GENERATION_CONFIG_NAME, staging / GENERATION_CONFIG_NAME)
        if tokenizer:
            copy_tokenizer(source, staging, config.model_type)

    write_folder(output, write)
    name = type(model).__name__
    return Conversion(
        output=output,
        source_type=config.model_type,
        target_type=config.model_type,
        source_class=name,
        target_class=name,
        tensors=len(shapes),
        parameters=sum(shape.numel() for shape in shapes.values()),
        dtype=dtype,
        tokenizer=tokenizer,
        notes=(layout,),
    )


def _consolidate_and_convert(
    source: Path, output: Path, to: str, dtype: str, overwrite: bool, max_shard_size: str | None, note: str
) -> Conversion:
    whole = output.parent / f".{output.name}.whole-{os.getpid()}"
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        consolidate(source, whole)
        done = convert(whole, output, to, dtype=dtype, overwrite=overwrite, max_shard_size=max_shard_size)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return Conversion(**{**vars(done), "notes": (note, *done.notes)})


def _empty_model(config: Any) -> Any:
    """The model of a config without memory for its weights."""
    import transformers

    import hfgpt

    name = (config.architectures or [None])[0]
    known = getattr(hfgpt, name or "", None) or getattr(transformers, name or "", None)
    if known is None:
        raise ValueError(f"`architectures` in config.json names no model that is known here: {config.architectures}.")
    with torch.device("meta"):
        return known(config)


def _check_names(shapes: dict[str, torch.Size], shards: ZeroCheckpoint, source: Path) -> None:
    """Raise ValueError unless the checkpoint has just the tensors of the model."""
    saved = set(shards.shapes) | shards.frozen
    missing, unknown = sorted(set(shapes) - saved), sorted(saved - set(shapes))
    if missing or unknown:
        what = f"lacks {missing[:3]}" if missing else f"has {unknown[:3]}, which the model does not have"
        raise ValueError(f"The checkpoint {source} does not fit its config.json: it {what}.")
    for name, shape in shards.shapes.items():
        if shape != shapes[name]:
            raise ValueError(
                f"The checkpoint {source} does not fit its config.json: {name!r} is {tuple(shape)}, and the config says "
                f"{tuple(shapes[name])}."
            )


def _write_weights(
    folder: Path, shapes: dict[str, torch.Size], shards: ZeroCheckpoint, dtype: torch.dtype, max_shard_size: str
) -> None:
    """Write the weights file by file, check each, and the index."""
    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: shape.numel() * dtype.itemsize,
        filename_pattern=SAFE_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=max_shard_size,
    )
    with tqdm(total=len(shapes), desc="tensors", disable=None) as progress:
        for file, names in split.filename_to_tensors.items():
            tensors = {}
            for name in names:
                tensor = shards.read(name)
                assert tensor is not None
                tensors[name] = _cast(tensor, dtype, name)
                progress.update()
            save_file(tensors, folder / file, metadata={"format": "pt"})
            check_safetensors(folder / file, {name: shapes[name] for name in names}, dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    result = tensor.to(dtype).contiguous()
    if result.dtype != tensor.dtype and not result.isfinite().all() and tensor.isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"The tensor {name!r} has values too large for {kind}: pass another `dtype` (--dtype).")
    return result


def check_safetensors(file: Path, shapes: dict[str, torch.Size], dtype: torch.dtype) -> None:
    """Check the names, shapes, type and number of bytes of a file of weights.

    Raises:
        ValueError: It holds something else.
    """
    kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    expected = {name: (kind, tuple(shape)) for name, shape in shapes.items()}
    with safe_open(file, framework="pt") as stored:
        slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    with open(file, "rb") as raw:
        header_bytes = 8 + int.from_bytes(raw.read(8), "little")
    data_bytes = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize
    if found != expected or file.stat().st_size != header_bytes + data_bytes:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ValueError(f"{file} is not what was written ({', '.join(wrong[:3]) or 'length'}): is the disk full?")


# Resumed


@dataclass
class _Slot:
    """Where (a part of) one parameter is kept in an optimizer.

    Attributes:
        name: Of the parameter.
        group: Number of the parameter group.
        kept: Tensor that the optimizer updates, flat or of the parameter's shape; its moments are shaped as it is.
        offset: Where in it, flattened, the part begins.
        start: Where the part begins in the parameter, flattened.
        count: Numbers in the part.
    """

    name: str
    group: int
    kept: torch.Tensor
    offset: int
    start: int
    count: int


def load_resized(engine: Any, checkpoint: str | Path) -> None:
    """Continue from a checkpoint in an engine of DeepSpeed with another number of processes, or another stage.

    Takes the place of `engine.load_checkpoint`; all processes call it. The checkpoint may be of ZeRO 1, 2 or 3 on any
    number of processes, or of a run without DeepSpeed (`model.safetensors` in float32 and `optimizer.pt`). Sets the
    float32 weights, Adam's moments and step, the groups' hyperparameters, the weights in the model's own precision and
    DeepSpeed's counters; frozen parameters and buffers are left as they are.

    Raises:
        ValueError: The checkpoint is not of this model, or cannot be read.
    """
    optimizer = engine.optimizer
    if getattr(optimizer, "swap_optimizer", False):
        raise ValueError(
            "With `offload_optimizer` to nvme a run resumes only on the number of processes that saved it."
        )
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage3 = hasattr(optimizer, "fp16_partitioned_groups_flat")
    slots, groups = (_stage3_slots if stage3 else _stage12_slots)(optimizer, names)
    source = _open(checkpoint, groups)

    if stage3:
        optimizer.checkpoint_event_prologue()
    _fill(optimizer.optimizer, slots, groups, source)
    if stage3:
        for flat in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(flat)
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    if engine.fp16_enabled() and source.loss_scaler is not None:
        optimizer.loss_scaler = source.loss_scaler
    for name, value in source.counters.items():
        setattr(engine, name, value)
    if engine.lr_scheduler is not None and source.scheduler is not None:
        engine.lr_scheduler.load_state_dict(source.scheduler)


def load_unpartitioned(model: Any, optimizer: torch.optim.Optimizer, checkpoint: str | Path) -> None:
    """Continue from a ZeRO checkpoint without DeepSpeed.

    Args:
        model: In float32, not wrapped.
        optimizer: Adam of its parameters, in the same groups.
        checkpoint: Folder of the checkpoint.

    Raises:
        ValueError: The checkpoint is not of this model, or cannot be read.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    slots = [
        _Slot(names[id(parameter)], number, parameter, 0, 0, parameter.numel())
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    ]
    _fill(optimizer, slots, groups, ZeroCheckpoint(checkpoint))


def _stage3_slots(optimizer: Any, names: dict[int, str]) -> tuple[list[_Slot], list[list[str]]]:
    slots: list[_Slot] = []
    groups: list[list[str]] = [[] for _ in optimizer.optimizer.param_groups]
    for flat, parameters in enumerate(optimizer.fp16_groups):
        group = optimizer.sub_group_to_group_id[flat]
        for parameter in parameters:
            name = names[id(parameter)]
            groups[group].append(name)
            number, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            assert number == flat
            start = optimizer._get_param_partition_rank(parameter) * count
            # The last part is padded, and can be padding alone.
            count = max(min(count, parameter.ds_numel - start), 0)
            slots.append(_Slot(name, group, optimizer.fp32_partitioned_groups_flat[flat], int(offset), start, count))
    return slots, groups


def _stage12_slots(optimizer: Any, names: dict[int, str]) -> tuple[list[_Slot], list[list[str]]]:
    slots: list[_Slot] = []
    groups: list[list[str]] = []
    low_precision = optimizer.bit16_groups if hasattr(optimizer, "bit16_groups") else optimizer.bf16_groups
    for group, parameters in enumerate(low_precision):
        groups.append([names[id(parameter)] for parameter in parameters])
        (kept,) = optimizer.optimizer.param_groups[group]["params"]
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:  # some of it is this process's
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                slots.append(_Slot(names[id(parameter)], group, kept, here.start, there.start, here.numel))
    return slots, groups


@torch.no_grad()
def _fill(optimizer: Any, slots: list[_Slot], groups: list[list[str]], source: Any) -> None:
    """Set the weights, the moments, the step and the hyperparameters of Adam."""
    if [sorted(group) for group in groups] != [sorted(group) for group in source.groups]:
        differ = sorted(
            {name for group in groups for name in group} ^ {name for group in source.groups for name in group}
        )
        raise ValueError(
            f"The checkpoint {source.folder} is not of this run's model and optimizer: "
            + (f"{differ[:3]} are in one of both only." if differ else "its parameter groups hold other parameters.")
        )
    of_deepspeed = type(optimizer).__module__.startswith("deepspeed.")
    for slot in slots:
        group = optimizer.param_groups[slot.group]
        step = source.step(slot.group)
        state = optimizer.state[slot.kept]
        # Of a parameter at a time, so that no process ever holds more than one whole.
        targets = {WEIGHT: slot.kept.data}
        if step:
            for moment in MOMENTS:
                if moment not in state:
                    state[moment] = torch.zeros_like(slot.kept, memory_format=torch.preserve_format)
                targets[moment] = state[moment]
            on_device = group.get("fused") or group.get("capturable")
            device = slot.kept.device if on_device else torch.device("cpu")
            state["step"] = int(step) if of_deepspeed else torch.tensor(step, dtype=torch.float32, device=device)
        for what, target in targets.items() if slot.count else ():
            whole = source.read(slot.name, what)
            if whole is None:
                raise ValueError(f"The checkpoint {source.folder} has no {what} of {slot.name!r}.")
            part = whole.reshape(-1)[slot.start : slot.start + slot.count]
            target.view(-1)[slot.offset : slot.offset + slot.count].copy_(part)
    for number, group in enumerate(optimizer.param_groups):
        group.update({name: value for name, value in source.hyperparameters(number).items() if name in group})


def _open(checkpoint: str | Path, groups: list[list[str]]) -> Any:
    """The checkpoint's reader: of ZeRO, or of a run without DeepSpeed, which had the same groups in the same order."""
    if saved_layout(checkpoint) is not None:
        return ZeroCheckpoint(checkpoint)
    return _PlainCheckpoint(Path(checkpoint), groups)


class _PlainCheckpoint:
    """A Trainer checkpoint without DeepSpeed, read as `ZeroCheckpoint` is."""

    counters: dict[str, int] = {}
    scheduler = loss_scaler = None

    def __init__(self, checkpoint: Path, groups: list[list[str]]):
        self.folder = checkpoint
        files = sorted(checkpoint.glob("*.safetensors"))
        if not files or not (checkpoint / OPTIMIZER_FILE).is_file():
            raise ValueError(f"{checkpoint} is no checkpoint to resume from: no weights, or no {OPTIMIZER_FILE}.")
        self._weights = {}
        for file in files:
            stored = safe_open(file, framework="pt")
            self._weights.update(dict.fromkeys(stored.keys(), stored))
        try:
            self._adam = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # zip, pickle and torch raise many kinds
            raise ValueError(f"Cannot read {checkpoint / OPTIMIZER_FILE}: {error}") from None
        counts = [len(group["params"]) for group in self._adam["param_groups"]]
        if counts != [len(group) for group in groups]:
            raise ValueError(
                f"The optimizer of {checkpoint} has groups of {counts} parameters, this run's of {[len(g) for g in groups]}."
            )
        self.groups = groups
        self._index = {
            name: index
            for group, saved in zip(groups, self._adam["param_groups"])
            for name, index in zip(group, saved["params"])
        }

    def hyperparameters(self, group: int) -> dict[str, Any]:
        return {key: value for key, value in self._adam["param_groups"][group].items() if key in HYPERPARAMETERS}

    def step(self, group: int) -> float:
        states = (self._adam["state"].get(index) for index in self._adam["param_groups"][group]["params"])
        return max((float(state["step"]) for state in states if state), default=0.0)

    def read(self, name: str, what: str = WEIGHT) -> torch.Tensor | None:
        if what == WEIGHT:
            return self._weights[name].get_tensor(name) if name in self._weights else None
        return self._adam["state"].get(self._index[name], {}).get(what)


__all__ = [
    "ZeroCheckpoint",
    "ZeroLayout",
    "check_safetensors",
    "consolidate",
    "initial_model",
    "load_resized",
    "load_unpartitioned",
    "saved_layout",
]
