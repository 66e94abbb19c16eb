"""Cross entropy of a language model without its logits.

The logits of 50,257 words dominate the memory of training: 2 x 1,024 tokens are 412 MB in float32, and the plain loss
holds them three times. Here tokens go through the output layer in chunks, and the gradients of hidden states and
weight are computed in the same pass, so that a chunk's logits are gone before the next one's are made. The matrix
products are those of the plain loss: nothing is computed twice.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


# Logits held at a time, in the dtype of the product: large enough for products at full speed, small beside a model.
CHUNK_BYTES = 2**27
# Rows of a chunk that go through softmax at once on a CPU, so that they stay in its cache.
CACHED_ROWS = 16


class GPT3LMHead(nn.Linear):
    """The output layer, which can also return the loss in place of the logits.

    The loss is computed inside the layer's own forward, since that is where ZeRO-3, FSDP and offloading have the whole
    weight at hand.
    """

    def forward(
        self, hidden_states: torch.Tensor, labels: torch.Tensor | None = None, ignore_index: int = -100
    ) -> torch.Tensor:
        """Logits (..., vocab_size) or, with labels of the same leading shape, their summed cross entropy (scalar)."""
        if labels is None:
            return super().forward(hidden_states)
        return chunked_cross_entropy(hidden_states, self.weight, labels, ignore_index)


def chunked_cross_entropy(
    hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """Sum over tokens of the cross entropy of `hidden_states @ weight.T`, in float32.

    Args:
        hidden_states: (..., hidden_size).
        weight: (vocab_size, hidden_size).
        labels: Word ids, of the leading shape of `hidden_states`; `ignore_index` where there is no loss.

    Products are in the autocast dtype where autocast is on, else in that of `hidden_states`; softmax and sums are in
    float32. It can be differentiated once.
    """
    hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
    labels = labels.reshape(-1).to(hidden_states.device)
    if not torch.compiler.is_compiling():
        # Tokens without a loss are not paid for; in fine-tuning they are most. A graph needs fixed shapes.
        rows = (labels != ignore_index).nonzero().squeeze(-1)
        if rows.numel() < labels.numel():
            hidden_states, labels = hidden_states[rows], labels[rows]
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
    return _ChunkedCrossEntropy.apply(hidden_states, weight, labels, ignore_index, dtype, torch.is_grad_enabled())


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        ignore_index: int,
        dtype: torch.dtype,
        with_gradients: bool,
    ) -> torch.Tensor:
        needs_hidden = with_gradients and ctx.needs_input_grad[0]
        needs_weight = with_gradients and ctx.needs_input_grad[1]
        tokens, vocab_size = hidden_states.shape[0], weight.shape[0]
        with torch.autocast(hidden_states.device.type, enabled=False):
            inputs, matrix = hidden_states.to(dtype), weight.to(dtype)
            chunks = max(-(-tokens * vocab_size * matrix.element_size() // CHUNK_BYTES), 1)
            size = max(-(-tokens // chunks), 1)
            loss = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
            hidden_gradient = torch.empty_like(inputs) if needs_hidden else None
            weight_gradient = None
            for start in range(0, tokens, size):
                chunk = inputs[start : start + size]
                chunk_labels = labels[start : start + size]
                logits = chunk @ matrix.t()
                loss += _cross_entropy_(logits, chunk_labels, ignore_index, needs_hidden or needs_weight)
                # From here `logits` holds the gradient of the loss with respect to the logits.
                if hidden_gradient is not None:
                    hidden_gradient[start : start + size] = logits @ matrix
                if needs_weight:
                    product = logits.t() @ chunk
                    if weight_gradient is None:
                        weight_gradient = product if chunks == 1 else product.float()
                    else:
                        weight_gradient += product
        if needs_weight:
            weight_gradient = torch.zeros_like(weight) if weight_gradient is None else weight_gradient
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.hidden_dtype = hidden_states.dtype
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        if hidden_gradient is not None:
            hidden_gradient = (hidden_gradient * gradient.to(hidden_gradient.dtype)).to(ctx.hidden_dtype)
        if weight_gradient is not None:
            weight_gradient = weight_gradient * gradient.to(weight_gradient.dtype)
        return hidden_gradient, weight_gradient, None, None, None, None


def _cross_entropy_(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, with_gradient: bool
) -> torch.Tensor:
    """Summed cross entropy of `logits` (tokens, vocab_size), which is overwritten by its gradient if asked for."""
    in_blocks = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    rows = CACHED_ROWS if in_blocks else max(logits.shape[0], 1)
    kept = labels != ignore_index
    targets = labels.masked_fill(~kept, 0).unsqueeze(-1)
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    for start in range(0, logits.shape[0], rows):
        block = slice(start, start + rows)
        scores = logits[block].float()
        probabilities = torch.softmax(scores, dim=-1)
        # log-sum-exp from the likeliest word, whose probability is never too small for a logarithm.
        likeliest = probabilities.amax(dim=-1)
        losses = scores.amax(dim=-1) - likeliest.log() - scores.gather(-1, targets[block]).squeeze(-1)
        loss += losses.masked_fill(~kept[block], 0.0).sum()
        if with_gradient:
            probabilities.scatter_add_(-1, targets[block], -torch.ones_like(targets[block], dtype=torch.float32))
            if torch.compiler.is_compiling():
                probabilities = probabilities.masked_fill(~kept[block].unsqueeze(-1), 0.0)
            logits[block] = probabilities
    return loss
