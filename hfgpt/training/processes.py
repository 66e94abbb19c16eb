"""Several training processes on a machine without accelerators: what only they need, in one place; and a clean log.

Launchers, accelerate and DeepSpeed take several processes for several GPUs. With what is here the same files of
recipes/accelerate run on processors as well, over gloo, for tests and for trying a launch out.
"""

import atexit
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env


def is_cpu_process() -> bool:
    """Whether this is a process of a launcher, torchrun or `accelerate launch`, on a machine without accelerators."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()


def prepare_cpu_processes(args: Any) -> None:
    """Make `args`, TrainingArguments whose `__post_init__` has not run yet, and the libraries ready for processors.

    Nothing is done where there are accelerators, or no launcher.
    """
    if not is_cpu_process():
        return
    zero, fsdp = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"), parse_flag_from_env("ACCELERATE_USE_FSDP")
    if args.ddp_backend is None:
        args.ddp_backend = "gloo"
    if zero or fsdp:
        # Both are for GPUs to TrainingArguments, and `use_cpu` would turn them off without a word; but then bfloat16,
        # which processors compute as well, is refused.
        from transformers import training_args

        training_args.is_torch_bf16_gpu_available = lambda: True
        args.dataloader_pin_memory = False
    if zero and importlib.util.find_spec("deepspeed") is not None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed.ops

        # Compiled at the first use, for a minute; without it the same numbers come over gloo.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    elif fsdp:
        _let_accelerate_shard_on_cpu()


def quiet_deepspeed() -> None:
    """DeepSpeed calls collectives by names that newer PyTorch has others for, which is said at every call."""
    message = r"`torch\.distributed\.\w+` is deprecated"
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)


def _let_accelerate_shard_on_cpu() -> None:
    """accelerate shards with FSDP only where processes have devices of their own; elsewhere it would run DDP."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


@contextmanager
def exit_cleanly() -> Iterator[None]:
    """Around a script's work: end the process for good where gloo's threads could abort the interpreter at its exit.

    The exit status is what it would have been.
    """
    if not is_cpu_process():
        yield
        return
    status: Any = 0
    try:
        yield
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)
