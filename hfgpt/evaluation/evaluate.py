"""`hfgpt evaluate`: score a model on tasks, on any rows, zero-shot or with examples before each row.

In a notebook, with a model that is loaded:

    result = evaluate(model, tokenizer, "sentiment", "reviews.jsonl", language="ko", shots=(0, 8), train="train.jsonl")
    print("\\n".join(result.lines()))

`evaluate_from` is the command: it loads the model, asks it as it was fine-tuned (`task.json` beside the weights), takes
rows from files, the Hub or a benchmark's own place there, and saves what came out.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from transformers.utils import cached_file

from ..data.packing import METADATA_FILE
from ..data.readers import RowErrors, SourceConfig
from ..generation import load
from ..tasks import TASKS, get_task, load_task
from ..tasks.base import Example, RowError, Task, TextTask
from ..tasks.metrics import baselines, check_metrics, normalize_answer, score_with_intervals
from ..tasks.rows import FieldMap, read_examples
from ..tasks.saved import TASK_FILE, TaskRecord, saved_task
from ..tasks.scoring import Prediction
from .benchmarks import BENCHMARKS, Benchmark, RawFields, field_map
from .contamination import clean_and_dirty, contamination_of
from .perplexity import perplexity_of
from .protocol import Asked, LastWordTask, answer, ask
from .results import NAMED_ROWS, PREDICTIONS_FOLDER, EvaluationResult, TaskResult, prediction_row
from .scorecard import scorecard_lines


# Rows of a task: where they are, themselves by field, or as examples already.
Rows = SourceConfig | str | Path | Sequence[Mapping[str, Any]] | Sequence[Example]

DEFAULT_POSITIONS = 2048
# Rows of a training split on the Hub that examples are drawn from: some have tens of millions.
POOL_ROWS = 50_000
# K of table H.1's few-shot column, on the command line.
FEW = "few"


@dataclass
class EvaluateOptions:
    """What `hfgpt evaluate` takes; see its `--help`. `fields` to `split_seed` say how the rows of the one task are read,
    with the names and the meaning that fine-tuning recipes have."""

    model: str
    tasks: list[str] = field(default_factory=list)
    language: str | None = None
    data: list[str] = field(default_factory=list)
    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "test"
    fields: dict[str, str] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)
    where: dict[str, Any] | None = None
    part: Literal["all", "train", "test"] = "all"
    test_fraction: float = 0.0
    group_by: str | None = None
    split_seed: int = 0
    max_rows: int | None = None
    max_bad_rows: int | None = 100
    shots: list[str] = field(default_factory=lambda: ["0"])
    train: list[str] = field(default_factory=list)
    train_split: str = "train"
    fixed_shots: bool = False
    num_beams: int | None = None
    max_new_tokens: int | None = None
    batch_tokens: int | None = None
    dtype: str = "auto"
    device: str | None = None
    seed: int = 0
    resamples: int = 1000
    output: str | None = None
    contamination: str | None = None
    harness: bool = False
    perplexity: list[str] = field(default_factory=list)
    stride: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "num_beams", "max_new_tokens", "batch_tokens", "resamples", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{_option(name)}` must be at least 1, got {value}.")
        for shots in self.shots:
            if shots != FEW and not shots.isdigit():
                raise ValueError(
                    f"`--shots` takes numbers, and `{FEW}` for that of table H.1, such as 0,1,{FEW}; got {shots!r}."
                )
        if not self.shots:
            raise ValueError(f"`--shots` names no number: give some, such as 0,1,{FEW}.")
        self.tasks = [name for task in self.tasks for name in _members(task)]
        for option, values in (("--tasks", self.tasks), ("--shots", self.shots)):
            _check_once(option, values)
        if self.data and self.dataset:
            raise ValueError("Give `--data` or `--dataset`, one of them.")
        single = ("fields", "label_map", "where", "group_by", "dataset")
        for name in single:
            if len(self.tasks) > 1 and getattr(self, name):
                raise ValueError(f"`{_option(name)}` is for one task; evaluate {', '.join(self.tasks)} apart.")
        # What would have no effect.
        for name in ("test_fraction", "group_by", "split_seed"):
            if self.part == "all" and getattr(self, name):
                raise ValueError(f"`{_option(name)}` says how rows are divided: give `--part test` or train with it.")
        if self.stride is not None and not self.perplexity:
            raise ValueError("`--stride` is of `--perplexity`: give that, too.")


def _option(name: str) -> str:
    """A field as it is called on the command line."""
    return f"--{name.replace('_', '-')}"


def _check_once(option: str, values: Sequence[Any]) -> None:
    twice = [str(value) for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"`{option}` has {', '.join(twice)} more than once: leave the others out.")


def _members(name: str) -> list[str]:
    """The benchmarks that a name stands for, such as those of kobest; else the name itself."""
    return [other for other in BENCHMARKS if other.startswith(f"{name}-")] or [name]


def find_task(name: str, language: str) -> Task | Benchmark:
    """A benchmark by its name, or a task by name, or path of a YAML file, and language.

    Raises:
        ValueError: There is none; the message has the nearest name and all others.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name not in TASKS and not name.endswith((".yaml", ".yml")):
        near = get_close_matches(name, [*TASKS, *BENCHMARKS], n=1)
        raise ValueError(
            f"Unknown `task` {name!r}{f' (did you mean `{near[0]}`?)' if near else ''}; the tasks are {', '.join(TASKS)}, "
            f"or the path of a YAML file; the benchmarks {', '.join(BENCHMARKS)}."
        )
    return get_task(name, language)


def evaluate(
    model: Any,
    tokenizer: Any,
    task: str | Task | Benchmark,
    data: Rows,
    *,
    language: str = "en",
    shots: Sequence[int] = (0,),
    train: Rows | None = None,
    fields: FieldMap | None = None,
    head: str = "lm",
    max_length: int | None = None,
    seed: int = 0,
    fixed_shots: bool = False,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
    max_batch_tokens: int | None = None,
    resamples: int = 1000,
    max_bad_rows: int | None = 100,
    contamination: str | Path | None = None,
    contamination_name: str | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Score a loaded model on one task.

    Args:
        model, tokenizer: The model, in evaluation mode and on its device.
        task: A task, its name (with `language`) or path; a benchmark or its name.
        data: Rows to ask: a file (anything `SourceConfig.path` takes), a `SourceConfig`, mappings by field, or examples.
        language: Of a task that is named.
        shots: Numbers of examples to put before each row, one evaluation for each.
        train: Rows that those are drawn from, as `data`; baselines learn from them, too.
        fields: Names of fields and labels in the data, where they differ from the task's.
        head: "lm", "classification" or "span": what the model was fine-tuned with.
        max_length: Tokens of prompt and answer of a row alone, as it was fine-tuned; with examples it is the model's
            positions, as by default.
        seed: Of the drawing of examples, baselines and resamples.
        fixed_shots: Draw the examples once for all rows: faster to score, further from the paper.
        num_beams: Of free text. Default: the task's, the paper's 4.
        max_new_tokens: Of free text. Default: the task's, but, unless `max_length` is given, half of the model's positions
            at most.
        max_batch_tokens: Tokens of a batch. Default: by the memory there is.
        resamples: Of the bootstrap intervals.
        max_bad_rows: More malformed rows than this raise; None never does.
        contamination: Folder of a corpus prepared with `decontaminate`, to score its clean and dirty rows apart.
        contamination_name: What the rows are called there. Default: the task's name.
        progress: Show bars.

    Raises:
        ValueError: No such task, no rows, no or too few rows to draw examples from, too many malformed rows; a report
            of contamination that is not of these rows; scores that are not numbers.
    """
    if isinstance(task, str):
        task = find_task(task, language)
    benchmark = task if isinstance(task, Benchmark) else None
    if benchmark is not None:
        language, fields = benchmark.language, fields or field_map(benchmark)
    result = EvaluationResult(_name_of(model), _parameters(model))
    read: dict[tuple[int, str], tuple[list[Example], RowErrors]] = {}

    def rows(part: str, source: Rows, form: Task) -> tuple[list[Example], RowErrors]:
        # A second form of a benchmark reads the same rows otherwise; numbers of examples share what was read.
        key = (id(form), part)
        if key not in read:
            errors = RowErrors(max_bad_rows)
            read[key] = _read(form, source, errors, fields, benchmark, part, progress), errors
        return read[key]

    for count in shots:
        form = benchmark.task_for(count) if benchmark else task
        assert isinstance(form, Task)
        check_metrics(form)
        if count and train is None:
            raise ValueError(f"{count} shots of {form.name} are drawn from training rows: give `--train FILE`.")
        if count and head != "lm":
            raise ValueError(f"A model with a {head} head reads one row at a time: leave `--shots` at 0.")
        examples, errors = rows("test", data, form)
        pool, train_errors = rows("train", train, form) if train is not None else ([], RowErrors())
        # Those that are too long come on top of those that could not be read.
        errors = replace(errors, examples=list(errors.examples))
        longest = (max_length if count == 0 else None) or positions(model, tokenizer)
        answer_tokens = form.max_new_tokens if isinstance(form, TextTask) else 0
        form = _with_room(form, head, max_new_tokens, longest, shorten=max_length is None)
        asked = ask(
            tokenizer,
            form,
            examples,
            max_length=longest,
            head=head,
            shots=count,
            pool=pool,
            seed=seed,
            fixed_shots=fixed_shots,
            errors=errors,
        )
        if not asked:
            raise ValueError(
                f"No row of {form.name} fits the model's context: {'; '.join(errors.examples[:NAMED_ROWS])}"
            )
        asked_rows = [one.row for one in asked]
        overlaps = None
        if contamination is not None:
            source = SourceConfig(path=str(data)) if isinstance(data, (str, Path)) else data
            if not isinstance(source, SourceConfig):
                raise ValueError("`contamination` is by file and line: give the rows as a file or a `SourceConfig`.")
            overlaps = contamination_of(contamination, contamination_name or form.name, asked_rows, source)
        predictions = answer(
            model,
            tokenizer,
            form,
            asked,
            head=head,
            num_beams=num_beams,
            max_batch_tokens=max_batch_tokens,
            progress=progress,
        )
        found = _task_result(form, count, asked, predictions, pool, resamples, seed)
        found.language, found.bad_rows, found.bad_examples = language, errors.count, errors.examples
        found.passed_over = errors.passed_over
        found.bad_train_rows, found.bad_train_examples = train_errors.count, train_errors.examples
        if isinstance(form, TextTask) and form.max_new_tokens < answer_tokens:
            found.answer_tokens = form.max_new_tokens
        if overlaps is not None:
            found.contamination = clean_and_dirty(form, predictions, asked_rows, overlaps)
        if isinstance(data, SourceConfig) and data.dataset is not None:
            found.split = data.dataset_split
        result.results.append(found)
    return result


def evaluate_from(options: EvaluateOptions) -> EvaluationResult:
    """What `hfgpt evaluate` does: load the model, score it on every task, save.

    Raises:
        ValueError: As `evaluate`; no such model; options that contradict each other.
    """
    record = _saved(options.model)
    jobs = _jobs(options, record)
    if options.harness and all(job.benchmark is None for job in jobs):
        raise ValueError(f"`--harness` is for the benchmarks: name some of {', '.join(BENCHMARKS)} as `--tasks`.")
    heads = {job.record.head if job.record else "lm" for job in jobs} or {"lm"}
    if len(heads) > 1 or (record is not None and record.head != "lm" and record.head not in heads):
        assert record is not None
        raise ValueError(
            f"{options.model} has a {record.head} head for the task {record.task.name!r}, and can be asked nothing else."
        )
    if options.max_new_tokens is not None and not any(isinstance(job.task, TextTask) for job in jobs):
        raise ValueError("`--max-new-tokens` is of written answers: the tasks have choices, leave it out.")
    texts = {place: place if jobs else _text_source(options, place) for place in options.perplexity}
    if options.output is not None:
        _check_folder(options.output)
    model, tokenizer = load(options.model, options.device, heads.pop(), options.dtype)
    result = EvaluationResult(options.model, _parameters(model))
    name, corpus = _name_and_folder(options.contamination)
    for job in jobs:
        shots = job.shots(options)
        done = evaluate(
            model,
            tokenizer,
            job.benchmark or job.task,
            job.data,
            language=job.language,
            shots=shots,
            train=job.train,
            fields=job.fields,
            head=job.record.head if job.record else "lm",
            max_length=_max_length(job.record, positions(model, tokenizer)),
            seed=options.seed,
            fixed_shots=options.fixed_shots,
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            max_batch_tokens=options.batch_tokens,
            resamples=options.resamples,
            max_bad_rows=options.max_bad_rows,
            contamination=corpus,
            contamination_name=name,
        )
        result.results += done.results
    for place, text in texts.items():
        found = perplexity_of(model, tokenizer, text, stride=options.stride, max_bad_rows=options.max_bad_rows)
        result.perplexity[place] = asdict(found)
    if options.harness:
        result.harness = _harness(options, jobs, model, tokenizer)
    result.scorecard = scorecard_lines([one.as_dict() for one in result.results], result.parameters)
    if options.output is not None:
        try:
            result.save(options.output)
        except OSError as error:
            result.unsaved = f"The results are not saved: `--output {options.output}` cannot be written ({error})."
    return result


def _check_folder(output: str) -> None:
    """Make the folder of the results.

    Raises:
        ValueError: It cannot be written.
    """
    try:
        for folder in (Path(output), Path(output) / PREDICTIONS_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise ValueError(f"`--output {output}` is no folder that can be written ({error}): name another.") from None


def _text_source(options: EvaluateOptions, place: str) -> str | SourceConfig:
    """A text to predict, which is what the options of rows are of where there are no tasks.

    Raises:
        ValueError: An option that would have no effect.
    """
    for name, default in (("label_map", {}), ("train", []), ("shots", ["0"]), ("contamination", None)):
        if getattr(options, name) != default:
            raise ValueError(f"`{_option(name)}` is of tasks, and `--perplexity` has none: leave it out.")
    if any(name != "text" for name in options.fields):
        raise ValueError(f"`--perplexity` reads one field: give `--fields text=NAME`, got {dict(options.fields)}.")
    rows: dict[str, Any] = {
        "text_field": options.fields.get("text", "text"),
        "where": options.where,
        "part": options.part,
        "test_fraction": options.test_fraction,
        "group_by": options.group_by,
        "split_seed": options.split_seed,
        "max_rows": options.max_rows,
    }
    source = SourceConfig(path=place, **rows)
    if (Path(place) / METADATA_FILE).is_file():
        if source != SourceConfig(path=place):
            raise ValueError(f"{place} is a prepared corpus, which has no rows: leave the options of rows out.")
        return place
    return source


def positions(model: Any, tokenizer: Any) -> int:
    """Tokens that the model can read at once."""
    found = getattr(model.config, "max_position_embeddings", None)
    return found or min(tokenizer.model_max_length, DEFAULT_POSITIONS)


def _with_room(task: Task, head: str, max_new_tokens: int | None, max_length: int, shorten: bool) -> Task:
    """A task whose written answers leave room for a prompt.

    Raises:
        ValueError: They do not.
    """
    if not isinstance(task, TextTask) or isinstance(task, LastWordTask):
        return task
    tokens = max_new_tokens or task.max_new_tokens
    if head == "lm":
        if shorten and max_new_tokens is None:
            tokens = min(tokens, max(max_length // 2, 1))
        if tokens >= max_length:
            raise ValueError(
                f"An answer of {tokens} tokens leaves nothing of {max_length} for the prompt of {task.name}: lower "
                "`--max-new-tokens`."
            )
    return replace(task, max_new_tokens=tokens)


# --- Rows


def _read(
    task: Task,
    rows: Rows,
    errors: RowErrors,
    fields: FieldMap | None,
    benchmark: Benchmark | None,
    part: str,
    progress: bool,
) -> list[Example]:
    if isinstance(rows, (str, Path)):
        rows = SourceConfig(path=str(rows))
    if isinstance(rows, SourceConfig):
        try:
            return read_examples(task, rows, errors, fields, progress)
        except ValueError as error:
            if benchmark is None or rows.dataset is None or not str(error).startswith("Cannot load"):
                raise
            raise benchmark.missing(part, error) from None
    fields = fields or FieldMap()
    fields.check(task)
    examples = []
    row: Any
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Example):
            examples.append(row)
            continue
        try:
            examples.append(fields.example(row, task, f"row:{number}"))
        except RowError as error:
            errors.add("row", number, str(error))
    if not examples:
        raise ValueError(f"No {task.name} rows: {'; '.join(errors.examples[:NAMED_ROWS]) or 'none were given'}")
    return examples


@dataclass(frozen=True)
class _Job:
    """One task of the command line, and where its rows are."""

    task: Task
    language: str
    benchmark: Benchmark | None
    record: TaskRecord | None
    fields: FieldMap
    data: SourceConfig
    train: SourceConfig | None

    def shots(self, options: EvaluateOptions) -> list[int]:
        """Numbers of examples, with table H.1's in the place of "few"."""
        if FEW in options.shots and self.benchmark is None:
            raise ValueError(f"`--shots {FEW}` is table H.1's number, and {self.task.name} has none: give a number.")
        counts = [self.benchmark.shots if K == FEW and self.benchmark else int(K) for K in options.shots]
        _check_once("--shots", counts)
        return counts


def _jobs(options: EvaluateOptions, record: TaskRecord | None) -> list[_Job]:
    names = options.tasks
    if not names and (options.data or options.dataset):
        if record is None:
            raise ValueError(
                f"{options.model} does not say what it was fine-tuned for (no {TASK_FILE}): name `--tasks`, of "
                f"{', '.join((*TASKS, *BENCHMARKS))}, or a YAML file."
            )
        names = [_own_name(record, options)]
    if not names and not options.perplexity:
        raise ValueError(
            f"Nothing to evaluate: name `--tasks` ({', '.join((*TASKS, *BENCHMARKS))}, or a YAML file)"
            + (f", or give rows of {record.task.name} as `--data FILE`" if record else "")
            + ", or `--perplexity FILE`."
        )
    data, train = (_by_task(getattr(options, name), names, f"--{name}") for name in ("data", "train"))
    return [_job(options, name, record, data.get(name, []), train.get(name, [])) for name in names]


def _job(options: EvaluateOptions, name: str, record: TaskRecord | None, data: list[str], train: list[str]) -> _Job:
    benchmark = BENCHMARKS.get(name)
    own = record if record is not None and _is_task_of(record, name, options.language) else None
    if own is not None:
        task, language, benchmark = own.task, own.language, None
        optional = own.fields.keys() - options.fields.keys()
        fields = FieldMap({**own.fields, **options.fields}, options.label_map or own.label_map, optional)
    elif benchmark is not None:
        if options.language not in (None, benchmark.language):
            raise ValueError(f"{name} is asked in {benchmark.language!r}: leave `--lang {options.language}` out.")
        task, language = benchmark.task, benchmark.language
        fields = field_map(benchmark, options.fields, options.label_map)
    else:
        language = options.language or "en"
        found = find_task(name, language)
        assert isinstance(found, Task)
        task = found
        fields = FieldMap(options.fields, options.label_map)
    first = benchmark.raw_fields[0] if benchmark else task.prompt_fields[0]
    common: dict[str, Any] = {
        "name": task.name,
        "text_field": fields.fields.get(first, first),
        "where": options.where,
        "group_by": options.group_by,
    }
    split: dict[str, Any] = {
        "part": options.part,
        "test_fraction": options.test_fraction,
        "split_seed": options.split_seed,
    }
    if data:
        source = SourceConfig(path=data, **common, **split)
    elif options.dataset:
        split.update(dataset_config=options.dataset_config, dataset_split=options.split)
        source = SourceConfig(dataset=options.dataset, **common, **split)
    elif benchmark is not None:
        if options.part != "all" or options.group_by:
            raise ValueError(
                f"`--part` and `--group-by` divide rows of `--data` or `--dataset`: {name} has its own splits."
            )
        source = replace(benchmark.source("test"), where=options.where)
    else:
        raise ValueError(f"Task {name!r} has no rows of its own: give `--data FILE`, or `--dataset NAME`.")
    return _Job(
        task,
        language,
        benchmark,
        own,
        fields,
        replace(source, max_rows=options.max_rows),
        _train_source(options, source, benchmark, train, common),
    )


def _train_source(
    options: EvaluateOptions,
    source: SourceConfig,
    benchmark: Benchmark | None,
    train: list[str],
    common: Mapping[str, Any],
) -> SourceConfig | None:
    """Where examples to put before a row come from; baselines learn from them, too."""
    if train:
        return SourceConfig(path=train, **common)
    if options.part == "test":
        return replace(source, part="train")
    if all(shots == "0" for shots in options.shots):
        return None
    if options.dataset:
        return replace(source, dataset_split=options.train_split)
    if benchmark is not None:
        return replace(benchmark.source("train"), where=options.where, max_rows=POOL_ROWS)
    return None


def _by_task(places: list[str], names: list[str], option: str) -> dict[str, list[str]]:
    """Files by the task they are for, of `FILE` or `task=FILE`."""
    found: dict[str, list[str]] = {}
    for place in places:
        name, equals, file = place.partition("=")
        if not equals or name not in names:
            if len(names) != 1:
                raise ValueError(
                    f"`{option} {place}` does not say which task it is for: write `{option} TASK=FILE`, TASK one of "
                    f"{', '.join(names)}."
                )
            name, file = names[0], place
        found.setdefault(name, []).append(file)
    return found


def _name_and_folder(contamination: str | None) -> tuple[str | None, str | None]:
    """A benchmark's name in a corpus and the corpus, of `[NAME=]DIR`."""
    if contamination is None or Path(contamination).is_dir() or "=" not in contamination:
        return None, contamination
    name, _, folder = contamination.partition("=")
    return name, folder


def _saved(model: str) -> TaskRecord | None:
    """What the model was fine-tuned for, where it is a folder or on the Hub."""
    if Path(model).is_dir():
        return saved_task(model)
    try:
        file = cached_file(
            model,
            TASK_FILE,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        # No such name: loading the model says so.
        file = None
    return saved_task(Path(file).parent) if file else None


def _is_task_of(record: TaskRecord, name: str, language: str | None) -> bool:
    """Whether a name on the command line is the task that a model was fine-tuned for."""
    if language is not None and language != record.language:
        return False
    if name.endswith((".yaml", ".yml")):
        task = load_task(name).get(record.language)
        return task is not None and task.name == record.task.name
    return name in (record.task.name, _task_name(record))


def _task_name(record: TaskRecord) -> str | None:
    """What the task that a model was fine-tuned for is called in all languages; None where it is the user's own."""
    names = (name for name, languages in TASKS.items() if record.language in languages)
    return next((name for name in names if TASKS[name][record.language].name == record.task.name), None)


def _own_name(record: TaskRecord, options: EvaluateOptions) -> str:
    """The task that a model was fine-tuned for, in whatever language it is asked.

    Raises:
        ValueError: It is the user's own, in another language.
    """
    if options.language in (None, record.language):
        return record.task.name
    name = _task_name(record)
    if name is None:
        raise ValueError(
            f"{options.model} was fine-tuned for {record.task.name} in {record.language!r}: leave `--lang "
            f"{options.language}` out, or name `--tasks`."
        )
    return name


def _max_length(record: TaskRecord | None, positions: int) -> int | None:
    """Tokens of prompt and answer, as in fine-tuning."""
    return min(record.max_length or positions, positions) if record is not None else None


def _harness(options: EvaluateOptions, jobs: Sequence[_Job], model: Any, tokenizer: Any) -> dict[str, Any]:
    """What lm-evaluation-harness says of the same model on the same rows."""
    from .harness import harness_scores

    runs = [
        harness_scores(
            model,
            tokenizer,
            [job.task.name],
            job.shots(options),
            options.max_rows,
            data={job.task.name: job.data},
            train={job.task.name: job.train} if job.train else {},
            fields={job.task.name: job.fields},
            seed=options.seed,
        )
        for job in jobs
        if job.benchmark is not None and isinstance(job.fields, RawFields)
    ]
    return {
        "version": runs[0]["version"],
        "results": [result for run in runs for result in run["results"]],
        "notes": {name: note for run in runs for name, note in run["notes"].items()},
        "missing": [name for run in runs for name in run["missing"]],
    }


# --- Results


def _task_result(
    task: Task,
    shots: int,
    asked: Sequence[Asked],
    predictions: Sequence[Prediction],
    pool: Sequence[Example],
    resamples: int,
    seed: int,
) -> TaskResult:
    rows = [one.row for one in asked]
    naive = baselines(task, pool or rows, rows, seed)
    cut = [one.row.where for one in asked if one.cut_tokens]
    fewer = [len(one.shots) for one in asked if len(one.shots) < shots]
    return TaskResult(
        task=task.name,
        language="",
        shots=shots,
        rows=len(rows),
        metrics=score_with_intervals(task, predictions, rows, resamples=resamples, seed=seed),
        baselines={
            name: score_with_intervals(task, guesses, rows, resamples=resamples, seed=seed)
            for name, guesses in naive.items()
        },
        baseline_rows="train" if pool else "test",
        cut_rows=len(cut),
        cut_examples=cut[:NAMED_ROWS],
        cut_side=task.cut_side,
        fewer_shots=len(fewer),
        least_shots=min(fewer, default=shots),
        predictions=[
            prediction_row(one, prediction, is_correct(one.row, prediction))
            for one, prediction in zip(asked, predictions)
        ],
    )


def is_correct(example: Example, prediction: Prediction) -> bool:
    """Whether the right choice was made, or an answer is one of the references but for case, articles and punctuation."""
    if example.label is not None:
        return prediction.label == example.label
    text = normalize_answer(prediction.text)
    return any(text == normalize_answer(reference) for reference in example.references)


def _name_of(model: Any) -> str:
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def _parameters(model: Any) -> int:
    """Of the whole model, with its adapter; those of a quantized model count in full."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.num_parameters()
