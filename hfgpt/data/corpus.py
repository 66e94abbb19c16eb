"""From raw text to a prepared corpus: `pipeline` is the list of stages, each a list of steps in the modules beside this.

Every stage writes below `OUTPUT.stages/NAME` and runs as independent tasks on datatrove's executors. A finished task is
never run again, a task that was killed leaves nothing that counts; so the same command goes on where the last one
stopped, and the result is the same. OUTPUT itself (tokens, tokenizer, metadata, report) appears when it is whole.
"""

import errno
import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..config import from_mapping, read_yaml, unknown_key
from ..version import __version__
from .clean import UNDETERMINED, Clean, CleanConfig, DetectLanguage, check_languages
from .decontaminate import (
    CollectGrams,
    CountGrams,
    Decontaminate,
    DecontaminateConfig,
    MergeCounts,
    contamination_report,
)
from .deduplicate import Buckets, Clusters, DeduplicateConfig, DropDuplicates, Signatures, duplicates_report
from .documents import BYTES_OUT, Ledger, ReadPart, WritePart, read_json, write_json
from .executors import ExecutorConfig, ray_cluster
from .extract import Extract
from .mixture import Mixture
from .packing import METADATA_FILE, TOKENIZER_FOLDER, read_metadata
from .quality import SUMMARY_FILE as QUALITY_SUMMARY
from .quality import QualityConfig, QualityFilter, SampleQuality, TrainQuality, quality_report
from .readers import SourceConfig, local_files
from .report import write_report
from .shards import SPLITS, MakeTokenizer, PlanSample, PlanShards, SampleText, Tokenize, WriteShards, shards_of
from .sources import CorpusSource, ReadRows, WriteParts, plan_reading, read_bad_rows
from .stages import (
    LEDGER_FILE,
    STAGES_ENDING,
    Stage,
    another_recipe,
    chain_fingerprints,
    drop_outdated,
    fingerprint_of,
    has_begun,
    has_little_text,
    is_done,
    locked,
    run_stage,
    stage_names,
)
from .tokenizer import TokenizerConfig


BAD_ROWS, PLAN_FILE = "bad_rows", "plan.json"
# Which examples of each benchmark were in the corpus, one JSON line an example.
CONTAMINATION_FOLDER = "contamination"
# The mixture is reported for sequences of GPT-3's length.
REPORT_SEQUENCE_LENGTH = 2048


@dataclass
class CorpusConfig:
    """A corpus recipe."""

    sources: list[CorpusSource] = field(metadata={"help": "What to read, in order."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder to write; `--output` overrides it."})
    clean: CleanConfig = field(
        default_factory=CleanConfig, metadata={"help": "Rules for the pages of a crawl, and what they allow."}
    )
    languages: list[str] | None = field(
        default=None, metadata={"help": "ISO 639-1 codes of the languages to keep. Default: all."}
    )
    quality: QualityConfig | None = field(
        default=None, metadata={"help": "The paper's classifier for sources with `curated: false`. Default: none."}
    )
    deduplicate: DeduplicateConfig | str = field(
        default="minhash",
        metadata={"help": "minhash (near-duplicates), exact, none; or a mapping with `method` and its settings."},
    )
    decontaminate: DecontaminateConfig | None = field(
        default=None, metadata={"help": "Benchmarks whose text is cut out of the corpus. Default: none."}
    )
    tokenizer: TokenizerConfig = field(
        default_factory=TokenizerConfig, metadata={"help": "An existing tokenizer, or how to train one."}
    )
    holdout_fraction: float = field(
        default=0.01, metadata={"help": "Share of documents held out as the validation split, chosen by their text."}
    )
    max_bad_rows: int | None = field(
        default=100, metadata={"help": "More malformed rows than this fail the run; null: never."}
    )
    shard_tokens: int = field(default=100_000_000, metadata={"help": "Tokens in a shard file at most."})
    part_bytes: int = field(
        default=64_000_000,
        metadata={"help": "Text in one unit of work, about; it changes how work is divided, not its result."},
    )
    seed: int = field(
        default=0,
        metadata={
            "help": "Seed of the held-out split, the tokenizer's sample and the reported mixture; `quality` and "
            "`deduplicate` have their own."
        },
    )

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("`sources` is empty: name at least one.")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"Two `sources` have the same `name`: {', '.join(names)}.")
        if not 0.0 <= self.holdout_fraction < 1.0:
            raise ValueError(f"`holdout_fraction` must be at least 0 and below 1, got {self.holdout_fraction}.")
        for name in ("shard_tokens", "part_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if isinstance(self.deduplicate, str):
            self.deduplicate = from_mapping(DeduplicateConfig, {"method": self.deduplicate}, "`deduplicate`")
        check_languages(self.languages, "languages")
        check_languages(set(self.tokenizer.language_shares or ()) - {UNDETERMINED}, "language_shares")
        without = [source.name for source in self.sources if source.weight is None]
        if without and len(without) < len(names):
            raise ValueError(f"Give every source a `weight` or none: {', '.join(without)} has none.")
        if self.quality is not None:
            unknown = set(self.quality.positives or ()) - set(names)
            if unknown:
                raise unknown_key(sorted(unknown)[0], names, "`positives` of `quality`")
            if not self.crawl:
                raise ValueError(
                    "`quality` filters sources with `curated: false`, and there is none: mark the crawl, or leave it out."
                )
            if not self.positives:
                raise ValueError(
                    "`quality` learns from curated sources and there is none: add one, or name `positives`."
                )

    @property
    def deduplication(self) -> DeduplicateConfig:
        """`deduplicate` with its settings."""
        assert isinstance(self.deduplicate, DeduplicateConfig)
        return self.deduplicate

    @property
    def crawl(self) -> list[str]:
        """Names of the sources that are not curated."""
        return [source.name for source in self.sources if not source.curated]

    @property
    def positives(self) -> list[str]:
        """Names of the sources that the quality classifier takes for good text."""
        chosen = self.quality.positives if self.quality is not None else None
        return chosen if chosen is not None else [source.name for source in self.sources if source.curated]

    @property
    def by_priority(self) -> list[CorpusSource]:
        """The sources, curated ones first: of two near-duplicates the earlier stays."""
        return sorted(self.sources, key=lambda source: not source.curated)

    @property
    def weights(self) -> dict[str, float] | None:
        """Weight of each source in the mixture, or None where the tokens decide."""
        weights = {source.name: source.weight for source in self.sources if source.weight is not None}
        return weights or None


def load_corpus_config(path: str | Path) -> CorpusConfig:
    """Read a corpus recipe.

    Raises:
        ValueError: An unknown key, a wrong type, or values that do not fit together.
    """
    return from_mapping(CorpusConfig, read_yaml(path), str(path))


def pipeline(config: CorpusConfig, folder: Path) -> list[Stage]:
    """The stages of a recipe, in order; each reads what those before it wrote below `folder`.

    Raises:
        ValueError: A file of a source is not there.
    """
    # Every task works on a copy of its stage's steps, which share this ledger.
    ledger = Ledger()
    seed, crawl, positives = config.seed, config.crawl, config.positives
    reading = plan_reading(config.by_priority, config.part_bytes)
    files = [local_files(source) for source in config.by_priority]
    stages = []

    last = folder / "read/documents"
    stages.append(
        Stage(
            "read",
            [
                ReadRows(reading, folder / "read" / BAD_ROWS, config.max_bad_rows, ledger),
                Extract(ledger),
                WriteParts(last, config.part_bytes, ledger),
            ],
            settings=[_read_settings(config), files, config.part_bytes],
            documents=last,
            tasks=len(reading),
            input_bytes=sum(size for of_source in files for _, size, _ in of_source),
        )
    )

    read_from, last = last, folder / "clean/documents"
    declared = {source.name: source.language for source in config.sources if source.language is not None}
    stages.append(
        Stage(
            "clean",
            [
                ReadPart(read_from, ledger),
                Clean(config.clean, crawl, ledger),
                DetectLanguage(config.languages, declared, ledger),
                WritePart(read_from, last, ledger),
            ],
            settings=[asdict(config.clean), crawl, config.languages, declared],
            read_from=read_from,
            documents=last,
        )
    )

    if config.quality is not None:
        detected = last.parent / LEDGER_FILE
        read_from, last = last, folder / "quality/filter/documents"
        sample, model = folder / "quality/sample/texts", folder / "quality/train/model"
        stages += [
            Stage(
                "quality/sample",
                [
                    ReadPart(read_from, ledger),
                    SampleQuality(config.quality, positives, crawl, read_from, sample, ledger, detected),
                ],
                settings=[asdict(config.quality), positives, crawl],
                read_from=read_from,
            ),
            Stage("quality/train", [TrainQuality(config.quality, sample, model, ledger)]),
            Stage(
                "quality/filter",
                [
                    ReadPart(read_from, ledger),
                    QualityFilter(config.quality, crawl, model, ledger),
                    WritePart(read_from, last, ledger),
                ],
                read_from=read_from,
                documents=last,
            ),
        ]

    if config.deduplication.method != "none":
        read_from, last, settings = last, folder / "deduplicate/filter/documents", config.deduplication
        signatures, pairs, clusters = (
            folder / "deduplicate" / name / "data" for name in ("signatures", "pairs", "clusters")
        )
        stages += [
            Stage(
                "deduplicate/signatures",
                [ReadPart(read_from, ledger), Signatures(signatures, settings, ledger)],
                settings=asdict(settings),
                read_from=read_from,
            ),
            Stage(
                "deduplicate/pairs",
                [Buckets(signatures, pairs, settings, ledger)],
                tasks=partial(_pair_tasks, read_from, settings.minhash().num_buckets),
            ),
            Stage("deduplicate/clusters", [Clusters(signatures, pairs, clusters, read_from, settings, ledger)]),
            Stage(
                "deduplicate/filter",
                [ReadPart(read_from, ledger), DropDuplicates(clusters, ledger), WritePart(read_from, last, ledger)],
                read_from=read_from,
                documents=last,
            ),
        ]

    if config.decontaminate is not None:
        read_from, last, found = last, folder / "decontaminate/cut/documents", folder / "decontaminate/grams/data"
        benchmark_files = [local_files(benchmark) for benchmark in config.decontaminate.benchmarks]
        stages += [
            Stage(
                "decontaminate/grams",
                [CollectGrams(config.decontaminate, found, ledger)],
                settings=[asdict(config.decontaminate), benchmark_files],
            ),
            Stage(
                "decontaminate/count",
                [ReadPart(read_from, ledger), CountGrams(read_from, found, ledger)],
                read_from=read_from,
            ),
            Stage("decontaminate/merge", [MergeCounts(read_from, found, ledger)]),
            Stage(
                "decontaminate/cut",
                [
                    ReadPart(read_from, ledger),
                    Decontaminate(config.decontaminate, read_from, found, ledger),
                    WritePart(read_from, last, ledger),
                ],
                read_from=read_from,
                documents=last,
            ),
        ]

    tokenizer, tokens = folder / "tokenizer/make" / TOKENIZER_FOLDER, folder / "tokenize/parts"
    sample, shares = folder / "tokenizer/sample/texts", folder / "tokenizer/plan/shares.json"
    plan = folder / "shards/plan" / PLAN_FILE
    if config.tokenizer.is_new:
        stages += [
            Stage(
                "tokenizer/plan",
                [PlanSample(last.parent / LEDGER_FILE, config.tokenizer, config.weights, shares, ledger)],
                settings=[asdict(config.tokenizer), config.weights, seed],
                inline=True,
            ),
            Stage(
                "tokenizer/sample",
                [ReadPart(last, ledger), SampleText(last, shares, sample, seed, ledger)],
                read_from=last,
            ),
        ]
    stages += [
        Stage(
            "tokenizer/make",
            [MakeTokenizer(config.tokenizer, sample, shares, tokenizer, seed, ledger)],
            settings=[asdict(config.tokenizer), _tokenizer_files(config.tokenizer)],
        ),
        Stage(
            "tokenize",
            [ReadPart(last, ledger), Tokenize(tokenizer, last, tokens, config.holdout_fraction, seed, ledger)],
            settings=[config.holdout_fraction, seed],
            read_from=last,
        ),
        Stage(
            "shards/plan",
            [PlanShards(tokens, [source.name for source in config.sources], config.shard_tokens, plan, ledger)],
            settings=[[source.name for source in config.sources], config.shard_tokens],
            inline=True,
        ),
        Stage(
            "shards/write",
            [WriteShards(tokens, plan, folder / "shards/write/files", ledger)],
            tasks=lambda: len(shards_of(read_json(plan))),
        ),
    ]
    return stages


def _pair_tasks(documents: Path, buckets: int) -> int:
    """A task a bucket, or one for all of little text."""
    return 1 if has_little_text(documents) else buckets


def prepare(
    config: CorpusConfig,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    executor: ExecutorConfig | None = None,
    stage: str | None = None,
    discard_stages: bool = False,
) -> dict[str, Any]:
    """Prepare a corpus, or go on where an earlier run of the same recipe stopped.

    A script calls it under `if __name__ == "__main__":`, since worker processes import the script.

    Args:
        config: What to read and how.
        output_dir: Folder to write. Default: `config.output_dir`.
        overwrite: Replace what another recipe made, or the same one from files that have changed; stages whose settings
            and input are the same are kept.
        executor: Where the tasks run. Default: processes of this machine, as many as it has cores.
        stage: Run this stage alone, of those that `stage_names` lists; those before it must be done.
        discard_stages: Delete what the stages wrote when the corpus is whole. Kept, they let another recipe that
            differs only in later stages start from there.

    Returns:
        The metadata: documents, tokens and bytes by split and by source, malformed rows, the tokenizer's size. With
        `stage`: that stage's entry of the report.

    Raises:
        ValueError: Bad input, no text at all, too many malformed rows, a full disk, or a folder with something else in
            it. What is finished is kept.
    """
    if not (output_dir or config.output_dir):
        raise ValueError("Where to? Give `--output DIR` or set `output_dir` in the recipe.")
    output = Path(output_dir or config.output_dir or "").resolve()
    executor = executor or ExecutorConfig()
    if not output.name:
        raise ValueError(f"The corpus cannot be {output} itself: choose a folder below it with --output.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose another folder with --output.")
    folder = output.with_name(output.name + STAGES_ENDING)
    stages = pipeline(config, folder)
    groups = stage_names(stages)
    if stage is not None and stage not in groups:
        raise ValueError(
            f"`--stage` must be one of {', '.join(groups)} (in this order; as this recipe has them), got {stage!r}."
        )
    fingerprints = chain_fingerprints(stages)
    whole = fingerprint_of([fingerprints[-1], _recipe(config)])
    if output.exists() and any(output.iterdir()) and stage is None:
        if not (output / METADATA_FILE).exists():
            raise ValueError(f"{output} holds something else: choose another folder with --output.")
        metadata = read_metadata(output)
        same = metadata.get("inputs_sha256") == whole
        if same and not overwrite:
            print(f"{output} is there already, from the same recipe and files.", file=sys.stderr)
            if discard_stages and folder.exists():
                with locked(folder):
                    shutil.rmtree(folder)
            return metadata
        if not overwrite:
            raise ValueError(another_recipe(output))
        if same:
            # Asked to write what is there: its shards may be damaged, and these are the same files.
            shutil.rmtree(folder / "shards", ignore_errors=True)
    with locked(folder):
        drop_outdated(folder, stages, fingerprints, overwrite)
        try:
            with ray_cluster(executor):
                for number, (one, fingerprint) in enumerate(zip(stages, fingerprints)):
                    if stage is None or one.group == stage:
                        run_stage(one, stages[:number], folder, fingerprint, executor)
                        _check_documents(one, folder, config)
                    elif groups.index(one.group) < groups.index(stage) and not is_done(folder, one):
                        raise ValueError(
                            f"`--stage {stage}` needs {one.group!r}, which is not done: run `--stage {one.group}` first, "
                            "or all of it without --stage."
                        )
            if stage is not None:
                return _stage_entry(stage, stages, folder)
            metadata = publish(config, output, folder, stages, inputs_sha256=whole)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(
                f"The disk of {output} is full. What is finished is kept in {folder}: free some space and run the same "
                "command again."
            ) from None
        finally:
            if not has_begun(folder):
                shutil.rmtree(folder)
        if discard_stages:
            shutil.rmtree(folder)
    return metadata


def _check_documents(stage: Stage, folder: Path, config: CorpusConfig) -> None:
    """That a stage has not found too many malformed rows, and has left documents to go on with; else it is not done.

    Says so where a source has none left, or the crawl of a language is not filtered.

    Raises:
        ValueError: It has, or it has not.
    """
    own = folder / stage.name
    try:
        _check_ledger(stage, own, config)
    except ValueError:
        (own / LEDGER_FILE).unlink()
        raise


def _check_ledger(stage: Stage, own: Path, config: CorpusConfig) -> None:
    if stage.name == "quality/train":
        for language, numbers in read_json(own / "model" / QUALITY_SUMMARY).items():
            if numbers["negatives"] and not numbers["filtered"]:
                print(f"Warning: `quality` does not filter language {language!r}: {numbers['why']}.", file=sys.stderr)
    bad_rows = read_bad_rows(own / BAD_ROWS, config.max_bad_rows) if stage.name == "read" else None
    if stage.documents is None:
        return
    ledger = read_json(own / LEDGER_FILE)
    left = {name for name, counts in ledger["counts"].items() if counts.get("documents_out")}
    if not left:
        names = [source.name for source in config.sources]
        if bad_rows is None:
            why = _why_dropped(ledger, names)
            raise ValueError(f"Stage {stage.name!r} left no document: {why}. Change its settings in the recipe.")
        example = f" The first of those rows: {bad_rows['examples'][0]}." if bad_rows["count"] else ""
        raise ValueError(
            f"No text was read from {', '.join(names)} ({bad_rows['count']} malformed rows): check `path`, `where`, `part` "
            f"and `text_field`. What was read: {_why_dropped(ledger, names)}.{example}"
        )
    for source in config.sources:
        # Where an earlier stage left none, that stage has said so.
        if source.name in left or not (bad_rows is not None or source.name in ledger["counts"]):
            continue
        message = (
            f"Source {source.name!r} has no document left after {stage.name!r}: {_why_dropped(ledger, [source.name])}."
        )
        if source.weight is not None:
            raise ValueError(f"{message} It has a `weight`: change its settings, or leave it out of the recipe.")
        print(f"Warning: {message}", file=sys.stderr)


def _why_dropped(ledger: dict[str, Any], sources: list[str]) -> str:
    """The commonest reasons for which documents of these sources were dropped."""
    reasons = Counter[str]()
    for source in sources:
        reasons.update({reason: numbers["documents"] for reason, numbers in ledger["dropped"].get(source, {}).items()})
    return ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3)) or "no rows"


def publish(config: CorpusConfig, output: Path, folder: Path, stages: list[Stage], **about: Any) -> dict[str, Any]:
    """Put shards, tokenizer, report and metadata together, and then in their place.

    Raises:
        ValueError: There is nothing to train on, or the weights do not fit.
    """
    plan = read_json(folder / "shards/plan" / PLAN_FILE)
    splits = {split: _split_entry(plan["splits"][split]) for split in SPLITS}
    if splits["train"]["tokens"] == 0:
        raise ValueError("Every document was held out: lower `holdout_fraction`.")
    if config.weights is not None:
        # Says what is wrong with the weights now and not when training starts.
        tokens = {name: entry["tokens"] for name, entry in splits["train"]["sources"].items()}
        for name, count in tokens.items():
            if count == 0:
                raise ValueError(
                    f"Source {name!r} has a `weight`, and every document of it was held out: lower `holdout_fraction`, "
                    "add text to it, or leave it out of the recipe."
                )
        Mixture(config.weights, tokens, config.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer/make" / TOKENIZER_FOLDER)
    metadata = {
        "dtype": plan["dtype"],
        "vocab_size": len(tokenizer),
        "end_of_text_token_id": tokenizer.eos_token_id,
        "weights": config.weights,
        "sources": _source_counts(config, folder, splits),
        "bad_rows": read_bad_rows(folder / "read" / BAD_ROWS, None),
        "recipe": _recipe(config),
        **about,
        "splits": splits,
    }
    for left in output.parent.glob(f".{output.name}.publishing-*"):
        shutil.rmtree(left)
    staging = output.parent / f".{output.name}.publishing-{os.getpid()}"
    shutil.copytree(folder / "tokenizer/make" / TOKENIZER_FOLDER, staging / TOKENIZER_FOLDER)
    for split in splits.values():
        for shard in split["shards"]:
            _link(folder / "shards/write/files" / shard["file"], staging / shard["file"])
    write_report(make_report(config, output.name, folder, stages, metadata), staging)
    if config.decontaminate is not None:
        shutil.copytree(folder / "decontaminate/grams/data/examples", staging / CONTAMINATION_FOLDER)
    write_json(staging / METADATA_FILE, metadata)
    # Under a name that the next run clears away, should this one be killed here.
    replaced = staging.with_name(f"{staging.name}-replaced")
    if output.exists():
        os.replace(output, replaced)
    os.replace(staging, output)
    shutil.rmtree(replaced, ignore_errors=True)
    return read_metadata(output)


def _split_entry(sources: dict[str, Any]) -> dict[str, Any]:
    """A split of the metadata: the sum over the sources, and each of them."""
    entries = {
        name: {**source, "shards": [{"file": shard["file"], "tokens": shard["tokens"]} for shard in source["shards"]]}
        for name, source in sources.items()
    }
    numbers = {key: sum(entry[key] for entry in entries.values()) for key in ("documents", "tokens", "bytes")}
    return {
        **numbers,
        "shards": [shard for entry in entries.values() for shard in entry["shards"]],
        "sources": entries,
    }


def _source_counts(config: CorpusConfig, folder: Path, splits: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Documents, tokens and bytes of each source in all splits, and how many were duplicates."""
    dropped = (
        read_json(folder / "deduplicate/filter" / LEDGER_FILE)["dropped"]
        if config.deduplication.method != "none"
        else {}
    )
    return {
        source.name: {
            **{
                key: sum(split["sources"][source.name][key] for split in splits.values())
                for key in ("documents", "tokens", "bytes")
            },
            "duplicates": sum(numbers["documents"] for numbers in dropped.get(source.name, {}).values()),
        }
        for source in config.sources
    }


def make_report(
    config: CorpusConfig, name: str, folder: Path, stages: list[Stage], metadata: dict[str, Any]
) -> dict[str, Any]:
    """What became of every document, stage by stage, and what the corpus is made of (the fields of `report.json`)."""
    names = [source.name for source in config.sources]
    train = metadata["splits"]["train"]
    report: dict[str, Any] = {
        "name": name,
        "hfgpt_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": metadata["recipe"],
        "sources": names,
        "stages": [_stage_entry(group, stages, folder) for group in stage_names(stages)],
        "fertility": _fertility(read_json(folder / "shards/plan" / PLAN_FILE)["languages"]),
        "tokenizer": read_json(folder / "tokenizer/make/about.json"),
        "splits": {
            split: {key: entry[key] for key in ("documents", "tokens", "bytes")}
            for split, entry in metadata["splits"].items()
        },
        "tokens_by_source": {
            name: {split: entry["sources"][name]["tokens"] for split, entry in metadata["splits"].items()}
            for name in names
        },
        "bad_rows": metadata["bad_rows"],
    }
    report["mixture"] = _mixture(config, train)
    if config.deduplication.method != "none":
        report["duplicates"] = duplicates_report(
            folder / "deduplicate/clusters/data", _read_from("deduplicate", stages)
        )
    if config.decontaminate is not None:
        found = folder / "decontaminate/grams/data"
        report["contamination"] = contamination_report(
            config.decontaminate, _read_from("decontaminate", stages), found
        )["benchmarks"]
    if config.quality is not None:
        report["quality"] = quality_report(
            read_json(folder / "quality/train/model" / QUALITY_SUMMARY),
            read_json(folder / "quality/filter" / LEDGER_FILE)["counts"],
        )
    return report


def _mixture(config: CorpusConfig, train: dict[str, Any]) -> dict[str, Any]:
    """What a run over as many tokens as there are takes from each source."""
    tokens = {name: entry["tokens"] for name, entry in train["sources"].items() if entry["tokens"]}
    if config.weights is None:
        rows = [
            {
                "source": name,
                "weight": None,
                "weight_normalised": count / train["tokens"],
                "realised": count / train["tokens"],
                "tokens": count,
                "epochs": 1.0,
            }
            for name, count in tokens.items()
        ]
        return {"train_tokens": train["tokens"], "sources": rows}
    length = min(REPORT_SEQUENCE_LENGTH, *tokens.values())
    mixture = Mixture(config.weights, {name: count // length for name, count in tokens.items()}, config.seed)
    rows = [
        {
            "source": row["source"],
            "weight": config.weights[row["source"]],
            "weight_normalised": row["weight"],
            "realised": row["realised_weight"],
            "tokens": row["tokens"],
            "epochs": row["epochs"],
        }
        for row in mixture.report(train["tokens"] // length, length)
    ]
    return {"train_tokens": train["tokens"], "sources": rows}


def _read_from(group: str, stages: list[Stage]) -> Path:
    """The documents that a group of stages starts from."""
    return next(stage.read_from for stage in stages if stage.group == group and stage.read_from is not None)


def _stage_entry(group: str, stages: list[Stage], folder: Path) -> dict[str, Any]:
    """A group of stages as the report shows it: the documents of its last stage, the time of all."""
    ledgers = [read_json(folder / stage.name / LEDGER_FILE) for stage in stages if stage.group == group]
    last = next(
        (
            ledger
            for ledger in reversed(ledgers)
            if any("documents_out" in counts for counts in ledger["counts"].values())
        ),
        ledgers[-1],
    )
    return {
        "name": group,
        **{key: sum(ledger[key] for ledger in ledgers) for key in ("seconds", "cpu_seconds", "tasks")},
        "sources": {
            source: {key: number for key, number in counts.items() if not key.startswith(BYTES_OUT)}
            for source, counts in last["counts"].items()
        },
        "dropped": last["dropped"],
        "examples": last["examples"],
    }


def _fertility(languages: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Tokens per word, byte and document of each language; "und" is text too short to tell."""
    return [
        {
            "language": language,
            **numbers,
            "tokens_per_word": numbers["tokens"] / max(numbers["words"], 1),
            "tokens_per_byte": numbers["tokens"] / max(numbers["bytes"], 1),
            "tokens_per_document": numbers["tokens"] / max(numbers["documents"], 1),
        }
        for language, numbers in sorted(languages.items(), key=lambda item: -item[1]["bytes"])
    ]


def _tokenizer_files(config: TokenizerConfig) -> list[tuple[str, int, str]]:
    """The local files of an existing tokenizer, as `local_files` tells them apart; none for one of the Hub."""
    if config.path is not None and Path(config.path).is_dir():
        paths = sorted(str(path) for path in Path(config.path).iterdir() if path.is_file())
    else:
        paths = [path for path in (config.vocab_file, config.merges_file) if path is not None]
    return local_files(SourceConfig(path=paths)) if paths else []


def _recipe(config: CorpusConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key != "output_dir"}


def _read_settings(config: CorpusConfig) -> list[dict[str, Any]]:
    """What reading depends on: the sources in their order, without what only later stages use."""
    later = ("weight", "curated", "language")
    return [{key: value for key, value in asdict(source).items() if key not in later} for source in config.by_priority]


def _link(source: Path, target: Path) -> None:
    """Another name for a file, or a copy where the file system has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
