"""GPT-3 in PyTorch, written as a transformers model.

What is notable: learned positions, pre-LayerNorm blocks with biases everywhere, tied embeddings, residual projections
initialised at `initializer_range / sqrt(2 * num_hidden_layers)`, and layers that alternate dense attention with a band
of `sliding_window` keys. Source: Brown et al. 2020, section 2.1; the band is that of Child et al. 2019.

Shapes in comments: B batch, Q queries in this call, K keys seen so far, H heads, D head width, E hidden size, V words.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.masking_utils import (
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
)
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .banded_attention import banded_attention_forward, block_size, make_block_mask
from .cache import let_grow
from .configuration_gpt3 import GPT3Config
from .loss import CHUNK_BYTES, GPT3LMHead, can_be_read


def make_masks(
    config: GPT3Config,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
) -> dict[str, Any]:
    """The mask of each kind of layer the model has, in the form that its attention implementation takes.

    Args:
        inputs_embeds: Any tensor (batch, seq, ...) of the model's dtype and device.
        attention_mask: (batch, past + seq), or a 4-D mask to be used as it is.
        position_ids: (batch, seq), where they may restart, as those of packed sequences do. Not with a cache.
    """
    kinds = dict.fromkeys(config.layer_types or ())
    custom = attention_mask is not None and not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2)
    segments = None
    if position_ids is not None and past_key_values is None and not custom:
        segments = find_segments(position_ids.expand(inputs_embeds.shape[0], -1), attention_mask)
    if attention_mask is not None and not custom and can_be_read(attention_mask) and bool(attention_mask.all()):
        attention_mask = None  # looked at once, here, and not for each kind of layer
    mask_kwargs: dict[str, Any] = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
    }
    if segments is not None and attention_mask is None:
        mask_kwargs["position_ids"] = position_ids  # transformers finds the same segments
    elif segments is not None and can_be_read(segments) and is_flash(config):
        raise ValueError(
            "Flash attention takes packed sequences (`position_ids` that restart) or padding (zeros in "
            "`attention_mask`), not both: leave `attention_mask` out, or use attn_implementation='sdpa'."
        )
    elif segments is not None:
        mask_kwargs["and_mask_function"] = packed_sequence_mask_function(segments)

    masks: dict[str, Any] = {}
    if "full_attention" in kinds:
        masks["full_attention"] = create_causal_mask(**mask_kwargs)
    if "sliding_attention" in kinds:
        window, query_length = config.sliding_window, inputs_embeds.shape[1]
        assert window is not None
        lengths = None if custom else measure_band(config, query_length, past_key_values)
        if lengths is not None and query_length == 1 and lengths[0] <= window and attention_mask is None:
            masks["sliding_attention"] = None  # a step of decoding: the cache holds what the query sees
        elif lengths is not None and lengths[0] > 2 * block_size(window) and query_length > block_size(window):
            key_length, offset = lengths
            key_mask = None if attention_mask is None else attention_mask[:, offset : offset + key_length]
            masks["sliding_attention"] = make_block_mask(
                window, query_length, key_length, key_mask, segments, inputs_embeds.device
            )
        else:
            masks["sliding_attention"] = create_sliding_window_causal_mask(**mask_kwargs)
    return masks


def is_flash(config: GPT3Config) -> bool:
    """Whether attention is flash attention, of the package or of a kernel from the Hub."""
    return "flash" in (config._attn_implementation or "")


def measure_band(config: GPT3Config, query_length: int, past_key_values: Cache | None) -> tuple[int, int] | None:
    """Number of keys a banded layer will be given, and how many came before them, where SDPA may take it in blocks.

    None for other implementations; where sdpa has been replaced in the registry; for a graph to be exported, which must
    be right for every length and keeps the dense mask; and for a static cache with room left.
    """
    replaced = ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward  # as sequence parallelism does
    if config._attn_implementation != "sdpa" or replaced or not getattr(config, "is_causal", True):
        return None
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return None
    if past_key_values is None:
        return query_length, 0
    assert config.layer_types is not None
    layer_idx = config.layer_types.index("sliding_attention")
    past_length = past_key_values.get_seq_length(layer_idx)
    key_length, offset = past_key_values.get_mask_sizes(query_length, layer_idx)
    if not isinstance(past_length, int) or offset + key_length != past_length + query_length:
        return None
    return key_length, offset


def find_segments(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Number the packed sequences in each row, (batch, seq); None where no row holds more than one.

    A sequence begins where a position is not the one before plus one. Beside a mask, which is how rows that are not
    packed are given, only where it does not grow; and what padding is given as positions does not count.
    """
    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    if attention_mask is None:
        restarts = steps != 1
    else:
        tokens = attention_mask.to(position_ids.device).bool()
        restarts = (steps < 1) & tokens & nn.functional.pad(tokens[:, :-1], (1, 0))
    if can_be_read(restarts) and not bool(restarts.any()):
        return None
    return restarts.cumsum(dim=-1)


def flash_segments(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> dict[str, Any]:
    """Where packed sequences begin, as flash attention is told; nothing where no row holds more than one.

    transformers finds them itself only in a batch of one row, and only where they begin at the lowest position.
    """
    if not can_be_read(position_ids) or (segments := find_segments(position_ids, attention_mask)) is None:
        return {}
    # The rows are one after the other: a row's first token is a start, too.
    starts = torch.diff(segments, prepend=segments[:, :1] - 1, dim=-1).flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; softmax in float32. Returns (B, Q, H, D) and the weights (B, H, Q, K)."""
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


def make_residual_linear(in_features: int, out_features: int) -> nn.Linear:
    """A Linear that ends a residual branch, marked so that `_init_weights` scales it down.

    A mark and not a subclass: quantizers convert what is exactly a Linear.
    """
    linear = nn.Linear(in_features, out_features)
    linear.ends_residual_branch = True
    return linear


class GPT3Attention(nn.Module):
    """Multi-head self-attention, dense or banded by `config.layer_types[layer_idx]`."""

    def __init__(self, config: GPT3Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        assert config.head_dim is not None and config.layer_types is not None  # derived by the config
        self.head_dim = config.head_dim
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.attention_type = config.layer_types[layer_idx]
        self.sliding_window = config.sliding_window if self.attention_type == "sliding_attention" else None

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = make_residual_linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        # -1 for the heads: under tensor parallelism a rank holds only some of them.
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)  # B, H, Q, D
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)

        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        attn_output, attn_weights = self.attend(query_states, key_states, value_states, attention_mask, **kwargs)
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        return self.o_proj(attn_output), attn_weights

    def attend(
        self,
        query_states: torch.Tensor,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The context (B, Q, H, D) of queries (B, H, Q, D) over keys and values (B, H, K, D), and weights where given."""
        attention_interface: Callable
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 5:
            attention_interface = banded_attention_forward
        else:
            attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
        return attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )


class GPT3MLP(nn.Module):
    """Feed-forward layer of `intermediate_size`."""

    def __init__(self, config: GPT3Config):
        super().__init__()
        assert config.intermediate_size is not None  # derived by the config
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = make_residual_linear(config.intermediate_size, config.hidden_size)
        if config.hidden_act not in ACT2FN:
            raise ValueError(
                f"Unknown `hidden_act` {config.hidden_act!r}; transformers has {', '.join(sorted(ACT2FN))}."
            )
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class GPT3DecoderLayer(GradientCheckpointingLayer):
    """One pre-LayerNorm block."""

    def __init__(self, config: GPT3Config, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GPT3Attention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GPT3MLP(config)
        self.residual_dropout = config.residual_dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attn_output, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        attn_output = nn.functional.dropout(attn_output, p=self.residual_dropout, training=self.training)
        hidden_states = hidden_states + attn_output
        mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
        mlp_output = nn.functional.dropout(mlp_output, p=self.residual_dropout, training=self.training)
        return hidden_states + mlp_output


class GPT3PreTrainedModel(PreTrainedModel):
    """Weights, loading and saving shared by every GPT-3 model."""

    config: GPT3Config
    config_class = GPT3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPT3DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": GPT3DecoderLayer,
        "attentions": GPT3Attention,
    }

    @staticmethod
    def create_masks_for_generate(
        config: GPT3Config,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The masks that `generate` prepares outside a compiled forward."""
        return make_masks(config, inputs_embeds, attention_mask, past_key_values)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # At the leaf, not at its parent: a parent's second initialisation of its child is skipped once the child
        # is flagged as initialised, and under ZeRO-3 only the module's own parameters are gathered.
        if getattr(module, "ends_residual_branch", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)


class GPT3Model(GPT3PreTrainedModel):
    """The decoder without a head: token and position embeddings, blocks, a final LayerNorm."""

    def __init__(self, config: GPT3Config):
        super().__init__(config)
        # No padding_idx: where the pad token is the end-of-text token it must still be learned.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            [GPT3DecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        # A static cache counts the tokens of a banded layer in Python, which would compile every step of decoding anew.
        layer_types = config.layer_types or []
        self.first_dense_layer = layer_types.index("full_attention") if "full_attention" in layer_types else 0
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch.

        Args:
            input_ids: Token ids, (batch, seq).
            attention_mask: 1 for tokens, 0 for padding, (batch, past + seq); or masks that are ready for use, one
                4-D tensor or a dict of them keyed by layer type.
            position_ids: (batch, seq). Default: counted from the 2-D `attention_mask`, so that padding on the left
                changes nothing; without a mask, from the cache's length. Restart them at 0 to pack several
                sequences in a row, which then do not see each other (without a cache).
            past_key_values: Cache of earlier keys and values; banded layers keep only their window.
            inputs_embeds: In place of `input_ids`, (batch, seq, hidden_size).
            use_cache: Return a cache.

        Returns:
            `last_hidden_state` (batch, seq, hidden_size) after the final LayerNorm, and `past_key_values`.

        Raises:
            ValueError: Positions at or past `config.max_position_embeddings`.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        query_length = inputs_embeds.shape[1]
        past_length = past_key_values.get_seq_length(self.first_dense_layer) if past_key_values is not None else 0
        packed = position_ids is not None and past_key_values is None
        padding_mask = (
            attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 else None
        )
        if isinstance(past_length, int):
            if not packed:
                self._check_length(past_length + query_length)
            if padding_mask is not None and padding_mask.shape[-1] != past_length + query_length:
                raise ValueError(
                    f"`attention_mask` must cover the {past_length} tokens in the cache and the {query_length} given, "
                    f"got {padding_mask.shape[-1]} columns."
                )
        if position_ids is None:
            if padding_mask is not None:
                position_ids = (padding_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -query_length:]
            else:
                position_ids = torch.arange(query_length, device=inputs_embeds.device) + past_length
                position_ids = position_ids.unsqueeze(0)
        if can_be_read(position_ids) and (packed or position_ids.device.type == "cpu"):
            # Shapes do not tell here. On an accelerator this waits for the device, so only where it must.
            lowest, highest = torch.aminmax(position_ids)
            self._check_length(int(highest) + 1)
            if lowest < 0:
                raise ValueError(f"`position_ids` must not be negative, got {int(lowest)}.")

        layer_types = self.config.layer_types
        assert layer_types is not None
        hidden_states = inputs_embeds
        # Under pipeline parallelism a later stage holds placeholders for the first layers, and is given hidden states.
        if not isinstance(self.layers[0], nn.Identity):
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states.device)
            hidden_states = nn.functional.dropout(
                hidden_states, p=self.config.embedding_dropout, training=self.training
            )

        # `generate` may have prepared the masks already.
        if not isinstance(causal_mask_mapping := attention_mask, dict):
            causal_mask_mapping = make_masks(
                self.config, inputs_embeds, attention_mask, past_key_values, position_ids if packed else None
            )

        if packed and causal_mask_mapping[layer_types[0]] is None and is_flash(self.config):
            kwargs = {**flash_segments(position_ids.expand(inputs_embeds.shape[:2]), padding_mask), **kwargs}

        # After the masks: given a cache, even an empty one, their makers do not look for packed sequences.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
            let_grow(past_key_values)

        for layer_type, decoder_layer in zip(layer_types, self.layers[: self.config.num_hidden_layers]):
            hidden_states = decoder_layer(
                hidden_states,
                attention_mask=causal_mask_mapping[layer_type],
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def _check_length(self, length: int) -> None:
        """Raise before an index past the position embeddings reaches a kernel."""
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"This model has {limit} positions (`max_position_embeddings`) and was given a sequence of {length} "
                "tokens. Truncate the input (`truncation=True, max_length=...` in the tokenizer) or generate fewer "
                "tokens (`max_new_tokens`)."
            )


def keep_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions of (batch, seq, hidden_size) whose logits are wanted, as `GPT3ForCausalLM.forward` describes them."""
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim < 2:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return torch.take_along_dim(hidden_states, logits_to_keep.unsqueeze(-1), dim=1)


class GPT3ForCausalLM(GPT3PreTrainedModel, GenerationMixin):
    """GPT-3 with its language-modelling head, tied to the input embeddings by default."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPT3Config):
        super().__init__(config)
        self.model = GPT3Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = GPT3LMHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Next-token logits or, with labels, the loss.

        Args:
            labels: Token ids to predict, (batch, seq), -100 where no loss is wanted; shifted inside. With
                `logits_to_keep`, the labels of the kept positions.
            logits_to_keep: The last so many positions, 0 for all; or the positions, (kept) the same for every row, or
                (batch, kept) for each; or a boolean mask (batch, seq), which makes one row of all it keeps.
            skip_logits: With labels, compute the loss in chunks of tokens and return no logits, which saves most of
                the memory. Default: in training, if `config.skip_logits` and the logits would be larger than a chunk
                (64 MiB); not in evaluation.
            num_items_in_batch: Divides the summed loss, in place of the number of tokens that have one.
            shift_labels: In place of `labels`, shifted already, (batch, seq).

        The other arguments are those of `GPT3Model.forward`.

        Returns:
            `loss` (scalar), `logits` (batch, seq, vocab_size) unless skipped, `past_key_values`, and what was asked to
            be captured.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = keep_positions(outputs.last_hidden_state, logits_to_keep)

        logits = loss = None
        with_loss = labels is not None or kwargs.get("shift_labels") is not None
        if skip_logits is None:
            # Logits that fit in a chunk are no burden.
            size = hidden_states[..., 0].numel() * self.config.vocab_size * hidden_states.element_size()
            skip_logits = self.training and self.config.skip_logits and size > CHUNK_BYTES
        if with_loss and skip_logits and self._can_skip_logits():
            loss = self._loss_without_logits(hidden_states, labels, **kwargs)
        else:
            logits = self.lm_head(hidden_states)
            if with_loss:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _can_skip_logits(self) -> bool:
        """Whether the loss is transformers' own, and the head is ours (no adapter around it) and whole on this rank."""
        own_loss = self.loss_function is ForCausalLMLoss
        return own_loss and isinstance(self.lm_head, GPT3LMHead) and self.tp_size in (None, 1)

    def _loss_without_logits(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """What `ForCausalLMLoss` returns for the logits of `hidden_states`."""
        if shift_labels is None:
            assert labels is not None
            shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        return self.lm_head(
            hidden_states, labels=shift_labels, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index
        )

    def _get_resized_lm_head(self, *args: Any, **kwargs: Any) -> nn.Linear:
        head = super()._get_resized_lm_head(*args, **kwargs)
        head.__class__ = GPT3LMHead  # transformers builds a plain Linear
        return head

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if given is None and cache is not None:
            let_grow(cache)

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """Speculate no further than the last position: prompt lookup does not look where the model ends."""
        generator = super()._get_candidate_generator(*args, **kwargs)
        propose, limit = generator.get_candidates, self.config.max_position_embeddings

        def propose_within_limit(*args: Any, **kwargs: Any) -> Any:
            input_ids, logits = propose(*args, **kwargs)
            beyond = input_ids.shape[1] - limit
            if beyond > 0:
                input_ids, logits = input_ids[:, :-beyond], None if logits is None else logits[:, :-beyond]
            return input_ids, logits

        generator.get_candidates = propose_within_limit
        return generator

    def _prepare_generated_length(
        self,
        generation_config,
        has_default_max_length,
        has_default_min_length,
        model_input_name,
        input_ids_length,
        inputs_tensor,
    ):
        """Refuse a generation that would run past the last position, before the first token is paid for."""
        generation_config = super()._prepare_generated_length(
            generation_config,
            has_default_max_length,
            has_default_min_length,
            model_input_name,
            input_ids_length,
            inputs_tensor,
        )
        limit = self.config.max_position_embeddings
        # A prompt of embeddings has no ids: `max_length` then counts the new tokens alone.
        prompt = max(input_ids_length, inputs_tensor.shape[1])
        asked = generation_config.max_length - input_ids_length
        if has_default_max_length and generation_config.max_new_tokens is None and 0 < limit - prompt < asked:
            asked = limit - prompt
            generation_config.max_length = input_ids_length + asked
        if prompt + asked > limit or prompt >= limit:
            raise ValueError(
                f"This model has {limit} positions (`max_position_embeddings`): a prompt of {prompt} tokens "
                f"leaves {max(limit - prompt, 0)} to generate, and {max(asked, 1)} were asked for. "
                "Lower `max_new_tokens` (or `max_length`) or shorten the prompt."
            )
        return generation_config


class GPT3ForSequenceClassification(GenericForSequenceClassification, GPT3PreTrainedModel):
    """GPT-3 with a linear classifier on each sequence's last token, or on the mean of all (`config.classifier_pooling`).

    The last token is the last that is not `config.pad_token_id`; the mean is over those that `attention_mask` keeps.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Scores of each label, (batch, num_labels), and with labels the loss.

        Args:
            labels: (batch) class indices; values where there is one label; (batch, num_labels) where several hold.

        The other arguments are those of `GPT3Model.forward`.
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }
        if self.config.classifier_pooling == "last":
            return super().forward(**inputs, labels=labels, **kwargs)
        outputs: BaseModelOutputWithPast = self.model(**inputs, **kwargs)
        logits = self.score(mean_of_tokens(outputs.last_hidden_state, attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=None, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def mean_of_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of the hidden states (batch, seq, width) that a mask (batch, seq) keeps, or of all: (batch, width)."""
    if attention_mask is None:
        return hidden_states.mean(1)
    if attention_mask.dim() != 2 or attention_mask.shape[1] != hidden_states.shape[1]:
        raise ValueError(
            "`classifier_pooling: mean` needs all tokens of a sequence at once, and an `attention_mask` of (batch, seq) "
            f"{tuple(hidden_states.shape[:2])}; got one of {tuple(attention_mask.shape)}."
        )
    weights = attention_mask.to(hidden_states.dtype).unsqueeze(-1)
    return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)


class GPT3ForTokenClassification(GenericForTokenClassification, GPT3PreTrainedModel):
    """GPT-3 with a linear classifier on every token (`config.num_labels`, `config.classifier_dropout`)."""


class GPT3ForQuestionAnswering(GenericForQuestionAnswering, GPT3PreTrainedModel):
    """GPT-3 with scores for the first and the last token of an answer in the text."""


__all__ = [
    "GPT3ForCausalLM",
    "GPT3ForQuestionAnswering",
    "GPT3ForSequenceClassification",
    "GPT3ForTokenClassification",
    "GPT3Model",
    "GPT3PreTrainedModel",
]
