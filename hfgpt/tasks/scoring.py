"""Ask a model: likelihoods of completions, written answers, classes and spans, in batches that fit its memory.

What is notable: a prompt is run once for all its choices, which go on from its keys and values; so is what all prompts of
a batch begin with, such as the examples of a few-shot prompt. Rows end together at the right edge (padding on the left),
so that only the logits of the completions are computed. Batches are of sequences of like length, the longest first, cut
by a budget of tokens that is halved where memory runs out; results come in the order that was given.

Sharded models (ZeRO-3, FSDP) gather each layer by all processes together: with `synced_gpus` these agree on the number of
forward passes, and nothing that depends on one process's prompts (shared prefixes, smaller batches) is done.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .base import ChoiceTask, Example, Task, TextTask
from .encoding import Encoded, continuation_ids, first_ids, token_ids


# Tokens of a batch: on a CPU more of them bring no speed; on a GPU this is the most, where memory allows it.
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 2**17
# On other devices, and where processes must agree without knowing each other's memory.
PLAIN_BATCH_TOKENS = 2**14
# Scores held in float32 at a time.
CHUNK_BYTES = 2**26
# A beginning that prompts share is run by itself from so many tokens, and so large a part of the longest prompt.
SHARED_TOKENS = 16
SHARED_PART = 1 / 8
# Completions go on from their prompts' keys and values where that saves this part of the tokens.
SAVED_PART = 1 / 5


@dataclass(frozen=True)
class Likelihood:
    """How likely a completion is.

    Attributes:
        total: Log-likelihood in nats, summed over its tokens.
        tokens: Their number.
        greedy: Whether each token is the likeliest of all: what greedy decoding would have written.
    """

    total: float
    tokens: int
    greedy: bool


@dataclass(frozen=True)
class Prediction:
    """A model's answer.

    Attributes:
        text: Name of the label, the chosen text, or the answer.
        label: Index of the choice; None where there are none.
        scores: Of each choice, as they were compared.
    """

    text: str
    label: int | None = None
    scores: tuple[float, ...] = ()


def answered_row(example: Example, prediction: Prediction) -> dict[str, Any]:
    """What files of predictions say of a row: where it is, what was asked, expected and answered, scores of choices."""
    row: dict[str, Any] = {
        "where": example.where,
        "prompt": example.prompt,
        "prediction": prediction.text,
        "references": list(example.references),
    }
    return {**row, "scores": list(prediction.scores)} if prediction.scores else row


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    *,
    head: str = "lm",
    num_beams: int | None = None,
    max_batch_tokens: int | None = None,
    autocast: AbstractContextManager | None = None,
    progress: bool = True,
    synced_gpus: bool = False,
) -> list[Prediction]:
    """The model's answer to each example, by the kind of task and the model's head.

    Source: section 2.4 of Brown et al. 2020, for how completions are compared and answers written.

    Args:
        head: "lm" (likeliest completion, or an answer written), "classification" or "span".
        num_beams: Default: the task's.
        max_batch_tokens: Tokens of a batch, padding included. Default: by the memory that is free.
        autocast: Precision to run under.
        progress: Show a bar.
        synced_gpus: For sharded models: each process calls this together with the others, with one example at least.
            Their numbers may differ.

    Raises:
        ValueError: A head that does not fit the task, or an example too long for the model.
    """
    options: dict[str, Any] = {
        "max_batch_tokens": max_batch_tokens,
        "autocast": autocast,
        "progress": progress,
        "synced_gpus": synced_gpus,
    }
    prompts = [item.prompt_ids for item in encoded]
    if isinstance(task, ChoiceTask) and head == "lm":
        scores = _choice_scores(model, tokenizer, task, encoded, options)
    elif isinstance(task, ChoiceTask) and head == "classification":
        if model.config.num_labels != len(task.labels):
            raise ValueError(
                f"Task {task.name!r} has {len(task.labels)} fixed `choices`, and the model's classification head "
                f"{model.config.num_labels} labels: they must be as many."
            )
        pad = model.config.pad_token_id
        pad = _pad_token_id(tokenizer) if pad is None else pad
        scores = classify(model, prompts, pad_token_id=pad, **options).tolist()
    elif isinstance(task, TextTask) and head == "lm":
        texts = generate_texts(
            model,
            tokenizer,
            prompts,
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
            num_beams=num_beams or task.num_beams,
            length_penalty=task.length_penalty,
            places=[example.where for example in examples],
            **options,
        )
        return [Prediction(text) for text in texts]
    elif isinstance(task, TextTask) and head == "span":
        texts = find_spans(model, tokenizer, examples, encoded, max_answer_tokens=task.max_new_tokens, **options)
        return [Prediction(text) for text in texts]
    else:
        raise ValueError(
            f"Task {task.name!r} cannot be asked by `head: {head}`: a choice task takes lm or classification, a text "
            "task lm or span."
        )
    check_numbers(scores, [example.where for example in examples])
    labels = [max(range(len(row)), key=row.__getitem__) for row in scores]
    return [
        Prediction(_choice_name(task, example, label), label, tuple(row))
        for example, label, row in zip(examples, labels, scores)
    ]


def check_numbers(scores: Sequence[Sequence[float]], places: Sequence[str]) -> None:
    """Raise a `ValueError` where a score is not a number: the first choice would look like the answer.

    Args:
        scores: Of each row.
        places: File and line of each row; "" where it has none.
    """
    bad = [number for number, row in enumerate(scores) if not all(map(math.isfinite, row))]
    if bad:
        raise ValueError(
            f"The model's scores of {len(bad)} of {len(scores)} rows are not numbers (first: "
            f"{places[bad[0]] or f'row {bad[0]}'}). Its weights may have diverged in training (a lower `learning_rate`, "
            "no fp16), or the attention implementation fails on padding (try `attn_implementation: eager`)."
        )


def _choice_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: ChoiceTask,
    encoded: Sequence[Encoded],
    options: dict[str, Any],
) -> list[list[float]]:
    """What is compared, by `task.normalization`."""
    prompts, choices = [item.prompt_ids for item in encoded], [item.choice_ids for item in encoded]
    options = {**options, "pad_token_id": _pad_token_id(tokenizer)}
    likelihoods = log_likelihoods(model, prompts, choices, **options)
    if task.normalization == "token":
        return [[choice.total / choice.tokens for choice in row] for row in likelihoods]
    if task.normalization == "sum":
        return [[choice.total for choice in row] for row in likelihoods]
    context = first_ids(tokenizer) + token_ids(tokenizer, task.unconditional_prompt)
    # Most tasks have the same few choices in every row.
    distinct = list(dict.fromkeys(tuple(choice) for row in choices for choice in row))
    alone = log_likelihoods(model, [context] * len(distinct), [[list(choice)] for choice in distinct], **options)
    without = {choice: row[0].total for choice, row in zip(distinct, alone)}
    return [
        [found.total - without[tuple(choice)] for found, choice in zip(row, given)]
        for row, given in zip(likelihoods, choices)
    ]


def _choice_name(task: Task, example: Example, label: int) -> str:
    assert isinstance(task, ChoiceTask)
    if task.labels:
        return task.labels[label]
    before, after = task.choice.split("{choice}")
    return example.choices[label].removeprefix(before).removesuffix(after)


# Batches


@dataclass(frozen=True)
class _Job:
    """What is run in one piece.

    Attributes:
        index: Of its prompt.
        length: Tokens of a row.
        extra: Columns that come behind them.
        rows: Rows that it becomes.
        choices: Which ones of the prompt.
    """

    index: int
    length: int
    extra: int = 0
    rows: int = 1
    choices: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        return self.length + self.extra


def _tokens(batch: Sequence[_Job]) -> int:
    """Tokens of a batch, padding included."""
    return sum(job.rows for job in batch) * (max(job.length for job in batch) + max(job.extra for job in batch))


@contextmanager
def _evaluating(model: PreTrainedModel, autocast: AbstractContextManager | None) -> Iterator[None]:
    """Without dropout and gradients; the model is put back after."""
    was_training = model.training
    model.eval()
    try:
        # Entered once: accelerate's contexts can be used only once, and torch's keeps the weights that it has cast.
        with torch.no_grad(), autocast or nullcontext():
            yield
    finally:
        if was_training:
            model.train()


def _run_in_batches(
    model: PreTrainedModel,
    jobs: Sequence[_Job],
    run: Callable[[list[_Job], int], None],
    *,
    max_batch_tokens: int | None,
    autocast: AbstractContextManager | None,
    progress: bool,
    synced_gpus: bool,
    name: str,
) -> None:
    """Run all jobs, the longest first; `run` is given a batch and the tokens it may take.

    Raises:
        ValueError: `max_batch_tokens` is not positive, or a process of several has nothing to run.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    if max_batch_tokens is not None and max_batch_tokens < 1:
        raise ValueError(f"`max_batch_tokens` must be positive, got {max_batch_tokens}.")
    jobs = sorted(jobs, key=lambda job: job.width, reverse=True)
    budget = max_batch_tokens or _default_batch_tokens(model, synced_gpus)
    bar = tqdm(total=len(jobs), desc=name, disable=None if progress else True, leave=False)
    with bar, _evaluating(model, autocast):
        if synced_gpus:
            for batch in _agreed_batches(model, jobs, budget):
                run(batch, budget)
                bar.update(len(batch))
            return
        start = 0
        while start < len(jobs):
            batch = _next_batch(jobs, start, budget, _positions(model))
            try:
                run(batch, budget)
            except RuntimeError as error:
                smaller = min(budget, _tokens(batch)) // 2
                if not should_reduce_batch_size(error) or smaller < batch[0].width:
                    raise
                budget = smaller
            else:
                start += len(batch)
                bar.update(len(batch))
                continue
            # Here, where the error no longer holds the tensors of the pass that failed.
            clear_device_cache(garbage_collection=True)


def _next_batch(jobs: Sequence[_Job], start: int, budget: int, positions: int | None) -> list[_Job]:
    """The jobs from `start` that fit the budget, one at least, and together the model's positions."""
    batch: list[_Job] = []
    length = extra = rows = 0
    for position in range(start, len(jobs)):
        job = jobs[position]
        length, extra, rows = max(length, job.length), max(extra, job.extra), rows + job.rows
        too_wide = positions is not None and length + extra > positions
        if batch and (too_wide or rows * (length + extra) > budget):
            break
        batch.append(job)
    return batch


def _agreed_batches(model: PreTrainedModel, jobs: Sequence[_Job], budget: int) -> Iterator[list[_Job]]:
    """Batches of so many jobs that all processes have equally many; who has run out repeats the last job."""
    if not jobs:
        raise ValueError("Each process needs one example at least where the model is sharded: use fewer processes.")
    size = max(budget // _largest(model, max(job.rows * job.width for job in jobs)), 1)
    for start in range(0, _largest(model, len(jobs)), size):
        yield list(jobs[start : start + size]) or [jobs[-1]]


def _largest(model: PreTrainedModel, value: int) -> int:
    """The largest of all processes' values."""
    if not _is_distributed():
        return value
    values = torch.tensor(value, device=model.device)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return int(values)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _default_batch_tokens(model: PreTrainedModel, synced_gpus: bool) -> int:
    """Tokens of a batch that half of the free memory takes, if each had its logits and its keys and values."""
    device = model.device
    if device.type == "cpu":
        return CPU_BATCH_TOKENS
    if device.type != "cuda" or synced_gpus:
        return PLAIN_BATCH_TOKENS
    # What torch holds and does not use is free, too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free_bytes = torch.cuda.mem_get_info(device)[0] + unused
    config, width = model.config.get_text_config(), model.dtype.itemsize
    cached = 2 * config.num_hidden_layers * config.hidden_size * width
    in_a_layer = 24 * config.hidden_size * width
    logits = config.vocab_size * (width + 4)
    return min(max(free_bytes // 2 // (cached + in_a_layer + logits), 1024), GPU_BATCH_TOKENS)


def _positions(model: PreTrainedModel) -> int | None:
    """Tokens that the model can take; None where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _check_prompts(
    model: PreTrainedModel, prompts: Sequence[list[int]], room: Sequence[int], fix: str = "shorten the prompt"
) -> None:
    """Raise a `ValueError` for a prompt that is empty or, with `room` tokens behind it, too long."""
    limit = _positions(model)
    for index, (prompt, tokens) in enumerate(zip(prompts, room)):
        if not prompt:
            raise ValueError(
                f"Prompt {index} is empty: its first answer token would follow nothing. Begin it with the tokenizer's "
                "`bos_token_id` or `eos_token_id`."
            )
        if limit is not None and len(prompt) + tokens > limit:
            raise ValueError(
                f"Prompt {index} takes {len(prompt)} tokens and its answer {tokens}; this model has {limit} positions "
                f"(`max_position_embeddings`): {fix}."
            )


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any valid id: padding is masked."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in ids if token is not None), 0)


def _pad(sequences: Sequence[list[int]], pad_token_id: int, side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (batch, longest)."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        columns = slice(width - len(sequence), width) if side == "left" else slice(len(sequence))
        ids[row, columns] = torch.tensor(sequence)
        mask[row, columns] = 1
    return ids, mask


# Likelihoods


def log_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    choices: Sequence[Sequence[list[int]]],
    *,
    pad_token_id: int,
    max_batch_tokens: int | None = None,
    autocast: AbstractContextManager | None = None,
    progress: bool = True,
    synced_gpus: bool = False,
) -> list[list[Likelihood]]:
    """Log-likelihood of each completion after its prompt.

    Args:
        model: A causal language model.
        prompts: Token ids of each prompt.
        choices: Token ids of each completion, in lists that belong to the prompts.
        pad_token_id: Any valid id.
        max_batch_tokens, autocast, progress, synced_gpus: See `predict`.

    Raises:
        ValueError: An empty prompt or completion, or one that is together longer than the model's positions.
    """
    _check_prompts(model, prompts, [max(map(len, row), default=0) for row in choices])
    for index, row in enumerate(choices):
        if not all(row):
            raise ValueError(f"Prompt {index} has a completion without tokens: leave it out.")
    scorer = _Scorer(model, prompts, choices, pad_token_id, _can_cache(model) and not synced_gpus)
    if scorer.shares or synced_gpus:
        jobs = [scorer.job(index, tuple(range(len(row)))) for index, row in enumerate(choices) if row]
    else:
        jobs = [scorer.job(index, (choice,)) for index, row in enumerate(choices) for choice in range(len(row))]
    _run_in_batches(
        model,
        jobs,
        scorer.run,
        max_batch_tokens=max_batch_tokens,
        autocast=autocast,
        progress=progress,
        synced_gpus=synced_gpus,
        name="scoring",
    )
    return [[scorer.found[index, choice] for choice in range(len(row))] for index, row in enumerate(choices)]


def _can_cache(model: PreTrainedModel) -> bool:
    """Whether the cache is keys and values of each layer, of all tokens or a window's."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class _Scorer:
    """Runs batches of prompts and completions.

    Either each row is a prompt and its completion; or, where it `shares`, prompts are run once, which gives their
    completions' first tokens, and completions of more tokens go on from the prompts' keys and values.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        choices: Sequence[Sequence[list[int]]],
        pad_token_id: int,
        can_cache: bool,
    ):
        self.model, self.prompts, self.choices, self.pad_token_id = model, prompts, choices, pad_token_id
        self.found: dict[tuple[int, int], Likelihood] = {}
        self.prefix = _Prefix(model, prompts) if can_cache else None
        whole = sum(len(prompt) + len(choice) - 1 for prompt, row in zip(prompts, choices) for choice in row)
        shared = sum(len(prompt) + sum(len(choice) - 1 for choice in row) for prompt, row in zip(prompts, choices))
        single = all(len(choice) == 1 for row in choices for choice in row)
        self.shares = single or (can_cache and shared < (1 - SAVED_PART) * whole)

    def job(self, index: int, choices: tuple[int, ...]) -> _Job:
        """A prompt with some of its choices."""
        length, behind = len(self.prompts[index]), [len(self.choices[index][choice]) - 1 for choice in choices]
        if self.shares:
            # One row, which becomes one for each completion that goes on.
            return _Job(index, length, max(behind), max(sum(tokens > 0 for tokens in behind), 1), choices)
        return _Job(index, length + max(behind), rows=len(choices), choices=choices)

    def run(self, batch: list[_Job], budget: int) -> None:
        """Score a batch."""
        pairs = [(job.index, choice) for job in batch for choice in job.choices]
        completions = [self.choices[index][choice] for index, choice in pairs]
        if not self.shares:
            keep = max(map(len, completions))
            rows = [self.prompts[index] + completion[:-1] for (index, _), completion in zip(pairs, completions)]
            logits, _, _ = self._forward(rows, keep, use_cache=False)
            starts = [row * keep + keep - len(completion) for row, completion in enumerate(completions)]
            self._note(pairs, _pick(logits, starts, completions))
            return
        row_of = {job.index: row for row, job in enumerate(batch)}
        rows = [self.prompts[job.index] for job in batch]
        goes_on = any(len(completion) > 1 for completion in completions)
        logits, cache, mask = self._forward(rows, keep=1, use_cache=goes_on)
        starts = [row_of[index] for index, _ in pairs]
        firsts = _pick(logits, starts, [completion[:1] for completion in completions])
        self._note(pairs, firsts)
        del logits
        if goes_on:
            assert cache is not None
            longer = [(pair, row_of[pair[0]]) for pair, tokens in zip(pairs, completions) if len(tokens) > 1]
            longer.sort(key=lambda item: len(self._completion(item[0])), reverse=True)
            size = max(budget // max(job.width for job in batch), 1)
            for start in range(0, len(longer), size):
                self._go_on(longer[start : start + size], cache, mask)

    def _completion(self, pair: tuple[int, int]) -> list[int]:
        return self.choices[pair[0]][pair[1]]

    def _go_on(self, items: list[tuple[tuple[int, int], int]], cache: DynamicCache, mask: torch.Tensor) -> None:
        """Score what follows the first tokens of completions; `items` are these with their prompts' rows."""
        device = self.model.device
        completions = [self._completion(pair) for pair, _ in items]
        rows = torch.tensor([row for _, row in items], device=device)
        ids, _ = _pad([completion[:-1] for completion in completions], self.pad_token_id, side="right")
        past = mask[rows]
        positions = past.sum(-1, keepdim=True) + torch.arange(ids.shape[1], device=device)
        logits = self.model(
            input_ids=ids.to(device),
            # Padding on the right comes after all that is scored: there is no need to mask it.
            attention_mask=torch.cat([past, torch.ones_like(ids, device=device)], dim=1),
            position_ids=positions,
            past_key_values=_select_rows(cache, rows),
            use_cache=True,
        ).logits
        starts = [row * ids.shape[1] for row in range(len(items))]
        rest = _pick(logits, starts, [completion[1:] for completion in completions])
        for (pair, _), more in zip(items, rest):
            first = self.found[pair]
            self.found[pair] = Likelihood(
                first.total + more.total, first.tokens + more.tokens, first.greedy and more.greedy
            )

    def _note(self, pairs: list[tuple[int, int]], likelihoods: list[Likelihood]) -> None:
        self.found.update(zip(pairs, likelihoods))

    def _forward(
        self, rows: list[list[int]], keep: int, use_cache: bool
    ) -> tuple[torch.Tensor, DynamicCache | None, torch.Tensor]:
        """Run rows that end at the right edge.

        Of the columns, the first `held` come from what the rows begin with, if that has been run.

        Returns:
            Logits of the last `keep` positions, the cache, and the attention mask (rows, columns).
        """
        device = self.model.device
        ids, mask = (tensor.to(device) for tensor in _pad(rows, self.pad_token_id))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        width = ids.shape[1]
        shared = self.prefix.find(rows) if self.prefix is not None else 0
        held = min(shared, width - keep)
        cache = None
        if self.prefix is not None and held >= max(SHARED_PART * width, 1):
            cache = self.prefix.rows([max(len(row) - (width - held), 0) for row in rows])
        else:
            held = 0
            cache = DynamicCache(config=self.model.config) if use_cache else None
        logits = self.model(
            input_ids=ids[:, held:],
            attention_mask=mask,
            position_ids=positions[:, held:],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
        ).logits
        return logits[:, -keep:], cache, mask


class _Prefix:
    """What the prompts of a batch begin with: run once, and its keys and values given to each row.

    What was run for an earlier batch serves while it is most of what the rows share.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]):
        self.model = model
        self.ids: list[int] = _common_start(prompts) if len(prompts) > 1 else []
        self.cache: DynamicCache | None = None

    def find(self, rows: list[list[int]]) -> int:
        """Tokens at the beginning of all rows whose keys and values `rows` can give them."""
        common = _common_start(rows)
        usable = len(_common_start([self.ids, common]))
        if len(rows) > 1 and len(common) >= SHARED_TOKENS and usable < 0.8 * len(common):
            self.ids, self.cache, usable = common, None, len(common)
        return usable if usable >= SHARED_TOKENS else 0

    def rows(self, tokens: list[int]) -> DynamicCache:
        """A cache with the first so many tokens for each row, ending at the right edge of its columns.

        Rows of different length take less or more of the beginning, so that they all go on at the same column: there
        is no padding but at the left edge, and a band of columns is a band of tokens.
        """
        device = self.model.device
        if self.cache is None:
            # Without the config: banded layers then keep all tokens, of which rows take their windows.
            self.cache = DynamicCache()
            ids = torch.tensor([self.ids], device=device)
            self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        width = max(tokens)
        shifts = torch.tensor(tokens, device=device).unsqueeze(-1) - width
        columns = (torch.arange(width, device=device) + shifts).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        for index, layer in enumerate(self.cache.layers):
            if layer.is_initialized:
                cache.update(_spread(layer.keys, columns), _spread(layer.values, columns), index)
        return cache


def _common_start(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with."""
    # The first and the last by order share the least.
    low, high = min(rows), max(rows)
    return low[: next((place for place, (one, other) in enumerate(zip(low, high)) if one != other), len(low))]


def _spread(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(1, heads, seq, head_dim) at `columns` (rows, kept): (rows, heads, kept, head_dim)."""
    columns = columns.to(states.device)
    picked = states[0].index_select(1, columns.flatten())
    return picked.unflatten(1, columns.shape).transpose(0, 1)


def _select_rows(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of its own of some rows, which may repeat."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def _pick(logits: torch.Tensor, starts: list[int], targets: list[list[int]]) -> list[Likelihood]:
    """Likelihoods of runs of tokens, each scored at as many positions from its start.

    Softmax is in float32, of a few positions at a time.

    Args:
        logits: (rows, positions, vocab_size).
        starts: Of each run, counted over the positions of all rows.
        targets: Its tokens.
    """
    flat = logits.flatten(0, 1)
    places = torch.tensor([start + step for start, run in zip(starts, targets) for step in range(len(run))])
    tokens = torch.tensor([token for run in targets for token in run], device=flat.device)
    # Choices of one token look at the same position.
    distinct, which = places.to(flat.device).unique(return_inverse=True)
    sums, best = [], []
    for part in distinct.split(max(CHUNK_BYTES // (4 * flat.shape[-1]), 1)):
        scores = flat[part].float()
        sums.append(scores.logsumexp(-1))
        best.append(scores.argmax(-1))
    log_probs = (flat[distinct[which], tokens].float() - torch.cat(sums)[which]).tolist()
    greedy = (torch.cat(best)[which] == tokens).tolist()
    found, start = [], 0
    for run in targets:
        end = start + len(run)
        found.append(Likelihood(sum(log_probs[start:end]), len(run), all(greedy[start:end])))
        start = end
    return found


# Answers


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    num_beams: int = 1,
    length_penalty: float = 1.0,
    places: Sequence[str] = (),
    max_batch_tokens: int | None = None,
    autocast: AbstractContextManager | None = None,
    progress: bool = True,
    synced_gpus: bool = False,
) -> list[str]:
    """The answer to each prompt, by greedy decoding or beam search: up to the end-of-text token or a stop text, stripped.

    Sampling and penalties in the model's own generation settings do not count; its end-of-text tokens do.

    Args:
        model: A causal language model.
        prompts: Token ids of each prompt.
        max_new_tokens: Tokens of an answer at most; fewer where the model's positions leave fewer. With `synced_gpus`
            the longest prompt of a batch decides for all of it: leave room for the answer when prompts are encoded.
        stop: Texts at which an answer ends; what comes from there is cut.
        num_beams: Beams; 1 is greedy.
        length_penalty: Beam search compares log-likelihoods divided by (number of tokens) ** length_penalty.
        places: File and line of each prompt, for messages.
        max_batch_tokens, autocast, progress, synced_gpus: See `predict`.

    Raises:
        ValueError: An empty prompt, one that leaves no position for an answer, or scores that are not numbers.
    """
    if max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` must be positive, got {max_new_tokens}.")
    if not all(stop):
        raise ValueError(f"`stop` has an empty text, which ends every answer before it begins: {list(stop)}.")
    _check_prompts(model, prompts, [1] * len(prompts))
    limit = _positions(model)
    # An adapter hands the settings of its base model on.
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    ends = _end_tokens(base, tokenizer)
    answers: list[str] = [""] * len(prompts)

    def run(batch: list[_Job], budget: int) -> None:
        ids, mask = _pad([prompts[job.index] for job in batch], _pad_token_id(tokenizer))
        width, tokens = ids.shape[1], max(job.extra for job in batch)
        first = _FirstScores()
        config = GenerationConfig(
            max_new_tokens=tokens if limit is None else min(tokens, limit - width),
            num_beams=num_beams,
            do_sample=False,
            use_cache=True,
            pad_token_id=_pad_token_id(tokenizer),
            eos_token_id=sorted(ends) or None,
            **({"length_penalty": length_penalty} if num_beams > 1 else {}),
        )
        with _generation_config(base, config):
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([first]),
                stopping_criteria=StoppingCriteriaList([StopTexts(tokenizer, stop, width)] if stop else []),
                synced_gpus=synced_gpus and _is_distributed(),
            )
        named = [places[job.index] if places else f"prompt {job.index}" for job in batch]
        assert first.sums is not None  # there is a first token
        check_numbers(first.sums.view(len(batch), -1).tolist(), named)
        for job, row in zip(batch, output[:, width:].tolist()):
            answers[job.index] = _read_answer(tokenizer, row, ends, stop)

    rooms = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
    _run_in_batches(
        model,
        [_Job(index, len(prompt), room, num_beams) for index, (prompt, room) in enumerate(zip(prompts, rooms))],
        run,
        max_batch_tokens=max_batch_tokens,
        autocast=autocast,
        progress=progress,
        synced_gpus=synced_gpus,
        name="answering",
    )
    return answers


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a text: the tokenizer's and the model's, of which a chat model has more."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])}
    return {token for token in ends if token is not None}


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """`config` in the place of the model's own, from which `generate` takes what is not given."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


class _FirstScores(LogitsProcessor):
    """Keeps what the scores of an answer's first token sum up to: no number where one of them is none. That the next ones
    are numbers then is not looked at, since each look waits for the device."""

    sums: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.sums is None:
            self.sums = scores.float().logsumexp(-1)
        return scores


class StopTexts(StoppingCriteria):
    """Ends a row when its new text holds one of some texts.

    By what the tokens read together: a Korean syllable may take three of them. transformers' own looks for the text in
    each token by itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_tokens: int):
        self.tokenizer, self.stop, self.prompt_tokens = tokenizer, stop, prompt_tokens
        # A token is a byte at least. One more, since a text may lose the space it begins with.
        self.tail_tokens = max(len(text.encode()) for text in stop) + 1

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        start = max(self.prompt_tokens, input_ids.shape[1] - self.tail_tokens)
        tails = [_decode(self.tokenizer, row) for row in input_ids[:, start:].tolist()]
        ended: Any = torch.tensor([any(text in tail for text in self.stop) for tail in tails], device=input_ids.device)
        return ended


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _read_answer(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: set[int], stop: Sequence[str]) -> str:
    """The text of new tokens, up to the first end."""
    # Beam search without an end-of-text token fills up with -1.
    end = next((place for place, token in enumerate(ids) if token in ends or token < 0), len(ids))
    text = _decode(tokenizer, ids[:end])
    return text[: min((text.find(mark) for mark in stop if mark in text), default=len(text))].strip()


# Heads


def classify(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    pad_token_id: int,
    max_batch_tokens: int | None = None,
    autocast: AbstractContextManager | None = None,
    progress: bool = True,
    synced_gpus: bool = False,
) -> torch.Tensor:
    """Log-probabilities of each label, by a model with a classification head.

    Args:
        model: An `AutoModelForSequenceClassification`. It looks at each row's last token that is not
            `config.pad_token_id`.
        prompts: Token ids of each prompt.
        pad_token_id: That token.
        max_batch_tokens, autocast, progress, synced_gpus: See `predict`.

    Returns:
        (prompts, labels) in float32.

    Raises:
        ValueError: The model pads by another token, or a prompt is empty, too long or ends in padding.
    """
    if model.config.get_text_config().pad_token_id != pad_token_id:
        raise ValueError(
            f"The model's classification head finds a text's last token by `config.pad_token_id`, which is "
            f"{model.config.pad_token_id}; texts are padded by {pad_token_id}: set `model.config.pad_token_id`."
        )
    for index, prompt in enumerate(prompts):
        if prompt[-1:] == [pad_token_id]:
            raise ValueError(f"Prompt {index} ends in the padding token {pad_token_id}, which the head does not see.")
    log_probs = torch.empty(len(prompts), model.config.num_labels)

    def read(batch: list[_Job], outputs: Any) -> None:
        found = outputs.logits.float().log_softmax(-1)
        log_probs[[job.index for job in batch]] = found.cpu()

    _run_head(model, prompts, pad_token_id, read, "classifying", max_batch_tokens, autocast, progress, synced_gpus)
    return log_probs


def find_spans(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    *,
    max_answer_tokens: int,
    max_batch_tokens: int | None = None,
    autocast: AbstractContextManager | None = None,
    progress: bool = True,
    synced_gpus: bool = False,
) -> list[str]:
    """The likeliest answer in each example's text, word for word, by a model that scores first and last tokens.

    Args:
        model: An `AutoModelForQuestionAnswering`.
        tokenizer: A fast one, which knows where its tokens stand.
        examples: What was asked; an answer is looked for in `text` alone.
        encoded: Its token ids.
        max_answer_tokens: Tokens of an answer at most.
        max_batch_tokens, autocast, progress, synced_gpus: See `predict`.

    Raises:
        ValueError: The tokenizer is a slow one, `encoded` is not of `examples`, or a prompt is too long.
    """
    if max_answer_tokens < 1:
        raise ValueError(f"`max_answer_tokens` must be positive, got {max_answer_tokens}.")
    places = [_text_places(tokenizer, example, item) for example, item in zip(examples, encoded)]
    answers: list[str] = [""] * len(examples)

    def read(batch: list[_Job], outputs: Any) -> None:
        starts, ends = outputs.start_logits.float().cpu(), outputs.end_logits.float().cpu()
        scores = [(starts[row] + ends[row])[list(places[job.index])].tolist() for row, job in enumerate(batch)]
        check_numbers(scores, [examples[job.index].where for job in batch])
        for row, job in enumerate(batch):
            place = places[job.index]
            span = _best_span(starts[row], ends[row], sorted(place), max_answer_tokens)
            if span is not None:
                characters = slice(place[span[0]][0], place[span[1]][1])
                answers[job.index] = examples[job.index].prompt[characters].strip()

    prompts = [item.prompt_ids for item in encoded]
    pad = _pad_token_id(tokenizer)
    _run_head(model, prompts, pad, read, "answering", max_batch_tokens, autocast, progress, synced_gpus)
    return answers


def _run_head(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    pad_token_id: int,
    read: Callable[[list[_Job], Any], None],
    name: str,
    max_batch_tokens: int | None,
    autocast: AbstractContextManager | None,
    progress: bool,
    synced_gpus: bool,
) -> None:
    """Run prompts, padded on the right, and hand the outputs of each batch to `read`."""
    _check_prompts(model, prompts, [0] * len(prompts))

    def run(batch: list[_Job], budget: int) -> None:
        ids, mask = _pad([prompts[job.index] for job in batch], pad_token_id, side="right")
        read(batch, model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)))

    _run_in_batches(
        model,
        [_Job(index, len(prompt)) for index, prompt in enumerate(prompts)],
        run,
        max_batch_tokens=max_batch_tokens,
        autocast=autocast,
        progress=progress,
        synced_gpus=synced_gpus,
        name=name,
    )


def _best_span(starts: torch.Tensor, ends: torch.Tensor, tokens: list[int], max_tokens: int) -> tuple[int, int] | None:
    """First and last token with the highest sum of scores, of those that may be either."""
    if not tokens:
        return None
    place = torch.tensor(tokens)
    scores = starts[place].unsqueeze(1) + ends[place]
    distance = place - place.unsqueeze(1)
    scores = scores.masked_fill((distance < 0) | (distance >= max_tokens), -torch.inf)
    first, last = divmod(int(scores.argmax()), len(tokens))
    return tokens[first], tokens[last]


def span_labels(tokenizer: PreTrainedTokenizerBase, example: Example, encoded: Encoded) -> tuple[int, int] | None:
    """First and last token of the answer, as positions in `encoded.prompt_ids`: what a span head learns.

    Returns:
        Of the first place of `example.references[0]` in the text; None where there is none, or it was cut off.

    Raises:
        ValueError: The tokenizer is a slow one, or `encoded` is not of `example`.
    """
    answer = example.references[0] if example.references else ""
    found = example.text.find(answer) if answer else -1
    if found < 0:
        return None
    begin = len(example.before) + found
    end = begin + len(answer)
    places = _text_places(tokenizer, example, encoded)
    tokens = [token for token, (first, last) in places.items() if first < end and last > begin]
    if not tokens or places[tokens[-1]][1] < end:
        return None
    return tokens[0], tokens[-1]


def _text_places(tokenizer: PreTrainedTokenizerBase, example: Example, encoded: Encoded) -> dict[int, tuple[int, int]]:
    """Characters of `example.prompt`, without white space at their ends, of each token that stands in the text."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("Finding answers in a text takes a fast tokenizer, which says where its tokens stand.")
    start = first_ids(tokenizer)
    cut = encoded.cut_tokens > 0
    shown = tokenizer(
        example.before + example.text if cut else example.prompt, add_special_tokens=False, return_offsets_mapping=True
    )
    ids, offsets = start + shown["input_ids"], [(0, 0)] * len(start) + shown["offset_mapping"]
    # As `encode` cuts it.
    kept = len(encoded.prompt_ids) - (len(continuation_ids(tokenizer, example.after)) if cut else 0)
    if ids[:kept] != encoded.prompt_ids[:kept]:
        raise ValueError(f"{example.where or 'An example'}: `encoded` is not this example by this tokenizer.")
    first, last = len(example.before), len(example.before) + len(example.text)
    places = {}
    for token, (begin, end) in enumerate(offsets[:kept]):
        # The space before a word is in its token, and may stand before the text.
        piece = example.prompt[begin:end]
        begin, end = begin + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        if first <= begin < end <= last:
            places[token] = (begin, end)
    return places
