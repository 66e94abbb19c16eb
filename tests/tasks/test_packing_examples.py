"""Several examples in one sequence: each is computed as if it were alone, and little is padding."""

import random

import pytest
import torch
from small_models import CLASSES, KINDS, make_config, random_ids

from hfgpt.data.packing import IGNORE_INDEX
from hfgpt.tasks.encoding import CompletionCollator, PackingCollator, PromptCollator, pack


def make_examples(*lengths):
    """Prompts and completions of these lengths."""
    ids = random_ids(*(length for pair in lengths for length in pair))
    return [{"prompt_ids": prompt, "completion_ids": answer} for prompt, answer in zip(ids[::2], ids[1::2])]


EXAMPLES = make_examples((12, 2), (1, 1), (20, 3), (9, 4), (5, 1))
PACKS = [{"examples": EXAMPLES[:3]}, {"examples": EXAMPLES[3:]}]  # 39 and 19 tokens: the second row is padded


def make_model(kind, attention):
    torch.manual_seed(0)
    model = CLASSES["lm"][kind]._from_config(make_config(kind), attn_implementation=attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_example_sees_nothing_of_the_others(kind, attention):
    model = make_model(kind, attention)
    batch = PackingCollator(pad_token_id=0)(PACKS)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits
        for row, pack_ in enumerate(PACKS):
            begin = 0
            for example in pack_["examples"]:
                ids = [*example["prompt_ids"], *example["completion_ids"]]
                end = begin + len(ids)
                alone = model(torch.tensor([ids])).logits[0]
                torch.testing.assert_close(logits[row, begin:end], alone, atol=1e-5, rtol=0)
                told = labels[row, begin:end]
                assert told[: len(example["prompt_ids"])].eq(IGNORE_INDEX).all()
                assert told[len(example["prompt_ids"]) :].tolist() == example["completion_ids"]
                begin = end
            assert labels[row, begin:].eq(IGNORE_INDEX).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_the_gradients_are_those_of_the_padded_batch(kind):
    gradients, losses = [], []
    for batch in (PackingCollator(0)(PACKS), CompletionCollator(0)(EXAMPLES)):
        model = make_model(kind, "sdpa").train()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_weights_fall_on_completions_and_where_asked_on_prompts():
    examples = [dict(example, weight=weight) for example, weight in zip(EXAMPLES, (0.5, 2.0, 1.0, 1.0, 1.0))]
    padded = CompletionCollator(0, prompt_weight=0.25)(examples[:2])
    assert padded["labels"].shape == padded["input_ids"].shape == padded["loss_weights"].shape == (2, 14)
    assert padded["loss_weights"][0].tolist() == [0.0, *[0.25] * 11, 0.5, 0.5]
    assert padded["loss_weights"][1].tolist() == [*[0.0] * 13, 2.0]
    packed = PackingCollator(0, prompt_weight=0.25)([{"examples": examples[:2]}])
    assert packed["loss_weights"][0].tolist() == [0.0, *[0.25] * 11, 0.5, 0.5, 0.0, 2.0]
    # Without prompts only the ends of the rows are kept.
    ends = CompletionCollator(0)(examples[:2])
    assert ends["loss_weights"].tolist() == [[0.0, 0.5, 0.5], [0.0, 0.0, 2.0]]
    assert "loss_weights" not in CompletionCollator(0)(EXAMPLES)
    assert "loss_weights" not in PackingCollator(0)(PACKS)


def first_fit_decreasing(lengths, max_length):
    """Looking at every pack, which takes the square of their number."""
    packs, room = [], []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((i for i, left in enumerate(room) if left >= lengths[index]), None)
        if place is None:
            place = len(packs)
            packs.append([])
            room.append(max_length)
        packs[place].append(index)
        room[place] -= lengths[index]
    return packs


def test_packs_are_those_of_first_fit_decreasing():
    assert pack([5, 4, 6, 5], 10) == [[2, 1], [0, 3]]
    assert pack([10, 10], 10) == [[0], [1]]
    assert pack([], 10) == []
    chooser = random.Random(0)
    for count in (1, 2, 3, 17, 300):
        lengths = [chooser.randint(1, 64) for _ in range(count)]
        packs = pack(lengths, 64)
        assert packs == first_fit_decreasing(lengths, 64)
        assert sorted(index for members in packs for index in members) == list(range(count))
        fewest = -(-sum(lengths) // 64)
        assert len(packs) <= 11 / 9 * fewest + 1


def test_a_hundred_thousand_examples_fill_their_packs():
    chooser = random.Random(1)
    lengths = [chooser.randint(10, 300) for _ in range(100_000)]
    packs = pack(lengths, 512)
    assert sum(lengths) / (len(packs) * 512) > 0.99


def test_prompts_of_heads_are_padded_on_the_right():
    batch = PromptCollator(0)([{"prompt_ids": [5, 6, 7], "labels": (1, 2)}, {"prompt_ids": [8], "labels": (0, 0)}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2], [0, 0]]
    assert "loss_weights" not in batch
