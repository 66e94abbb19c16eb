"""LoRA adapters: put on a model, loaded with their base model, and merged into it.

peft does the work. What is here on top of it: targets that need not be named, the new head of a classifier or question
answerer, a quantized base (QLoRA), a merge that is proved before its folder appears, and an adapter that is empty or of
another base refused by name.
"""

import gc
import os
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..hub.files import ADAPTER_CONFIG_FILE, RUN_FILES
from ..model.convert import DTYPES, Conversion, check_output, convert, write_folder
from ..tasks import ChoiceTask
from ..tasks.saved import TASK_FILE, saved_task
from .arguments import FinetuneConfig


logger = logging.get_logger(__name__)

# peft's kind of task for each head of ours, and the model class of each kind.
TASK_TYPES = {"lm": "CAUSAL_LM", "classification": "SEQ_CLS", "span": "QUESTION_ANS"}
MODEL_CLASSES: dict[str, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}
# Layers that stay as they are in a model of 4 bits: output layers, and the new heads, which are trained whole.
UNQUANTIZED = ["lm_head", "embed_out", "score", "classifier", "qa_outputs"]
# Beside weights and tokenizer: the task, and what a model card is written from.
COMING_ALONG = (TASK_FILE, *RUN_FILES)
LARGE_SHARE = 0.02
MERGE_TOLERANCE = 1e-4  # of logits in float32, over the largest of them where that is above 1
PROBE_TOKENS = 32
# Names that peft knows tied embeddings by.
TIED_LAYERS = {"embed_tokens", "lm_head"}


def add_adapter(model: PreTrainedModel, config: FinetuneConfig, head: str = "lm") -> Any:
    """Put a new LoRA adapter on a model: its matrices train, everything else is frozen.

    Args:
        model: Any model of transformers; quantized or not.
        config: Its `lora_*` fields, `use_dora` and `use_rslora`. Where `lora_target_modules` is None, the layers are
            those that peft's table names for the architecture, else all linear ones but the output layer.
        head: "lm", or "classification" or "span", whose new layer trains as well and is saved with the adapter.

    Returns:
        A `PeftModel`.

    Raises:
        ValueError: A layer that the model does not have.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from peft.tuners.lora import LoraModel

    heads = [] if head == "lm" else _head_names(model)
    targets: Any = config.lora_target_modules
    if targets is None:
        # `get_model_config` is also what makes peft know gpt3.
        known = LoraModel.get_model_config(model)["model_type"] in LoraModel.target_module_mapping
        targets = None if known else ["all-linear"]
    modules_to_save = sorted({*heads, *(config.lora_modules_to_save or [])})
    _check_layers(model, [name for name in targets or () if name != "all-linear"], "lora_target_modules")
    _check_layers(model, modules_to_save, "lora_modules_to_save")
    if targets and "all-linear" in targets and len(targets) > 1:  # which peft takes alone
        targets = sorted({*targets, *_linear_layers(model)} - {"all-linear"})
    _check_tied(model, targets or ())
    tied = bool(getattr(model.config, "tie_word_embeddings", False)) and head == "lm"
    lora = LoraConfig(
        task_type=TASK_TYPES[head],
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        modules_to_save=modules_to_save or None,
        ensure_weight_tying=tied and bool(TIED_LAYERS & {*(targets or ()), *modules_to_save}),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores (in, out)
    )
    if getattr(model, "is_loaded_in_4bit", False):
        # Activation checkpointing is the recipe's to ask for.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with _quiet_peft():
        peft_model = get_peft_model(model, lora)
    # A relative folder would be looked for below whichever folder the adapter is loaded from.
    base = Path(config.model_name_or_path)
    if base.is_dir():
        lora.base_model_name_or_path = str(base.resolve())
    share = trainable_share(peft_model)
    if share > LARGE_SHARE:
        logger.warning_once(
            f"The adapter is {share:.1%} of the model's weights: of a model this small more than the usual "
            f"{LARGE_SHARE:.0%}. Lower `lora_r` ({config.lora_r}) or name fewer `lora_target_modules`, if that matters."
        )
    return peft_model


def trainable_share(peft_model: Any) -> float:
    """Weights that train, as a share of all; those of a quantized or partitioned model count in full."""
    trained, total = peft_model.get_nb_trainable_parameters()
    return trained / total


def quantization_config(compute_dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    """How `load_in_4bit` loads a base model: 4-bit NormalFloat, with the scales quantized again.

    Args:
        compute_dtype: Of the matrix products: bfloat16 where the device computes in it natively.

    Raises:
        ValueError: bitsandbytes is not installed.

    Source: Dettmers et al. 2023, QLoRA, section 3.
    """
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ValueError(
            "`load_in_4bit` needs bitsandbytes, which is not installed: pip install 'hfgpt[qlora]', or leave it out "
            "(LoRA without it trains the same layers over a base in 16 or 32 bits)."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=UNQUANTIZED,  # its name for 4 bits, too
    )


def load_adapter(folder: str | Path, dtype: str | torch.dtype = "auto") -> Any:
    """An adapter on its base model, with the head that it was trained with.

    Args:
        folder: Folder or Hub name of the adapter.
        dtype: Of the base model. Default: as stored.

    Returns:
        A `PeftModel` on the CPU.

    Raises:
        ValueError: No adapter, its base model is not there or is another one, or its weights are empty.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    folder = fetch_adapter(folder)
    try:
        adapter = PeftConfig.from_pretrained(folder)
        weights = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"The adapter {folder} cannot be read: {error}") from None
    _check_weights(weights, folder)
    base = find_base(folder, adapter.base_model_name_or_path)
    task_type = str(getattr(adapter.task_type, "value", adapter.task_type) or "CAUSAL_LM")
    if task_type not in MODEL_CLASSES:
        raise ValueError(
            f"The adapter {folder} is for the task {task_type!r}; adapters for {', '.join(MODEL_CLASSES)} are loaded."
        )
    config = AutoConfig.from_pretrained(base, revision=adapter.revision)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"The base model {base} of {folder} is stored quantized: give the adapter the unquantized one "
            f"(`base_model_name_or_path` in {ADAPTER_CONFIG_FILE})."
        )
    if task_type in ("SEQ_CLS", "TOKEN_CLS"):
        _set_labels(config, folder, weights)
    with _quiet_peft():
        model = load_base(MODEL_CLASSES[task_type], base, config=config, revision=adapter.revision, dtype=dtype)
        try:
            peft_model = PeftModel.from_pretrained(model, folder)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"The adapter {folder} does not fit its base model {base}: {error}") from None
    missing = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False)) - set(weights)
    unknown = set(weights) - set(get_peft_model_state_dict(peft_model, save_embedding_layers=True))
    if missing or unknown:
        what = (
            f"lacks {sorted(missing)[0]}" if missing else f"has {sorted(unknown)[0]}, which the model has no place for"
        )
        raise ValueError(f"The adapter {folder} does not fit its base model {base}: it {what}.")
    return peft_model.eval()


def load_base(model_class: Any, name: str, **options: Any) -> Any:
    """`model_class.from_pretrained(name, **options)` whose new head alone may be random, which is then not news.

    Raises:
        ValueError: Weights of the decoder itself are missing: transformers would make them up and go on.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = model_class.from_pretrained(name, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    heads = tuple(f"{head}." for head in _head_names(model))
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(heads))
    if missing:
        raise ValueError(
            f"{name} cannot be loaded as {type(model).__name__}: there are no weights for {missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}. Use another head, or another model."
        )
    return model


def fetch_adapter(source: str | Path) -> Path:
    """The folder of an adapter, downloaded where `source` is a Hub name.

    Raises:
        ValueError: There is none.
    """
    folder = Path(source)
    if not folder.exists():
        try:
            folder = Path(snapshot_download(str(source), ignore_patterns=["*/*"]))
        except (OSError, ValueError):
            raise ValueError(
                f"No adapter {str(source)!r}: no such folder, and the Hub has none or is not reachable."
            ) from None
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        raise ValueError(f"{source} is no adapter: it has no {ADAPTER_CONFIG_FILE}.")
    return folder.resolve()


def find_base(folder: Path, base: str | None) -> str:
    """Where an adapter's base model is: under its own name, or beside the adapter where both were moved together.

    Raises:
        ValueError: It is not there.
    """
    if not base:
        raise ValueError(f"The adapter {folder} names no base model: set `base_model_name_or_path` in its config.")
    sibling = folder.resolve().parent / Path(base).name
    if not Path(base).is_dir() and sibling.is_dir():
        return str(sibling)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(
            f"The adapter {folder} needs its base model {base}, which is not there: put it beside the adapter, or "
            f"change `base_model_name_or_path` in {folder / ADAPTER_CONFIG_FILE}."
        )
    return base


def merge(
    adapter: str | Path,
    output: str | Path,
    to: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_size: str | None = None,
) -> Conversion:
    """Merge an adapter into its base model, of any architecture, and write the model that comes out.

    Works on the CPU, in float32. The folder appears only when it is whole: no weight is empty or not finite, and the
    logits of the model as written equal those of base and adapter (to 1e-4, before rounding to a smaller `dtype`).
    Tokenizer, generation settings, `task.json` and what the run left for a model card come along. Memory: the model in float32.

    Args:
        adapter: Folder or Hub name. An adapter trained over a quantized base is merged into the base as it is stored.
        output: Folder to write.
        to: Model type to convert the result to, as for `hfgpt.model.convert.convert`. Default: none.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`. Default: that of the base model's files.
        overwrite: Replace `output`, with everything in it, if it holds a model.
        max_shard_size: Largest file of weights, such as `"5GB"`. Default: that of `save_pretrained`.

    Raises:
        ValueError: No adapter or base, an adapter that is empty or cannot be merged, or a merge that is not the same
            model.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    folder, output = fetch_adapter(adapter), Path(output).resolve()
    check_output(output, overwrite)
    if to is not None:
        return _merge_and_convert(folder, output, to, dtype, overwrite, max_shard_size)

    peft_model = load_adapter(folder)
    settings = peft_model.active_peft_config
    kind = str(getattr(settings.peft_type, "value", settings.peft_type))
    base = find_base(folder, settings.base_model_name_or_path)
    for source in (folder, Path(base).resolve()):
        if source.is_relative_to(output):
            raise ValueError(f"The output {output} is or holds {source}: choose another folder.")
    if settings.is_prompt_learning:
        raise ValueError(f"{folder} is of the kind {kind}, which adds to the input and cannot be merged into weights.")
    stored = peft_model.dtype
    peft_model.float()
    wanted = _logits(peft_model)
    with peft_model.disable_adapter():
        if torch.equal(_logits(peft_model), wanted):
            raise ValueError(f"The adapter {folder} is empty: the model with it is the model without it.")
    tied = bool(getattr(peft_model.config, "tie_word_embeddings", False))
    _untie(peft_model)
    with _quiet_peft():
        try:
            model = peft_model.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise ValueError(f"The adapter {folder} ({kind}) cannot be merged: {error}") from None
    del peft_model
    notes = [f"{_describe(settings, kind)} merged into {base}"]
    if tied and not _tie_again(model):
        notes.append("`tie_word_embeddings` is now false: the adapter changed only one of the tied layers")
    difference = _difference(model, wanted, f"The merged {folder}")
    _check_finite(model, folder)
    target = DTYPES[dtype] if dtype else stored
    model.to(target)
    if target != torch.float32:
        _check_finite(model, folder)
    tokenizer = _find_tokenizer(folder, base)
    report = {
        "source_type": model.config.model_type,
        "target_type": model.config.model_type,
        "source_class": type(model).__name__,
        "target_class": type(model).__name__,
        "tensors": len(dict(model.named_parameters())),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }

    def write(staging: Path) -> None:
        nonlocal model, difference
        shards = {"max_shard_size": max_shard_size} if max_shard_size else {}
        model.save_pretrained(staging, **shards)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        for name in COMING_ALONG:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, staging / name)
        loader = type(model)
        del model  # a large one does not fit twice
        gc.collect()
        saved = loader.from_pretrained(staging, dtype=torch.float32)
        if target == torch.float32:
            difference = max(difference, _difference(saved, wanted, f"The saved merge of {folder}"))
        else:
            rounding = (_logits(saved) - wanted).abs().max().item()
            notes.append(
                f"rounded to {str(target).removeprefix('torch.')}, which moves logits by up to {rounding:.2g}"
            )

    write_folder(output, write)
    notes.append(f"logits equal those of base and adapter to {max(difference, 1e-9):.0e}")
    return Conversion(
        output=output,
        dtype=str(target).removeprefix("torch."),
        tokenizer=tokenizer is not None,
        notes=tuple(notes),
        **report,
    )


def _merge_and_convert(
    folder: Path, output: Path, to: str, dtype: str | None, overwrite: bool, max_shard_size: str | None
) -> Conversion:
    whole = output.parent / f".{output.name}.merged-{os.getpid()}"
    try:
        merged = merge(folder, whole, dtype=dtype)
        done = convert(whole, output, to, dtype=dtype, overwrite=overwrite, max_shard_size=max_shard_size)
        for name in COMING_ALONG:
            if (whole / name).is_file():
                shutil.copyfile(whole / name, output / name)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return Conversion(**{**vars(done), "notes": (*merged.notes, *done.notes)})


# Parts of a model


def _head_names(model: PreTrainedModel) -> list[str]:
    """What a model has beside its decoder: the classifier, or the scores of spans."""
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]


def _check_layers(model: PreTrainedModel, names: list[str], field: str) -> None:
    """Raise for a name that no layer has; peft would pass over it, if another one is found."""
    layers = [name for name, _ in model.named_modules()]
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            linear = {
                layer.rsplit(".", 1)[-1]
                for layer, module in model.named_modules()
                if isinstance(module, (nn.Linear, nn.Embedding, Conv1D))
            }
            raise ValueError(
                f"`{field}`: the model has no layer {name!r}; its layers with matrices are {', '.join(sorted(linear))}."
            )


def _linear_layers(model: PreTrainedModel) -> set[str]:
    """Last names of the linear layers of a model's decoder."""
    decoder = getattr(model, model.base_model_prefix, model)
    layers = decoder.named_modules()
    return {name.rsplit(".", 1)[-1] for name, module in layers if isinstance(module, (nn.Linear, Conv1D))}


def _check_tied(model: PreTrainedModel, targets: Collection[str]) -> None:
    """Raise for an adapter on an output layer whose tie peft does not know: it could not be loaded again."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if inputs is None or outputs is None or inputs.weight is not outputs.weight:
        return
    names = {id(module): name for name, module in model.named_modules()}
    embedding, output = names[id(inputs)], names[id(outputs)]
    aimed = any(output == target or output.endswith(f".{target}") for target in targets)
    if aimed and not {embedding.rsplit(".", 1)[-1], output.rsplit(".", 1)[-1]} <= TIED_LAYERS:
        raise ValueError(
            f"`lora_target_modules`: {output} is tied to {embedding}, and peft cannot load an adapter of it in a "
            f"{model.config.model_type} model: leave it out, or train it whole (`lora_modules_to_save: [{output}]`)."
        )


def _set_labels(config: Any, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Size and names of a classifier, which an adapter's own config does not have."""
    # The head is what was saved whole, outside the decoder; its first dimension is the number of labels.
    heads = [
        tensor
        for name, tensor in weights.items()
        if name.endswith((".score.weight", ".classifier.weight", ".out_proj.weight"))
    ]
    record = saved_task(folder)
    if record is not None and isinstance(record.task, ChoiceTask) and record.task.labels:
        config.id2label = dict(enumerate(record.task.labels))
        config.label2id = {label: index for index, label in config.id2label.items()}
    elif heads:
        config.num_labels = heads[-1].shape[0]
    if record is not None and record.classifier_pooling != "last":
        config.classifier_pooling = record.classifier_pooling
    if config.pad_token_id is None:
        # The classifier reads the last token that is not padding.
        tokenizer = _find_tokenizer(folder, None)
        config.pad_token_id = tokenizer.pad_token_id if tokenizer is not None else None


def _untie(peft_model: Any) -> None:
    """Give the output layer weights of its own: a merge into one of two tied layers would change both."""
    model = peft_model.get_base_model()
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if inputs is None or outputs is None:
        return
    for module in outputs.modules():
        weight = module._parameters.get("weight")
        if weight is not None and any(weight is other for other in inputs.parameters()):
            module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _tie_again(model: Any) -> bool:
    """Tie the embeddings again, or say in the config that they are tied no longer."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or torch.equal(inputs.weight, outputs.weight):
        model.config.tie_word_embeddings = True
        if outputs is not None:
            outputs.weight = inputs.weight
        return True
    model.config.tie_word_embeddings = False
    return False


# Checks


def _check_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Raise for weights that no training can have left: empty, not finite, or B matrices that are all zero."""
    hint = "it was saved wrongly (under ZeRO-3 an adapter has to be gathered first), or never trained. Train it again."
    if not weights:
        raise ValueError(f"The adapter {folder} is empty, without a tensor: {hint}")
    for name, tensor in weights.items():
        if tensor.numel() == 0:
            raise ValueError(f"The adapter {folder} is empty: {name} has the shape {tuple(tensor.shape)}; {hint}")
        if not tensor.isfinite().all():
            raise ValueError(f"The adapter {folder} is broken: {name} has values that are not finite. Train it again.")
    updates = [tensor for name, tensor in weights.items() if "lora_B" in name or "lora_embedding_B" in name]
    if updates and not any(tensor.any() for tensor in updates):
        raise ValueError(f"The adapter {folder} is empty: all its `lora_B` are zero; {hint}")


def _check_finite(model: Any, folder: Path) -> None:
    for name, tensor in model.named_parameters():
        if tensor.numel() == 0 or not tensor.isfinite().all():
            kind = str(tensor.dtype).removeprefix("torch.")
            what = "is empty" if tensor.numel() == 0 else f"has values that are not finite in {kind}"
            raise ValueError(f"The merged model of {folder} cannot be saved: {name} {what}. Pass another `dtype`.")


@torch.inference_mode()
def _logits(model: Any) -> torch.Tensor:
    """What the model makes of a fixed text of random tokens, by its own head, in float32."""
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, getattr(model.config, "max_position_embeddings", None) or PROBE_TOKENS)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    output = model.eval()(input_ids=ids)
    if "logits" in output:
        return output.logits.float()
    return torch.stack([output.start_logits, output.end_logits]).float()


def _difference(model: Any, wanted: torch.Tensor, what: str) -> float:
    """Largest difference of the logits to those wanted, over the largest of them where that is above 1."""
    difference = ((_logits(model) - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)).item()
    if not difference <= MERGE_TOLERANCE:
        raise ValueError(
            f"{what} is not the same model: its logits differ from those of base and adapter by {difference:.2g}, "
            f"where at most {MERGE_TOLERANCE:.0e} is rounding. Nothing was written."
        )
    return difference


def _describe(settings: Any, kind: str) -> str:
    variants = {"use_dora": "DoRA", "use_rslora": "rsLoRA"}
    names = [name for field, name in variants.items() if getattr(settings, field, False)]
    return f"{kind}{f' ({chr(44).join(names)})' if names else ''} adapter"


def _find_tokenizer(folder: Path, base: str | None) -> Any:
    """The adapter's tokenizer, else the base model's; None where neither has one."""
    for place in (folder, base):
        if place is not None:
            try:
                return AutoTokenizer.from_pretrained(place)
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return None


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft asks transformers by a name that is going away.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # What it says about tied layers is taken care of here.
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings", category=UserWarning)
        warnings.filterwarnings(
            "ignore", message="Input and output embeddings are no longer tied", category=UserWarning
        )
        yield
