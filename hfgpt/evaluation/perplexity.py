"""Perplexity and bits per byte of any text, or of a prepared corpus' held-out split.

The text is one stream of tokens, as in training: documents are joined with the end-of-text token between them, which is
predicted like any other. A window of the model's positions moves over it by `stride` tokens, and of each window only the
tokens are scored that no window before it has scored. So each token is scored once, with between `window - stride` and
`window - 1` tokens before it, but for those of the first window; the first token of all has nothing before it but an
end-of-text token. A stride of the window's own length is fastest and gives tokens at the beginning of a window little
context; a stride of 1 gives every token all there is, and costs a window for each. The default is half a window.

Perplexity is per token and so compares models of one tokenizer; bits per byte compares any.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.packing import METADATA_FILE, TOKENIZER_FOLDER, TokenStream
from ..data.readers import RowErrors, SourceConfig, read_rows
from ..tasks.encoding import token_ids


# Logits held at once, of the first window aside.
LOGITS = 2**26
DEFAULT_WINDOW = 2048


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        perplexity: exp of the mean loss; inf where that is past the largest number.
        loss: Mean negative log-likelihood of a token, in nats.
        bits_per_byte: Bits of the whole text over its bytes in UTF-8; None where its bytes are not known.
        tokens: Tokens scored.
        bytes: Of the text.
        window, stride: In tokens.
        documents: That it came in; None for a prepared corpus.
        bad_rows: Malformed rows left out; `bad_examples` names the first.
    """

    perplexity: float
    loss: float
    bits_per_byte: float | None
    tokens: int
    bytes: int | None
    window: int
    stride: int
    documents: int | None = None
    bad_rows: int = 0
    bad_examples: tuple[str, ...] = ()


def perplexity_of(
    model: Any,
    tokenizer: Any,
    place: str | Path | SourceConfig,
    *,
    stride: int | None = None,
    split: str = "validation",
    max_bad_rows: int | None = 100,
    progress: bool = True,
) -> Perplexity:
    """Perplexity of a file, a source of documents, or a prepared corpus' split.

    Args:
        model, tokenizer: The model, in evaluation mode and on its device.
        place: A file (anything `SourceConfig.path` takes; rows by their `text`), a `SourceConfig`, or the folder of a
            prepared corpus, whose tokenizer has to be the model's.
        stride: Tokens that a window moves by. Default: half of the window.
        split: Of a prepared corpus.
        max_bad_rows: More malformed rows than this raise; None never does.
        progress: Show a bar.

    Raises:
        ValueError: No such file, no text in it, a stride that is no part of the window, a corpus of another tokenizer, or
            a loss that is not a number.
    """
    if isinstance(place, (str, Path)) and (Path(place) / METADATA_FILE).is_file():
        _check_tokenizer(tokenizer, Path(place))
        stream = TokenStream(place, split)
        ids = torch.from_numpy(stream.read(0, len(stream)))
        return _result(model, tokenizer, ids, stream.info["bytes"], stride, progress)
    source = place if isinstance(place, SourceConfig) else SourceConfig(path=str(place))
    errors = RowErrors(max_bad_rows)
    pieces: list[torch.Tensor] = []
    text_bytes = 0
    for row in tqdm(
        read_rows(source, errors), desc=source.name, unit=" documents", disable=None if progress else True, leave=False
    ):
        text = row[source.text_field]
        text_bytes += len(text.encode())
        pieces.append(torch.tensor([*token_ids(tokenizer, text), _end_of_text(tokenizer)]))
    if not pieces:
        shown = "".join(f"\n  {example}" for example in errors.examples)
        raise ValueError(f"No text in {source.name} ({errors.count} malformed rows).{shown}")
    found = _result(model, tokenizer, torch.cat(pieces), text_bytes, stride, progress)
    return replace(found, documents=len(pieces), bad_rows=errors.count, bad_examples=tuple(errors.examples))


@torch.inference_mode()
def total_loss(model: Any, ids: torch.Tensor, window: int, stride: int, start_id: int, progress: bool = True) -> float:
    """Negative log-likelihood of a stream of tokens in nats, each scored once.

    Args:
        model: A causal language model.
        ids: (tokens,) int64.
        window: Tokens the model reads at once.
        stride: Tokens that the window moves by.
        start_id: What stands before the first token.
        progress: Show a bar.
    """
    # What is read: the start, and every token but the last. What is predicted: every token.
    read = torch.cat([torch.tensor([start_id]), ids[:-1]])
    size = max(LOGITS // (model.config.vocab_size * stride), 1)
    batches = list(_batches(_windows(len(ids), window, stride), size))
    total = 0.0
    for batch in tqdm(batches, desc="perplexity", unit=" batches", disable=None if progress else True, leave=False):
        kept = batch[0][2]
        inputs = torch.stack([read[start:stop] for start, stop, _ in batch]).to(model.device)
        targets = torch.stack([ids[stop - kept : stop] for _, stop, _ in batch]).to(model.device)
        logits = model(input_ids=inputs, logits_to_keep=kept, use_cache=False).logits[:, -kept:]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        total += losses.item()
    return total


def _windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Start and stop of each window, and how many tokens at its end it scores."""
    scored = 0
    while scored < tokens:
        stop = min(scored + stride if scored else window, tokens)
        yield max(stop - window, 0), stop, stop - scored
        scored = stop


def _batches(places: Iterable[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows of one length that score as many tokens, together."""
    batch: list[tuple[int, int, int]] = []
    for place in places:
        start, stop, kept = place
        same = batch and (stop - start, kept) == (batch[0][1] - batch[0][0], batch[0][2])
        if batch and (not same or len(batch) == size):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _result(
    model: Any,
    tokenizer: Any,
    ids: torch.Tensor,
    text_bytes: int,
    stride: int | None,
    progress: bool,
) -> Perplexity:
    window = getattr(model.config, "max_position_embeddings", None) or DEFAULT_WINDOW
    stride = stride if stride is not None else max(window // 2, 1)
    if not 1 <= stride <= window:
        raise ValueError(f"`--stride` must be from 1 to the model's {window} positions, got {stride}.")
    if not len(ids):
        raise ValueError("There is no token to predict.")
    total = total_loss(model, ids, window, stride, _end_of_text(tokenizer), progress)
    if not math.isfinite(total):
        raise ValueError(
            f"The model's loss is not a number ({total}): its weights may have diverged in training (a lower "
            "`learning_rate`, no fp16), or overflow in this precision (try `--dtype float32`)."
        )
    loss = total / len(ids)
    return Perplexity(
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        loss=loss,
        bits_per_byte=total / math.log(2) / text_bytes if text_bytes else None,
        tokens=len(ids),
        bytes=text_bytes,
        window=window,
        stride=stride,
    )


def _end_of_text(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("The model's tokenizer has no end-of-text token, which stands between documents.")
    return tokenizer.eos_token_id


def _check_tokenizer(tokenizer: Any, corpus: Path) -> None:
    from transformers import AutoTokenizer

    if AutoTokenizer.from_pretrained(corpus / TOKENIZER_FOLDER).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"The corpus {corpus} was tokenized with another tokenizer than the model's: give its text files instead."
        )
