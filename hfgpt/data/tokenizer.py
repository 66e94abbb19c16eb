"""Tokenizers: a byte-level BPE trained on a sample, or one that exists already."""

import heapq
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

import fsspec
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast


END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
# Longer texts are encoded in pieces, in the memory of so many characters at once.
ENCODE_CHARACTERS = 100_000
BATCH_CHARACTERS = 1_000_000
# New words are encoded in texts of this size, on all cores.
LEARN_CHARACTERS = 20_000
# About 60 MB.
MAX_WORDS = 1 << 18
# What is longer (text without spaces, data in hexadecimal) hardly comes again.
MAX_WORD_CHARACTERS = 100
# A newline as byte-level vocabularies spell it.
NEWLINE = "\u010a"
# The 256 bytes and two special tokens.
MIN_VOCAB_SIZE = 258


@dataclass
class TokenizerConfig:
    """Which tokenizer: `path`, or `vocab_file` with `merges_file`, or a new one of `vocab_size` words."""

    path: str | None = field(default=None, metadata={"help": "Folder or Hub name of an existing tokenizer."})
    vocab_file: str | None = field(default=None, metadata={"help": "GPT-2's vocabulary (encoder.json, vocab.json)."})
    merges_file: str | None = field(default=None, metadata={"help": "GPT-2's merges (vocab.bpe, merges.txt)."})
    vocab_size: int = field(
        default=50257, metadata={"help": "Words of a new byte-level BPE, special tokens included."}
    )
    sample_bytes: int = field(
        default=50_000_000, metadata={"help": "UTF-8 bytes of text a new tokenizer is trained on at most."}
    )

    language_shares: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Share of each language in that sample, such as {en: 0.5, ko: 0.5}. Default: as the sources' weights "
            "or, without weights, the text there is."
        },
    )

    def __post_init__(self) -> None:
        if self.language_shares is not None:
            for language, share in self.language_shares.items():
                if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < float("inf"):
                    raise ValueError(f"`language_shares` must be numbers above 0, got {share!r} for {language!r}.")
        if (self.vocab_file is None) != (self.merges_file is None):
            raise ValueError("`vocab_file` and `merges_file` of a tokenizer go together.")
        if self.path is not None and self.vocab_file is not None:
            raise ValueError("A tokenizer takes `path` or `vocab_file` with `merges_file`, not both.")
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"`vocab_size` must be at least {MIN_VOCAB_SIZE} (256 bytes and 2 special tokens), got {self.vocab_size}."
            )
        if self.sample_bytes < 1:
            raise ValueError(f"`sample_bytes` must be at least 1, got {self.sample_bytes}.")

    @property
    def is_new(self) -> bool:
        """Whether a tokenizer has to be trained."""
        return self.path is None and self.vocab_file is None


def load_tokenizer(config: TokenizerConfig) -> PreTrainedTokenizerBase:
    """An existing tokenizer that has an end-of-text token.

    Raises:
        ValueError: It cannot be loaded, or has no end-of-text token.
    """
    if config.vocab_file is not None:
        tokenizer = _load_gpt2(config.vocab_file, str(config.merges_file))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.path)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"Cannot load a tokenizer from `path: {config.path}`: {error}") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer {config.path} has no end-of-text token (`eos_token`), which joins documents.")
    return tokenizer


def _load_gpt2(vocab_file: str, merges_file: str) -> PreTrainedTokenizerBase:
    try:
        with fsspec.open(vocab_file, "rt", encoding="utf-8") as file:
            vocab = json.load(file)
        with fsspec.open(merges_file, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
        merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        # By the names `vocab` and `merges`: with file names transformers 5.23 builds a one-word tokenizer without a word.
        return GPT2TokenizerFast(vocab=vocab, merges=merges)
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"Cannot read `vocab_file` {vocab_file} and `merges_file` {merges_file}: {error}") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE with GPT-2's pre-tokenization.

    Any text survives a round trip, since the 256 bytes are in the vocabulary. `<|endoftext|>` begins and ends
    documents; padding has a token of its own, so that masking it never masks the end of a text.

    Args:
        texts: The training sample.
        vocab_size: Words in all; fewer come out where the sample is too small to fill it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


class TextSample:
    """A bounded sample of a stream of texts, the same whatever their order.

    Keeps the texts with the smallest hashes until `max_bytes` are held, so its memory does not grow with the stream
    and a text seen twice counts once.
    """

    def __init__(self, max_bytes: int, seed: int = 0):
        self.max_bytes = max_bytes
        self._key = f"{seed}".encode()
        self.bytes = 0
        self._heap: list[tuple[int, str, int]] = []  # largest hash first
        self._held: set[int] = set()

    def add(self, text: str) -> None:
        """Offer one text."""
        data = text.encode()
        hashed = int.from_bytes(blake2b(data, digest_size=8, key=self._key).digest(), "big")
        if hashed in self._held or (self.bytes >= self.max_bytes and -hashed < self._heap[0][0]):
            return
        heapq.heappush(self._heap, (-hashed, text, len(data)))
        self._held.add(hashed)
        self.bytes += len(data)
        while self.bytes - self._heap[0][2] >= self.max_bytes:
            dropped, _, size = heapq.heappop(self._heap)
            self._held.remove(-dropped)
            self.bytes -= size

    def __iter__(self) -> Iterator[str]:
        return (text for _, text, _ in sorted(self._heap, reverse=True))


# One white space between two other characters: GPT-2's pre-tokenization always begins a word there.
_WORD_BORDER = re.compile(r"(?<=\S)[ \n](?=\S)")
# GPT-2's pre-tokenization for the characters below, whose kind no version of Unicode changes; a word that touches any
# other goes on to the next white space, so that a match is one of its words or some, and by itself has the same ones.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # not quite Python's
_LETTERS = r"A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\u024f\uac00-\ud7a3"  # Latin, Hangul
_SIGNS = r"!-/:-@\[-`{-~\u2010-\u2027"
_KNOWN = f"(?![^{_SPACE}{_LETTERS}0-9{_SIGNS}])"
_WORD = re.compile(
    f"'(?:[stmd]|re|ve|ll)| ?[{_LETTERS}]++{_KNOWN}| ?[0-9]++{_KNOWN}| ?[{_SIGNS}]++{_KNOWN}"
    f"| ?[^{_SPACE}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
)


def split_text(text: str, max_characters: int) -> Iterator[str]:
    """Pieces of about `max_characters` that a byte-level BPE encodes as it does the whole; they join to `text`."""
    start = 0
    while len(text) - start > max_characters:
        border = _WORD_BORDER.search(text, start + max_characters)
        if border is None:
            break
        yield text[start : border.start()]
        start = border.start()
    yield text[start:] if start else text


def encode_documents(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, whole and without special tokens; a literal "<|endoftext|>" in a text stays text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    with _text_alone(backend):
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


class DocumentEncoder:
    """`encode_documents` for much text: the same ids as bytes, faster, and in memory that does not grow.

    Where the tokenizer is a byte-level BPE with GPT-2's pre-tokenization, text is cut at white space by a regular
    expression and the ids of each word are remembered, so that the tokenizer is asked once for a word and not each
    time. Any other tokenizer is given whole texts.

    Args:
        tokenizer: The tokenizer.
        dtype: Type of an id.
        max_words: Words that are remembered, about; the result does not depend on it.
    """

    def __init__(self, tokenizer: Any, dtype: np.dtype, max_words: int = MAX_WORDS):
        self.tokenizer, self.dtype, self.max_words = tokenizer, dtype, max_words
        self._newline_id = _newline_id(tokenizer)
        self._words: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The bytes of each text's ids."""
        if self._newline_id is None:
            return [np.array(ids, self.dtype).tobytes() for ids in encode_documents(self.tokenizer, list(texts))]
        found: list[list[bytes]] = [[] for _ in texts]
        pieces = ((parts, piece) for parts, text in zip(found, texts) for piece in split_text(text, ENCODE_CHARACTERS))
        for batch in batches(pieces, lambda one: len(one[1]), BATCH_CHARACTERS):
            words_of = [_WORD.findall(piece) for _, piece in batch]
            words = set[str]().union(*words_of)
            self._learn(words.difference(self._words))
            for (parts, _), piece_words in zip(batch, words_of):
                parts.append(b"".join(map(self._words.__getitem__, piece_words)))
            if len(self._words) > self.max_words:
                # The words of one batch are few, and the most frequent are among them.
                self._words = {word: self._words[word] for word in words}
            for word in [word for word in words if len(word) > MAX_WORD_CHARACTERS]:
                del self._words[word]
        return [b"".join(parts) for parts in found]

    def _learn(self, words: Iterable[str]) -> None:
        """Encode words, many as one text: a line each, since a call for a word costs more than the word."""
        visible = []
        for word in words:
            if word.isspace():  # among them the newline itself
                (ids,) = encode_documents(self.tokenizer, [word])
                self._words[word] = np.array(ids, self.dtype).tobytes()
            else:
                visible.append(word)
        groups = list(batches(visible, len, LEARN_CHARACTERS))
        texts = ["".join(f"{word}\n" for word in group) for group in groups]
        for group, ids in zip(groups, encode_documents(self.tokenizer, texts)):
            line = np.array(ids, self.dtype)
            data, start = line.tobytes(), 0
            ends = np.flatnonzero(line == self._newline_id) * self.dtype.itemsize
            for word, end in zip(group, ends.tolist(), strict=True):
                self._words[word] = data[start:end]
                start = end + self.dtype.itemsize


Item = TypeVar("Item")


def batches(items: Iterable[Item], size: Callable[[Item], int], min_size: int) -> Iterator[list[Item]]:
    """Lists of items that come to `min_size` and no more than their last item needs; the rest at the end."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= min_size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


@contextmanager
def _text_alone(backend: Tokenizer) -> Iterator[None]:
    """No text is cut short or filled up, and none is taken for a special token."""
    before, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.encode_special_tokens = before
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def _newline_id(tokenizer: Any) -> int | None:
    """Id of a newline where text may be cut at white space, as in GPT-2's pre-tokenization; else None."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pre_tokenizer = getattr(backend, "pre_tokenizer", None)
    if (
        backend is None
        or backend.normalizer is not None
        or not isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        or pre_tokenizer.add_prefix_space
        or not pre_tokenizer.use_regex
        or getattr(backend.model, "dropout", None)
        # Looked for before pre-tokenization, and may hold white space.
        or not all(token.special for token in backend.get_added_tokens_decoder().values())
    ):
        return None
    (ids,) = encode_documents(tokenizer, ["\n"])
    return ids[0] if [backend.id_to_token(id) for id in ids] == [NEWLINE] else None
