"""What a training run takes, from a config alone: parameters, FLOPs, memory, time, energy, cost, and the command.

No weights are made and no GPU is needed. Memory is counted from the model's own code (what each operation keeps for the
backward pass, the loss in chunks) and from what DDP and DeepSpeed keep in the versions pinned here, at the moments of a
step that can be its highest; `benchmarks/planner.py` compares it with measured peaks.

Letters in comments: T tokens of a micro-batch, S its sequence length, E hidden size, F width of the feed-forward layer,
L layers, H heads, V words, P parameters, N processes that share them.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .config import coerce, read_yaml
from .model.banded_attention import block_size
from .model.configuration_gpt3 import GPT3Config
from .model.loss import CHUNK_BYTES
from .model.presets import PRESETS, Preset


PAPER_TRAIN_TOKENS = 300_000_000_000
PAPER_FIRST_BATCH_TOKENS = 32_000  # appendix B: where the batch begins to grow
BATCH_INCREMENT_TOKENS = 32_768  # `batch_increment_tokens` of the shipped recipes: 16 sequences

OFFLOADS = ("none", "optimizer", "optimizer+params")

# What the planner leaves free on a GPU: the CUDA context, libraries' workspaces and NCCL's buffers, which are outside the
# allocator, and what the allocator cannot use because free blocks have the wrong sizes. A choice, not a measurement.
RESERVED_BYTES = 2_000_000_000
FRAGMENTED_SHARE = 0.04

# The shipped ds_configs: elements in a bucket of gradients (stages 1 and 2; "auto" at stage 3 is hidden_size ** 2), two
# of them because communication overlaps; and the parameters stage 3 keeps gathered (`stage3_max_live_parameters`).
REDUCE_BUCKET = 200_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000
SUB_GROUP_SIZE = 1_000_000_000


@dataclass(frozen=True)
class GPU:
    """An accelerator as its maker publishes it.

    Attributes:
        memory_bytes: Nominal memory, in bytes (80 GB is 80e9).
        peak_flops_bf16: Dense bfloat16 operations a second on tensor cores, without sparsity.
        power_watts: Rated power of the board.
        price_per_hour: Rough rent in dollars, to be replaced by your own; None where we know none.
        device_words: Words of `torch.cuda.get_device_name()` that identify it.
    """

    memory_bytes: int
    peak_flops_bf16: float
    power_watts: float
    price_per_hour: float | None
    device_words: tuple[str, ...]


def _gpu(gigabytes: int, teraflops: float, watts: float, price: float | None, words: str) -> GPU:
    return GPU(gigabytes * 10**9, teraflops * 1e12, watts, price, tuple(words.split()))


# Sources: the makers' data sheets (NVIDIA B200/HGX, H200, H100, A100, L40S, L4, A10, A10G, V100; the Ada, Ampere and
# Blackwell GeForce architecture papers; AMD MI300X). Figures printed "with sparsity" are halved. Prices are round
# numbers of rents on demand.
GPUS: dict[str, GPU] = {
    "b200-180": _gpu(180, 2250.0, 1000, 5.0, "B200"),
    "h200-141": _gpu(141, 989.4, 700, 3.5, "H200"),
    "h200-nvl-141": _gpu(141, 835.5, 600, 3.0, "H200 NVL"),
    "h100-80": _gpu(80, 989.4, 700, 2.5, "H100"),
    "h100-nvl-94": _gpu(94, 835.5, 400, 2.5, "H100 NVL"),
    "h100-pcie-80": _gpu(80, 756.0, 350, 2.0, "H100 PCIe"),
    "a100-80": _gpu(80, 312.0, 400, 1.5, "A100"),
    "a100-40": _gpu(40, 312.0, 400, 1.2, "A100 40GB"),
    "l40s-48": _gpu(48, 362.0, 350, 1.0, "L40S"),
    "l4-24": _gpu(24, 121.0, 72, 0.6, "L4"),
    "a10g-24": _gpu(24, 70.0, 300, 1.0, "A10G"),
    "a10-24": _gpu(24, 125.0, 150, 0.8, "A10"),
    "v100-32": _gpu(32, 125.0, 300, 0.6, "V100"),
    "rtx5090-32": _gpu(32, 209.5, 575, None, "RTX 5090"),
    "rtx4090-24": _gpu(24, 165.2, 450, 0.4, "RTX 4090"),
    "rtx3090-24": _gpu(24, 71.0, 350, 0.2, "RTX 3090"),
    "mi300x-192": _gpu(192, 1307.4, 750, 3.0, "MI300X"),
}

WITHOUT_BF16 = ("v100-32",)  # their operations are float16's


def find_gpu(device_name: str) -> GPU | None:
    """What is known of a device named by `torch.cuda.get_device_name()`; None where nothing is.

    Of the GPUs all of whose words are in the name, the one with the most: "NVIDIA H100 PCIe" is not the H100 of a server.
    """
    words = {word.lower() for word in re.split(r"[^0-9A-Za-z]+", device_name)}
    if "laptop" in words:  # other chips under the same names
        return None
    found = [gpu for gpu in GPUS.values() if {word.lower() for word in gpu.device_words} <= words]
    return max(found, key=lambda gpu: len(gpu.device_words)) if found else None


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device named by `torch.cuda.get_device_name()`; None where unknown."""
    gpu = find_gpu(device_name)
    return gpu.peak_flops_bf16 if gpu else None


def count_parameters(config: GPT3Config, tensor_parallel: int = 1) -> int:
    """Exact number of parameters of `GPT3ForCausalLM(config)`, or of one rank's part under tensor parallelism."""
    hidden, ffn, words = config.hidden_size, _ffn(config), config.vocab_size
    matrices = _matrices_of_block(config) // tensor_parallel
    # Biases of q, k, v and up are cut with their columns; those of o and down, and the LayerNorms, are not.
    vectors = (3 * hidden + ffn) // tensor_parallel + 2 * hidden + 4 * hidden
    embeddings = (1 if config.tie_word_embeddings else 2) * -(-words // tensor_parallel) * hidden
    positions = config.max_position_embeddings * hidden
    return config.num_hidden_layers * (matrices + vectors) + embeddings + positions + 2 * hidden


def _ffn(config: GPT3Config) -> int:
    assert config.intermediate_size is not None  # derived by the config
    return config.intermediate_size


def _matrices_of_block(config: GPT3Config) -> int:
    return 4 * config.hidden_size**2 + 2 * config.hidden_size * _ffn(config)


@dataclass(frozen=True)
class FlopsPerToken:
    """Additions and multiplications of a training step (forward and backward), per token.

    Attributes:
        paper: 6 P, the paper's count: attention's products of queries with keys are left out.
            Source: Brown et al. 2020, appendix D.
        dense: 6 P + 12 L E S, the convention of model-FLOPs utilisation: every query meets all S keys, as if there
            were neither the causal mask nor bands. Source: PaLM, appendix B (there 6N + 12LHQT; H Q = E). P counts
            the word embeddings once, as the output layer: a lookup multiplies nothing.
        banded: The same with the pairs of query and key that the causal mask and the bands really leave.

    Recomputation by activation checkpointing is in none of them.
    """

    paper: float
    dense: float
    banded: float


def flops_per_token(config: GPT3Config, sequence_length: int) -> FlopsPerToken:
    """FLOPs of training on one token of a sequence of `sequence_length`, by three conventions.

    Raises:
        ValueError: A length below 1 or past the model's positions.
    """
    _check_length(config, sequence_length)
    parameters, hidden = count_parameters(config), config.hidden_size
    lookup = 0 if config.tie_word_embeddings else config.vocab_size * hidden
    weights = 6.0 * (parameters - lookup)
    pairs = 0
    for layer_type in config.layer_types or ():
        window = config.sliding_window if layer_type == "sliding_attention" else None
        pairs += _attended_pairs(sequence_length, window)
    return FlopsPerToken(
        paper=6.0 * parameters,
        dense=weights + 12.0 * config.num_hidden_layers * hidden * sequence_length,
        banded=weights + 12.0 * hidden * pairs / sequence_length,
    )


def _attended_pairs(length: int, window: int | None) -> int:
    """Pairs of query and key in a causal sequence; a query sees at most `window` keys, its own among them."""
    seen = length if window is None else min(length, window)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _check_length(config: GPT3Config, sequence_length: int) -> None:
    if not 1 <= sequence_length <= config.max_position_embeddings:
        raise ValueError(
            f"`sequence_length` must be from 1 to the model's {config.max_position_embeddings} positions "
            f"(`max_position_embeddings`), got {sequence_length}."
        )


@dataclass(frozen=True)
class Layout:
    """How training is laid out on GPUs.

    Attributes:
        data_parallel: Processes (or groups of `tensor_parallel` of them) that each take rows of their own.
        tensor_parallel: GPUs that share every matrix of a block.
        zero_stage: 0 is DDP with bf16 autocast over float32 weights. 1, 2 and 3 are DeepSpeed with bf16 weights and
            gradients (summed in float32 at 2 and 3), float32 master weights and moments; with tensor parallelism 3 is
            FSDP2.
        offload: One of `OFFLOADS`: what is kept in the machine's memory.
        activation_checkpointing: Keep only each block's input, and compute the rest again.
        micro_batch: Sequences of one forward pass on one process.
        sequence_length: Tokens in each.
        bf16: Or fp16, which takes as much; else float32 throughout.
        accumulates: More than one micro-batch makes a step, so that gradients wait while activations grow.
        attn_implementation: As in the model's config.
        device_type: "cpu" computes the softmax of the loss in blocks of a few rows.
    """

    data_parallel: int = 1
    tensor_parallel: int = 1
    zero_stage: int = 0
    offload: str = "none"
    activation_checkpointing: bool = False
    micro_batch: int = 1
    sequence_length: int = 2048
    bf16: bool = True
    accumulates: bool = True
    attn_implementation: str = "sdpa"
    device_type: str = "cuda"

    def __post_init__(self) -> None:
        for name in ("data_parallel", "tensor_parallel", "micro_batch", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"`zero_stage` must be 0, 1, 2 or 3, got {self.zero_stage}.")
        if self.offload not in OFFLOADS:
            raise ValueError(f"`offload` must be one of {', '.join(OFFLOADS)}, got {self.offload!r}.")
        if self.offload != "none" and (self.zero_stage == 0 or self.tensor_parallel > 1):
            raise ValueError(
                f"`offload` {self.offload} is DeepSpeed's: it needs `zero_stage` 1 to 3 and no tensor parallelism."
            )
        if self.offload == "optimizer+params" and self.zero_stage != 3:
            raise ValueError(f"`offload` optimizer+params needs `zero_stage` 3, got {self.zero_stage}.")
        if self.tensor_parallel > 1 and self.zero_stage in (1, 2):
            raise ValueError("Tensor parallelism goes with `zero_stage` 0 (DDP) or 3 (FSDP2).")

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.data_parallel * self.tensor_parallel

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed holds the weights, in the dtype of the products."""
        return self.zero_stage > 0 and self.tensor_parallel == 1

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.bf16 else 4

    @property
    def weight_bytes(self) -> int:
        """Bytes of a number in weights, their gradients and the residual stream: autocast leaves those in float32."""
        return self.compute_bytes if self.uses_deepspeed else 4

    @property
    def accumulation_bytes(self) -> int:
        """Bytes of a number in gradients while micro-batches are summed (`grad_accum_dtype` of the ds_configs)."""
        sums_in_float32 = self.zero_stage >= 2 and self.offload != "optimizer+params"
        return 4 if sums_in_float32 else self.weight_bytes


def memory_by_part(config: GPT3Config, layout: Layout) -> dict[str, int]:
    """Bytes on one GPU at the highest moment of a training step.

    Returns:
        `weights` (with copies in the compute dtype, and what is gathered), `gradients`, `optimizer`, `activations`,
        `loss` (chunks of logits and the gradients that the loss keeps) and `communication` (buckets). Their sum is the
        peak; what is outside PyTorch's allocator is not in it.

    Raises:
        ValueError: A length past the model's positions.
    """
    _check_length(config, layout.sequence_length)
    moments = (_at_loss, _at_backward, _after_backward, _at_step)
    held = _held(config, layout)
    return max((moment(config, layout, dict(held)) for moment in moments), key=lambda parts: sum(parts.values()))


def _held(config: GPT3Config, layout: Layout) -> dict[str, int]:
    """What is there throughout; `gradients` are those of a whole step."""
    parameters = count_parameters(config, layout.tensor_parallel)
    processes, hidden = layout.data_parallel, config.hidden_size
    size, stage = layout.weight_bytes, layout.zero_stage
    share = -(-parameters // processes)
    largest = _largest_matrix(config, layout)
    communication = 0
    if stage == 0:
        weights, gradients, optimizer = size * parameters, size * parameters, 8 * parameters
        # DDP's buckets: accelerate leaves `gradient_as_bucket_view` off, so they are a second copy of all gradients.
        communication = size * parameters if processes > 1 else 0
    elif layout.uses_deepspeed:
        weights = size * (parameters if stage < 3 else share)
        gradients = size * parameters if stage < 2 else layout.accumulation_bytes * share
        # Master weights and two moments; stage 3 takes weights that are float32 already as their own master.
        optimizer = (8 if stage == 3 and not layout.bf16 else 12) * share
        # Two buckets that overlap, of that size even where the model is smaller, and a flat copy of what is reduced; at
        # stage 3 one bucket, and a gradient larger than it with the copy that reduce-scatter makes.
        buckets = 2 * REDUCE_BUCKET + min(REDUCE_BUCKET, parameters)
        communication = size * (buckets if stage < 3 else hidden**2 + 2 * largest)
        if layout.offload != "none":
            optimizer = 0
            gradients = gradients if stage < 3 else 0  # stage 2 keeps its share until it is whole
        if layout.offload == "optimizer+params":
            weights = 0
    else:  # FSDP2: float32 shards of everything
        weights, gradients, optimizer = 4 * share, 4 * share, 8 * share
        communication = 4 * _matrices_of_block(config) // layout.tensor_parallel
    if stage == 3:
        weights += _gathered(config, layout, parameters, largest)
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": 0,
        "loss": 0,
        "communication": communication,
    }


def _largest_matrix(config: GPT3Config, layout: Layout) -> int:
    embedding = -(-config.vocab_size // layout.tensor_parallel) * config.hidden_size
    return max(embedding, config.hidden_size * _ffn(config) // layout.tensor_parallel)


def _gathered(config: GPT3Config, layout: Layout, parameters: int, largest: int) -> int:
    """Bytes of whole weights that stage 3 or FSDP2 holds while they are used."""
    if layout.data_parallel == 1 and layout.offload != "optimizer+params":
        return 0
    if layout.uses_deepspeed:
        # Kept while they will be used again within so many parameters, and the next module's in any case.
        return layout.weight_bytes * min(parameters, MAX_LIVE_PARAMETERS + largest)
    # The block in use and the next one, and the embeddings and norm, which are in the root's group.
    block = _matrices_of_block(config) // layout.tensor_parallel
    embedding = -(-config.vocab_size // layout.tensor_parallel) * config.hidden_size
    return layout.compute_bytes * (2 * block + embedding)


def _at_loss(config: GPT3Config, layout: Layout, parts: dict[str, int]) -> dict[str, int]:
    """The end of the forward pass: all activations that are kept, and the loss."""
    tokens = layout.micro_batch * layout.sequence_length
    parts["weights"] += _autocast_copies(config, layout, config.num_hidden_layers)
    parts["gradients"] = _gradients_before_backward(layout, parts["gradients"])
    parts["activations"] = _kept_activations(config, layout) + tokens * config.hidden_size * layout.weight_bytes
    parts["loss"] = _loss_bytes(config, layout)[0]
    return parts


def _at_backward(config: GPT3Config, layout: Layout, parts: dict[str, int]) -> dict[str, int]:
    """The backward pass of the last block, before any activation is freed."""
    blocks = 1 if layout.activation_checkpointing else config.num_hidden_layers
    parts["weights"] += _autocast_copies(config, layout, blocks)
    parts["gradients"] = _gradients_before_backward(layout, parts["gradients"])
    layer_types = config.layer_types or []
    working = max(_block_backward_bytes(config, layout, kind) for kind in set(layer_types))
    if layout.activation_checkpointing:
        # The block's own activations again; its input is among those kept.
        whole = max(_block_bytes(config, layout, kind) for kind in set(layer_types))
        working += whole - _block_input_bytes(config, layout)
    parts["activations"] = _kept_activations(config, layout) + working
    parts["loss"] = _loss_bytes(config, layout)[1]
    return parts


def _after_backward(config: GPT3Config, layout: Layout, parts: dict[str, int]) -> dict[str, int]:
    """The gradient of the input embeddings, which is added to the one that the loss has kept."""
    embedding = -(-config.vocab_size // layout.tensor_parallel) * config.hidden_size * layout.weight_bytes
    tokens = layout.micro_batch * layout.sequence_length
    # Two tensors besides the accumulated one, of which the sum becomes the gradient where there is none yet.
    beside = layout.accumulates or layout.zero_stage >= 2
    if config.tie_word_embeddings:
        parts["loss"] = 2 * embedding if beside else embedding
    else:
        parts["loss"] = embedding if beside else 0
    parts["activations"] = 2 * tokens * config.hidden_size * layout.weight_bytes
    return parts


def _at_step(config: GPT3Config, layout: Layout, parts: dict[str, int]) -> dict[str, int]:
    """The step: DeepSpeed takes norms in float64, a matrix at a time, and then makes a flat float32 copy of its share."""
    if not layout.uses_deepspeed or layout.offload != "none":
        return parts
    share = -(-count_parameters(config) // layout.data_parallel)
    largest = _largest_matrix(config, layout)
    norm = 8 * (min(largest, share) if layout.zero_stage < 3 else -(-largest // layout.data_parallel))
    copied = 4 if layout.accumulation_bytes == 4 else 6  # flat, and then float32 where it is not that
    if layout.zero_stage == 2 and layout.bf16:
        copied = 0  # the sums are both already
    elif layout.zero_stage < 3:
        parts["gradients"] = layout.weight_bytes * share  # the other processes' have been freed
    parts["gradients"] += max(norm, copied * min(share, SUB_GROUP_SIZE if layout.zero_stage == 3 else share))
    return parts


def _gradients_before_backward(layout: Layout, gradients: int) -> int:
    """Gradients while activations are at their most: sums of earlier micro-batches, and stages 2 and 3's flat buffers."""
    return gradients if layout.accumulates or layout.zero_stage >= 2 else 0


def _autocast_copies(config: GPT3Config, layout: Layout, blocks: int) -> int:
    """Copies of the blocks' float32 matrices in the compute dtype, which autocast makes and the graph keeps."""
    if not layout.bf16 or layout.zero_stage > 0:
        return 0
    return layout.compute_bytes * blocks * _matrices_of_block(config) // layout.tensor_parallel


def _block_input_bytes(config: GPT3Config, layout: Layout) -> int:
    return layout.micro_batch * layout.sequence_length * config.hidden_size * layout.weight_bytes


def _kept_activations(config: GPT3Config, layout: Layout) -> int:
    """What all blocks and the final LayerNorm (its input) keep for the backward pass."""
    stream = _block_input_bytes(config, layout)
    if layout.activation_checkpointing:
        return (config.num_hidden_layers + 1) * stream
    kinds = Counter(config.layer_types)
    return sum(count * _block_bytes(config, layout, kind) for kind, count in kinds.items()) + stream


def _block_bytes(config: GPT3Config, layout: Layout, layer_type: str) -> int:
    """What one block keeps for its backward pass, its input included."""
    hidden, ffn, ranks = config.hidden_size, _ffn(config), layout.tensor_parallel
    stream, compute = layout.weight_bytes, layout.compute_bytes
    tokens = layout.micro_batch * layout.sequence_length
    # Autocast casts the LayerNorm's output for q, k and v, each for itself.
    casts = 3 if stream != compute else 1
    per_token = 2 * stream * hidden  # inputs of the two LayerNorms
    per_token += 2 * 2 * 4  # their means and deviations
    per_token += (casts + 1) * compute * hidden  # inputs of q, k, v; and of up
    per_token += 2 * compute * ffn // ranks  # of the activation function, and of down
    return tokens * per_token + _attention_bytes(config, layout, layer_type)


def _attention_bytes(config: GPT3Config, layout: Layout, layer_type: str) -> int:
    """What attention keeps: queries, keys, values, context, and the softmax's sums or weights."""
    ranks, length, compute = layout.tensor_parallel, layout.sequence_length, layout.compute_bytes
    width, heads = config.hidden_size // ranks, config.num_attention_heads // ranks
    tokens = layout.micro_batch * length
    if layout.attn_implementation == "eager":
        weights = heads * length * (4 + (compute if compute < 4 else 0))
        return tokens * (4 * compute * width + weights)
    plain = tokens * (4 * compute * width + 4 * heads)
    if layer_type != "sliding_attention" or layout.attn_implementation != "sdpa":
        return plain
    assert config.sliding_window is not None
    block = block_size(config.sliding_window)
    if length <= 2 * block:
        return plain + layout.micro_batch * length * length * compute  # a dense mask, as numbers
    # By blocks: each sees itself and the one before. Of one row the pairs of blocks are a view; of several, a copy.
    padded = layout.micro_batch * -(-length // block) * block
    keys = 2 * padded if layout.micro_batch > 1 else padded + block
    context = 2 * padded if padded != tokens else padded  # cut to the length again
    mask = padded * 2 * block * compute
    return compute * width * (padded + 2 * keys + context) + 4 * heads * padded + mask


def _block_backward_bytes(config: GPT3Config, layout: Layout, layer_type: str) -> int:
    """Temporary tensors in one block's backward pass, beyond what it kept."""
    ranks, stream, compute = layout.tensor_parallel, layout.weight_bytes, layout.compute_bytes
    hidden, ffn = config.hidden_size, _ffn(config) // ranks
    tokens = layout.micro_batch * layout.sequence_length
    cast = compute if stream != compute else 0
    # The gradient of the stream, and of down's input while down's weight gets its own.
    feed_forward = tokens * ((stream + cast) * hidden + compute * ffn) + compute * hidden * ffn
    if layout.attn_implementation != "eager":
        return feed_forward
    heads = config.num_attention_heads // ranks
    freed = tokens * (2 * compute * ffn + compute * hidden)
    attention = tokens * ((stream + compute) * hidden + 8 * heads * layout.sequence_length) - freed
    return max(feed_forward, attention)


def _loss_bytes(config: GPT3Config, layout: Layout) -> tuple[int, int]:
    """What the loss takes while it is computed, and what it keeps until the backward pass has come to the embeddings."""
    tokens, hidden, compute = layout.micro_batch * layout.sequence_length, config.hidden_size, layout.compute_bytes
    words = config.vocab_size
    kept = -(-words // layout.tensor_parallel) * hidden * layout.weight_bytes
    logits = tokens * words * compute
    if layout.tensor_parallel > 1 or logits <= CHUNK_BYTES or not config.skip_logits:
        # Log-probabilities, and two gradients of their size; then the weight's.
        return max(12 * tokens * words, logits + kept), kept
    rows = -(-tokens // -(-logits // CHUNK_BYTES))
    on_cpu = layout.device_type == "cpu"
    # Softmax in float32: scores where logits are not float32, and probabilities.
    softmax = 0 if on_cpu else rows * words * (4 if compute == 4 else 8)
    # The gradients are summed in float32; on a GPU a chunk's part is a whole matrix first.
    product = words * hidden * compute if compute < 4 and not on_cpu else 0
    rounded = words * hidden * layout.weight_bytes if layout.weight_bytes < 4 else 0
    sums = 4 * hidden * (tokens + words)
    casts = compute * hidden * (tokens + words) if layout.weight_bytes != compute else 0
    return sums + casts + max(rows * words * compute + max(softmax, product), rounded), kept


def host_memory_bytes(config: GPT3Config, layout: Layout) -> int:
    """Bytes that offloading keeps in the machine's memory, of one process."""
    if layout.offload == "none":
        return 0
    share = -(-count_parameters(config) // layout.data_parallel)
    bytes_each = 16  # master weights, moments, and the gradients of the step, in float32
    if layout.zero_stage < 3:
        bytes_each += layout.weight_bytes  # the new weights, on their way back
    if layout.zero_stage != 2:
        bytes_each += layout.accumulation_bytes  # stage 2 sums on the GPU
    if layout.offload == "optimizer+params":
        bytes_each += layout.weight_bytes
    return bytes_each * share


def usable_bytes(gpu: GPU) -> int:
    """What a plan may fill of a GPU's memory."""
    return int(gpu.memory_bytes * (1.0 - FRAGMENTED_SHARE)) - RESERVED_BYTES


def largest_micro_batch(config: GPT3Config, layout: Layout, gpu: GPU) -> int:
    """The largest micro-batch of a layout that fits the GPU; 0 where not even one sequence does."""

    def fits(micro_batch: int) -> bool:
        return _total(config, replace(layout, micro_batch=micro_batch)) <= usable_bytes(gpu)

    return _last(fits, 4096)


def smallest_data_parallel(config: GPT3Config, layout: Layout, gpu: GPU) -> int | None:
    """The fewest processes on which a layout fits the GPU; None where no number of them is enough."""
    limit = 2**17

    def too_few(processes: int) -> bool:
        return _total(config, replace(layout, data_parallel=processes)) > usable_bytes(gpu)

    last = _last(too_few, limit)
    return None if last == limit else last + 1


def _total(config: GPT3Config, layout: Layout) -> int:
    return sum(memory_by_part(config, layout).values())


def _last(holds: Callable[[int], bool], limit: int) -> int:
    """The last number from 1 to `limit` for which `holds`, which stops holding once; 0 where none."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for. None is a choice left to the planner, or the recipe's value.

    Attributes:
        model: A preset, or a folder with a config.json. Default: the recipe's preset.
        recipe: A pretraining recipe; the fields below override its own.
        gpus, nodes: In all; `gpus` must be given. Default of `nodes`: as many as there are at 8 GPUs each.
        gpu: A key of `GPUS`.
        vocab_size: Words of the corpus; as in training the recipe's `model_overrides` win, and a folder has its own.
        batch_tokens: Tokens of a full batch. Default: the recipe's; without one the preset's in table 2.1. What is
            planned for is the whole multiple of the recipe's `batch_increment_tokens` nearest to it, as in training.
        mfu: Share of the GPUs' peak that the dense-equivalent model FLOPs reach.
        price_per_gpu_hour: In dollars. Default: the GPU's rough one.
    """

    model: str | None = None
    recipe: str | None = None
    gpus: int | None = None
    nodes: int | None = None
    gpu: str = "h100-80"
    zero_stage: int | None = None
    offload: str = "none"
    activation_checkpointing: bool | None = None
    micro_batch: int | None = None
    sequence_length: int | None = None
    tokens: int | None = None
    batch_tokens: int | None = None
    vocab_size: int | None = None
    tensor_parallel: int = 1
    mfu: float = 0.4
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True)
class LayoutFit:
    """One row of the table: a layout with the largest micro-batch that fits, 0 where none does."""

    layout: Layout
    max_micro_batch: int
    memory_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; memory is that of `max_micro_batch`, or of 1."""
        return {
            "zero_stage": self.layout.zero_stage,
            "activation_checkpointing": self.layout.activation_checkpointing,
            "offload": self.layout.offload,
            "max_micro_batch": self.max_micro_batch,
            "memory_per_gpu_bytes": self.memory_bytes,
        }


@dataclass(frozen=True)
class Plan:
    """A plan; `as_dict` is what `hfgpt plan --json` prints."""

    model: str
    recipe: str | None
    parameters: int
    tokens: int
    sequence_length: int
    flops_per_token: FlopsPerToken
    training_flops: float
    gpu: str
    gpus: int
    nodes: int
    layout: Layout
    memory_by_part_bytes: dict[str, int]
    usable_memory_bytes: int
    host_memory_per_node_bytes: int
    max_micro_batch: int
    accumulation_steps: int | None
    batch_tokens: int | None
    layouts: list[LayoutFit]
    min_gpus: int | None
    mfu: float
    days: float
    energy_kwh: float
    price_per_gpu_hour: float | None
    cost: float | None
    command: str
    notes: list[str] = field(default_factory=list)

    @property
    def memory_per_gpu_bytes(self) -> int:
        """The chosen layout's peak."""
        return sum(self.memory_by_part_bytes.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["flops_per_token"] = asdict(self.flops_per_token)
        values["layout"] = asdict(self.layout)
        values["layouts"] = [fit.as_dict() for fit in self.layouts]
        values["memory_per_gpu_bytes"] = self.memory_per_gpu_bytes
        return values


# Of a pretraining recipe, what matters here. `gradient_checkpointing` is the older name.
_RECIPE_FIELDS: dict[str, Any] = {
    "output_dir": str,
    "preset": str,
    "model_overrides": dict,
    "sequence_length": int,
    "per_device_train_batch_size": int,
    "gradient_accumulation_steps": int,
    "train_tokens": int,
    "batch_size_tokens": int,
    "batch_ramp_start_tokens": int,
    "batch_ramp_tokens": int,
    "batch_increment_tokens": int,
    "activation_checkpointing": bool,
    "gradient_checkpointing": bool,
    "bf16": bool,
    "fp16": bool,
    "attn_implementation": str,
}


def plan(options: PlanOptions) -> Plan:
    """Plan a training run.

    Of the layouts that fit, the one without recomputation that shares the least, else the one with it: recomputing
    costs a third of the time, sharing more costs communication, at most half as much again at stage 3.

    Days are `tokens x dense FLOPs per token / (gpus x peak x mfu)`; energy is that of the GPUs at their rated power.

    Raises:
        ValueError: Something does not fit, with what would; or an option is wrong.
    """
    recipe = read_recipe(options.recipe)
    gpu = _find_gpu(options.gpu)
    name, config = load_config(options.model, recipe, options.vocab_size)
    if options.gpus is None:
        raise ValueError(f"How many GPUs? Give `--gpus`, such as `--gpus 8`; `--gpu` is now {options.gpu}.")
    gpus = options.gpus
    nodes = _count_nodes(gpus, options.nodes)
    if (
        options.tensor_parallel < 1
        or gpus % options.tensor_parallel
        or config.num_attention_heads % options.tensor_parallel
    ):
        raise ValueError(
            f"`--tensor-parallel` must divide the {gpus} GPUs and the {config.num_attention_heads} attention heads, "
            f"got {options.tensor_parallel}."
        )
    if not 0.0 < options.mfu <= 1.0:
        raise ValueError(f"`--mfu` must be above 0 and at most 1, got {options.mfu}.")
    price = gpu.price_per_hour if options.price_per_gpu_hour is None else options.price_per_gpu_hour
    if price is not None and not 0.0 <= price < math.inf:
        raise ValueError(f"`--price-per-gpu-hour` must be at least 0 dollars, got {price}.")
    length = _first(options.sequence_length, recipe.get("sequence_length"), config.max_position_embeddings)
    tokens = _first(options.tokens, recipe.get("train_tokens"), PAPER_TRAIN_TOKENS)
    # A recipe takes nothing from table 2.1 by itself.
    preset = PRESETS.get(name) if options.recipe is None else None
    batch_tokens = _first(
        options.batch_tokens, recipe.get("batch_size_tokens"), preset.batch_size_tokens if preset else None
    )
    flops = flops_per_token(config, length)  # also checks the length
    asked_micro_batch = _first(options.micro_batch, recipe.get("per_device_train_batch_size"))
    for label, value in (
        ("--tokens (`train_tokens`)", tokens),
        ("--batch-tokens (`batch_size_tokens`)", batch_tokens),
        ("--micro-batch (`per_device_train_batch_size`)", asked_micro_batch),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{label} must be at least 1, got {value}.")
    if options.batch_tokens is not None and options.batch_tokens < length:
        raise ValueError(
            f"`--batch-tokens` must be at least one sequence, {length} tokens (`--sequence-length`), "
            f"got {options.batch_tokens}."
        )

    checkpointing = options.activation_checkpointing
    if checkpointing is None:
        checkpointing = recipe.get("activation_checkpointing", recipe.get("gradient_checkpointing"))
    base = Layout(
        data_parallel=gpus // options.tensor_parallel,
        tensor_parallel=options.tensor_parallel,
        # Offloading is DeepSpeed's; which stage is decided below.
        zero_stage=3 if options.zero_stage is None else options.zero_stage,
        offload=options.offload,
        sequence_length=length,
        bf16=recipe.get("bf16") is not False or recipe.get("fp16", False),
        attn_implementation=recipe.get("attn_implementation", "sdpa"),
    )
    sequences, increment = None, None
    if batch_tokens is not None:
        increment = _batch_increment(recipe, preset, length)
        sequences = _nearest_multiple(batch_tokens / length, increment or 1)
    layouts = [_fit(config, layout, gpu) for layout in _candidates(base)]
    wanted = [
        fit
        for fit in layouts
        if options.zero_stage in (None, fit.layout.zero_stage)
        and checkpointing in (None, fit.layout.activation_checkpointing)
    ]
    fitting = [fit for fit in wanted if fit.max_micro_batch >= (asked_micro_batch or 1)]
    if not fitting:
        raise ValueError(_refusal(config, name, options, gpu, base, layouts, wanted, asked_micro_batch or 1))
    if options.offload != "none" and asked_micro_batch is None:
        # What is offloaded is moved for each micro-batch: one sequence at a time is slower than to recompute.
        fitting = [fit for fit in fitting if fit.max_micro_batch > 1] or fitting
    chosen = _preferred(fitting)
    micro_batch, steps = asked_micro_batch or chosen.max_micro_batch, None
    if sequences is not None:
        rows = -(-sequences // base.data_parallel)  # of the busiest process
        if asked_micro_batch is None:
            # As many passes as the largest micro-batch takes, all about the same size.
            micro_batch = -(-rows // -(-rows // chosen.max_micro_batch))
        if increment is None:  # the default of `batch_increment_tokens`
            increment = micro_batch * base.data_parallel
            sequences = _nearest_multiple(sequences, increment)
        steps = -(-sequences // (micro_batch * base.data_parallel))
    elif options.recipe is not None:  # as Trainer makes it of them
        steps = recipe.get("gradient_accumulation_steps", 1)
        batch_tokens = micro_batch * steps * base.data_parallel * length
    layout = replace(chosen.layout, micro_batch=micro_batch, accumulates=steps is None or steps > 1)

    hours = tokens * flops.dense / (gpus * gpu.peak_flops_bf16 * options.mfu) / 3600
    smallest = smallest_data_parallel(config, replace(chosen.layout, micro_batch=1), gpu)
    return Plan(
        model=name,
        recipe=options.recipe,
        parameters=count_parameters(config),
        tokens=tokens,
        sequence_length=length,
        flops_per_token=flops,
        training_flops=tokens * flops.paper,
        gpu=options.gpu,
        gpus=gpus,
        nodes=nodes,
        layout=layout,
        memory_by_part_bytes=memory_by_part(config, layout),
        usable_memory_bytes=usable_bytes(gpu),
        host_memory_per_node_bytes=host_memory_bytes(config, layout) * (gpus // nodes),
        max_micro_batch=chosen.max_micro_batch,
        accumulation_steps=steps,
        batch_tokens=batch_tokens if sequences is None else sequences * length,
        layouts=layouts,
        min_gpus=None if smallest is None else smallest * options.tensor_parallel,
        mfu=options.mfu,
        days=hours / 24,
        energy_kwh=gpus * gpu.power_watts * hours / 1000,
        price_per_gpu_hour=price,
        cost=None if price is None else gpus * hours * price,
        command=_command(options, recipe, name, layout, nodes, tokens),
        notes=[
            *_batch_notes(recipe, preset, layout, sequences, increment or 1, gpus // nodes, hours / 24 / tokens),
            *_notes(options, layout),
        ],
    )


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next((value for value in values if value is not None), None)


def _batch_increment(recipe: dict[str, Any], preset: Preset | None, length: int) -> int | None:
    """Sequences of which the batch is a whole multiple; None where it is a micro-batch on every process."""
    tokens = recipe.get("batch_increment_tokens")
    if tokens is None:
        return max(BATCH_INCREMENT_TOKENS // length, 1) if preset else None
    if tokens < 1 or tokens % length:
        raise ValueError(
            f"`batch_increment_tokens` ({tokens}) of the recipe must be a multiple of the sequence length, {length} "
            "(`--sequence-length`)."
        )
    return tokens // length


def _nearest_multiple(value: float, unit: int) -> int:
    """The whole multiple of `unit` nearest to `value`, halves up; at least one."""
    return max(math.floor(value / unit + 0.5), 1) * unit


def _preferred(fitting: list[LayoutFit]) -> LayoutFit:
    """No recomputation before less sharing; `fitting` is in the order of stages."""
    return min(fitting, key=lambda fit: fit.layout.activation_checkpointing)


def read_recipe(path: str | None) -> dict[str, Any]:
    """The fields of a pretraining recipe that matter here; none of None.

    Raises:
        ValueError: No such file, or a value of the wrong type.
    """
    if path is None:
        return {}
    values = read_yaml(path)
    return {
        key: coerce(values[key], kind, f"`{key}` in {path}")
        for key, kind in _RECIPE_FIELDS.items()
        if values.get(key) is not None
    }


def _find_gpu(name: str) -> GPU:
    if name not in GPUS:
        near = [key for key in GPUS if name.lower() in key] or get_close_matches(name.lower(), GPUS, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"Unknown GPU {name!r}; known are {', '.join(GPUS)}.{hint}")
    return GPUS[name]


def load_config(model: str | None, recipe: dict[str, Any], vocab_size: int | None = None) -> tuple[str, GPT3Config]:
    """Name and config of a preset, with the corpus' vocabulary and the recipe's overrides, or of a folder.

    Raises:
        ValueError: No model is named, an unknown one, or not one of ours.
    """
    name = model or recipe.get("preset")
    if name is None:
        raise ValueError(f"Name a model ({', '.join(PRESETS)}, or a folder with config.json), or give `--recipe`.")
    path = Path(name)
    if name in PRESETS or not path.exists():
        words = {} if vocab_size is None else {"vocab_size": vocab_size}
        return name, GPT3Config.from_preset(name, **{**words, **recipe.get("model_overrides", {})})
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read the model's config {path}: {error}.") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != GPT3Config.model_type:
        raise ValueError(f"{path} is of a {kind!r} model; the planner knows {GPT3Config.model_type!r}.")
    return name, GPT3Config.from_dict(values)


def _count_nodes(gpus: int, nodes: int | None) -> int:
    if gpus < 1:
        raise ValueError(f"`--gpus` must be at least 1, got {gpus}.")
    if nodes is None:
        return next(gpus // each for each in range(8, 0, -1) if gpus % each == 0)
    if nodes < 1 or gpus % nodes:
        raise ValueError(f"`--gpus` ({gpus}) must be a multiple of `--nodes` ({nodes}): each node has as many.")
    return nodes


def _candidates(base: Layout) -> Iterable[Layout]:
    """Every stage that allows the offload and the tensor parallelism asked for, without and with checkpointing."""
    for stage in (0, 1, 2, 3):
        try:
            yield (layout := replace(base, zero_stage=stage, activation_checkpointing=False))
        except ValueError:
            continue
        yield replace(layout, activation_checkpointing=True)


def _fit(config: GPT3Config, layout: Layout, gpu: GPU) -> LayoutFit:
    largest = largest_micro_batch(config, layout, gpu)
    return LayoutFit(layout, largest, _total(config, replace(layout, micro_batch=max(largest, 1))))


def _refusal(
    config: GPT3Config,
    name: str,
    options: PlanOptions,
    gpu: GPU,
    base: Layout,
    layouts: list[LayoutFit],
    wanted: list[LayoutFit],
    micro_batch: int,
) -> str:
    """Why nothing fits, and what would."""
    least = min(_total(config, replace(fit.layout, micro_batch=micro_batch)) for fit in wanted)
    would = []
    largest = max(fit.max_micro_batch for fit in wanted)
    if largest > 0:
        would.append(f"--micro-batch {largest}")
    others = [fit for fit in layouts if fit.max_micro_batch >= micro_batch and fit not in wanted]
    if others:
        would.append(_flags(_preferred(others).layout))
    if not others and options.tensor_parallel == 1:
        for offload in OFFLOADS[1:]:
            layout = replace(base, zero_stage=3, offload=offload, activation_checkpointing=True)
            if offload != options.offload and largest_micro_batch(config, layout, gpu) >= micro_batch:
                host = host_memory_bytes(config, layout) * (base.gpus // _count_nodes(base.gpus, options.nodes))
                would.append(f"{_flags(layout)} ({_gigabytes(host)} of the memory of each machine)")
                break
    tensor_parallel = options.tensor_parallel
    more = []
    for fit in wanted if wanted[-1] == layouts[-1] else [*wanted, layouts[-1]]:
        layout = replace(fit.layout, micro_batch=micro_batch)
        processes = smallest_data_parallel(config, layout, gpu)
        if processes is not None:
            more.append((processes * tensor_parallel, _flags(layout)))
    if more:
        count, flags = min(more)
        count = count if count <= 8 else -(-count // 8) * 8  # whole machines
        if count > base.gpus:
            would.append(f"--gpus {count} {flags}")
    larger = sorted((other.memory_bytes, key) for key, other in GPUS.items() if other.memory_bytes > gpu.memory_bytes)
    for _, key in larger:
        if any(largest_micro_batch(config, fit.layout, GPUS[key]) >= micro_batch for fit in wanted):
            would.append(f"--gpu {key}")
            break
    return (
        f"{name} does not fit {base.gpus} x {options.gpu} as asked: a GPU would need {_gigabytes(least)} with micro-batch "
        f"{micro_batch}, and {_gigabytes(usable_bytes(gpu))} of its {_gigabytes(gpu.memory_bytes)} can be filled. "
        + (f"What would fit: {'; '.join(would)}." if would else "Nothing we know of would fit; try a smaller model.")
    )


def _flags(layout: Layout) -> str:
    checkpointing = "" if layout.activation_checkpointing else "no-"
    offload = "" if layout.offload == "none" else f" --offload {layout.offload}"
    return f"--zero-stage {layout.zero_stage} --{checkpointing}activation-checkpointing{offload}"


def _command(options: PlanOptions, recipe: dict[str, Any], name: str, layout: Layout, nodes: int, tokens: int) -> str:
    """The line to run, on each node."""
    if layout.tensor_parallel > 1:
        accelerate = "fsdp2"
    elif layout.offload != "none":
        accelerate = "zero3_offload" if layout.offload == "optimizer+params" else f"zero{layout.zero_stage}"
    else:
        accelerate = "ddp" if layout.zero_stage == 0 else f"zero{layout.zero_stage}"
    words = ["accelerate launch", f"--config_file recipes/accelerate/{accelerate}.yaml"]
    words.append(f"--num_machines {nodes} --num_processes {layout.gpus}")
    if nodes > 1:
        words.append("--machine_rank $MACHINE_RANK --main_process_ip $MAIN_ADDRESS --main_process_port 29500")
    if layout.tensor_parallel > 1:
        sharded = layout.zero_stage == 3
        words.append("--use_parallelism_config true")
        words.append(f"--parallelism_config_tp_size {layout.tensor_parallel}")
        words.append(f"--parallelism_config_dp_{'shard' if sharded else 'replicate'}_size {layout.data_parallel}")
    recipe_path = options.recipe or (f"recipes/pretrain/{name}.yaml" if name in PRESETS else "RECIPE.yaml")
    words.append(f"recipes/pretrain.py --config {recipe_path}")
    if options.recipe and options.model and options.model != recipe.get("preset"):
        words.append(f"--preset {options.model}")
    words.append(f"--per_device_train_batch_size {layout.micro_batch}")
    words.append(f"--activation_checkpointing {str(layout.activation_checkpointing).lower()}")
    if options.sequence_length:
        words.append(f"--sequence_length {layout.sequence_length}")
    if options.tokens:
        words.append(f"--train_tokens {tokens}")
    if options.batch_tokens:
        words.append(f"--batch_size_tokens {options.batch_tokens}")
    if options.gpu in WITHOUT_BF16 and layout.bf16:
        words.append("--fp16 true --bf16 false")
    return " ".join(words)


def _batch_notes(
    recipe: dict[str, Any],
    preset: Preset | None,
    layout: Layout,
    sequences: int | None,
    increment: int,
    gpus_per_node: int,
    days_per_token: float,
) -> list[str]:
    """Where the batch, counted in sequences, leaves processes without work; the days do not include that."""
    if sequences is None:
        return []
    notes = []
    processes = layout.data_parallel
    rows = -(-sequences // processes)
    idle = 1.0 - sequences / (rows * processes)
    if processes > sequences:
        notes.append(
            f"A full batch is {sequences:,} sequences: {processes - sequences:,} of the {processes:,} data-parallel "
            "processes are idle. Fewer GPUs, or tensor parallelism, would lose nothing."
        )
    elif idle >= 0.05:
        notes.append(
            f"A full batch of {sequences:,} sequences is not a multiple of {processes:,} processes: {idle:.0%} of them "
            f"wait for others, beyond what --mfu says.{_even_gpus(layout, sequences, gpus_per_node)}"
        )
    ramp = recipe.get("batch_ramp_tokens", preset.batch_ramp_tokens if preset else 0)
    first_tokens = recipe.get("batch_ramp_start_tokens", PAPER_FIRST_BATCH_TOKENS)
    first = _nearest_multiple(first_tokens / layout.sequence_length, increment)
    if ramp > 0 and processes > first and sequences > first:
        # A batch of s sequences, which grows linearly with tokens, keeps s of the processes busy.
        last = min(processes, sequences)
        slope = ramp / (sequences - first)
        lost = slope * (processes * math.log(last / first) - (last - first))
        notes.append(
            f"The batch begins at {first} sequences and is full after {ramp:,} tokens: while it is below {processes:,} "
            f"sequences, processes are idle, which adds about {lost * days_per_token:,.2f} days."
        )
    return notes


def _even_gpus(layout: Layout, sequences: int, gpus_per_node: int) -> str:
    """Advice: GPUs on whole nodes over which a full batch is even, the next fewer and the next more."""
    tensor_parallel, processes = layout.tensor_parallel, layout.data_parallel
    even = [n for n in range(1, sequences + 1) if sequences % n == 0 and n * tensor_parallel % gpus_per_node == 0]
    fewer = max((n for n in even if n < processes), default=None)
    more = min((n for n in even if n > processes), default=None)
    if fewer is not None and sequences // fewer == -(-sequences // processes):
        return f" {fewer * tensor_parallel:,} GPUs are as fast."
    counts = [f"{n * tensor_parallel:,}" for n in (fewer, more) if n is not None]
    return f" On {' or '.join(counts)} GPUs it is even." if counts else ""


def _notes(options: PlanOptions, layout: Layout) -> list[str]:
    """What else the figures do not say."""
    notes = []
    if layout.activation_checkpointing:
        notes.append(
            "Activation checkpointing computes the forward pass twice, a third more work, which the FLOPs above leave "
            "out: expect an --mfu about a quarter lower than without."
        )
    if layout.offload != "none":
        notes.append(
            f"Offloading ({layout.offload}) is slower than --mfu {options.mfu:g} assumes: what is kept in the machine's "
            "memory is moved to the GPU and back, and the optimizer's step is made on the processor. Measure a few steps "
            "and give what they reach."
        )
    if layout.offload == "optimizer":
        notes.append(
            f"recipes/accelerate has no config for this: in a copy of ds_configs/zero{layout.zero_stage}.json add "
            '"offload_optimizer": {"device": "cpu", "pin_memory": true}.'
        )
    if layout.tensor_parallel > 1:
        notes.append(
            "Under tensor parallelism all logits are in memory: the loss in chunks needs the whole output layer."
        )
    if options.gpu in WITHOUT_BF16 and layout.bf16:
        notes.append(f"{options.gpu} has no bfloat16: the command trains in fp16, which takes about the same memory.")
    if not layout.bf16:
        notes.append("The recipe trains in float32, at which a GPU is several times slower than the peak used here.")
    return notes


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count == 0 or count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(days: float) -> str:
    for name, count in (("days", days), ("hours", days * 24), ("minutes", days * 24 * 60)):
        if count >= 1:
            return f"{count:,.2f} {name}"
    return f"{days * 86400:.2f} seconds"


_STAGE_WORDS = (
    "ZeRO stages share out over the GPUs: 0 nothing (DDP), 1 optimizer states, 2 and gradients, 3 and weights."
)
_PART_WORDS = {
    "weights": "with copies in bf16 and what is gathered to be used",
    "gradients": "",
    "optimizer": "Adam's two moments, and float32 master weights",
    "activations": "kept for the backward pass",
    "loss": "logits, in chunks, and their gradients",
    "communication": "gradients on their way to other GPUs",
}


def plan_lines(result: Plan) -> list[str]:
    """A plan for reading."""
    flops, layout = result.flops_per_token, result.layout
    nodes = f"{result.nodes:,} machine{'s' if result.nodes > 1 else ''}"
    title = result.model if result.recipe is None else f"{result.recipe} ({result.model})"
    lines = [
        f"{title}: {result.parameters:,} parameters, {result.tokens:,} tokens in sequences of "
        f"{result.sequence_length:,}",
        f"training: {result.training_flops:.3g} FLOPs (6 per parameter and token, the paper's count)",
        f"FLOPs per token: {flops.paper:.4g} by the paper's count, {flops.dense:.4g} with attention as if dense, "
        f"{flops.banded:.4g} with its causal mask and bands",
        "",
        f"{result.gpus:,} x {result.gpu} on {nodes}; {_gigabytes(result.usable_memory_bytes)} of each can be filled",
        _STAGE_WORDS,
        "Checkpointing keeps only each block's input and computes the rest again. Micro-batch: sequences at once on a GPU.",
        "",
        "  ZeRO  checkpointing  largest micro-batch   memory per GPU",
    ]
    for fit in result.layouts:
        same = replace(fit.layout, micro_batch=layout.micro_batch, accumulates=layout.accumulates) == layout
        lines.append(
            f"{'*' if same else ' '} {fit.layout.zero_stage:4}  {_yes(fit.layout.activation_checkpointing):13}  "
            f"{fit.max_micro_batch or 'does not fit':>19}  {_gigabytes(fit.memory_bytes):>15}"
        )
    offload = "" if layout.offload == "none" else f", {layout.offload} kept in the machine's memory"
    steps = "" if result.accumulation_steps is None else f" x {result.accumulation_steps} accumulated"
    lines += [
        "",
        f"* chosen: ZeRO stage {layout.zero_stage}, checkpointing {_yes(layout.activation_checkpointing)}{offload}, "
        f"micro-batch {layout.micro_batch}{steps}" + _batch_words(result),
    ]
    for part, count in result.memory_by_part_bytes.items():
        lines.append(f"  {part:14}{_gigabytes(count):>12}  {_PART_WORDS[part]}".rstrip())
    lines.append(f"  {'in all':14}{_gigabytes(result.memory_per_gpu_bytes):>12}")
    if result.host_memory_per_node_bytes:
        lines.append(f"  and {_gigabytes(result.host_memory_per_node_bytes)} of the memory of each machine")
    if result.min_gpus is not None:
        lines.append(f"  this layout fits from {result.min_gpus:,} of these GPUs, at micro-batch 1")
    cost = ""
    if result.cost is not None:
        cost = f", {_rounded(result.cost)} dollars at {result.price_per_gpu_hour:g} an hour a GPU"
    lines += [
        "",
        f"{_duration(result.days)} at {result.mfu:.0%} of the GPUs' peak (--mfu), {_rounded(result.energy_kwh)} kWh at "
        f"their rated power{cost}",
        *(f"note: {note}" for note in result.notes),
        "",
        "to run" + (", on each machine:" if result.nodes > 1 else ":"),
        result.command,
    ]
    return lines


def _batch_words(result: Plan) -> str:
    return "" if result.batch_tokens is None else f" for a batch of {result.batch_tokens:,} tokens"


def _yes(value: bool) -> str:
    return "on" if value else "off"
