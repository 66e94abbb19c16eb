"""What a task is: rows become prompts and completions; a model is scored by the completion it finds likeliest."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from string import Formatter
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.packing import IGNORE_INDEX


@dataclass(frozen=True)
class ChoiceTask:
    """Choose one of several completions of a prompt.

    Attributes:
        name: Name in reports.
        prompt: Template over a row's text; `{text}` is the only field. It does not end in white space: the
            completion brings its own, as byte-level BPE likes it.
        choices: Completion of each label, in the order of class indices.
    """

    name: str
    prompt: str
    choices: dict[str, str]

    def __post_init__(self) -> None:
        fields = [name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None]
        if fields != ["text"]:
            raise ValueError(f"The prompt of task {self.name!r} must hold {{text}} once, got {self.prompt!r}.")
        if len(self.choices) < 2:
            raise ValueError(f"Task {self.name!r} needs at least two choices, got {self.choices}.")

    @property
    def labels(self) -> list[str]:
        """Names of the classes, by index."""
        return list(self.choices)

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
        """Token ids of the prompt. Too long a text loses its end, never the template around it.

        Args:
            max_length: Tokens the prompt may take.

        Raises:
            ValueError: The template alone is longer than that.
        """
        ids = tokenizer(self.prompt.format(text=text), add_special_tokens=False)["input_ids"]
        if len(ids) <= max_length:
            return ids
        before, after = self.prompt.split("{text}")
        head = tokenizer(before + text, add_special_tokens=False)["input_ids"] if text else []
        tail = tokenizer(after, add_special_tokens=False)["input_ids"]
        room = max_length - len(tail)
        if room < 1:
            raise ValueError(
                f"The prompt of task {self.name!r} alone takes {len(tail)} tokens; `max_length` leaves {max_length}."
            )
        return head[:room] + tail

    def choice_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of each completion, by class index."""
        return [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in self.choices.values()]


class CompletionCollator:
    """Left-pads prompts with their completions into a batch whose loss falls on the completions alone.

    Completions end together at the right edge, so the output layer runs on those last positions only
    (`logits_to_keep`), not on every word of the prompt. Positions are given for models that do not count them from
    the mask.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch of examples with `prompt_ids` and `completion_ids`.

        Returns:
            `input_ids`, `attention_mask`, `position_ids` (batch, seq); `labels` (batch, kept) and `logits_to_keep`.
        """
        sequences = [[*example["prompt_ids"], *example["completion_ids"]] for example in examples]
        length = max(map(len, sequences))
        # One more than the completion: the position before it predicts its first token.
        kept = min(max(len(example["completion_ids"]) for example in examples) + 1, length)
        input_ids = torch.full((len(sequences), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full((len(sequences), kept), IGNORE_INDEX)
        for row, (sequence, example) in enumerate(zip(sequences, examples)):
            completion = torch.tensor(example["completion_ids"])
            input_ids[row, length - len(sequence) :] = torch.tensor(sequence)
            attention_mask[row, length - len(sequence) :] = 1
            labels[row, kept - len(completion) :] = completion
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
            "labels": labels,
            "logits_to_keep": kept,
        }


@torch.no_grad()
def choice_scores(
    model: PreTrainedModel,
    prompts: list[list[int]],
    choices: list[list[int]],
    pad_token_id: int,
    batch_size: int = 32,
    autocast: AbstractContextManager | None = None,
    progress: bool = True,
) -> torch.Tensor:
    """Mean log-likelihood per token of each choice after each prompt.

    Source: section 2.4 of Brown et al. 2020, multiple choice by the likelihood of each completion per token.

    Args:
        model: A causal language model.
        prompts: Token ids of each prompt.
        choices: Token ids of each choice, the same for all prompts.
        pad_token_id: Any valid id.
        batch_size: Sequences in a forward pass.
        autocast: Precision to run under.
        progress: Show a bar.

    Returns:
        (prompts, choices) in float32.
    """
    collate = CompletionCollator(pad_token_id)
    single = all(len(choice) == 1 for choice in choices)
    # Where every choice is one token, one pass gives the scores of all; else a pass for each.
    jobs = [(i, j) for i in range(len(prompts)) for j in range(1 if single else len(choices))]
    jobs.sort(key=lambda job: len(prompts[job[0]]) + len(choices[job[1]]), reverse=True)
    scores = torch.empty(len(prompts), len(choices))
    was_training = model.training
    model.eval()
    for batch in tqdm(
        list(_chunks(jobs, batch_size)), desc="scoring", disable=None if progress else True, leave=False
    ):
        inputs = collate([{"prompt_ids": prompts[i], "completion_ids": choices[j]} for i, j in batch])
        labels = inputs.pop("labels")[:, 1:]
        inputs = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in inputs.items()}
        with autocast or nullcontext():
            logits = model(**inputs, use_cache=False).logits[:, :-1]
        log_probs = logits.float().log_softmax(-1).cpu()
        rows = torch.tensor([i for i, _ in batch])
        if single:
            scores[rows] = log_probs[:, -1][:, [choice[0] for choice in choices]]
        else:
            kept = labels.ne(IGNORE_INDEX)
            picked = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            scores[rows, torch.tensor([j for _, j in batch])] = (picked * kept).sum(-1) / kept.sum(-1)
    model.train(was_training)
    return scores


def _chunks(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))


def classification_metrics(predicted: list[int], actual: list[int], num_labels: int) -> dict[str, float]:
    """Accuracy and macro-F1, beside the accuracy of always answering the commonest class of `actual`."""
    from sklearn.metrics import accuracy_score, f1_score

    counts = [actual.count(label) for label in range(num_labels)]
    return {
        "accuracy": float(accuracy_score(actual, predicted)),
        "macro_f1": float(
            f1_score(actual, predicted, labels=list(range(num_labels)), average="macro", zero_division=0)
        ),
        "majority_accuracy": max(counts) / len(actual),
    }
