"""Cross entropy of a language model without its logits.

The logits of 50,257 words dominate the memory of training: 2 x 1,024 tokens are 412 MB in float32, and the plain loss
holds them three times. Here tokens go through the output layer in chunks, and the gradients of hidden states and
weight are computed in the same pass, so that a chunk's logits are gone before the next one's are made. The matrix
products are those of the plain loss: nothing is computed twice.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.utils.import_utils import is_tracing


# Logits held at a time, in the dtype of the product: large enough for a CPU's full speed, small beside a model.
CHUNK_BYTES = 2**26
# On a CPU, so that they stay in its caches: rows of a chunk that go through softmax at once, and words whose gradients
# are added up at once.
CACHED_ROWS = 16
CACHED_WORDS = 4096
# Tokens whose logits a CPU computes faster as weight @ hidden_states.T: a step of decoding, for some beams or rows.
FEW_TOKENS = 8


def can_be_read(tensor: torch.Tensor) -> bool:
    """Whether to decide by what is in a tensor: not while tracing or capturing a graph, nor without data."""
    return tensor.device.type != "meta" and not is_tracing(tensor)


class GPT3LMHead(nn.Linear):
    """The output layer, which can also return the loss in place of the logits.

    The loss is computed inside the layer's own forward, since that is where ZeRO-3, FSDP and offloading have the whole
    weight at hand.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = -100,
    ) -> torch.Tensor:
        """Logits (..., vocab_size) or, with labels of the same leading shape, the loss (scalar)."""
        if labels is not None:
            return chunked_cross_entropy(hidden_states, self.weight, labels, num_items_in_batch, ignore_index)
        if hidden_states.numel() <= FEW_TOKENS * self.in_features and self._is_plain(hidden_states):
            return self._decode(hidden_states)
        return super().forward(hidden_states)

    def _is_plain(self, hidden_states: torch.Tensor) -> bool:
        """Whether this is float32 on a CPU, whole on this rank, without gradient, autocast or tracing."""
        if type(self.weight) is not nn.Parameter or type(hidden_states) is not torch.Tensor or self.bias is not None:
            return False
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        on_cpu = hidden_states.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return on_cpu and hidden_states.dtype == self.weight.dtype == torch.float32

    def _decode(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of a few tokens. A product with one vector runs on one thread; with two columns, on all of them."""
        rows = hidden_states.reshape(-1, self.in_features)
        columns = rows.repeat(2, 1) if len(rows) == 1 else rows
        logits = (self.weight @ columns.t())[:, : len(rows)].t().contiguous()
        return logits.view(*hidden_states.shape[:-1], self.weight.shape[0])


def chunked_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Cross entropy of the logits `hidden_states @ weight.T`: a float32 scalar that can be differentiated once.

    Args:
        hidden_states: (..., hidden_size).
        weight: (vocab_size, hidden_size).
        labels: Word ids, of the leading shape of `hidden_states`; `ignore_index` where there is no loss.
        num_items_in_batch: What the sum over tokens is divided by. Default: the number of tokens with a loss.

    Products are in the autocast dtype where autocast is on, else in that of `hidden_states`; softmax and sums are in
    float32.

    Raises:
        ValueError: Not as many labels as hidden states.
    """
    if labels.numel() != hidden_states[..., 0].numel():
        raise ValueError(
            f"`labels` {tuple(labels.shape)} must be as many as the positions {tuple(hidden_states.shape[:-1])}; "
            "with `logits_to_keep` they are those of the kept positions."
        )
    hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
    labels = labels.reshape(-1).to(hidden_states.device)
    kept = (labels != ignore_index).sum()
    if num_items_in_batch is None:
        divisor = kept.clamp(min=1)
    else:
        divisor = torch.as_tensor(num_items_in_batch, device=hidden_states.device)
    if can_be_read(labels):
        # Tokens without a loss are not paid for; in fine-tuning they are most. A graph needs fixed shapes.
        rows = (labels != ignore_index).nonzero().squeeze(-1)
        if rows.numel() < labels.numel():
            hidden_states, labels = hidden_states[rows], labels[rows]
    device = hidden_states.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden_states.dtype
    loss = _ChunkedCrossEntropy.apply(
        hidden_states, weight, labels, divisor, ignore_index, dtype, torch.is_grad_enabled()
    )
    if num_items_in_batch is None:
        # The mean over no tokens is not a number; its gradient is zero.
        loss = torch.where(kept > 0, loss, torch.nan)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        divisor: torch.Tensor,
        ignore_index: int,
        dtype: torch.dtype,
        with_gradients: bool,
    ) -> torch.Tensor:
        needs_hidden = with_gradients and ctx.needs_input_grad[0]
        needs_weight = with_gradients and ctx.needs_input_grad[1]
        tokens, vocab_size = hidden_states.shape[0], weight.shape[0]
        device = hidden_states.device.type
        autocast = torch.amp.is_autocast_available(device)  # not on the meta device
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            inputs, matrix = hidden_states.to(dtype), weight.to(dtype)
            chunks = max(-(-tokens * vocab_size * matrix.element_size() // CHUNK_BYTES), 1)
            size = max(-(-tokens // chunks), 1)
            loss = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
            # The gradients are sums of many terms: kept in float32, and divided at the end.
            hidden_gradient = torch.empty_like(inputs, dtype=torch.float32) if needs_hidden else None
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
            # Counted in chunks: a compiled graph is then bound to their number, and not to that of the tokens.
            for index in range(chunks):
                start = index * size
                chunk = inputs[start : start + size]
                logits = chunk @ matrix.t()
                loss += _cross_entropy_(
                    logits, labels[start : start + size], ignore_index, needs_hidden or needs_weight
                )
                # From here `logits` holds the gradient of the summed loss with respect to the logits.
                if hidden_gradient is not None:
                    hidden_gradient[start : start + size] = logits @ matrix
                if weight_gradient is not None:
                    _add_product_(weight_gradient, logits.t(), chunk)
                del logits
        ctx.dtypes = hidden_states.dtype, weight.dtype
        # In float16 they would vanish if they were rounded before the loss scale comes.
        stored = [torch.float32 if dtype == torch.float16 else dtype for dtype in ctx.dtypes]
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient.div_(divisor).to(stored[0])
        if weight_gradient is not None:
            weight_gradient = weight_gradient.div_(divisor).to(stored[1])
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # A trainer calls loss.backward(): nothing to scale. Only a CPU can look without waiting.
        if gradient.device.type != "cpu" or not can_be_read(gradient) or gradient.item() != 1.0:
            gradients = [None if saved is None else saved * gradient for saved in gradients]
        gradients = [None if saved is None else saved.to(dtype) for saved, dtype in zip(gradients, ctx.dtypes)]
        return gradients[0], gradients[1], None, None, None, None, None


def _cross_entropy_(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, with_gradient: bool
) -> torch.Tensor:
    """Summed cross entropy of `logits` (tokens, vocab_size), which is overwritten by its gradient if asked for."""
    tokens = logits.shape[0]
    in_blocks = _in_blocks(logits)
    rows = CACHED_ROWS if in_blocks else tokens
    kept = labels != ignore_index
    all_kept = can_be_read(logits)  # tokens without a loss have been taken out
    targets = labels.masked_fill(~kept, 0).unsqueeze(-1)
    minus_one = torch.full_like(targets, -1, dtype=torch.float32)
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    for start in range(0, tokens, rows) if in_blocks else (0,):
        block = slice(start, start + rows)
        scores = logits[block].float()
        probabilities = torch.softmax(scores, dim=-1)
        # log-sum-exp from the likeliest word, whose probability is never too small for a logarithm.
        log_sum = scores.amax(dim=-1) - probabilities.amax(dim=-1).log()
        losses = log_sum - scores.gather(-1, targets[block]).squeeze(-1)
        loss += losses.masked_fill(~kept[block], 0.0).sum()
        if with_gradient:
            probabilities.scatter_add_(-1, targets[block], minus_one[block])
            if not all_kept:
                probabilities = probabilities.masked_fill(~kept[block].unsqueeze(-1), 0.0)
            logits[block] = probabilities
    return loss


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right`, with the sum in the dtype of `total`."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
        return
    rows = CACHED_WORDS if _in_blocks(total) else total.shape[0]
    for start in range(0, total.shape[0], rows):
        total[start : start + rows] += left[start : start + rows] @ right


def _in_blocks(tensor: torch.Tensor) -> bool:
    """Whether to work in blocks that fit the caches of a CPU; a compiler does that by itself."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
