"""The model's own code, pushed beside its weights: it then loads with `trust_remote_code=True` where hfgpt is not installed."""

from importlib.resources import files
from pathlib import Path
from typing import Any


# In one folder, with relative imports, and torch and transformers alone: what transformers' loader of code asks for.
CODE_FILES = (
    "configuration_gpt3.py", "modeling_gpt3.py", "banded_attention.py", "cache.py", "loss.py", "presets.py",
)  # fmt: skip
AUTO_MAP = {
    "AutoConfig": "configuration_gpt3.GPT3Config",
    "AutoModel": "modeling_gpt3.GPT3Model",
    "AutoModelForCausalLM": "modeling_gpt3.GPT3ForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gpt3.GPT3ForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_gpt3.GPT3ForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_gpt3.GPT3ForQuestionAnswering",
}


def with_auto_map(config: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` that says where its classes are.

    Raises:
        ValueError: It is of another architecture.
    """
    if config.get("model_type") != "gpt3":
        raise ValueError(
            f"`--with-code` brings the code of gpt3, and this model is a {config.get('model_type')}: leave it out."
        )
    return {**config, "auto_map": dict(AUTO_MAP)}


def write_code(folder: Path) -> tuple[str, ...]:
    """Copy the code of gpt3 into a folder.

    Returns:
        The files' names.
    """
    # Found by its folder, so that neither torch nor transformers is imported.
    source = files("hfgpt") / "model"
    for name in CODE_FILES:
        (folder / name).write_bytes((source / name).read_bytes())
    return CODE_FILES
