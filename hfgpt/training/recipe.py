"""What makes one fine-tuning run another's, kept in its checkpoints: none but the same run goes on from them."""

import dataclasses
import glob
import hashlib
import json
from pathlib import Path
from typing import Any

from ..manifest import weights_state
from ..tasks.saved import TaskRecord
from .arguments import FinetuneConfig, FinetuningArguments
from .task_rows import Rows


RECIPE_FILE = "recipe.json"
# What of a recipe the weights do not depend on.
WITHOUT_EFFECT = (
    "task_overrides", "attn_implementation", "compare_random_start", "max_bad_rows", "test_path", "test_split",
    "max_test_rows", "sample_prompts", "sample_tokens",
)  # fmt: skip
# What of the arguments they do depend on, beside the seeds and what says how large a batch is.
TRAINING_FIELDS = (
    "learning_rate", "num_train_epochs", "max_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "optim", "muon", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "label_smoothing_factor", "train_sampling_strategy",
)  # fmt: skip


def recipe_of(
    config: FinetuneConfig, args: FinetuningArguments, record: TaskRecord, rows: Rows | None = None
) -> dict[str, Any]:
    """All that the weights of a run depend on, by name.

    Args:
        config: The recipe.
        args: How to train, with a learning rate.
        record: The task as it is trained.
        rows: Of which those for training are kept as a hash: a file may have been replaced.
    """
    found = {name: value for name, value in vars(config).items() if name not in WITHOUT_EFFECT}
    if Path(config.model_name_or_path).is_dir():
        # Where it lies differs between machines.
        found["model_name_or_path"] = weights_state(Path(config.model_name_or_path))
    found.update({name: getattr(args, name) for name in (*TRAINING_FIELDS, "seed", "data_seed")})
    # In all processes, of which a run may go on with others.
    found["batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    found["task"] = dataclasses.asdict(record)
    if rows is not None:
        state = hashlib.sha256()
        for encoded in rows.train.encoded:
            state.update(repr((encoded.prompt_ids, encoded.completion_ids)).encode())
        found["training_rows"] = state.hexdigest()[:16]
    return json.loads(json.dumps(found, default=lambda value: str(getattr(value, "value", value))))


def save_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Write it into a checkpoint."""
    (folder / RECIPE_FILE).write_text(json.dumps(recipe, ensure_ascii=False, indent=1), encoding="utf-8")


def check_recipe(checkpoint: Path, recipe: dict[str, Any]) -> None:
    """Refuse to go on from another run's checkpoint, also where its weights would fit.

    Raises:
        ValueError: Something differs, or the checkpoint does not say of which run it is.
    """
    path = checkpoint / RECIPE_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in recipe.keys() | saved.keys() if saved.get(name) != recipe.get(name)]
    except (OSError, ValueError, AttributeError):
        raise ValueError(
            f"{checkpoint} does not say of which run it is ({RECIPE_FILE} is missing or damaged): give another `output_dir`."
        ) from None
    if changed:
        was = ", ".join(_change(name, saved.get(name), recipe.get(name)) for name in sorted(changed))
        raise ValueError(
            f"{checkpoint} is of another run: {was}. Go back to that recipe, or give another `output_dir`."
        )


def _change(name: str, before: Any, now: Any) -> str:
    if name == "model_name_or_path" and str(now).startswith("weights "):
        return "the weights of `model_name_or_path` are others"
    if name == "training_rows":
        return "the training rows (`train_path`) are others"
    if isinstance(before, dict) or isinstance(now, dict):
        return f"`{name}` has changed"
    return f"`{name}` was {before} and is {now}"


def file_states(*places: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that stand at local paths, globs, or inside local archives."""
    found = []
    for place in places:
        for name in sorted(glob.glob((place or "").rpartition("::")[2].removeprefix("file://"))):
            if Path(name).is_file():
                stat = Path(name).stat()
                found.append((name, stat.st_size, stat.st_mtime_ns))
    return found
