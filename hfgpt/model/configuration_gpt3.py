"""Configuration of GPT-3: GPT-2's architecture with alternating dense and locally banded attention."""

import sys
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .presets import PRESETS


GPT3_END_OF_TEXT = 50256

# Layers that peft's adapters go into where none are named: all linear ones but the output layer, unless the kind of
# adapter says otherwise.
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
PEFT_TARGETS = {
    "IA3_TARGET": ["k_proj", "v_proj", "down_proj"],
    "IA3_FEEDFORWARD": ["down_proj"],
    "LNTUNING_TARGET": ["input_layernorm", "post_attention_layernorm", "norm"],
    "BEFT_TARGET": ["v_proj"],  # it trains biases
}


@strict
class GPT3Config(PreTrainedConfig):
    r"""Hyperparameters of a GPT-3 model; the defaults are those of the 125M model.

    Where the paper is silent the default is a choice, named below.

    Args:
        vocab_size (`int`, defaults to 50257): Words of GPT-2's byte-level BPE.
        hidden_size (`int`, defaults to 768): Width of the residual stream (the paper's d_model).
        num_hidden_layers (`int`, defaults to 12): Decoder blocks.
        num_attention_heads (`int`, defaults to 12): Attention heads per block.
        num_key_value_heads (`int`, *optional*): Always `num_attention_heads`; present because sequence
            parallelism and serving back ends read it.
        head_dim (`int`, *optional*, defaults to `hidden_size // num_attention_heads`): Width of one head.
        intermediate_size (`int`, *optional*, defaults to `4 * hidden_size`): Width of the feed-forward layer.
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): GELU in its tanh form, as in GPT-2.
        max_position_embeddings (`int`, defaults to 2048): Learned positions; no longer input is accepted.
        layer_types (`list[str]`, *optional*): `"full_attention"` or `"sliding_attention"` for each layer. Default:
            alternating, dense first. The paper says alternating and not which comes first; dense first is GPT-Neo's order.
        sliding_window (`int`, defaults to 256): Keys a banded layer sees, the query's own among them. The paper
            gives no width; 256 is GPT-Neo's.
        layer_norm_eps (`float`, defaults to 1e-5): Added to the variance in each LayerNorm.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the initial weights. Residual
            projections start at `initializer_range / sqrt(2 * num_hidden_layers)`, as in GPT-2.
        attention_dropout, residual_dropout, embedding_dropout (`float`, default to 0.0): The paper names no dropout.
        classifier_dropout (`float`, defaults to 0.1): Before the token classifier, as in GPT-2.
        classifier_pooling (`str`, defaults to `"last"`): What the sequence classifier reads: the `"last"` token's hidden
            state, as in GPT-2, or the `"mean"` of all, which small models learn faster.
        use_cache (`bool`, defaults to `True`): Return keys and values for generation.
        skip_logits (`bool`, defaults to `True`): In training, compute the loss in chunks of tokens and return no
            logits, unless those are small. `False` for trainers that read the logits of training steps.
        bos_token_id, eos_token_id (`int`, default to 50256): `<|endoftext|>`; `None` where the vocabulary is too
            small to hold it.
        pad_token_id (`int`, *optional*): GPT-3's vocabulary has none.
        tie_word_embeddings (`bool`, defaults to `True`): The output layer shares the input embeddings.

    Raises:
        ValueError: Sizes that do not fit together; the message names the field.

    Example:

    ```python
    >>> from hfgpt import GPT3Config, GPT3ForCausalLM

    >>> config = GPT3Config.from_preset("gpt3-125m")
    >>> model = GPT3ForCausalLM(config)
    ```
    """

    model_type = "gpt3"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "embed_tokens": "embedding_rowwise",
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embed_positions": (["position_ids"], ["position_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 2048
    layer_types: list[str] | None = None
    sliding_window: int | None = 256
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.1
    classifier_pooling: str = "last"
    use_cache: bool = True
    skip_logits: bool = True
    bos_token_id: int | None = GPT3_END_OF_TEXT
    eos_token_id: int | list[int] | None = GPT3_END_OF_TEXT
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            # A head count that does not divide the width is reported by `validate_architecture`.
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.layer_types is None:
            self.layer_types = [
                "sliding_attention" if layer % 2 else "full_attention" for layer in range(self.num_hidden_layers)
            ]
        if self.vocab_size <= GPT3_END_OF_TEXT:
            if self.bos_token_id == GPT3_END_OF_TEXT:
                self.bos_token_id = None
            if self.eos_token_id == GPT3_END_OF_TEXT:
                self.eos_token_id = None
        super().__post_init__(**kwargs)
        # Here too: `@strict` reports a ValueError of its validators as an error that is none.
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Part of `@strict`-powered validation: the sizes fit together."""
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.head_dim is None or self.num_attention_heads * self.head_dim != self.hidden_size:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) times `head_dim` ({self.head_dim}) must equal "
                f"`hidden_size` ({self.hidden_size})."
            )
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"`num_key_value_heads` must equal `num_attention_heads` ({self.num_attention_heads}) in GPT-3, "
                f"got {self.num_key_value_heads}."
            )
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout", "classifier_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}.")
        if self.classifier_pooling not in ("last", "mean"):
            raise ValueError(f"`classifier_pooling` must be last or mean, got {self.classifier_pooling!r}.")
        if self.initializer_range < 0.0:
            raise ValueError(f"`initializer_range` must not be negative, got {self.initializer_range}.")
        banded = "sliding_attention" in (self.layer_types or ())
        if banded and (self.sliding_window is None or self.sliding_window < 2):
            raise ValueError(
                f"`sliding_window` must be at least 2 where `layer_types` has banded layers, got {self.sliding_window}."
            )
        if len(self.layer_types or ()) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` must name {self.num_hidden_layers} layers (`num_hidden_layers`), got "
                f"{len(self.layer_types or ())}."
            )
        unknown = set(self.layer_types or ()) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ValueError(
                f"`layer_types` of GPT-3 are 'full_attention' and 'sliding_attention', got {sorted(unknown)}."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "GPT3Config":
        """Configuration of one of the paper's eight sizes.

        Args:
            name: A key of `PRESETS`, `"gpt3-125m"` to `"gpt3-175b"`.
            **overrides: Any field of the configuration.

        Raises:
            ValueError: An unknown preset or field; the message names the nearest.

        Source: table 2.1 of Brown et al. 2020, corrected as described in `presets.py`.
        """
        known = {field.name for field in fields(cls)}
        for key in overrides:
            if key not in known and not hasattr(cls, key):
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"the fields are {', '.join(sorted(known))}."
                raise ValueError(f"GPT3Config has no field `{key}`: {hint}")
        if name not in PRESETS:
            near = get_close_matches(name, PRESETS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown preset {name!r}; the presets are {', '.join(PRESETS)}.{hint}")
        preset = PRESETS[name]
        sizes = {
            "num_hidden_layers": preset.num_hidden_layers,
            "hidden_size": preset.hidden_size,
            "num_attention_heads": preset.num_attention_heads,
        }
        return cls(**{**sizes, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """As transformers'; also makes this model type known to peft, where that is imported."""
        # peft has a table of targets for each kind of adapter, no way to register a model type, and calls this just
        # before it looks into one. So it need not be imported here, and may be imported before or after.
        add_peft_targets(self.model_type)
        return super().to_dict()


def add_peft_targets(model_type: str) -> None:
    """Put `model_type` into each of peft's tables of default targets; entries that are there stay."""
    constants = sys.modules.get("peft.utils.constants")
    for name, table in list(vars(constants).items()) if constants else ():
        kind = name.removeprefix("TRANSFORMERS_MODELS_TO_").removesuffix("_MODULES_MAPPING")
        if kind.endswith(("_TARGET", "_FEEDFORWARD")) and isinstance(table, dict):
            table.setdefault(model_type, list(PEFT_TARGETS.get(kind, LINEAR_LAYERS)))


__all__ = ["GPT3Config"]
