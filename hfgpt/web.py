"""A local web page for one model or two side by side: `hfgpt demo MODEL [--compare MODEL]`.

What is behind the page is plain Python: `open_models` loads, `Page` answers, functions named `..._html` draw, and
`build_page` puts it together by gradio (an extra: `hfgpt[demo]`). An adapter is compared with its base model without being
asked; both are one model in memory, whose adapter is switched off for the base. The browser loads nothing from elsewhere.
"""

import math
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from .generation import (
    DEFAULT_NEW_TOKENS,
    Continuation,
    TextScore,
    TokenProbability,
    check_writes,
    continue_prompt,
    load,
    position_limit,
    score_of,
    token_bytes,
    token_probabilities,
)
from .tasks import ChoiceTask
from .tasks.base import Example, RowError, fill
from .tasks.encoding import encode
from .tasks.saved import TASK_FILE, TaskRecord, saved_task
from .tasks.scoring import predict
from .training.adapters import ADAPTER_CONFIG_FILE, fetch_adapter


FIRST_PORT, PORTS = 7860, 100
TOP = 5
# A probability of 1 in so many powers of ten, or less, has the full colour.
DECADES = 4
# Seconds between two pictures of text that is being written.
FRAME_SECONDS = 0.08
MOST_NEW_TOKENS = 1024


# Models


@dataclass
class Speaker:
    """A model on the page.

    Attributes:
        name: What it is called there.
        model, tokenizer: As `hfgpt.generation.load` returns them.
        head: "lm", or "classification" or "span", which do not write.
        record: What it was fine-tuned for, if so.
        adapter_off: It is the base of an adapter: the model with the adapter switched off.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    head: str = "lm"
    record: TaskRecord | None = None
    adapter_off: bool = False

    def active(self) -> AbstractContextManager:
        """In which the model is this one."""
        return self.model.disable_adapter() if self.adapter_off else nullcontext()

    @property
    def facts(self) -> str:
        """One line about it."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        if self.adapter_off:
            parameters -= sum(p.numel() for name, p in self.model.named_parameters() if "lora_" in name)
        limit = position_limit(self.model)
        facts = [f"{_count(parameters)} parameters", str(self.model.dtype).removeprefix("torch.")]
        facts += [f"{limit:,} positions"] if limit else []
        return ", ".join([*facts, str(self.model.device)])


def open_models(model: str | Path, compare: str | Path | None = None, device: str | None = None) -> list[Speaker]:
    """The model of the page, and before it the one to compare it with.

    Args:
        model: Folder or Hub name of a model or an adapter.
        compare: Another one. Default: an adapter's base model.
        device: As for `hfgpt.generation.load`.

    Raises:
        ValueError: One of them cannot be loaded.
    """
    main = _open(model, device)
    base = _base_of(main)
    if compare is None and base is None:
        return [main]
    if base is not None and (compare is None or _same_place(compare, base)):
        name = f"{_short(base)} (base)"
        if main.head == "lm" and hasattr(main.model, "disable_adapter"):
            return [Speaker(name, main.model, main.tokenizer, adapter_off=True), main]
        return [Speaker(name, *load(base, device)), main]
    assert compare is not None
    other = _open(compare, device)
    if other.name == main.name:
        main.name, other.name = str(model), str(compare)
    return [other, main]


def _open(name: str | Path, device: str | None) -> Speaker:
    folder = _folder_of_adapter(name)
    record = saved_task(folder or _folder_of_record(name))
    if record is None:
        check_writes(folder or name)
    head = record.head if record is not None else "lm"
    model, tokenizer = load(folder or name, device, head)
    if hasattr(model, "peft_config"):
        kind = str(getattr(model.active_peft_config.task_type, "value", model.active_peft_config.task_type))
        head = {"SEQ_CLS": "classification", "QUESTION_ANS": "span"}.get(kind, "lm")
    return Speaker(_short(name), model, tokenizer, head, record)


def _folder_of_adapter(name: str | Path) -> Path | None:
    """The folder of an adapter, downloaded where it is a Hub name; None where it is none."""
    if Path(name).is_dir():
        return Path(name) if (Path(name) / ADAPTER_CONFIG_FILE).is_file() else None
    return fetch_adapter(name) if _cached(name, ADAPTER_CONFIG_FILE) else None


def _folder_of_record(name: str | Path) -> Path:
    found = None if Path(name).is_dir() else _cached(name, TASK_FILE)
    return Path(found).parent if found else Path(name)


def _cached(name: str | Path, file: str) -> str | None:
    """A file of a Hub name; None where there is none, or no such name."""
    try:
        found: str | None = cached_file(
            str(name),
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # `load` says what is wrong
        return None
    return found


def _base_of(speaker: Speaker) -> str | None:
    """Where an adapter's base model was loaded from."""
    if not hasattr(speaker.model, "get_base_model"):
        return None
    return str(speaker.model.get_base_model().name_or_path) or None


def _same_place(one: str | Path, other: str | Path) -> bool:
    return str(one) == str(other) or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _short(name: str | Path) -> str:
    """The last two parts of a folder, which a Hub name has anyway."""
    parts = [part for part in Path(name).parts if part not in ("/", ".", "..")]
    return "/".join(parts[-2:]) or str(name)


def _count(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


# What the page asks


@dataclass
class Written:
    """What a model wrote, as far as it has come.

    Attributes:
        text: New text.
        continuation: When it is finished.
        tokens: The probabilities of prompt and new tokens, when it is finished.
    """

    text: str = ""
    continuation: Continuation | None = None
    tokens: list[TokenProbability] = field(default_factory=list)


@dataclass(frozen=True)
class TaskAnswer:
    """A model's answer to its task's input.

    Attributes:
        text: Name of the label, the choice, or the answer.
        shares: Each choice and its probability among them; empty where an answer is written.
        cut_tokens: Tokens of the text that had no room.
    """

    text: str
    shares: tuple[tuple[str, float], ...] = ()
    cut_tokens: int = 0


class Page:
    """What is behind the page. One request runs at a time.

    Args:
        speakers: As `open_models` returns them; the last one is the page's own.
    """

    def __init__(self, speakers: Sequence[Speaker]):
        self.speakers = list(speakers)
        self.writers = [speaker for speaker in speakers if speaker.head == "lm"]
        records = [speaker.record for speaker in reversed(speakers) if speaker.record is not None]
        self.record = records[0] if records else None
        self._lock = threading.Lock()
        self._stopped: set[str] = set()

    @property
    def position_limit(self) -> int | None:
        """The fewest positions of the models that write."""
        return min((limit for limit in map(_limit, self.writers) if limit is not None), default=None)

    def begin(self, session: str) -> None:
        """A browser's session asks for text, which may wait for others: a `stop` before this is not meant for it."""
        self._stopped.discard(session)

    def stop(self, session: str) -> None:
        """End what a browser's session is having written, or waits for."""
        self._stopped.add(session)

    def write(
        self,
        prompt: str,
        new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = 0,
        stop: Sequence[str] = (),
        session: str = "",
    ) -> Iterator[list[Written]]:
        """Continue a prompt by each model that writes, one after the other, from the same seed.

        Args:
            prompt: Text to continue.
            new_tokens: At most.
            temperature: 0 takes the likeliest token each time.
            top_p: Sample from the likeliest tokens that hold this probability.
            seed: None takes another one each time.
            stop: Texts at which to end.
            session: Whose `stop` ends it, from the last `begin` on.

        Yields:
            What each has written so far; at the end with its probabilities.

        Raises:
            ValueError: The prompt is too long for a model, or an option out of range.
        """
        self._check(new_tokens, temperature, top_p, seed)
        seed = int.from_bytes(os.urandom(4), "little") if seed is None else int(seed)
        options: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            options.update(temperature=float(temperature), top_p=float(top_p))
        news: queue.Queue = queue.Queue()

        def work() -> None:
            try:
                with self._lock:
                    for index, speaker in enumerate(self.writers):
                        with speaker.active():
                            found = continue_prompt(
                                speaker.model,
                                speaker.tokenizer,
                                prompt,
                                max_new_tokens=int(new_tokens),
                                write=partial(_put, news, index),
                                seed=seed,
                                stop=stop,
                                should_stop=lambda: session in self._stopped,
                                **options,
                            )
                            ids = [*found.prompt_ids, *found.new_ids]
                            tokens = token_probabilities(
                                speaker.model, speaker.tokenizer, ids, top=TOP, from_start=False
                            )
                        news.put((index, Written(found.text, found, tokens)))
                news.put(None)
            except BaseException as error:
                news.put(error)

        threading.Thread(target=work, daemon=True).start()
        states = [Written() for _ in self.writers]
        shown = time.monotonic()
        # What was stopped has ended when all of it is here.
        while (item := news.get()) is not None:
            if isinstance(item, BaseException):
                self._stopped.discard(session)
                raise item
            index, new = item
            states[index] = Written(states[index].text + new) if isinstance(new, str) else new
            if isinstance(new, Written) or time.monotonic() - shown >= FRAME_SECONDS:
                shown = time.monotonic()
                yield list(states)
        self._stopped.discard(session)
        yield list(states)

    def score(self, text: str) -> list[list[TokenProbability]]:
        """The probability of each token of a text, by each model that writes.

        Raises:
            ValueError: No text, or more than a model has positions.
        """
        with self._lock:
            found = []
            for speaker in self.writers:
                with speaker.active():
                    found.append(token_probabilities(speaker.model, speaker.tokenizer, text, top=TOP))
            return found

    def ask(self, row: Mapping[str, str]) -> list[TaskAnswer]:
        """The answer of each model to the input of the task that the page's own, or else the other, was fine-tuned for.

        Args:
            row: The fields of the task's prompt; and its choices, one a line, where each row brings its own.

        Raises:
            ValueError: A field is empty, or too long with what stands around it.
        """
        assert self.record is not None
        task = self.record.task
        try:
            example, names = task_example(self.record, row)
        except RowError as error:
            raise ValueError(f"{error}.") from None
        answers = []
        with self._lock:
            for speaker in self.speakers:
                limit = min(
                    length for length in (self.record.max_length, _limit(speaker), sys.maxsize) if length is not None
                )
                room = None if isinstance(task, ChoiceTask) else getattr(task, "max_new_tokens", DEFAULT_NEW_TOKENS)
                if speaker.head == "span":
                    room = 0
                elif room is not None:
                    room = max(min(room, limit // 2), 1)
                encoded = encode(speaker.tokenizer, example, limit, room)
                with speaker.active():
                    found = predict(
                        speaker.model, speaker.tokenizer, task, [example], [encoded], head=speaker.head, progress=False
                    )[0]
                shares = tuple(zip(names, _softmax(found.scores))) if found.scores else ()
                answers.append(TaskAnswer(found.text, shares, encoded.cut_tokens))
        return answers

    def _check(self, new_tokens: float, temperature: float, top_p: float, seed: float | None) -> None:
        if not self.writers:
            raise ValueError("None of the models writes: they have a head of their task's. Use its tab.")
        for name, value, low, high in (
            ("New tokens", new_tokens, 1, math.inf),
            ("Temperature", temperature, 0, math.inf),
            ("Seed", 0 if seed is None else seed, 0, 2**32 - 1),
        ):
            if value is None or not low <= value <= high:
                most = "" if math.isinf(high) else f" and at most {high}"
                raise ValueError(f"{name} must be at least {low}{most}, got {value}.")
        if top_p is None or not 0 < top_p <= 1:
            raise ValueError(f"Top-p must be above 0 and at most 1, got {top_p}.")


def _put(news: queue.Queue, index: int, piece: str) -> None:
    news.put((index, piece))


def _limit(speaker: Speaker) -> int | None:
    return position_limit(speaker.model)


def _softmax(scores: Sequence[float]) -> list[float]:
    most = max(scores)
    powers = [math.exp(score - most) for score in scores]
    return [power / sum(powers) for power in powers]


def task_example(record: TaskRecord, row: Mapping[str, str]) -> tuple[Example, list[str]]:
    """A row without an answer as the task asks it, and the names of its choices.

    Raises:
        RowError: A field is empty.
    """
    task = record.task
    before, text, after = task.render(row)
    names: list[str] = []
    completions: tuple[str, ...] = ()
    if isinstance(task, ChoiceTask):
        if task.choices:
            names, completions = task.labels, tuple(task.choices.values())
        else:
            names = [line.strip() for line in row.get(task.choices_field, "").splitlines() if line.strip()]
            if len(names) < 2:
                raise RowError(f"field `{task.choices_field}` needs two or more choices, one a line")
            completions = tuple(fill(task.choice, choice=name) for name in names)
    return Example(before, text, after, "", completions, cut_side=task.cut_side), names


# Drawing


def pieces(tokens: Sequence[TokenProbability]) -> list[list[int]]:
    """Places of the tokens that stand for the same characters: most alone, those of one character together."""
    found: list[list[int]] = [[]]
    for place, token in enumerate(tokens):
        found[-1].append(place)
        if token.text:
            found.append([])
    if found[-1] and len(found) > 1:  # a character that was never finished
        found[-2] += found.pop()
    return [piece for piece in found if piece]


def tokens_html(tokens: Sequence[TokenProbability], tokenizer: PreTrainedTokenizerBase, prompt_tokens: int = 0) -> str:
    """Text whose colour says how likely each token was; the first `prompt_tokens` have none.

    A token's details are a row of the table below, which the page's script also shows where the pointer or the keyboard is.
    """
    spans: list[str] = []
    rows: list[str] = []
    for piece in pieces(tokens):
        members = [tokens[place] for place in piece]
        text = "".join(token.text for token in members)
        known = [token.log_prob for token in members if token.log_prob is not None]
        in_prompt = piece[0] < prompt_tokens
        classes = "hfgpt-token"
        classes += " hfgpt-prompt" if in_prompt else ""
        classes += " hfgpt-special" if members[-1].special else ""
        strength = 0.0 if in_prompt or not known else min(-sum(known) / math.log(10) / DECADES, 1.0)
        shown = escape(text).replace("\n", '<span class="hfgpt-mark">⏎</span>\n')
        tab = 0 if not spans else -1
        spans.append(
            f'<span class="{classes}" tabindex="{tab}" style="--strength:{strength:.3f}" data-first="{piece[0]}" '
            f'data-last="{piece[-1]}">{shown}</span>'
        )
    for place, token in enumerate(tokens):
        shown = _visible(token.text) if token.text else token_bytes(tokenizer, token.token_id)
        others = "".join(
            f"<li><code>{escape(_visible(other.text))}</code> <b>{_percent(other.probability)}</b></li>"
            for other in token.alternatives
        )
        chance = "first token" if token.probability is None else _percent(token.probability)
        rank = "" if token.rank is None else f"{token.rank:,}"
        rows.append(
            f'<tr data-place="{place}"><td>{place + 1}</td><td><code>{escape(shown)}</code></td><td>{chance}</td>'
            f"<td>{rank}</td><td><ol>{others}</ol></td></tr>"
        )
    return (
        f'<div class="hfgpt-text" role="group" aria-label="Tokens, coloured by probability">{"".join(spans)}</div>'
        '<details class="hfgpt-table"><summary>All tokens as a table</summary><div><table><thead><tr><th>#</th>'
        "<th>Token</th><th>Probability</th><th>Rank</th><th>Likeliest in its place</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _visible(text: str) -> str:
    """Text whose white space can be seen."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def _percent(probability: float) -> str:
    percent = 100 * probability
    if percent >= 10:
        return f"{percent:.1f}%"
    return f"{percent:.2g}%" if percent >= 0.001 else "<0.001%"


def score_html(score: TextScore, what: str) -> str:
    """Totals of a text."""
    if not score.tokens:
        return ""
    perplexity = score.perplexity
    shown = f"{perplexity:,.1f}" if perplexity < 1e6 else f"{perplexity:.2e}"
    values = (
        (f"{what}", f"{score.tokens:,} token{'' if score.tokens == 1 else 's'}"),
        ("log-probability", f"{score.log_prob:,.2f} nats".replace("-", "−")),
        ("perplexity", shown),
        ("bits per byte", f"{score.bits_per_byte:.3f}"),
    )
    return (
        '<dl class="hfgpt-totals">'
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values)
        + "</dl>"
    )


LEGEND = (
    '<div class="hfgpt-legend hfgpt-flush"><span>Probability of each token</span><span class="hfgpt-scale"><i></i>'
    "<span>100%</span><span>10%</span><span>1%</span><span>0.1%</span><span>≤0.01%</span></span></div>"
)


def card_html(speaker: Speaker, body: str) -> str:
    """What stands under a model's name."""
    return (
        f'<section class="hfgpt-card hfgpt-flush" aria-label="{escape(speaker.name)}"><header><h3>{escape(speaker.name)}</h3>'
        f"<p>{escape(speaker.facts)}</p></header>{body}</section>"
    )


def written_html(speaker: Speaker, prompt: str, written: Written) -> str:
    """What a model has written so far, or all of it with its probabilities."""
    found = written.continuation
    if found is None:
        text = f'<span class="hfgpt-prompt">{escape(prompt)}</span>{escape(written.text)}'
        body = f'<div class="hfgpt-text hfgpt-busy">{text}<span class="hfgpt-caret"></span></div>'
        return card_html(speaker, body)
    start = len(found.prompt_ids)
    ends = {
        "length": f"all {len(found.new_ids):,} tokens",
        "end": "end of text",
        "stop": "stop text",
        "asked": "stopped",
    }
    body = tokens_html(written.tokens, speaker.tokenizer, start)
    totals = score_html(score_of(written.tokens[start:]), "new text")
    note = f'<p class="hfgpt-note">Ended: {ends[found.ended]}. Probabilities at temperature 1.</p>'
    return card_html(speaker, body + totals + note)


def scored_html(speaker: Speaker, tokens: Sequence[TokenProbability]) -> str:
    """A scored text."""
    return card_html(speaker, tokens_html(tokens, speaker.tokenizer) + score_html(score_of(tokens), "text"))


def answer_html(speaker: Speaker, answer: TaskAnswer) -> str:
    """A model's answer to its task: a bar for each label, or the text."""
    if answer.shares:
        bars = "".join(
            f'<div class="hfgpt-bar{" hfgpt-best" if name == answer.text else ""}"><span>{escape(name)}</span>'
            f'<meter min="0" max="1" value="{share:.4f}" aria-label="{escape(name)}"></meter><b>{100 * share:.1f}%</b></div>'
            for name, share in answer.shares
        )
        body = f'<p class="hfgpt-answer">{escape(answer.text)}</p>{bars}'
    else:
        body = f'<p class="hfgpt-answer">{escape(answer.text) or "(no answer)"}</p>'
    if answer.cut_tokens:
        body += f'<p class="hfgpt-note">The text lost {answer.cut_tokens} tokens: the model has no room for more.</p>'
    return card_html(speaker, body)


def error_html(message: str) -> str:
    """A message that stays until the next try."""
    return f'<div class="hfgpt-error hfgpt-flush" role="alert">{escape(message)}</div>'


CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; --hfgpt-muted: #64748b; }
.dark .gradio-container, .gradio-container.dark { --hfgpt-muted: #9fb0c7; }
.gradio-container .html-container:has(.hfgpt-flush) { padding: 0 !important; }
.row > .block:has(.hfgpt-card) > .html-container, .row > .block:has(.hfgpt-card) .prose { height: 100%; }
.gradio-container .row:has(> .block .hfgpt-card, > .block .hfgpt-legend) { flex-wrap: wrap; }
.gradio-container .row > .block:has(.hfgpt-card) { flex: 1 1 min(320px, 100%) !important; min-width: 0 !important; }
.gradio-container .row > .block:has(.hfgpt-legend) { flex: 1 1 300px !important; min-width: 0 !important; }
.hfgpt-head h1 { margin: 0; font-size: 1.5rem; font-weight: 650; letter-spacing: -.01em; }
.hfgpt-head p { margin: .2rem 0 0; color: var(--hfgpt-muted); }
.hfgpt-card { border: 1px solid var(--border-color-primary); border-radius: 12px; padding: 16px 18px;
  background: var(--background-fill-primary); height: 100%; box-sizing: border-box; }
.hfgpt-card header { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; margin-bottom: 10px; }
.hfgpt-card h3 { margin: 0; overflow-wrap: anywhere; font-size: 1rem; font-weight: 650; }
.hfgpt-card header p, .hfgpt-note { margin: 0; font-size: .8rem; color: var(--hfgpt-muted); }
.hfgpt-note { margin-top: 10px; }
.hfgpt-text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1rem; line-height: 1.85; min-height: 3.7em; }
.hfgpt-prompt { color: var(--hfgpt-muted); }
.hfgpt-token { border-radius: 4px; padding: 2px 0; cursor: default; transition: box-shadow .1s;
  background: rgba(234, 88, 12, calc(var(--strength) * .62)); }
.hfgpt-token:hover, .hfgpt-token:focus { outline: none; box-shadow: 0 0 0 2px var(--color-accent); }
.hfgpt-special { font-size: .75em; color: var(--hfgpt-muted); border: 1px dashed var(--border-color-primary);
  padding: 1px 4px; margin-left: 3px; }
.hfgpt-mark { opacity: .45; font-size: .8em; }
.hfgpt-caret { display: inline-block; width: .5ch; height: 1.1em; vertical-align: -.15em; margin-left: 1px;
  background: var(--color-accent); animation: hfgpt-blink 1s steps(2) infinite; }
@keyframes hfgpt-blink { 50% { opacity: 0; } }
.hfgpt-totals { display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 12px 0 0; padding-top: 10px;
  border-top: 1px solid var(--border-color-primary); }
.hfgpt-totals dt { font-size: .75rem; color: var(--hfgpt-muted); }
.hfgpt-totals dd { margin: 0; font-variant-numeric: tabular-nums; font-weight: 600; font-size: .9rem; }
.hfgpt-table { margin-top: 10px; font-size: .85rem; }
.hfgpt-table summary { cursor: pointer; color: var(--hfgpt-muted); }
.hfgpt-table > div { max-height: 340px; overflow: auto; margin-top: 6px; }
.hfgpt-table table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.hfgpt-table th { text-align: left; position: sticky; top: 0; background: var(--background-fill-secondary); }
.hfgpt-table th, .hfgpt-table td { padding: 3px 8px; border-bottom: 1px solid var(--border-color-primary);
  vertical-align: top; }
.hfgpt-table ol { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 0 12px; }
.hfgpt-table code, .hfgpt-tip code { white-space: pre-wrap; background: var(--background-fill-secondary);
  padding: 0 4px; border-radius: 4px; }
.hfgpt-legend { display: flex; justify-content: flex-end; flex-wrap: wrap; gap: 10px; align-items: center; font-size: .78rem;
  color: var(--hfgpt-muted); }
.hfgpt-scale { display: grid; grid-template-columns: repeat(5, 1fr); width: min(300px, 100%); text-align: center; }
.hfgpt-scale i { grid-column: 1 / -1; height: 8px; border-radius: 4px; border: 1px solid var(--border-color-primary);
  background: linear-gradient(to right, transparent, rgba(234, 88, 12, .62)); }
.hfgpt-tip { position: fixed; z-index: 9999; max-width: 330px; padding: 10px 12px; border-radius: 10px; font-size: .85rem;
  background: var(--background-fill-primary); color: var(--body-text-color); pointer-events: none;
  border: 1px solid var(--border-color-primary); box-shadow: 0 8px 28px rgba(0, 0, 0, .18); }
.hfgpt-tip > div + div { margin-top: 8px; padding-top: 8px; border-top: 1px solid var(--border-color-primary); }
.hfgpt-tip ol { margin: 4px 0 0; padding: 0; list-style: none; }
.hfgpt-tip li { display: flex; justify-content: space-between; gap: 18px; font-variant-numeric: tabular-nums; }
.hfgpt-error { border: 1px solid #dc2626; background: rgba(220, 38, 38, .09); border-radius: 10px; padding: 10px 14px; }
.hfgpt-answer { font-size: 1.35rem; font-weight: 650; margin: 0 0 10px; white-space: pre-wrap; }
.hfgpt-bar { display: grid; grid-template-columns: minmax(80px, 30%) 1fr 60px; gap: 10px; align-items: center;
  margin: 6px 0; color: var(--hfgpt-muted); }
.hfgpt-bar.hfgpt-best { color: var(--body-text-color); font-weight: 600; }
.hfgpt-bar b { text-align: right; font-variant-numeric: tabular-nums; font-weight: inherit; }
.hfgpt-bar meter { width: 100%; height: 14px; appearance: none; }
.hfgpt-bar meter::-webkit-meter-bar { background: var(--border-color-primary); border: 0; border-radius: 7px; }
.hfgpt-bar meter::-webkit-meter-optimum-value { background: var(--neutral-400); border-radius: 7px; }
.hfgpt-bar.hfgpt-best meter::-webkit-meter-optimum-value { background: var(--color-accent); }
"""

# Shows the table's rows of a token beside it; arrow keys go from token to token.
SCRIPT = """
<script>
(() => {
  let tip = null;
  const hide = () => { if (tip) { tip.remove(); tip = null; } };
  const show = (token) => {
    hide();
    const table = token.closest(".hfgpt-card")?.querySelector(".hfgpt-table tbody");
    if (!table) return;
    tip = document.createElement("div");
    tip.className = "hfgpt-tip";
    tip.setAttribute("role", "tooltip");
    for (let place = +token.dataset.first; place <= +token.dataset.last; place++) {
      const cells = table.querySelector(`tr[data-place="${place}"]`)?.children;
      if (!cells) continue;
      const part = document.createElement("div");
      part.append(cells[1].firstChild.cloneNode(true), ` ${cells[2].textContent}`);
      if (cells[3].textContent) part.append(`, rank ${cells[3].textContent}`);
      part.append(cells[4].firstChild.cloneNode(true));
      tip.append(part);
    }
    (document.querySelector(".gradio-container") ?? document.body).append(tip);
    const box = token.getClientRects()[0], own = tip.getBoundingClientRect();
    const below = box.bottom + 8 + own.height <= innerHeight || box.top < own.height + 8;
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${below ? box.bottom + 8 : box.top - own.height - 8}px`;
  };
  const token = (event) => event.target.closest?.(".hfgpt-token");
  document.addEventListener("mouseover", (event) => { const at = token(event); if (at) show(at); else hide(); });
  document.addEventListener("focusin", (event) => { const at = token(event); if (at) show(at); });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => {
    const at = token(event);
    if (event.key === "Escape") hide();
    if (!at || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const next = event.key === "ArrowRight" ? at.nextElementSibling : at.previousElementSibling;
    if (next) { at.tabIndex = -1; next.tabIndex = 0; next.focus(); event.preventDefault(); }
  });
})();
</script>
"""

FONTS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Noto Sans KR",
    "Apple SD Gothic Neo",
    "Malgun Gothic",
    "NanumGothic",
)


# The page

# What to try a task with, by the fields of its prompt.
EXAMPLES = {
    "en": {
        "text": "A warm, funny and moving film.",
        "question": "Where was the bridge built?",
        "context": "The bridge was built in Busan in 2003. It is seven kilometres long.",
        "en": "The film was good.",
    },
    "ko": {
        "text": "정말 감동적이고 재미있는 영화였다.",
        "question": "다리는 어디에 지어졌는가?",
        "context": "이 다리는 2003년 부산에 지어졌으며 길이는 7킬로미터이다.",
        "ko": "영화가 좋았다.",
    },
}
LABELS = {"text": "Text", "question": "Question", "context": "Passage", "en": "English", "ko": "Korean"}


def gradio() -> Any:
    """The library, told to stay by itself.

    Raises:
        ValueError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise ValueError("The page needs gradio, which is not installed: pip install 'hfgpt[demo]'.") from None
    return gradio


def build_page(page: Page, task_example: Mapping[str, str] | None = None) -> Any:
    """The page as gradio's `Blocks`.

    Args:
        page: What is behind it.
        task_example: What stands in the fields of the task at first.

    Raises:
        ValueError: gradio is not installed, or the task has no such field.
    """
    gr = gradio()
    names = " and ".join(speaker.name for speaker in page.speakers)
    with gr.Blocks(title=f"hfgpt: {names}", analytics_enabled=False) as blocks:
        gr.HTML(f'<div class="hfgpt-head hfgpt-flush"><h1>hfgpt</h1><p>{escape(names)}</p></div>')
        task_first = not page.writers
        with gr.Tabs(selected="task" if task_first else "write"):
            if page.writers:
                with gr.Tab("Write", id="write", elem_id="tab-write"):
                    _write_tab(gr, page)
                with gr.Tab("Score a text", id="score", elem_id="tab-score"):
                    _score_tab(gr, page)
            if page.record is not None:
                with gr.Tab(f"Task: {page.record.task.name}", id="task", elem_id="tab-task"):
                    _task_tab(gr, page, page.record, task_example)
        blocks.unload(_for_session(gr, page.stop))
    return blocks


def _cards(gr: Any, speakers: Sequence[Speaker], prefix: str) -> list[Any]:
    """A place for each model's card, side by side."""
    with gr.Row(equal_height=True):
        return [
            gr.HTML(card_html(speaker, '<div class="hfgpt-text"></div>'), elem_id=f"{prefix}-{number}", min_width=320)
            for number, speaker in enumerate(speakers, start=1)
        ]


def _write_tab(gr: Any, page: Page) -> None:
    limit = page.position_limit
    most = min(MOST_NEW_TOKENS, limit - 1) if limit is not None else MOST_NEW_TOKENS
    prompt = gr.Textbox(
        label="Prompt",
        placeholder="Text to continue; empty starts a new document. Shift and Enter writes.",
        lines=4,
        elem_id="prompt",
        autofocus=True,
    )
    with gr.Row(equal_height=True):
        tokens = gr.Slider(
            1,
            most,
            min(DEFAULT_NEW_TOKENS, max(most // 2, 1)),
            step=1,
            label="New tokens",
            buttons=[],
            elem_id="new-tokens",
            min_width=190,
        )
        temperature = gr.Slider(
            0, 2, 1.0, step=0.05, label="Temperature", buttons=[], elem_id="temperature", min_width=190
        )
        top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", buttons=[], elem_id="top-p", min_width=190)
        seed = gr.Number(0, label="Seed", placeholder="any", precision=0, elem_id="seed", min_width=110, scale=0)
        stops = gr.Textbox(label="Stop at", placeholder="one text a line", elem_id="stop-texts", min_width=190)
    with gr.Row():
        write = gr.Button("Write", variant="primary", elem_id="write-button", scale=0, min_width=160)
        stop = gr.Button("Stop", elem_id="stop-button", scale=0, min_width=110)
        gr.HTML(LEGEND)
    error = gr.HTML(visible=False, elem_id="write-error")
    cards = _cards(gr, page.writers, "written")

    def run(
        prompt: str,
        tokens: float,
        temperature: float,
        top_p: float,
        seed: float | None,
        stops: str,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        marks = [line.replace("\\n", "\n").replace("\\t", "\t") for line in (stops or "").splitlines() if line]
        chosen = None if seed is None else int(seed)
        try:
            found = page.write(
                prompt or "", int(tokens), temperature, top_p, chosen, marks, request.session_hash or ""
            )
            for states in found:
                shown = [
                    written_html(speaker, prompt or "", written) for speaker, written in zip(page.writers, states)
                ]
                yield [gr.HTML(visible=False), *shown]
        except Exception as failure:
            yield [gr.HTML(error_html(_message(failure)), visible=True), *([gr.skip()] * len(page.writers))]

    inputs = [prompt, tokens, temperature, top_p, seed, stops]
    triggers = [write.click, prompt.submit]
    # At once, where the request itself may have to wait: Stop ends it there, too.
    at_once = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    gr.on(triggers, _for_session(gr, page.begin), **at_once)
    _on(gr, triggers, run, inputs, [error, *cards])
    stop.click(_for_session(gr, page.stop), **at_once)


def _for_session(gr: Any, act: Callable[[str], None]) -> Callable[..., None]:
    """Calls a function with the browser's session; gradio gives the request by its annotation."""

    def run(request: gr.Request) -> None:
        act(request.session_hash or "")

    return run


def _score_tab(gr: Any, page: Page) -> None:
    text = gr.Textbox(
        label="Text", placeholder="Text to score, from the beginning of a document", lines=5, elem_id="score-text"
    )
    with gr.Row():
        button = gr.Button("Score", variant="primary", elem_id="score-button", scale=0, min_width=160)
        gr.HTML(LEGEND)
    error = gr.HTML(visible=False, elem_id="score-error")
    cards = _cards(gr, page.writers, "scored")

    def run(text: str) -> list[Any]:
        try:
            found = page.score(text or "")
        except Exception as failure:
            return [gr.HTML(error_html(_message(failure)), visible=True), *([gr.skip()] * len(page.writers))]
        return [
            gr.HTML(visible=False),
            *(scored_html(speaker, tokens) for speaker, tokens in zip(page.writers, found)),
        ]

    _on(gr, [button.click, text.submit], run, [text], [error, *cards])


def _task_tab(gr: Any, page: Page, record: TaskRecord, given: Mapping[str, str] | None) -> None:
    task = record.task
    names = [*task.prompt_fields]
    if isinstance(task, ChoiceTask) and task.choices_field:
        names.append(task.choices_field)
    unknown = [name for name in given or () if name not in names]
    if unknown:
        raise ValueError(
            f"`--task-example`: task {task.name!r} has no field {unknown[0]!r}; it has {', '.join(names)}."
        )
    values = {**EXAMPLES["ko" if record.language.startswith("ko") else "en"], **(given or {})}
    boxes = [
        gr.Textbox(
            values.get(name, ""),
            label=LABELS.get(name, name) if name != getattr(task, "choices_field", "") else f"{name}, one a line",
            lines=4 if name in ("text", "context") else 2,
            elem_id=f"task-{name}",
        )
        for name in names
    ]
    with gr.Row():
        button = gr.Button("Ask", variant="primary", elem_id="task-button", scale=0, min_width=160)
        gr.HTML(
            f'<p class="hfgpt-note hfgpt-flush">Asked as <code>{escape(task.prompt)}</code>, as in evaluation.</p>'
        )
    error = gr.HTML(visible=False, elem_id="task-error")
    cards = _cards(gr, page.speakers, "answer")

    def run(*values: str) -> list[Any]:
        try:
            found = page.ask(dict(zip(names, values)))
        except Exception as failure:
            return [gr.HTML(error_html(_message(failure)), visible=True), *([gr.skip()] * len(page.speakers))]
        return [gr.HTML(visible=False), *map(answer_html, page.speakers, found)]

    _on(gr, [button.click, *(box.submit for box in boxes)], run, boxes, [error, *cards])


def _on(gr: Any, triggers: list[Any], run: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """All requests wait in one queue."""
    gr.on(
        triggers,
        run,
        inputs,
        outputs,
        concurrency_id="model",
        concurrency_limit=1,
        api_visibility="private",
        show_progress="hidden",
    )


def _message(failure: Exception) -> str:
    """What the page says of an error: our own messages as they are, others by their first line."""
    if isinstance(failure, ValueError):
        return str(failure)
    traceback.print_exception(failure)
    first = (str(failure).strip().splitlines() or [""])[0]
    return f"{type(failure).__name__}: {first} (more in the terminal)"


def launch(
    models: Sequence[str | Path],
    *,
    device: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    open_browser: bool = True,
    task_example: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        models: The model, and another one to compare it with if wanted: see `open_models`.
        device: As for `hfgpt.generation.load`.
        host: Address to serve at; "0.0.0.0" is all of them, and whoever reaches the machine can use the page.
        port: Default: the first free one from 7860.
        share: Also by a public address of gradio's, for a week at most.
        open_browser: Show it in the browser.
        task_example: See `build_page`.
        auth: User name and password that the page asks for. Without them a line on standard error says who can use a
            page that is not of this machine alone.

    Raises:
        ValueError: gradio is not installed, a model cannot be loaded, or the port is taken.
    """
    if not 1 <= len(models) <= 2:
        raise ValueError(f"The page takes one model or two, got {len(models)}.")
    gr = gradio()
    find_port(host, port)  # before the models are loaded
    page = Page(open_models(models[0], models[1] if len(models) > 1 else None, device))
    blocks = build_page(page, task_example)
    _leave_out_proxy(host)
    port = find_port(host, port)
    try:
        _, url, public = blocks.queue().launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=auth,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            theme=_theme(gr),
            css=CSS,
            head=SCRIPT,
        )
    except OSError as error:
        raise ValueError(f"The page cannot be served at {host}, port {port}: {error}") from None
    print(f"hfgpt demo: {url} (Ctrl-C ends)", flush=True)
    for line in exposure(host, port, share, auth is not None):
        print(line, file=sys.stderr, flush=True)
    if share:
        print(f"public: {public}" if public else "no public address: gradio's server cannot be reached", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    finally:
        blocks.close(verbose=False)


def exposure(host: str, port: int, share: bool, has_password: bool) -> list[str]:
    """Who else can use the page, a line each: of the network, where `host` is not this machine alone; of the internet."""
    if has_password:
        who, how = "with the password", ""
    else:
        who, how = "without a password", "; --auth USER:PASSWORD asks for one"
    lines = []
    address = host.strip("[]")
    if not (address == "localhost" or address == "::1" or address.startswith("127.")):
        if address in ("0.0.0.0", "::"):
            address = socket.gethostname()
        address = f"[{address}]" if ":" in address else address
        lines.append(
            f"--host {host}: whoever reaches this machine can use the page at http://{address}:{port}/ {who}{how}"
        )
    if share:
        lines.append(f"--share: whoever has the public address can use the page {who}{how}")
    return lines


def find_port(host: str, port: int | None = None) -> int:
    """`port` if it is free; without one, the first that is from 7860.

    Raises:
        ValueError: It is taken, all are, or there is no such address.
    """
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"`--port` must be from 1 to {2**16 - 1}, got {port}.")
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as listener:
                if os.name == "posix":
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
            return candidate
        except socket.gaierror:
            raise ValueError(f"`--host {host}` is no address of this machine: give 127.0.0.1 or 0.0.0.0.") from None
        except PermissionError:
            raise ValueError(f"`--port {candidate}` needs rights that you do not have: give one from 1024.") from None
        except OSError:
            continue
    if port is not None:
        raise ValueError(
            f"`--port {port}` cannot be used at {host}: another program has it, or the address is not this machine's. "
            "Give another one, or none for the first free one."
        )
    raise ValueError(f"Ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are all taken at {host}: give a `--port`.")


def _leave_out_proxy(host: str) -> None:
    """gradio asks its own server whether it is there: not by way of a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        there = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*there, "127.0.0.1", "localhost", host]))


def _theme(gr: Any) -> Any:
    return gr.themes.Default(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.slate,
        font=[*FONTS, "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "D2Coding", "monospace"],
    )
