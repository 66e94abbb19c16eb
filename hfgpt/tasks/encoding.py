"""Examples as token ids, and batches of them: padded on the left, or packed without leaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase

from ..data.packing import IGNORE_INDEX
from .base import Example


@dataclass(frozen=True)
class Encoded:
    """An example's token ids.

    Attributes:
        prompt_ids: Of the prompt, cut where it was too long.
        completion_ids: Of what should follow; with the end-of-text token where the answer is free text.
        choice_ids: Of each choice.
        cut_tokens: Tokens that the text lost.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    choice_ids: list[list[int]]
    cut_tokens: int = 0


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int, room: int | None = None) -> Encoded:
    """Token ids of one example. Too long a text loses its end or its start, by `cut_side`, never the prompt around it.

    Args:
        max_length: Tokens of prompt and completion together.
        room: Tokens to leave for the answer. Default: what the longest choice, or the completion, takes.

    Raises:
        ValueError: Prompt and answer without the text are longer than that.
    """
    choices = [continuation_ids(tokenizer, choice) for choice in example.choices]
    label = example.label
    completion = choices[label] if label is not None else continuation_ids(tokenizer, example.completion)
    if not choices and example.completion and tokenizer.eos_token_id is not None:
        completion = [*completion, tokenizer.eos_token_id]
    room = max([len(completion), *map(len, choices)]) if room is None else room
    start = first_ids(tokenizer)
    prompt = start + token_ids(tokenizer, example.prompt)
    if len(prompt) + room <= max_length:
        return Encoded(prompt, completion, choices)
    head, tail = start + token_ids(tokenizer, example.before), continuation_ids(tokenizer, example.after)
    left = max_length - room - len(head) - len(tail)
    if left <= 0:
        raise ValueError(
            f"{example.where or 'A row'}: prompt and answer take {len(head) + len(tail) + room} tokens without their "
            f"text; `max_length` is {max_length}."
        )
    # What is cut is tokenized together with what it still touches.
    if example.cut_side == "start":
        # A word's token brings the space before it.
        head = start + token_ids(tokenizer, example.before.rstrip(" "))
        whole = continuation_ids(tokenizer, example.text + example.after)
        kept = max_length - room - len(head)
        prompt = head + whole[-kept:]
    else:
        whole = start + token_ids(tokenizer, example.before + example.text)
        kept = max_length - room - len(tail)
        prompt = whole[:kept] + tail
    return Encoded(prompt, completion, choices, cut_tokens=max(len(whole) - kept, 1))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text alone, without special tokens."""
    if not text:
        return []
    # Too long a text is cut by the caller, and no news.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


# What continuations are tokenized behind, of tokenizers that mark the beginning of a text. The first of them whose own
# tokens stay as they are is taken: a letter would merge with one that follows it, a line break with another one.
ANCHORS = ("\n", "a")
_marks_beginnings: WeakKeyDictionary[PreTrainedTokenizerBase, bool] = WeakKeyDictionary()


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that goes on from another one: a completion, or what stands behind the text that was cut.

    Tokenizers like Llama 2's put a space, or its mark, before any text: what goes on would begin with one too many.
    """
    if tokenizer not in _marks_beginnings:
        behind = [token_ids(tokenizer, f"a{piece}") for piece in (" b", "\nb")]
        pieces = [token_ids(tokenizer, "a") + token_ids(tokenizer, piece) for piece in (" b", "\nb")]
        _marks_beginnings[tokenizer] = behind != pieces
    if text and _marks_beginnings[tokenizer]:
        for anchor in ANCHORS:
            before, whole = token_ids(tokenizer, anchor), token_ids(tokenizer, anchor + text)
            if before and whole[: len(before)] == before:
                return whole[len(before) :]
    return token_ids(tokenizer, text)


def first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer begins every text with: llama's begin-of-text, nothing for GPT-2."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []


class CompletionCollator:
    """Left-pads prompts with their completions into a batch whose loss falls on the completions alone.

    Completions end together at the right edge, so the output layer runs on those last positions only
    (`logits_to_keep`), not on every word of the prompt. Positions are given for models that do not count them from
    the mask.

    Args:
        pad_token_id: Any valid id.
        prompt_weight: Weight of the loss on each token of the prompts, where that on a completion's is 1.
    """

    def __init__(self, pad_token_id: int, prompt_weight: float = 0.0):
        self.pad_token_id, self.prompt_weight = pad_token_id, prompt_weight

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch of examples with `prompt_ids`, `completion_ids`, and in all or none of them `weight`, of its loss.

        Returns:
            `input_ids`, `attention_mask`, `position_ids` (batch, seq); `labels` (batch, kept) and `logits_to_keep`; and
            where losses are weighted `loss_weights` (batch, kept), of the last tokens of `input_ids`.
        """
        sequences = [[*example["prompt_ids"], *example["completion_ids"]] for example in examples]
        length = max(map(len, sequences))
        # One more than the completion: the position before it predicts its first token.
        kept = min(max(len(example["completion_ids"]) for example in examples) + 1, length)
        if self.prompt_weight:
            kept = length
        input_ids = torch.full((len(sequences), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full((len(sequences), kept), IGNORE_INDEX)
        weights = torch.zeros(len(sequences), kept)
        for row, (sequence, example) in enumerate(zip(sequences, examples)):
            completion = torch.tensor(example["completion_ids"])
            input_ids[row, length - len(sequence) :] = torch.tensor(sequence)
            attention_mask[row, length - len(sequence) :] = 1
            labels[row, kept - len(completion) :] = completion
            # But the first token, which nothing comes before.
            weights[row, max(kept - len(sequence) + 1, 0) :] = self.prompt_weight
            weights[row, kept - len(completion) :] = example.get("weight", 1.0)
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
            "labels": labels,
            "logits_to_keep": kept,
        }
        weighted = self.prompt_weight or any("weight" in example for example in examples)
        return {**batch, "loss_weights": weights} if weighted else batch


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Which sequences to put together so that few tokens of padding are left: first-fit decreasing.

    From the longest to the shortest (of one length, in order), each goes into the first pack that still has room for it,
    which never takes more than 11/9 of the fewest packs possible, and one. The first pack with room is found in a binary
    tree of the most room there is below each node, so that n sequences take n log n steps.

    Args:
        lengths: Tokens of each sequence; one longer than `max_length` is an error of the caller.
        max_length: Tokens of a pack.

    Returns:
        Indices of the sequences of each pack.
    """
    assert all(0 < length <= max_length for length in lengths)
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    room = [max_length] * (2 * leaves)  # node i has the children 2 i and 2 i + 1; the leaves are the packs
    packs: list[list[int]] = [[] for _ in lengths]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= lengths[index] else 2 * node + 1
        packs[node - leaves].append(index)
        room[node] -= lengths[index]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [members for members in packs if members]


class PackingCollator:
    """Batches of packs: several examples one after the other in a row, none of which sees another.

    Positions restart with each example, and there is no attention mask and no cache: then transformers, and gpt3, keep
    attention within each. The loss is on the completions alone; what a row is padded with is an example without one.

    Args:
        pad_token_id: Any valid id.
        prompt_weight: As for `CompletionCollator`.
    """

    def __init__(self, pad_token_id: int, prompt_weight: float = 0.0):
        self.pad_token_id, self.prompt_weight = pad_token_id, prompt_weight

    def __call__(self, packs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch of packs, each with its `examples` as `CompletionCollator` takes them.

        Returns:
            `input_ids`, `position_ids`, `labels` (batch, seq), `use_cache`, and where losses are weighted `loss_weights`.
        """
        totals = [
            sum(len(example["prompt_ids"]) + len(example["completion_ids"]) for example in pack["examples"])
            for pack in packs
        ]
        shape = (len(packs), max(totals))
        input_ids = torch.full(shape, self.pad_token_id)
        position_ids = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX)
        weights = torch.zeros(shape)
        for row, pack_ in enumerate(packs):
            begin = 0
            for example in pack_["examples"]:
                middle = begin + len(example["prompt_ids"])
                end = middle + len(example["completion_ids"])
                input_ids[row, begin:end] = torch.tensor([*example["prompt_ids"], *example["completion_ids"]])
                position_ids[row, begin:end] = torch.arange(end - begin)
                labels[row, middle:end] = input_ids[row, middle:end]
                weights[row, begin:middle] = self.prompt_weight
                weights[row, middle:end] = example.get("weight", 1.0)
                # Nothing comes before the first token that it could be told from.
                labels[row, begin], weights[row, begin] = IGNORE_INDEX, 0.0
                begin = end
            position_ids[row, begin:] = torch.arange(shape[1] - begin)
        batch = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels, "use_cache": False}
        weighted = self.prompt_weight or any("weight" in example for pack in packs for example in pack["examples"])
        return {**batch, "loss_weights": weights} if weighted else batch


class PromptCollator:
    """Right-pads prompts whose answer is a class, or a span of their tokens."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch of examples with `prompt_ids` and `labels`: an index, or the positions of first and last token.

        Returns:
            `input_ids`, `attention_mask` (batch, seq); `labels` (batch) or (batch, 2), and where losses are weighted
            `loss_weights` (batch).
        """
        length = max(len(example["prompt_ids"]) for example in examples)
        input_ids = torch.full((len(examples), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, example in enumerate(examples):
            input_ids[row, : len(example["prompt_ids"])] = torch.tensor(example["prompt_ids"])
            attention_mask[row, : len(example["prompt_ids"])] = 1
        labels = torch.tensor([example["labels"] for example in examples])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if any("weight" in example for example in examples):
            batch["loss_weights"] = torch.tensor([example["weight"] for example in examples])
        return batch
