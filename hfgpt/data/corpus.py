"""From text to a prepared corpus: read, tokenize, join with the end-of-text token, write shards.

`prepare` is the list of steps; each is a function below it or in a module beside this one.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..config import from_mapping, read_yaml
from .packing import (
    METADATA_FILE,
    TOKENIZER_FOLDER,
    ShardWriter,
    Split,
    read_metadata,
    token_dtype,
    write_metadata,
)
from .readers import RowErrors, SourceConfig, in_test_part, local_files, read_rows
from .tokenizer import TextSample, TokenizerConfig, encode_documents, load_tokenizer, train_tokenizer


ENCODE_BATCH_BYTES = 4_000_000


@dataclass
class CorpusConfig:
    """A corpus recipe."""

    sources: list[SourceConfig] = field(metadata={"help": "What to read, in order."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write; `--output` overrides it."})
    tokenizer: TokenizerConfig = field(
        default_factory=TokenizerConfig, metadata={"help": "An existing tokenizer, or how to train one."}
    )
    holdout_fraction: float = field(
        default=0.01, metadata={"help": "Share of documents held out as the validation split, chosen by their text."}
    )
    deduplicate: Literal["exact", "none"] = field(
        default="exact", metadata={"help": "Drop documents whose text was seen before, in any source."}
    )
    max_bad_rows: int | None = field(
        default=100, metadata={"help": "More malformed rows than this fail the run; null: never."}
    )
    shard_tokens: int = field(default=100_000_000, metadata={"help": "Tokens in a shard file at most."})
    seed: int = field(default=0, metadata={"help": "Seed of the held-out split and of the tokenizer's sample."})

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("`sources` is empty: name at least one.")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"Two `sources` have the same `name`: {', '.join(names)}.")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise ValueError(f"`holdout_fraction` must be at least 0 and below 1, got {self.holdout_fraction}.")
        if self.shard_tokens < 1:
            raise ValueError(f"`shard_tokens` must be at least 1, got {self.shard_tokens}.")


def load_corpus_config(path: str | Path) -> CorpusConfig:
    """Read a corpus recipe.

    Raises:
        ValueError: An unknown key, a wrong type, or values that do not fit together.
    """
    return from_mapping(CorpusConfig, read_yaml(path), str(path))


def prepare(config: CorpusConfig, output_dir: str | Path | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Prepare a corpus: rows -> tokenizer -> tokens -> memory-mapped shards with a held-out split.

    The folder appears only when it is whole. Where it is there already, from the same recipe and files, it is kept.

    Args:
        config: What to read and how.
        output_dir: Folder to write. Default: `config.output_dir`.
        overwrite: Replace what another recipe made, or the same one from files that have changed.

    Returns:
        The metadata: documents, tokens and bytes by split and by source, malformed rows, the tokenizer's size.

    Raises:
        ValueError: Bad input, no text at all, too many malformed rows, or a folder with something else in it.
    """
    if not (output_dir or config.output_dir):
        raise ValueError("Where to? Give `--output DIR` or set `output_dir` in the recipe.")
    output = Path(output_dir or config.output_dir or "").resolve()
    recipe = {key: value for key, value in asdict(config).items() if key != "output_dir"}
    inputs = [recipe, [local_files(source) for source in config.sources]]
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose another folder with --output.")
    if output.exists() and any(output.iterdir()):
        known = (output / METADATA_FILE).exists()
        if known and not overwrite:
            metadata = read_metadata(output)
            if metadata.get("inputs_sha256") == fingerprint:
                print(f"{output} is there already, from the same recipe and files.", file=sys.stderr)
                return metadata
        if not (known and overwrite):
            raise ValueError(
                f"{output} holds {'a corpus of another recipe or of files that have changed since' if known else 'something else'}: "
                f"{'pass --overwrite or ' if known else ''}choose another folder with --output."
            )

    staging = output.parent / f".{output.name}.preparing-{os.getpid()}"
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer = make_tokenizer(config)
        tokenizer.save_pretrained(staging / TOKENIZER_FOLDER)
        metadata = write_corpus(config, tokenizer, staging, recipe=recipe, inputs_sha256=fingerprint)
        old = output.parent / f".{output.name}.replaced-{os.getpid()}"
        if output.exists():
            os.replace(output, old)
        try:
            os.replace(staging, output)
        except OSError:
            if old.exists():
                os.replace(old, output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return metadata


def make_tokenizer(config: CorpusConfig) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer, trained on a bounded sample of the sources where it is new."""
    if not config.tokenizer.is_new:
        return load_tokenizer(config.tokenizer)
    # Malformed rows end a bad run here already; they are reported when the shards are written.
    errors = RowErrors(config.max_bad_rows)
    sample = TextSample(config.tokenizer.sample_bytes, config.seed)
    for source in config.sources:
        for text in _progress(_texts(source, errors), f"tokenizer sample, {source.name}"):
            sample.add(text)
    return train_tokenizer(sample, config.tokenizer.vocab_size)


def write_corpus(
    config: CorpusConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, **about: Any
) -> dict[str, Any]:
    """Tokenize every source into train and validation shards below `folder`, and write its metadata."""
    dtype = token_dtype(len(tokenizer))
    writers = {name: ShardWriter(folder / name, dtype, config.shard_tokens) for name in ("train", "validation")}
    errors = RowErrors(config.max_bad_rows)
    seen: set[bytes] = set()
    sources: dict[str, dict[str, int]] = {}
    for source in config.sources:
        counts = sources[source.name] = {"documents": 0, "tokens": 0, "bytes": 0, "duplicates": 0}
        texts = _progress(_texts(source, errors), f"tokens, {source.name}")
        for batch in _batches(_deduplicated(texts, seen, counts) if config.deduplicate == "exact" else texts):
            for text, ids in zip(batch, encode_documents(tokenizer, batch)):
                size = len(text.encode())
                # A key of its own: with that of a source's `part`, one division would swallow the other.
                held_out = in_test_part(f"holdout\0{text.strip()}", config.holdout_fraction, config.seed)
                ids.append(tokenizer.eos_token_id)
                writers["validation" if held_out else "train"].add(ids, size)
                counts["documents"] += 1
                counts["tokens"] += len(ids)
                counts["bytes"] += size
    splits: dict[str, Split] = {name: writer.close() for name, writer in writers.items()}
    if splits["train"].tokens == 0 and splits["validation"].tokens > 0:
        raise ValueError("Every document was held out: lower `holdout_fraction`.")
    if splits["train"].tokens == 0:
        raise ValueError(
            f"No text was read from {', '.join(sources)} ({errors.count} malformed rows): check `path`, `where`, "
            "`part` and `text_field`."
        )
    return write_metadata(
        folder,
        splits,
        dtype=dtype.str,
        vocab_size=len(tokenizer),
        end_of_text_token_id=tokenizer.eos_token_id,
        sources=sources,
        bad_rows={"count": errors.count, "examples": errors.examples},
        **about,
    )


def _texts(source: SourceConfig, errors: RowErrors) -> Iterator[str]:
    return (row[source.text_field] for row in read_rows(source, errors))


def _deduplicated(texts: Iterator[str], seen: set[bytes], counts: dict[str, int]) -> Iterator[str]:
    for text in texts:
        digest = hashlib.blake2b(text.strip().encode(), digest_size=16).digest()
        if digest in seen:
            counts["duplicates"] += 1
        else:
            seen.add(digest)
            yield text


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= ENCODE_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _progress(texts: Iterator[str], what: str) -> Iterator[str]:
    """A bar on a terminal, nothing in a log."""
    return tqdm(texts, desc=what, unit=" documents", mininterval=0.5, disable=None)
