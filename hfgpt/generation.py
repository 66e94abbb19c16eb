"""Load a model folder, an adapter folder or a Hub name; continue a prompt; say how likely each token of a text is.

What is notable: text is handed out token by token, but never half a character, nor anything that may turn out to be the
beginning of a stop text.
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.utils import cached_file

from .tasks.encoding import first_ids, token_ids
from .tasks.saved import TASK_FILE, saved_task
from .tasks.scoring import StopTexts
from .training.adapters import ADAPTER_CONFIG_FILE, MODEL_CLASSES, TASK_TYPES, load_adapter


DEFAULT_NEW_TOKENS = 64
# What decoders write for bytes that are no text, or not yet.
UNFINISHED = "\ufffd"
# Tokens that new text is decoded behind: a space before a word may depend on there being a word before it.
CONTEXT_TOKENS = 8
# Tokens that new text is waited for at most, where a decoder takes back what it wrote: a character has four bytes at most.
HELD_TOKENS = 4
# Scores held in float32 at a time.
CHUNK_BYTES = 2**26


class TextDecoder:
    """Tokens one by one to text that stays as it is: a character of several tokens comes with the last of them.

    Byte tokens of sentencepiece models (`<0xEC>`: Llama 2, Mistral, Gemma) are put together here: their tokenizers read
    a run of them as nothing but U+FFFD until its last character is whole.

    Args:
        tokenizer: Of the tokens.
        context: Tokens before the first one.
        skip_special_tokens: Leave out the end-of-text token and its like.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = (), skip_special_tokens: bool = True
    ):
        self.tokenizer, self.skip_special_tokens = tokenizer, skip_special_tokens
        self._ids = list(context)[-CONTEXT_TOKENS:]
        self._given = self._decode()
        self._held = 0  # tokens since the text was last as it is given
        self._bytes = _fallback_bytes(tokenizer)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in self._ids:
            self._characters.decode(*self._as_bytes(token_id))

    def add(self, token_id: int) -> str:
        """What one more token adds to the text; "" within a character."""
        bytes_, is_last = self._as_bytes(token_id)
        new = self._characters.decode(bytes_, is_last)
        if is_last:
            return new + self._add(token_id)
        # All of it is given or waits as bytes.
        self._ids.append(token_id)
        self._pass(self._decode())
        return new

    def end(self) -> str:
        """What is left: of a character that was never finished."""
        left = self._characters.decode(b"", True)
        text = self._decode()
        left += text[len(self._given) :]
        self._given = text
        return left

    def _as_bytes(self, token_id: int) -> tuple[bytes, bool]:
        """A byte token's byte, and whether the token is none, so that it ends a run of them."""
        byte = self._bytes.get(token_id)
        return (b"", True) if byte is None else (bytes([byte]), False)

    def _add(self, token_id: int) -> str:
        self._ids.append(token_id)
        self._held += 1
        text = self._decode()
        begun = self._given.rstrip(UNFINISHED)
        if not text.startswith(self._given) and text.startswith(begun):
            self._given = begun  # the character that the context ended within
        if not text.startswith(self._given) and self._held <= HELD_TOKENS:
            # Its tokenizer has not made up its mind about what was before.
            return ""
        # The bytes of a character that is not whole yet are three at most.
        unfinished = min(len(text) - len(text.rstrip(UNFINISHED)), 3)
        new = text[len(self._given) : len(text) - unfinished]
        if unfinished:
            self._given = text[: max(len(text) - unfinished, len(self._given))]
        else:
            self._held = 0
            self._pass(text)
        return new

    def _pass(self, text: str) -> None:
        """All the text is given: go on behind its last tokens."""
        self._given = text
        if len(self._ids) > 4 * CONTEXT_TOKENS:
            self._ids = self._ids[-CONTEXT_TOKENS:]
            self._given = self._decode()

    def _decode(self) -> str:
        text: Any = self.tokenizer.decode(
            self._ids, skip_special_tokens=self.skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text


_fallbacks: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, int]] = WeakKeyDictionary()


def _fallback_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """The byte of each token that is one, as `<0xEC>`, for a character without a token of its own; mostly none."""
    if tokenizer not in _fallbacks:
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids: Any = tokenizer.convert_tokens_to_ids(names)
        found = {
            token_id: byte
            for byte, (name, token_id) in enumerate(zip(names, ids))
            if token_id is not None and tokenizer.convert_ids_to_tokens(token_id) == name
        }
        # Where they are bytes, and not words that look like them.
        is_read = any(
            tokenizer.decode([token_id]) == chr(byte) for token_id, byte in found.items() if byte == ord("A")
        )
        _fallbacks[tokenizer] = found if is_read else {}
    return _fallbacks[tokenizer]


class StopFilter:
    """Passes text on up to the first stop text; what could be the beginning of one is held back until it is known.

    Args:
        stop: The stop texts.
        write: Called with each piece of text.

    Attributes:
        stopped: Whether one has come.
    """

    def __init__(self, stop: Sequence[str], write: Callable[[str], Any]):
        self.stop, self.write, self.stopped = list(stop), write, False
        self._held = ""

    def feed(self, text: str) -> None:
        """More text."""
        if self.stopped:
            return
        text = self._held + text
        first = min((text.find(mark) for mark in self.stop if mark in text), default=-1)
        if first >= 0:
            self.stopped, self._held = True, ""
            self._pass_on(text[:first])
            return
        held = max((_overlap(text, mark) for mark in self.stop), default=0)
        self._held = text[len(text) - held :]
        self._pass_on(text[: len(text) - held])

    def end(self) -> None:
        """No more text: what was held back was no stop text."""
        self._pass_on(self._held)
        self._held = ""

    def _pass_on(self, text: str) -> None:
        if text:
            self.write(text)


def _overlap(text: str, mark: str) -> int:
    """The longest end of `text` that `mark` begins with, in characters."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)


class _Reader(StoppingCriteria):
    """Reads tokens as they are generated, and ends after the one that brings a stop text.

    Not a streamer of transformers: these get a token when it has been decided whether to go on.
    """

    def __init__(self, decoder: TextDecoder, output: StopFilter, start: int):
        self.decoder, self.output, self._read = decoder, output, start

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.read(input_ids[0])
        return _for_all_rows(input_ids, self.output.stopped)

    def read(self, ids: torch.Tensor) -> None:
        """What is new in the token ids (seq) of prompt and text."""
        for token_id in ids[self._read :].tolist():
            self.output.feed(self.decoder.add(token_id))
        self._read = len(ids)

    def end(self) -> None:
        self.output.feed(self.decoder.end())
        self.output.end()


class _StopsWhen(StoppingCriteria):
    """Ends all rows when a function says so."""

    def __init__(self, ends: Callable[[], bool]):
        self.ends = ends

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return _for_all_rows(input_ids, self.ends())


def _for_all_rows(input_ids: torch.Tensor, value: bool) -> Any:
    return torch.full((input_ids.shape[0],), value, device=input_ids.device)


def load(
    model_name_or_path: str | Path, device: str | None = None, head: str = "lm", dtype: str = "auto"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model, ready to be asked, and its tokenizer.

    Args:
        model_name_or_path: Folder or Hub name of a model, or of an adapter; an adapter brings its base model and its head.
        device: Where to put it. Default: an accelerator, if there is one.
        head: "lm" to write, "classification" or "span".
        dtype: "float32", "bfloat16", "float16", or "auto": as stored.

    Raises:
        ValueError: There is no such model or device, or an adapter's base model cannot be found.
    """
    path, device = Path(model_name_or_path), _device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
        if (path / ADAPTER_CONFIG_FILE).is_file():
            model = load_adapter(path, dtype)
        else:
            # A Hub adapter is recognised by transformers itself, which loads its base first.
            model = MODEL_CLASSES[TASK_TYPES[head]].from_pretrained(model_name_or_path, dtype=dtype)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, OSError) and not path.is_dir():
            raise ValueError(
                f"No model {str(model_name_or_path)!r}: no such folder, and the Hub has none or is not reachable."
            ) from None
        raise ValueError(f"Cannot load a model from {model_name_or_path}: {error}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def _device(name: str | None) -> torch.device:
    """Where to put a model.

    Raises:
        ValueError: There is no such device here.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(name) if name is not None else found or torch.device("cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = f"cpu or {found.type}" if found is not None else "cpu"
        said = re.split(r"\. |\n", str(error).strip())[0]
        raise ValueError(f"`--device {name}` cannot be used here ({said}): give {here}.") from None
    return device


def load_writer(
    model_name_or_path: str | Path, device: str | None = None, dtype: str = "auto"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """`load` of a model that writes text.

    Raises:
        ValueError: The model classifies or finds spans, or it cannot be loaded.
    """
    check_writes(model_name_or_path)
    return load(model_name_or_path, device, dtype=dtype)


def check_writes(name: str | Path) -> None:
    """Raise a `ValueError` for a folder whose model answers by a layer of its own: its text would be of no use."""
    record = saved_task(name)
    other = record.head if record is not None and record.head != "lm" else None
    if other is None:
        try:
            if (Path(name) / ADAPTER_CONFIG_FILE).is_file():
                kind = _read_json(Path(name) / ADAPTER_CONFIG_FILE).get("task_type")
                other = {"SEQ_CLS": "classification", "TOKEN_CLS": "classification", "QUESTION_ANS": "span"}.get(
                    str(kind)
                )
            else:
                file = cached_file(
                    str(name), "config.json", _raise_exceptions_for_missing_entries=False,
                    _raise_exceptions_for_connection_errors=False,
                )  # fmt: skip
                classes = (_read_json(file).get("architectures") if file else None) or [""]
                heads = {"SequenceClassification": "classification", "TokenClassification": "classification"}
                heads["QuestionAnswering"] = "span"
                other = next((head for end, head in heads.items() if classes[0].endswith(end)), None)
        except (OSError, ValueError):  # `load` says what is wrong
            return
    if other is not None:
        what = "classifies texts" if other == "classification" else "finds answers in a passage"
        if record is None:
            how = f"Without a {TASK_FILE} beside it nothing is known of its task."
        else:
            how = "Ask it by `hfgpt evaluate` or `hfgpt demo`."
        raise ValueError(
            f"{name} was fine-tuned with a {other} head: it {what} and does not write. {how} To write, give its base "
            "model, or fine-tune with `head: lm`."
        )


def _read_json(path: str | Path) -> dict[str, Any]:
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt as a model reads it. An empty one starts a document: by the begin-of-text token, where the
    tokenizer adds one to a text, or else by the end-of-text token, behind which the model has learned to begin.

    Raises:
        ValueError: The prompt is empty, and the tokenizer has neither.
    """
    if prompt:
        # Too long a prompt is the caller's to refuse.
        return list(tokenizer(prompt, verbose=False)["input_ids"])
    start = first_ids(tokenizer)
    if not start and tokenizer.eos_token_id is None:
        raise ValueError(
            "The prompt is empty, and the tokenizer has no begin-of-text or end-of-text token to start a document with: "
            "give a prompt of one token at least."
        )
    return start or [tokenizer.eos_token_id]


def position_limit(model: Any) -> int | None:
    """Tokens that a model can take; None where it does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        text: The new text, without special tokens and up to the first stop text.
        prompt_ids: What it read.
        new_ids: All tokens that it generated, those of the stop text and the end-of-text token among them.
        ended: Why: "stop" (a stop text), "end" (end-of-text, also where it was the last token allowed), "asked"
            (`should_stop`) or "length".
    """

    text: str
    prompt_ids: list[int]
    new_ids: list[int]
    ended: str


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int | None = None,
    write: Callable[[str], Any] | None = None,
    seed: int | None = None,
    stop: Sequence[str] | None = None,
    **options: Any,
) -> str:
    """Continue `prompt`: the text of `continue_prompt`, which describes the arguments.

    Returns:
        The new text, without the prompt and without the stop text.

    Raises:
        ValueError: See `continue_prompt`.
    """
    return continue_prompt(
        model, tokenizer, prompt, max_new_tokens=max_new_tokens, write=write, seed=seed, stop=stop or (), **options
    ).text


def continue_prompt(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int | None = None,
    write: Callable[[str], Any] | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> Continuation:
    """Continue a prompt.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: Text to continue, or its token ids; empty starts a new document.
        max_new_tokens: Tokens to generate at most. Default: 64, or what the model's positions leave.
        write: Called with each piece of new text as it comes; beam search has only one, at its end.
        seed: Seed of the sampling.
        stop: Texts at which the new text ends; they are not part of it. They are looked for in the new text alone: one
            that begins in the prompt and ends in the new text is none.
        should_stop: Asked after each token; where it says yes, what was written so far is the result.
        **options: For `model.generate`: `do_sample`, `num_beams`, `top_k`, `top_p`, `temperature`, ...

    Raises:
        ValueError: Prompt and new tokens go past the model's positions, or an option is out of range.
    """
    if not all(stop):
        raise ValueError(f"`stop` has an empty text, which ends every text before it begins: {list(stop)}.")
    if seed is not None:
        set_seed(seed)
    prompt_ids = encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    prompt_ids = prompt_ids or encode_prompt(tokenizer, "")
    limit = position_limit(model)
    room = None if limit is None else limit - len(prompt_ids)
    if max_new_tokens is None:
        max_new_tokens = DEFAULT_NEW_TOKENS if room is None else max(min(DEFAULT_NEW_TOKENS, room), 1)
    if room is not None and max_new_tokens > room:
        raise ValueError(
            f"This model has {limit} positions (`max_position_embeddings`): a prompt of {len(prompt_ids)} tokens "
            f"leaves {max(room, 0)} to generate, and {max_new_tokens} were asked for. Shorten the prompt"
            f"{' or lower `max_new_tokens`' if room > 0 else ''}."
        )
    pieces: list[str] = []
    streams = options.get("num_beams", 1) == 1

    def take(piece: str) -> None:
        pieces.append(piece)
        if write is not None and streams:
            write(piece)

    output = StopFilter(stop, take)
    reader = _Reader(TextDecoder(tokenizer, prompt_ids), output, len(prompt_ids))
    if streams:
        criteria: list[StoppingCriteria] = [reader]
    else:
        criteria = [StopTexts(tokenizer, stop, len(prompt_ids))] if stop else []
    if should_stop is not None:
        criteria.append(_StopsWhen(should_stop))
    ids = torch.tensor([prompt_ids], device=model.device)
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            stopping_criteria=StoppingCriteriaList(criteria),
            **options,
        )[0]
    found = found[found >= 0]  # beam search may fill up with -1
    reader.read(found)
    reader.end()
    if write is not None and not streams and any(pieces):
        write("".join(pieces))
    new_ids = found[len(prompt_ids) :].tolist()
    if output.stopped:
        ended = "stop"
    elif new_ids and new_ids[-1] in _end_ids(model, options):
        ended = "end"
    elif len(new_ids) >= max_new_tokens:
        ended = "length"
    else:
        ended = "asked" if should_stop is not None and should_stop() else "end"
    return Continuation("".join(pieces), prompt_ids, new_ids, ended)


def _end_ids(model: Any, options: dict[str, Any]) -> set[int]:
    """Tokens at which `model.generate` ends."""
    ends = options.get("eos_token_id")
    if ends is None:
        ends = getattr(options.get("generation_config") or model.generation_config, "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(map(int, ends))


# Probabilities


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood in a place.

    Attributes:
        text: What it would have added to the text; bytes, as <EC 95>, where it is part of a character.
        probability: From 0 to 1.
    """

    text: str
    probability: float


@dataclass(frozen=True)
class TokenProbability:
    """A token of a text, and how likely the model held it after all tokens before.

    Attributes:
        token_id: Its id.
        text: What it adds to the text. A token that ends within a character adds nothing; the one that finishes the
            character adds all of it.
        log_prob: In nats, at temperature 1; None for a first token with nothing before it.
        rank: 1 for the likeliest token; None like `log_prob`.
        alternatives: The likeliest tokens in its place, in order.
        special: Whether it is the end-of-text token or its like, and no text.
    """

    token_id: int
    text: str
    log_prob: float | None
    rank: int | None
    alternatives: tuple[Alternative, ...] = ()
    special: bool = False

    @property
    def probability(self) -> float | None:
        """From 0 to 1."""
        return None if self.log_prob is None else math.exp(self.log_prob)


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text.

    Attributes:
        log_prob: Of all its scored tokens together, in nats.
        tokens: That were scored; special tokens are not.
        bytes: Of their text in UTF-8.
    """

    log_prob: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """Per token; inf where it is past the largest number, nan where nothing was scored."""
        if not self.tokens:
            return math.nan
        try:
            return math.exp(-self.log_prob / self.tokens)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Which compares models of any tokenizers; nan where nothing was scored."""
        return -self.log_prob / math.log(2) / self.bytes if self.bytes else math.nan


def score_of(tokens: Sequence[TokenProbability]) -> TextScore:
    """The sum of some tokens' probabilities."""
    scored = [(token.log_prob, token.text) for token in tokens if token.log_prob is not None and not token.special]
    return TextScore(
        math.fsum(log_prob for log_prob, _ in scored), len(scored), sum(len(text.encode()) for _, text in scored)
    )


def token_probabilities(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[int],
    *,
    top: int = 5,
    from_start: bool = True,
) -> list[TokenProbability]:
    """The probability of each token of a text, by one forward pass.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        text: The text, or its token ids, such as `Continuation.prompt_ids + new_ids`.
        top: How many alternatives to name in each place.
        from_start: The text begins a document: the first token is predicted from the begin-of-text token, where
            the tokenizer adds one, or the end-of-text token, as in training. Otherwise nothing stands before it and it has no probability.

    Returns:
        One entry a token; joined, their texts are the text.

    Raises:
        ValueError: No text, or more of it than the model has positions.
    """
    if top < 0:
        raise ValueError(f"`top` must be 0 or more, got {top}.")
    ids = token_ids(tokenizer, text) if isinstance(text, str) else list(text)
    if not ids:
        raise ValueError("There is no text to score: give one token at least.")
    start = first_ids(tokenizer) or [tokenizer.eos_token_id]
    start = start if from_start and start[0] is not None and ids[:1] != start else []
    read = [*start, *ids[:-1]]
    limit = position_limit(model)
    if limit is not None and len(read) > limit:
        raise ValueError(
            f"This model has {limit} positions (`max_position_embeddings`), and the text takes {len(read)} tokens: "
            "shorten it."
        )
    log_probs, ranks, best = _scores(model, read, ids[len(ids) - len(read) :], top) if read else ([], [], [])
    unscored = len(ids) - len(read)
    special = set(tokenizer.all_special_ids)
    decoder = TextDecoder(tokenizer, skip_special_tokens=False)
    tokens: list[TokenProbability] = []
    pending: list[int] = []
    for place, token_id in enumerate(ids):
        piece = decoder.add(token_id)
        if place == len(ids) - 1:
            piece += decoder.end()
        if place < unscored:
            tokens.append(TokenProbability(token_id, piece, None, None, special=token_id in special))
        else:
            row = place - unscored
            alternatives = tuple(
                Alternative(_shown(tokenizer, ids[max(place - CONTEXT_TOKENS, 0) : place], pending, other), chance)
                for other, chance in best[row]
            )
            tokens.append(
                TokenProbability(token_id, piece, log_probs[row], ranks[row], alternatives, token_id in special)
            )
        pending = [] if piece else [*pending, token_id]
    return tokens


@torch.inference_mode()
def _scores(
    model: Any, read: list[int], targets: list[int], top: int
) -> tuple[list[float], list[int], list[list[tuple[int, float]]]]:
    """Log-probability and rank of each target, and the likeliest tokens in its place with their probabilities."""
    logits = model(input_ids=torch.tensor([read], device=model.device), use_cache=False).logits[0]
    wanted = torch.tensor(targets, device=logits.device)
    size = max(CHUNK_BYTES // (4 * logits.shape[-1]), 1)
    log_probs: list[float] = []
    ranks: list[int] = []
    best: list[list[tuple[int, float]]] = []
    for rows, ids in zip(logits.split(size), wanted.split(size)):
        scores = rows.float().log_softmax(-1)
        own = scores.gather(-1, ids.unsqueeze(-1))
        log_probs += own.squeeze(-1).tolist()
        ranks += ((scores > own).sum(-1) + 1).tolist()
        values, indices = scores.topk(min(top, scores.shape[-1]), dim=-1)
        best += [list(zip(*pair)) for pair in zip(indices.tolist(), values.exp().tolist())]
    return log_probs, ranks, best


def _shown(tokenizer: PreTrainedTokenizerBase, context: list[int], pending: list[int], token_id: int) -> str:
    """What a token would add behind `context`, whose last tokens `pending` end within a character."""
    decoder = TextDecoder(tokenizer, context[: len(context) - len(pending)], skip_special_tokens=False)
    for other in pending:
        decoder.add(other)
    text = decoder.add(token_id)
    if text and UNFINISHED not in text + decoder.end():
        return text
    # It breaks the character off, or is a part of one.
    alone = TextDecoder(tokenizer, context[: len(context) - len(pending)], skip_special_tokens=False)
    text = alone.add(token_id)
    return text if text and UNFINISHED not in text + alone.end() else token_bytes(tokenizer, token_id)


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The bytes of a token that is no text by itself, as <EC 95>."""
    token: Any = tokenizer.convert_ids_to_tokens(token_id)
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token or ""):  # of sentencepiece
        return f"<{token[3:5].upper()}>"
    letters = _byte_letters()
    if token and all(letter in letters for letter in token):
        return f"<{' '.join(f'{letters[letter]:02X}' for letter in token)}>"
    return token or ""


@lru_cache
def _byte_letters() -> dict[str, int]:
    """The byte for each letter that byte-level BPE writes it as: bytes that can be seen stand for themselves, the others
    for the letters from 256 on, in order."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return {**{chr(byte): byte for byte in seen}, **{chr(256 + place): byte for place, byte in enumerate(hidden)}}
