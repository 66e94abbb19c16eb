"""The loss without the logits: value, gradients and memory of `hfgpt.model.loss`, alone and inside the model."""

import pytest
import torch
from tiny_models import largest_tensor, make_ids, make_model
from torch import nn

from hfgpt.model import loss as loss_module
from hfgpt.model import modeling_gpt3
from hfgpt.model.loss import GPT3LMHead, chunked_cross_entropy


VOCAB, WIDTH = 97, 16


def make_inputs(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (1, tokens, WIDTH), weight (VOCAB, WIDTH) and labels (1, tokens), a third of them without a loss."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, tokens, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(VOCAB, (1, tokens), generator=generator)
    labels[:, ::3] = -100
    return hidden, weight, labels


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """The same by way of all logits, in float32."""
    logits = nn.functional.linear(hidden, weight).float()
    return nn.functional.cross_entropy(logits.view(-1, VOCAB), labels.view(-1), reduction=reduction)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 4 tokens, softmax 3 rows at a time, gradients of 10 words at a time: none divides what it cuts."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * VOCAB * 4)
    monkeypatch.setattr(modeling_gpt3, "CHUNK_BYTES", 4 * VOCAB * 4)
    monkeypatch.setattr(loss_module, "CACHED_ROWS", 3)
    monkeypatch.setattr(loss_module, "CACHED_WORDS", 10)


@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 7, 50])
@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(7)], ids=["mean", "int", "tensor"])
def test_loss_and_gradients_are_those_of_the_logits(small_chunks, tokens, num_items):
    hidden, weight, labels = make_inputs(tokens)
    labels[0, 0] = 5  # so that a single token has a loss
    expected = plain(hidden, weight, labels) if num_items is None else plain(hidden, weight, labels, "sum") / 7
    loss = chunked_cross_entropy(hidden, weight, labels, num_items)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    )


def test_gradients_are_scaled_by_what_the_loss_is_multiplied_with(small_chunks):
    hidden, weight, labels = make_inputs(20)
    loss, expected = chunked_cross_entropy(hidden, weight, labels), plain(hidden, weight, labels)
    for _ in range(2):  # a second backward over a retained graph gives the same
        actual = torch.autograd.grad(loss * 0.25, (hidden, weight), retain_graph=True)
        torch.testing.assert_close(actual, torch.autograd.grad(expected * 0.25, (hidden, weight), retain_graph=True))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_scores_far_apart_overflow_nothing(small_chunks, scale):
    hidden, weight, labels = make_inputs(20)
    hidden = (hidden.detach() * scale).requires_grad_()
    loss = chunked_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(loss, plain(hidden, weight, labels))
    assert torch.autograd.grad(loss, weight)[0].isfinite().all()


def test_without_a_single_label_the_mean_is_not_a_number_and_its_gradient_zero(small_chunks):
    hidden, weight, labels = make_inputs(9)
    labels.fill_(-100)
    loss = chunked_cross_entropy(hidden, weight, labels)
    assert loss.isnan() and plain(hidden, weight, labels).isnan()
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert not gradient.any()
    assert chunked_cross_entropy(hidden, weight, labels, num_items_in_batch=3) == 0.0


def test_another_index_may_be_ignored():
    hidden, weight, labels = make_inputs(9)
    expected = plain(hidden, weight, labels)
    torch.testing.assert_close(
        chunked_cross_entropy(hidden, weight, labels.masked_fill(labels == -100, -1), ignore_index=-1), expected
    )


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_what_needs_no_gradient_is_not_paid_for(small_chunks, frozen):
    hidden, weight, labels = make_inputs(9)
    expected = plain(hidden, weight, labels)
    if frozen != "weight":
        hidden = hidden.detach()
    if frozen != "hidden":
        weight = weight.detach()
    loss = chunked_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad == (frozen != "both")
    if frozen != "both":
        needed = weight if frozen == "hidden" else hidden
        torch.testing.assert_close(
            torch.autograd.grad(loss, needed)[0],
            torch.autograd.grad(plain(hidden, weight, labels), needed)[0],
        )


def test_in_no_grad_the_loss_is_the_same():
    hidden, weight, labels = make_inputs(9)
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_sums_in_float32(small_chunks, dtype, autocast):
    hidden, weight, labels = make_inputs(50, torch.float32 if autocast else dtype)
    exact = plain(hidden.float(), weight.float(), labels)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = chunked_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=1e-2)
    for actual, expected in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(exact, (hidden, weight))
    ):
        assert actual.dtype == hidden.dtype
        assert (actual.float() - expected.float()).norm() < 0.02 * expected.float().norm()


def test_float16_gradients_of_a_large_batch_do_not_vanish():
    """Divided by a million tokens they would be below the smallest number of float16 inside the products."""
    hidden, weight, labels = make_inputs(50)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = chunked_cross_entropy(hidden, weight, labels, num_items_in_batch=10**8)
    expected = torch.autograd.grad(plain(hidden, weight, labels, "sum") / 10**8, (hidden, weight))
    for actual, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), expected):
        assert (actual - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("scale", [1.0, 2.0**15, 2.0**16])
def test_float16_weights_get_gradients_that_the_loss_scale_keeps(small_chunks, scale):
    hidden, weight, labels = make_inputs(50, torch.float16)
    loss = chunked_cross_entropy(hidden, weight, labels, num_items_in_batch=2**20) * scale
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    expected = torch.autograd.grad(plain(*exact, labels, "sum") / 2**20 * scale, exact)
    for actual, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), expected):
        wanted = wanted.half().float()  # what float16 can hold of it
        assert (actual.float() - wanted).norm() <= 0.02 * wanted.norm() + 1e-6


def test_tokens_without_a_loss_get_no_gradient_where_their_rows_cannot_be_taken_out(small_chunks, monkeypatch):
    """As while a CUDA graph is captured."""
    monkeypatch.setattr(loss_module, "can_be_read", lambda tensor: False)
    hidden, weight, labels = make_inputs(20)
    torch.testing.assert_close(
        torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels), (hidden, weight)),
        torch.autograd.grad(plain(hidden, weight, labels), (hidden, weight)),
    )


def test_labels_of_another_length_are_refused():
    model, ids = make_model().train(), make_ids(2, 30)
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 8\)"):
        model(ids, labels=ids[:, :4], logits_to_keep=8, skip_logits=True)


def test_it_cannot_be_differentiated_twice():
    hidden, weight, labels = make_inputs(9)
    gradient = torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels), weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_training_never_holds_the_logits_of_the_batch(small_chunks):
    model, ids = make_model(hidden_size=8, num_attention_heads=1).train(), make_ids(2, 60)
    logits = 2 * 60 * VOCAB
    assert largest_tensor(lambda: model(ids, labels=ids).loss.backward()) < logits / 2
    # The watch sees them where they are.
    assert largest_tensor(lambda: model(ids, labels=ids, skip_logits=False).loss.backward()) >= logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_gradients_are_those_of_the_logits(small_chunks, tied, checkpointing):
    def gradients(skip_logits: bool) -> dict[str, torch.Tensor]:
        model, ids = make_model(tie_word_embeddings=tied).train(), make_ids(2, 30)
        if checkpointing:
            model.gradient_checkpointing_enable()
        labels = ids.masked_fill(ids % 4 == 0, -100)
        output = model(ids, labels=labels, skip_logits=skip_logits, num_items_in_batch=torch.tensor(11))
        assert (output.logits is None) == skip_logits
        output.loss.backward()
        return {"loss": output.loss} | {name: weight.grad for name, weight in model.named_parameters()}

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-4, atol=1e-5)


def test_shifted_labels_are_used_as_they_are():
    model, ids = make_model().train(), make_ids(2, 30)
    shifted = nn.functional.pad(ids, (0, 1), value=-100)[:, 1:].contiguous()
    expected = model(ids, labels=ids).loss
    torch.testing.assert_close(model(ids, shift_labels=shifted).loss, expected)
    torch.testing.assert_close(model(ids, labels=ids, shift_labels=shifted).loss, expected)
    torch.testing.assert_close(model(ids, labels=ids, shift_labels=shifted, skip_logits=False).loss, expected)


def test_logits_come_in_evaluation_and_when_asked_for_and_where_they_are_small(monkeypatch):
    model, ids = make_model(), make_ids(2, 30)
    assert model.train()(ids, labels=ids).logits is not None  # smaller than a chunk
    monkeypatch.setattr(modeling_gpt3, "CHUNK_BYTES", 1000)
    model.eval()
    assert model(ids, labels=ids).logits is not None
    assert model(ids, labels=ids, skip_logits=True).logits is None
    assert model(ids).logits is not None
    model.train()
    assert model(ids).logits is not None
    assert model(ids, labels=ids).logits is None
    assert model(ids, labels=ids, skip_logits=False).logits is not None
    model.config.skip_logits = False
    assert model(ids, labels=ids).logits is not None


def test_the_kept_positions_alone_have_a_loss():
    model, ids = make_model().train(), make_ids(2, 30)
    kept = model(ids, labels=ids[:, -5:], logits_to_keep=5)
    torch.testing.assert_close(kept.loss, model(ids, labels=ids[:, -5:], logits_to_keep=5, skip_logits=False).loss)


@pytest.mark.parametrize(
    "keep",
    [0, 3, torch.tensor([2, 0, 5]), torch.tensor([[1, 2], [4, 0]]), torch.arange(12).view(2, 6) % 5 == 0],
    ids=["all", "last", "the same for every row", "for each row", "mask"],
)
def test_positions_to_keep_may_be_given_in_every_form(keep):
    model, ids = make_model(), make_ids(2, 6)
    logits = model(ids).logits
    if isinstance(keep, int):
        expected = logits[:, 6 - (keep or 6) :]
    elif keep.dtype == torch.bool:
        expected = logits[keep]
    else:
        expected = torch.stack([row[kept] for row, kept in zip(logits, keep.expand(2, -1))])
    torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, expected)


def test_a_loss_function_set_by_the_user_gets_its_logits():
    model, ids = make_model().train(), make_ids(2, 30)
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.square().mean()
    output = model(ids, labels=ids)
    torch.testing.assert_close(output.loss, output.logits.square().mean())


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 8), (1, 9), (4, 5), (3,), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_without_labels_is_a_linear_layer(shape, dtype):
    head = GPT3LMHead(WIDTH, VOCAB, bias=False).to(dtype)
    hidden = torch.randn(*shape, WIDTH, dtype=dtype)
    expected = nn.functional.linear(hidden, head.weight)
    torch.testing.assert_close(head(hidden), expected)
    with torch.no_grad():  # a few tokens go another way
        logits = head(hidden)
    assert logits.shape == expected.shape and logits.is_contiguous()
    torch.testing.assert_close(logits, expected)
