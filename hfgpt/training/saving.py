"""Saving that loses nothing: whole or not there, checked against what was to be saved, and never the end of a run."""

import functools
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers.utils import logging

from . import checkpoints
from .checkpoints import INCOMPLETE_PREFIX, Fingerprint
from .processes import quiet_deepspeed
from .pushing import PushingTrainer


logger = logging.get_logger(__name__)

# Files of a model's weights, whole or in parts, and of an adapter's; what else only a model has.
WEIGHTS = (
    "model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*", "adapter_model.*", "adapter_config.json",
)  # fmt: skip
CONFIGS = ("config.json", "generation_config.json")

# What a full or failing disk makes of a save: torch and safetensors have their own words for it.
SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)


class SavingTrainer(PushingTrainer):
    """Trainer whose checkpoints and models appear whole and verified, or not at all.

    A save that fails is told and counted in `failed_saves`, and training goes on: the checkpoints before it are as they
    were. Where a process fails to write, the others learn of it when all have written.
    """

    failed_saves = 0
    keep_every_steps: int | None = None

    _root: Path | None = None
    _problems: list[str] = []

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:
            quiet_deepspeed()

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._root is None else str(self._root)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        target = Path(super()._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        root = target.with_name(INCOMPLETE_PREFIX + target.name)
        folder, push = root / target.name, self.args.push_to_hub
        with self._whole_or_nothing(root, f"Checkpoint {target.name}"):
            self._root, self.args.push_to_hub = root, False
            try:
                with self._noting_problems():
                    super()._save_checkpoint(model, trial)
                with self._noting_problems():
                    if self.args.should_save:
                        self.save_extra_state(folder)
            finally:
                self._root, self.args.push_to_hub = None, push
            if self._seal(folder) and self.args.should_save:
                with self._noting_problems():
                    checkpoints.publish(folder, target)
        if self.args.should_save:
            try:
                checkpoints.rotate(target.parent, self.args.save_total_limit, self.keep_every_steps)
            except OSError as error:
                logger.warning(f"A checkpoint could not be deleted: {error}")
        if push and target.exists():
            self._push_from_checkpoint(str(target))

    def save_extra_state(self, folder: Path) -> None:
        """Add files to a checkpoint before it is sealed; called by the process that saves."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, its tokenizer and the arguments; the files in place are replaced when all new ones are whole."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        target = Path(output_dir or self.args.output_dir)
        root = target / f"{INCOMPLETE_PREFIX}model"
        with self._whole_or_nothing(root, "The model"):
            with self._noting_problems():
                super().save_model(str(root), _internal_call=True)
            if self._seal(root) and self.args.should_save:
                with self._noting_problems():
                    names = [name for name in checkpoints.files_below(root) if name != checkpoints.MANIFEST_FILE]
                    for name in names:
                        (target / name).parent.mkdir(parents=True, exist_ok=True)
                        (root / name).replace(target / name)
                    remove_replaced(target, names)
        if self.args.push_to_hub and self.push_when_saved:
            if target == Path(self.args.output_dir):
                self.push_saved("Model save")
            else:  # what is pushed lies in the output folder
                self.push_to_hub("Model save")

    @contextmanager
    def _whole_or_nothing(self, root: Path, what: str) -> Iterator[None]:
        self._problems = []
        with self._noting_problems():
            if self.args.should_save:
                checkpoints.remove_incomplete(root.parent)
                root.mkdir(parents=True)
        self.accelerator.wait_for_everyone()  # nobody writes into a folder that is still being cleared
        yield
        problems = gather_object(self._problems)
        if self.args.should_save:
            shutil.rmtree(root, ignore_errors=True)
        if problems:
            self.failed_saves += 1
            if self.is_world_process_zero():
                logger.error(
                    f"{what} was not saved at step {self.state.global_step}: {problems[0]}. What was saved before is "
                    "as it was, and the run goes on."
                )
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _noting_problems(self) -> Iterator[None]:
        """Keep a failure to write for later: the other processes expect this one in the collectives to come."""
        try:
            yield
        except SAVE_ERRORS as error:
            self._problems.append(f"{type(error).__name__}: {error}")

    def _seal(self, folder: Path) -> bool:
        """Hash what all processes wrote, a share each, wait for the disk, and write the manifest; False: they could not."""
        problems = gather_object(self._problems)
        if problems:
            return False
        # Each machine knows its own files for certain; of the others' a shared file system may tell it later.
        own = checkpoints.files_below(folder) if self.args.local_process_index == 0 else []
        names = sorted(set(gather_object(own)))
        hashes: dict[str, str] = {}
        with self._noting_problems():
            mine = names[self.args.process_index :: self.args.world_size]
            hashes = checkpoints.hash_files(folder, mine, sync=True)
        parts = gather_object([hashes])
        if gather_object(self._problems):
            return False
        if self.args.should_save:
            with self._noting_problems():
                checkpoints.write_manifest(folder, {name: value for part in parts for name, value in part.items()})
        return not self._problems

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        expected = self._expected_weights(state_dict) if self.args.should_save else {}
        with self._noting_problems():
            with self._adapter_alone(), self._token_apart():
                super()._save(output_dir, state_dict)
            if self.args.should_save and expected:
                folder = Path(output_dir or self.args.output_dir)
                checkpoints.make_readable(folder)
                problem = checkpoints.weights_problem(folder, expected, checkpoints.tied_names(self._unwrapped()))
                if problem is not None:
                    self._problems.append(problem)

    @contextmanager
    def _token_apart(self) -> Iterator[None]:
        """Save the arguments (`training_args.bin`) without the token of the Hub."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            yield
        finally:
            self.args.hub_token = token

    @contextmanager
    def _adapter_alone(self) -> Iterator[None]:
        """Save an adapter of embeddings without these, which its base model has; peft would save them whole."""
        model = self._unwrapped()
        if not hasattr(model, "peft_config"):
            yield
            return
        model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
        try:
            yield
        finally:
            del model.save_pretrained

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied weight is not in the file, and is not missing.
        tied = checkpoints.tied_names(self._unwrapped())
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _expected_weights(self, state_dict: dict | None) -> dict[str, Fingerprint]:
        model = self._unwrapped()
        if hasattr(model, "peft_config"):
            from peft import get_peft_model_state_dict

            tensors = get_peft_model_state_dict(model, state_dict, save_embedding_layers=False)
        else:
            tensors = model.state_dict() if state_dict is None else state_dict
        return checkpoints.fingerprints(tensors)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            fsdp = [(transformers.trainer, name) for name in ("save_fsdp_model", "save_fsdp_optimizer")]
            with self._each_guarded(*fsdp), self._noting_problems():
                super()._save_optimizer_and_scheduler(output_dir)
            return
        engine: Any = self.model_wrapped
        files = engine.checkpoint_engine
        original_save = engine.save_checkpoint
        tag = f"global_step{engine.global_steps}"

        @functools.wraps(original_save)  # Trainer looks at its signature
        def save_checkpoint(folder: str, **kwargs: Any) -> None:
            original_save(folder, tag=tag, save_latest=False, **kwargs)

        with self._each_guarded((files, "save"), (files, "makedirs"), (engine, "_copy_recovery_script")):
            engine.save_checkpoint = save_checkpoint
            try:
                super()._save_optimizer_and_scheduler(output_dir)
            finally:
                del engine.save_checkpoint
        with self._noting_problems():
            if self.args.should_save:
                (Path(output_dir) / "latest").write_text(tag, encoding="utf-8")

    @contextmanager
    def _each_guarded(self, *places: tuple[Any, str]) -> Iterator[None]:
        """Note the problems of each of these functions, (owner, name), by itself: between them are collectives."""

        def guarded(write: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> None:
                with self._noting_problems():
                    write(*args, **kwargs)

            return call

        originals = [getattr(owner, name) for owner, name in places]
        for (owner, name), original in zip(places, originals):
            setattr(owner, name, guarded(original))
        try:
            yield
        finally:
            for (owner, name), original in zip(places, originals):
                setattr(owner, name, original)

    def _save_rng_state(self, output_dir: str) -> None:
        with self._noting_problems():
            super()._save_rng_state(output_dir)


def remove_replaced(folder: Path, names: Collection[str]) -> None:
    """Delete the weights of before where others were saved: an adapter would be loaded in place of a model beside it.

    Args:
        folder: Of the model or adapter.
        names: Files of the new one.
    """
    new = {name for name in names if any(fnmatch(name, pattern) for pattern in WEIGHTS)}
    if not new:
        return
    patterns = (*WEIGHTS, *CONFIGS) if "adapter_config.json" in new else WEIGHTS
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.name not in names:
                file.unlink()
