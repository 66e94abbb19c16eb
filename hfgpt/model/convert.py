"""Checkpoints between GPT-3 and the two types it grew out of and into: GPT-2 -> GPT-3 -> GPT-2, and GPT-Neo -> GPT-3.

A conversion is exact or refused. What it does to each tensor:

| GPT-3 | GPT-2 | GPT-Neo |
|-|-|-|
| `embed_tokens`, `embed_positions`, `norm` | `wte`, `wpe`, `ln_f` | the same as GPT-2 |
| `layers.N.input_layernorm`, `post_attention_layernorm` | `h.N.ln_1`, `ln_2` | the same |
| `self_attn.q_proj`, `k_proj`, `v_proj` | `attn.c_attn`: the three side by side, stored (in, out) | `attn.attention.q_proj`, ... without bias |
| `self_attn.o_proj` | `attn.c_proj`, stored (in, out) | `attn.attention.out_proj` |
| `mlp.up_proj`, `down_proj` | `mlp.c_fc`, `c_proj`, stored (in, out) | `mlp.c_fc`, `c_proj` |
| `lm_head`, `score`, `qa_outputs` | the same; `classifier` for tokens | the same as GPT-2 |

GPT-3 divides attention scores by the square root of the head's width. GPT-Neo does not divide, and GPT-2 can be told
to divide otherwise; the difference is folded into the queries. Where that factor is a power of two (GPT-Neo 125M: 8) the
result is exact; else the queries are rounded once to the precision of the result.

`convert_config` and `convert_state_dict` work on objects in memory, `convert` on folders.
"""

import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
)
from transformers.activations import ACT2FN

from .configuration_gpt3 import GPT3Config
from .modeling_gpt3 import (
    GPT3ForCausalLM,
    GPT3ForQuestionAnswering,
    GPT3ForSequenceClassification,
    GPT3ForTokenClassification,
    GPT3Model,
)


CONVERSIONS = (("gpt2", "gpt3"), ("gpt_neo", "gpt3"), ("gpt3", "gpt2"))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CONFIGS: dict[str, Any] = {"gpt2": GPT2Config, "gpt_neo": GPTNeoConfig, "gpt3": GPT3Config}
CAUSAL_LM, BASE, TOKENS = "causal language model", "base model", "token classifier"
MODELS: dict[str, dict[str, Any]] = {
    CAUSAL_LM: {"gpt2": GPT2LMHeadModel, "gpt_neo": GPTNeoForCausalLM, "gpt3": GPT3ForCausalLM},
    BASE: {"gpt2": GPT2Model, "gpt_neo": GPTNeoModel, "gpt3": GPT3Model},
    TOKENS: {
        "gpt2": GPT2ForTokenClassification,
        "gpt_neo": GPTNeoForTokenClassification,
        "gpt3": GPT3ForTokenClassification,
    },
    "sequence classifier": {
        "gpt2": GPT2ForSequenceClassification,
        "gpt_neo": GPTNeoForSequenceClassification,
        "gpt3": GPT3ForSequenceClassification,
    },
    "question answerer": {
        "gpt2": GPT2ForQuestionAnswering,
        "gpt_neo": GPTNeoForQuestionAnswering,
        "gpt3": GPT3ForQuestionAnswering,
    },
}
# Of each kind: the names of its head's tensors in GPT-3 and in the other two.
HEADS: dict[str, dict[str, str]] = {
    CAUSAL_LM: {"lm_head.weight": "lm_head.weight"},
    BASE: {},
    TOKENS: {"score.weight": "classifier.weight", "score.bias": "classifier.bias"},
    "sequence classifier": {"score.weight": "score.weight"},
    "question answerer": {name: name for name in ("qa_outputs.weight", "qa_outputs.bias")},
}

# GPT-3's names and the others', outside the attention. GPT-2 stores those of MATRICES as (in, out).
BODY = {"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f"}
LAYER = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
MATRICES = {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
# Causal masks that older versions of transformers stored with the weights.
BUFFERS = ("attn.bias", "attn.masked_bias", "attn.attention.bias", "attn.attention.masked_bias")

# One function under two names: GPT-2's name is what its readers look for, GPT-3's runs as one kernel.
ACTIVATION_TO_GPT3 = {"gelu_new": "gelu_pytorch_tanh"}
ACTIVATION_TO_GPT2 = {"gelu_pytorch_tanh": "gelu_new"}
# These have weights of their own, which no GPT-3 or GPT-2 checkpoint has a name for.
LEARNED_ACTIVATIONS = ("prelu", "xielu")

SAME_FIELDS = (
    "vocab_size",
    "initializer_range",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "id2label",
    "label2id",
    "problem_type",
)
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    TOKENIZER_CONFIG_FILE,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
GENERATION_CONFIG_FILE = "generation_config.json"
# In the order in which transformers looks for weights: the file, or the index of its parts.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        output: Folder that was written.
        source_type, target_type: Model types.
        source_class, target_class: Model classes.
        tensors, parameters: Written; a tied output layer is not written twice.
        dtype: Of the weights, as config.json names it.
        tokenizer: Whether the source had one, which then came along.
        notes: What else a user may want to know.
    """

    output: Path
    source_type: str
    target_type: str
    source_class: str
    target_class: str
    tensors: int
    parameters: int
    dtype: str
    tokenizer: bool
    notes: tuple[str, ...]


def convert(
    source: str | Path,
    output: str | Path,
    to: str,
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_size: str | None = None,
) -> Conversion:
    """Convert a checkpoint to another model type; tokenizer and generation settings come along.

    The folder appears only when it is whole. Memory: the source, which is mapped from its files, and the result.

    Args:
        source: Folder or Hub name of a gpt2, gpt_neo or gpt3 model; its type is read from its config.
        output: Folder to write.
        to: `"gpt3"` or `"gpt2"`.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`. Default: as stored, tensor by tensor.
        overwrite: Replace `output`, with everything in it, if it holds a model.
        max_shard_size: Largest file of weights, such as `"5GB"`. Default: that of `save_pretrained`.

    Raises:
        ValueError: No such model, no exact conversion (the message names the field or the tensor), or a folder with
            something else in it.
    """
    if to not in {target for _, target in CONVERSIONS}:
        raise ValueError(f"`to` must be 'gpt3' or 'gpt2', got {to!r}.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    output = Path(output).resolve()
    check_output(output, overwrite)

    # The small files first: what cannot be converted is refused before its weights are downloaded.
    folder = _fetch(source, ["*.json", "*.jinja", *TOKENIZER_FILES])
    if folder.is_relative_to(output):
        raise ValueError(f"The output {output} is or holds the source: choose another folder.")
    config = _read_config(folder, source)
    source_type = config.model_type
    target_config = convert_config(config, to)
    weights = _read_weights(folder, source)
    kind = _kind_of(config, weights)
    source_class, target_class = MODELS[kind][source_type], MODELS[kind][to]
    state_dict = convert_state_dict(weights, config, to, dtype=DTYPES[dtype] if dtype else None)

    with torch.device("meta"):
        model = target_class(target_config)
    _check_shapes(state_dict, model, source)
    dtypes = {tensor.dtype for tensor in state_dict.values()}
    widest = reduce(torch.promote_types, dtypes)
    model.to(widest)  # what save_pretrained names in config.json
    report = Conversion(
        output=output,
        source_type=source_type,
        target_type=to,
        source_class=source_class.__name__,
        target_class=target_class.__name__,
        tensors=len(state_dict),
        parameters=sum(tensor.numel() for tensor in state_dict.values()),
        dtype=str(widest).removeprefix("torch."),
        tokenizer=any((folder / name).is_file() for name in VOCABULARY_FILES),
        notes=tuple(_notes(config, target_config, dtypes)),
    )

    def write(staging: Path) -> None:
        shards = {"max_shard_size": max_shard_size} if max_shard_size else {}
        model.save_pretrained(staging, state_dict=state_dict, **shards)
        if (folder / GENERATION_CONFIG_FILE).is_file():
            shutil.copyfile(folder / GENERATION_CONFIG_FILE, staging / GENERATION_CONFIG_FILE)
        if report.tokenizer:
            copy_tokenizer(folder, staging, to)

    write_folder(output, write)
    return report


def convert_config(config: Any, to: str) -> Any:
    """The configuration of the same model as another type.

    Raises:
        ValueError: The types do not convert, or a field says something that `to` cannot compute.
    """
    source_type = getattr(config, "model_type", None)
    if (source_type, to) not in CONVERSIONS:
        if source_type == to:
            raise ValueError(f"The model is of type {to!r} already.")
        known = ", ".join(f"{a} -> {b}" for a, b in CONVERSIONS)
        raise ValueError(f"Cannot convert a model of type {source_type!r} to {to!r}; what can be converted: {known}.")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("`quantization_config`: the weights are quantized; convert the model before quantizing it.")
    same = {name: getattr(config, name, None) for name in SAME_FIELDS}
    try:
        if to == "gpt2":
            return _gpt3_to_gpt2_config(config, same)
        return GPT3Config(**same, **(_gpt2_fields(config) if source_type == "gpt2" else _gpt_neo_fields(config)))
    except StrictDataclassError as error:
        raise ValueError(f"The config cannot be converted: {error}") from None


def _gpt2_fields(config: Any) -> dict[str, Any]:
    if config.add_cross_attention:
        raise ValueError("`add_cross_attention`: GPT-3 is a decoder alone and has no cross-attention.")
    classifier_dropout = getattr(config, "classifier_dropout", None)
    if classifier_dropout is None:
        classifier_dropout = getattr(config, "hidden_dropout", None)  # GPT-2 looks there next
    return {
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "intermediate_size": config.n_inner,  # None is 4 x hidden_size in both
        "hidden_act": _activation(config.activation_function, ACTIVATION_TO_GPT3, "activation_function"),
        "max_position_embeddings": config.n_positions,
        "layer_types": ["full_attention"] * config.n_layer,
        "sliding_window": None,
        "layer_norm_eps": config.layer_norm_epsilon,
        "attention_dropout": config.attn_pdrop,
        "residual_dropout": config.resid_pdrop,
        "embedding_dropout": config.embd_pdrop,
        "classifier_dropout": 0.1 if classifier_dropout is None else classifier_dropout,
    }


def _gpt_neo_fields(config: Any) -> dict[str, Any]:
    kinds = {"global": "full_attention", "local": "sliding_attention"}
    unknown = set(config.attention_layers) - set(kinds)
    if unknown:
        raise ValueError(f"`attention_types` may hold 'global' and 'local', got {sorted(unknown)}.")
    banded = "local" in config.attention_layers
    if banded and config.window_size < 2:
        raise ValueError(f"`window_size` must be at least 2 in GPT-3, got {config.window_size}.")
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": _activation(config.activation_function, ACTIVATION_TO_GPT3, "activation_function"),
        "max_position_embeddings": config.max_position_embeddings,
        "layer_types": [kinds[kind] for kind in config.attention_layers],
        # Both count the query's own key.
        "sliding_window": config.window_size if banded else None,
        "layer_norm_eps": config.layer_norm_epsilon,
        "attention_dropout": config.attention_dropout,
        "residual_dropout": config.resid_dropout,
        "embedding_dropout": config.embed_dropout,
        "classifier_dropout": config.classifier_dropout,
    }


def _gpt3_to_gpt2_config(config: Any, same: dict[str, Any]) -> Any:
    positions = config.max_position_embeddings
    banded = [layer for layer, kind in enumerate(config.layer_types) if kind == "sliding_attention"]
    # A band as wide as the longest input hides nothing.
    if banded and config.sliding_window < positions:
        raise ValueError(
            f"`layer_types`: GPT-2 has no banded attention, and layers {', '.join(map(str, banded))} see only the last "
            f"{config.sliding_window} of {positions} tokens (`sliding_window`). Only a model that was trained with "
            "'full_attention' in every layer (or with a `sliding_window` of at least `max_position_embeddings`) is also "
            "a GPT-2. To change the types of a trained model is to change what it computes: train it on with dense "
            "layers first, or keep it as gpt3."
        )
    if config.classifier_pooling != "last" and "GPT3ForSequenceClassification" in (config.architectures or ()):
        raise ValueError(
            f"`classifier_pooling: {config.classifier_pooling}`: GPT-2's classifier reads the last token alone."
        )
    return GPT2Config(
        **same,
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        # Where it is the usual width it is left out, as readers that know no other expect.
        n_inner=None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size,
        activation_function=_activation(config.hidden_act, ACTIVATION_TO_GPT2, "hidden_act"),
        n_positions=positions,
        n_ctx=positions,  # no longer a field of GPT2Config, and still what converters to GGUF read
        layer_norm_epsilon=config.layer_norm_eps,
        attn_pdrop=config.attention_dropout,
        resid_pdrop=config.residual_dropout,
        embd_pdrop=config.embedding_dropout,
        classifier_dropout=config.classifier_dropout,
    )


def _activation(name: str, equivalents: dict[str, str], field: str) -> str:
    if name not in ACT2FN or name in LEARNED_ACTIVATIONS:
        raise ValueError(f"`{field}`: {name!r} is not an activation function that both models have.")
    return equivalents.get(name, name)


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], config: Any, to: str, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The weights of the same model as another type, by that type's names and layouts.

    Args:
        state_dict: All weights, as stored, with or without the prefix of the base model. It is left as it is.
        config: Their configuration; `architectures` says which model it is, else a language model is assumed.
        to: `"gpt3"` or `"gpt2"`.
        dtype: Of the result. Default: each tensor keeps its own.

    Raises:
        ValueError: A tensor is missing, unknown or of no floating-point type, or a value does not fit `dtype`.
    """
    kind = _kind_of(config, state_dict)
    weights = _Weights(state_dict, MODELS[kind][config.model_type].base_model_prefix, dtype)
    ours = to == "gpt3"
    tied = kind == CAUSAL_LM and config.tie_word_embeddings
    if tied:
        embeddings = "wte.weight" if ours else "embed_tokens.weight"
        weights.drop_tied("lm_head.weight", embeddings)

    body: dict[str, torch.Tensor] = {}
    rename = _to_gpt3 if ours else _to_gpt2
    for name, other in BODY.items():
        for part in ("weight",) if name.startswith("embed") else ("weight", "bias"):
            source_name, target_name = (other, name) if ours else (name, other)
            body[f"{target_name}.{part}"] = weights.take(f"{source_name}.{part}")
    for layer in range(config.num_hidden_layers):
        rename(weights, body, layer, config)

    prefix = MODELS[kind][to].base_model_prefix + "." if kind != BASE else ""
    result = {prefix + name: tensor for name, tensor in body.items()}
    for name, other in HEADS[kind].items():
        if not tied:
            source_name, target_name = (other, name) if ours else (name, other)
            result[target_name] = weights.take(source_name)
    weights.check_nothing_is_left(kind)
    return result


def _to_gpt3(weights: "_Weights", body: dict[str, torch.Tensor], layer: int, config: Any) -> None:
    """Take one layer of GPT-2 or GPT-Neo and put it into `body` as GPT-3's."""
    theirs, ours = f"h.{layer}", f"layers.{layer}"
    conv1d = config.model_type == "gpt2"
    factor = _query_factor(config, layer)
    for name, other in LAYER.items():
        for part in ("weight", "bias"):
            body[f"{ours}.{name}.{part}"] = weights.take(f"{theirs}.{other}.{part}")
    out = "attn.c_proj" if conv1d else "attn.attention.out_proj"
    for name, other in {"self_attn.o_proj": out, **MATRICES}.items():
        body[f"{ours}.{name}.weight"] = weights.take(f"{theirs}.{other}.weight", transpose=conv1d)
        body[f"{ours}.{name}.bias"] = weights.take(f"{theirs}.{other}.bias")
    for part in ("weight", "bias"):
        if conv1d:
            name = f"{theirs}.attn.c_attn.{part}"
            fused = weights.pop(name)
            # Each piece is a copy of its own: safetensors writes no two tensors of one memory.
            pieces = (piece.T if part == "weight" else piece.clone() for piece in fused.chunk(3, dim=-1))
            for which, piece in zip("qkv", pieces):
                scale = factor if which == "q" else 1.0
                body[f"{ours}.self_attn.{which}_proj.{part}"] = weights.cast(piece, name, scale)
            continue
        for which in "qkv":
            name = f"{theirs}.attn.attention.{which}_proj.weight"
            target = f"{ours}.self_attn.{which}_proj"
            if part == "weight":
                body[f"{target}.weight"] = weights.take(name, factor=factor if which == "q" else 1.0)
            else:
                body[f"{target}.bias"] = torch.zeros_like(body[f"{target}.weight"][:, 0])


def _to_gpt2(weights: "_Weights", body: dict[str, torch.Tensor], layer: int, config: Any) -> None:
    """Take one layer of GPT-3 and put it into `body` as GPT-2's."""
    theirs, ours = f"h.{layer}", f"layers.{layer}"
    for name, other in LAYER.items():
        for part in ("weight", "bias"):
            body[f"{theirs}.{other}.{part}"] = weights.take(f"{ours}.{name}.{part}")
    for name, other in {"self_attn.o_proj": "attn.c_proj", **MATRICES}.items():
        body[f"{theirs}.{other}.weight"] = weights.take(f"{ours}.{name}.weight", transpose=True)
        body[f"{theirs}.{other}.bias"] = weights.take(f"{ours}.{name}.bias")
    for part in ("weight", "bias"):
        qkv = [weights.take(f"{ours}.self_attn.{which}_proj.{part}", transpose=part == "weight") for which in "qkv"]
        body[f"{theirs}.attn.c_attn.{part}"] = torch.cat(qkv, dim=-1)


def _query_factor(config: Any, layer: int) -> float:
    """What queries are multiplied by, so that GPT-3's division by sqrt(head_dim) gives the source's scores."""
    root = math.sqrt(config.hidden_size // config.num_attention_heads)
    if config.model_type == "gpt_neo":
        return root
    factor = 1.0 if config.scale_attn_weights else root
    return factor / (layer + 1) if config.scale_attn_by_inverse_layer_idx else factor


class _Weights:
    """Source tensors by name, of which each is taken once and none is forgotten."""

    def __init__(self, state_dict: dict[str, torch.Tensor], prefix: str, dtype: torch.dtype | None):
        self._dtype = dtype
        self._left: dict[str, torch.Tensor] = {}
        for name, tensor in state_dict.items():
            bare = name.removeprefix(f"{prefix}.")
            if bare in self._left:
                raise ValueError(f"The weights hold {bare!r} twice, with and without the prefix {prefix!r}.")
            self._left[bare] = tensor

    def pop(self, name: str) -> torch.Tensor:
        if name not in self._left:
            raise ValueError(f"The weights have no tensor {name!r}, which the config asks for.")
        tensor = self._left.pop(name)
        if tensor.dtype not in (torch.float64, *DTYPES.values()):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"The tensor {name!r} is of type {kind}: only floating-point weights are converted.")
        return tensor

    def take(self, name: str, factor: float = 1.0, transpose: bool = False) -> torch.Tensor:
        tensor = self.pop(name)
        return self.cast(tensor.T if transpose else tensor, name, factor)

    def cast(self, tensor: torch.Tensor, name: str, factor: float = 1.0) -> torch.Tensor:
        """The tensor times `factor`, rounded once."""
        if factor == 1.0 and self._dtype in (None, tensor.dtype):
            return tensor.contiguous()
        power_of_two = math.frexp(factor)[0] == 0.5
        if not power_of_two and self._dtype is None and tensor.dtype.itemsize < 4:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"The tensor {name!r} must be multiplied by {factor:.4f} to give GPT-3's attention scores, which "
                f"{kind} would round noticeably: pass `dtype` (--dtype float32)."
            )
        result = tensor.double().mul_(factor) if factor != 1.0 else tensor
        result = result.to(self._dtype or tensor.dtype).contiguous()
        if not result.isfinite().all() and tensor.isfinite().all():
            kind = str(result.dtype).removeprefix("torch.")
            raise ValueError(f"The tensor {name!r} has values too large for {kind}: pass another `dtype` (--dtype).")
        return result

    def drop_tied(self, head: str, embeddings: str) -> None:
        """Drop a stored copy of the embeddings, or take it for them where it is the one that was stored."""
        if head not in self._left:
            return
        copy = self._left.pop(head)
        if not torch.equal(copy, self._left.setdefault(embeddings, copy)):
            raise ValueError(
                f"`tie_word_embeddings` is true in the config, and the weights hold {head!r} and {embeddings!r} that "
                "differ. Set the field to what the model was trained with."
            )

    def check_nothing_is_left(self, kind: str) -> None:
        left = [name for name in self._left if not _is_buffer(name)]
        if left:
            shown = ", ".join(map(repr, left[:5])) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise ValueError(
                f"The weights hold {shown}, which a {kind} of this config does not have (see `architectures` and the "
                "number of layers in config.json). Nothing is dropped silently, so nothing was converted."
            )


def _is_buffer(name: str) -> bool:
    start, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    return start == "h" and number.isdigit() and rest in BUFFERS


def _kind_of(config: Any, state_dict: dict[str, torch.Tensor]) -> str:
    """Which model it is, by `architectures`; where that is not given, a language model if there can be one."""
    architectures = getattr(config, "architectures", None)
    if not architectures:
        return CAUSAL_LM if config.tie_word_embeddings or "lm_head.weight" in state_dict else BASE
    known = {models[config.model_type].__name__: kind for kind, models in MODELS.items()}
    if architectures[0] not in known:
        raise ValueError(f"`architectures`: {architectures[0]} is not converted; {', '.join(known)} are.")
    return known[architectures[0]]


def _notes(config: Any, target_config: Any, dtypes: set[torch.dtype]) -> list[str]:
    notes = []
    layers = range(config.num_hidden_layers if config.model_type != "gpt3" else 0)
    if factors := {_query_factor(config, layer) for layer in layers} - {1.0}:
        exact = all(math.frexp(factor)[0] == 0.5 for factor in factors)
        notes.append(f"the scale of attention is folded into the queries ({'exactly' if exact else 'rounded once'})")
    if getattr(config, "reorder_and_upcast_attn", False):
        notes.append("`reorder_and_upcast_attn` has no equivalent: it changes the rounding in 16 bits, not the model")
    if target_config.model_type == "gpt2":
        for field, usual in (("n_inner", None), ("activation_function", "gelu_new")):
            if (value := getattr(target_config, field)) != usual:
                notes.append(
                    f"`{field}` {value}: read by transformers; other readers of GPT-2 (GGUF) assume the usual"
                )
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        notes.append(f"stored in several types, which are kept: {names}")
    return notes


def _check_shapes(state_dict: dict[str, torch.Tensor], model: Any, source: str | Path) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    assert set(expected) == set(state_dict), set(expected) ^ set(state_dict)
    for name, shape in expected.items():
        if state_dict[name].shape != shape:
            raise ValueError(
                f"The weights of {source} do not fit its config: {name!r} (by its name in {model.config.model_type}) "
                f"would be {tuple(state_dict[name].shape)}, and the config says {tuple(shape)}."
            )


# Folders


def check_output(output: Path, overwrite: bool) -> None:
    """Raise ValueError unless a model may be written to `output`."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose another folder.")
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{output} is not empty: choose another folder, or pass --overwrite to replace a model.")
    if not (output / "config.json").is_file():
        raise ValueError(f"{output} holds something other than a model, which --overwrite does not replace.")


def _fetch(source: str | Path, patterns: list[str]) -> Path:
    """The folder of a model, downloaded where `source` is a Hub name."""
    folder = Path(source)
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ValueError(f"{source} is a file: give the folder it is in.")
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"No model {str(source)!r}: no such folder, and the Hub has none or is not reachable"
            f"{f' ({reason[0]})' if reason else ''}."
        ) from None


def _read_config(folder: Path, source: str | Path) -> Any:
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{source} is an adapter, not a model: merge it into its base model as well "
            "(`hfgpt convert ADAPTER OUTPUT --merge`)."
        )
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = fields.get("model_type")
    except FileNotFoundError:
        raise ValueError(f"{source} is not a model: it has no config.json.") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"Cannot read config.json of {source}: {error}") from None
    if model_type not in CONFIGS:
        known = ", ".join(f"{a} -> {b}" for a, b in CONVERSIONS)
        raise ValueError(f"{source} is a model of type {model_type!r}; what can be converted: {known}.")
    try:
        return CONFIGS[model_type].from_pretrained(folder)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"config.json of {source} is not valid: {error}") from None


def _read_weights(folder: Path, source: str | Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model, mapped from its files."""
    for name in WEIGHTS_FILES:
        stem, suffix = name.split(".")
        if not Path(source).is_dir():
            folder = _fetch(source, [name, f"{stem}-*-of-*.{suffix}", f"{name}.index.json"])
        names = [name]
        index = folder / f"{name}.index.json"
        if not (folder / name).is_file():
            if not index.is_file():
                continue
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(f"Cannot read {index}: {error}") from None
        weights: dict[str, torch.Tensor] = {}
        for part in names:
            weights.update(_read_file(folder / part))
        return weights
    raise ValueError(
        f"{source} has no weights: looked for {' and '.join(WEIGHTS_FILES)}, whole or in parts with their index."
    )


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Files of before torch 1.6 are no zip files and cannot be mapped.
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"Cannot read {file}: {error}") from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{file} holds something other than tensors by name.")
    return weights


def copy_tokenizer(folder: Path, target: Path, to: str) -> None:
    """Copy a tokenizer's files, and name its class where the files leave it to the model's type.

    A GPT-2 has readers with transformers 4, which know the class of v5 by its earlier name.
    """
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    settings_file = target / TOKENIZER_CONFIG_FILE
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
        given = settings.get("tokenizer_class")
        name = given or type(AutoTokenizer.from_pretrained(folder)).__name__
        if to == "gpt2" and name == "TokenizersBackend":
            name = "PreTrainedTokenizerFast"
        if name != given:
            settings["tokenizer_class"] = name
            settings_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(
            f"The model's tokenizer cannot be read: {error} (Without its files in {folder} the weights convert alone.)"
        ) from None


def write_folder(output: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `output`, and give it its name when it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.parent / f".{output.name}.converting-{os.getpid()}"
    old = output.parent / f".{output.name}.replaced-{os.getpid()}"
    try:
        staging.mkdir()
        write(staging)
        if output.exists():
            os.replace(output, old)
        try:
            os.replace(staging, output)
        except BaseException:
            if old.exists():
                os.replace(old, output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


__all__ = ["Conversion", "convert", "convert_config", "convert_state_dict"]
