"""lm-evaluation-harness on our model, through its own Python API, to be read beside our scores.

The harness asks in its own words and compares in its own way; where that is not the paper's protocol, `HARNESS_TASKS`
says how. Rows come from the Hub, or from the same files as ours: its tasks are then given the rows themselves, and
nothing is fetched. `pip install 'hfgpt[harness]'`.
"""

import copy
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.readers import RowErrors, SourceConfig, WantedRows, numbered_rows
from ..tasks import TASKS
from ..tasks.base import RowError
from .benchmarks import BENCHMARKS, RawFields, field_map
from .results import NAMED_ROWS, show


Row = Mapping[str, Any]

PER_CHARACTER = "acc compares sums of log-likelihoods and acc_norm divides them by the characters of the choice; the paper and hfgpt "
PER_TOKEN = PER_CHARACTER + "divide by its tokens"
UNCONDITIONAL = PER_CHARACTER + "subtract the log-likelihood of the choice after `Answer:` alone"
ONE_LINE = "asks in one line, in its own words; acc compares sums of log-likelihoods, hfgpt's divides by tokens"
GREEDY = "greedy decoding; the paper and hfgpt search with 4 beams and a length penalty of 0.6"
ALL_TASKS = (
    "The harness cuts the beginning of a prompt that is longer than the context, where hfgpt leaves examples out; it "
    "tokenizes a choice together with its prompt, which is the same where the choice begins with a space."
)


@dataclass(frozen=True)
class HarnessTask:
    """The harness's task for one of our benchmarks.

    Attributes:
        name: Of the task.
        folder: Below the harness's folder of tasks.
        differs: In what it is not the paper's protocol.
        fields: Of its rows; empty where it reads the Hub alone.
        split: That it scores.
        train: Whether its examples come from a training split; else from the rows that are scored.
        adapt: Makes its rows of a file's, where their names differ.
    """

    name: str
    folder: str
    differs: str
    fields: tuple[str, ...] = ()
    split: str = "validation"
    train: bool = True
    adapt: Callable[[Row], Row] | None = None


def _options(name: str, question: str) -> Callable[[Row], Row]:
    """The rows of ARC and OpenBookQA, as on the Hub or as AI2 publishes them."""

    def adapt(row: Row) -> Row:
        values = BENCHMARKS[name].adapt(row)
        labels = [str(number) for number in range(len(values["choices"]))]
        return {
            question: values["question"],
            "choices": {"text": values["choices"], "label": labels},
            "answerKey": labels[values["answer"]],
        }

    return adapt


def _winogrande(row: Row) -> Row:
    # It looks the answer up as a text.
    return {**row, "answer": str(row["answer"])} if "answer" in row else row


def _story_cloze(row: Row) -> Row:
    """The Hub's names for those of the published files."""
    names = {own: hub for hub, own in BENCHMARKS["storycloze"].other_names.items()}
    row = {names.get(name, name): value for name, value in row.items()}
    return {**row, "answer_right_ending": int(row["answer_right_ending"])} if "answer_right_ending" in row else row


def _boolq(row: Row) -> Row:
    label = BENCHMARKS["boolq"].adapt(row)["answer"] == "yes"
    return {"passage": row["passage"], "question": row["question"], "label": int(label)}


def _pair(row: Row) -> Row:
    return {"translation": row.get("translation", row)}


def _translation(name: str) -> HarnessTask:
    differs = f"asks `French phrase: ... English phrase:` and the like; {GREEDY}"
    return HarnessTask(name, "translation", differs, ("translation",), split="test", adapt=_pair)


def _kobest(config: str, *fields: str, differs: str = ONE_LINE) -> HarnessTask:
    return HarnessTask(f"kobest_{config}", "kobest", differs, (*fields, "label"), split="test")


# By our names.
HARNESS_TASKS: dict[str, HarnessTask] = {
    "lambada": HarnessTask(
        "lambada_openai",
        "lambada",
        "the same without examples; with them it draws from the rows that are scored and leaves out the paper's "
        "`Fill in blank`",
        ("text",),
        split="test",
        train=False,
    ),
    "hellaswag": HarnessTask(
        "hellaswag",
        "hellaswag",
        f"drops what is in [brackets]; {PER_TOKEN}",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    "piqa": HarnessTask(
        "piqa",
        "piqa",
        f"asks `Question: ... Answer:`, the paper gives the goal alone; {PER_TOKEN}",
        ("goal", "sol1", "sol2", "label"),
    ),
    "winogrande": HarnessTask(
        "winogrande",
        "winogrande",
        "the same without examples; with them it sets them apart by an empty line",
        ("sentence", "option1", "option2", "answer"),
        adapt=_winogrande,
    ),
    **{
        name: HarnessTask(
            name.replace("-", "_"),
            "arc",
            f"the same prompt; {UNCONDITIONAL}",
            ("question", "choices", "answerKey"),
            split="test",
            adapt=_options(name, "question"),
        )
        for name in ("arc-easy", "arc-challenge")
    },
    "openbookqa": HarnessTask(
        "openbookqa",
        "openbookqa",
        f"the same prompt; {UNCONDITIONAL}",
        ("question_stem", "choices", "answerKey"),
        split="test",
        adapt=_options("openbookqa", "question_stem"),
    ),
    "race-high": HarnessTask(
        "race",
        "race",
        "asks the last question of an article after the others with their answers, hfgpt each alone; acc compares sums of "
        "log-likelihoods, the paper and hfgpt subtract that of the choice after `Answer:` alone",
        split="test",
        train=False,
    ),
    "storycloze": HarnessTask(
        "storycloze_2016",
        "storycloze",
        "acc compares sums of log-likelihoods; the paper and hfgpt divide by tokens",
        (
            *(f"input_sentence_{number}" for number in range(1, 5)),
            "sentence_quiz1",
            "sentence_quiz2",
            "answer_right_ending",
        ),
        split="test",
        adapt=_story_cloze,
    ),
    "triviaqa": HarnessTask(
        "triviaqa",
        "triviaqa",
        "asks `Question: ...? Answer:`, ends an answer at a period or comma too, and compares it but for case and "
        f"punctuation; {GREEDY}",
        ("question", "answer"),
    ),
    "squadv2": HarnessTask("squadv2", "squadv2", f"{GREEDY}; its metrics come from the Hub"),
    **{name: _translation(name) for name in ("wmt14-fr-en", "wmt14-en-fr", "wmt16-de-en", "wmt16-en-de")},
    "boolq": HarnessTask(
        "boolq",
        "super_glue/boolq",
        "SuperGLUE's copy, without titles; acc compares sums of log-likelihoods, hfgpt's divides by tokens",
        ("passage", "question", "label"),
        adapt=_boolq,
    ),
    "kobest-boolq": _kobest("boolq", "paragraph", "question"),
    "kobest-copa": _kobest(
        "copa",
        "premise",
        "question",
        "alternative_1",
        "alternative_2",
        differs="the same prompt; acc compares sums of log-likelihoods, hfgpt's divides by tokens",
    ),
    "kobest-wic": _kobest("wic", "word", "context_1", "context_2"),
    "kobest-hellaswag": _kobest(
        "hellaswag",
        "context",
        *(f"ending_{number}" for number in range(1, 5)),
        differs=f"begins with `문장:`; {PER_TOKEN}",
    ),
    "kobest-sentineg": _kobest("sentineg", "sentence"),
}


def harness_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str | dict[str, Any]],
    shots: Sequence[int] = (0,),
    limit: int | None = None,
    *,
    data: Mapping[str, SourceConfig] | None = None,
    train: Mapping[str, SourceConfig] | None = None,
    fields: Mapping[str, RawFields] | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of the harness's own tasks for a loaded model.

    Args:
        model, tokenizer: The model, on its device.
        tasks: Our benchmarks by name; or what the harness itself takes: its tasks by name, YAML files, or mappings.
        shots: Numbers of examples before each row.
        limit: Rows of each task at most, the first ones.
        data: Where the rows of our benchmarks are; those that are not here, or are on the Hub, the harness fetches.
        train: Where their examples come from.
        fields: How a file's rows are read, by task, where its names are not the data set's.
        batch_size: Rows at once.
        max_length: Tokens of prompt and answer. Default: the model's positions.
        seed: Of the drawing of examples.

    Returns:
        `version` of the harness; `results`: mappings with `task` (ours), `harness_task`, `shots`, `rows`, `metrics`
        ({name: {value, low, high}}; the interval is of 1.96 standard errors, None where the harness gives the value
        alone), `bad_rows` and `bad_train_rows` left out and the first of them as `bad_examples` and `bad_train_examples`;
        `notes`: by task, in what it is not the paper's protocol; `missing`: tasks of ours that it does not have.

    Raises:
        ValueError: The harness is not installed, cannot get a task's rows, or they lack a field.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ValueError(
            f"lm-evaluation-harness cannot be imported ({error}): install it by `pip install 'hfgpt[harness]'`."
        ) from None

    data, train, fields = data or {}, train or {}, fields or {}
    missing = [name for name in tasks if isinstance(name, str) and _is_ours(name) and name not in HARNESS_TASKS]
    known = [name for name in tasks if isinstance(name, dict) or name not in missing]
    results: list[dict[str, Any]] = []
    training = model.training
    with _quiet():
        # It gives the tokenizer a padding token.
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
        )
        try:
            for count in shots:
                for task in known:
                    errors, train_errors = RowErrors(), RowErrors()
                    # Anew each time: a task keeps the requests it was asked with.
                    loaded = _load(task, count, limit, data, train, fields, errors, train_errors)
                    for one in loaded["tasks"].values():
                        _set(one, count, seed, lm.max_length)
                    # Its bootstrap starts processes; intervals come from the samples.
                    found = lm_eval.evaluate(lm, loaded, limit=limit, bootstrap_iters=0)
                    for name in found["samples"]:
                        ours = task if isinstance(task, str) and task in HARNESS_TASKS else name
                        results.append(_result(ours, name, found, errors, train_errors))
        finally:
            model.train(training)
    return {
        "version": lm_eval.__version__,
        "results": results,
        "notes": {name: HARNESS_TASKS[name].differs for name in known if name in HARNESS_TASKS},
        "missing": missing,
    }


def _set(task: Any, shots: int, seed: int, max_length: int) -> None:
    """Number of examples and what draws them, as `simple_evaluate` sets them; that also seeds the whole process, lists
    all tasks there are and asks pip for all packages, which takes half a minute."""
    if task.get_config("num_fewshot") != 0:  # else the task is only ever asked without
        task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=seed)
    # It leaves 256 tokens for an answer, and refuses a context that is not longer.
    if task.get_config("output_type") == "generate_until" and max_length <= 2 * 256:
        task.set_config(key="generation_kwargs", value={"max_gen_toks": max_length // 2}, update=True)


def _is_ours(name: str) -> bool:
    return name in TASKS or name in BENCHMARKS


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness warns of a model that is loaded already and of its own settings, and draws names at random."""
    import datasets

    state = random.getstate()
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        random.setstate(state)
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


# --- Tasks


def _load(
    task: str | dict[str, Any],
    shots: int,
    limit: int | None,
    data: Mapping[str, SourceConfig],
    train: Mapping[str, SourceConfig],
    fields: Mapping[str, RawFields],
    errors: RowErrors,
    train_errors: RowErrors,
) -> dict[str, Any]:
    """The harness's task objects, with their rows, as it loads them; `errors` and `train_errors` take those that cannot be
    asked."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    if isinstance(task, dict) or task not in HARNESS_TASKS:
        # Its own tasks are thousands of files, which take seconds to list.
        defaults = isinstance(task, str) and not task.endswith((".yaml", ".yml"))
        return _loaded(TaskManager(include_defaults=defaults), task, str(task))
    known = HARNESS_TASKS[task]
    spec: dict[str, Any] = {"task": known.name}
    source = data.get(task)
    if source is not None and source.dataset is None:
        if not known.fields:
            raise ValueError(
                f"The harness reads {task} from the Hub alone: leave `--harness` out for {', '.join(source.paths)}."
            )
        names = fields.get(task) or field_map(BENCHMARKS[task])
        rows = _rows(known, source, names, limit, errors)
        shown = train.get(task)
        if shown is not None and shown.dataset is None:
            examples = _rows(known, shown, names, None, train_errors)
        elif shots and known.train:
            raise ValueError(
                f"{shots} shots of {task} in the harness are drawn from training rows: give `--train {task}=FILE`."
            )
        else:
            examples = rows
        spec["custom_dataset"] = _dataset(rows, examples, known.split)
    folder = Path(lm_eval.tasks.__file__).parent / known.folder
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    # Of a group, whose members may be changed; a task by itself is taken as it is or given whole.
    return _loaded(manager, {"group": "hfgpt", "task": [spec]}, task)


def _loaded(manager: Any, spec: Any, name: str) -> dict[str, Any]:
    try:
        return dict(manager.load([spec]))
    except KeyError as error:
        raise ValueError(f"The harness has no task {name!r}, or its rows lack a field ({error}).") from None
    except Exception as error:  # the Hub's client and the readers of its files each have their own
        raise ValueError(
            f"The harness cannot load {name} ({type(error).__name__}: {error}). Where the Hub is not reachable, give "
            "the rows by `--data TASK=FILE`."
        ) from error


def _dataset(rows: list[Row], examples: list[Row], split: str) -> Callable[..., dict[str, Any]]:
    """What the harness calls in place of the Hub: rows to score in `split`, examples in the others."""
    import datasets

    def load(**_: Any) -> dict[str, Any]:
        splits = dict.fromkeys(("train", "validation", "test"), examples) | {split: rows}
        return {name: datasets.Dataset.from_list([dict(row) for row in part]) for name, part in splits.items()}

    return load


def _rows(
    known: HarnessTask, source: SourceConfig, names: RawFields, limit: int | None, errors: RowErrors
) -> list[Row]:
    """A file's rows as the harness's task reads them; of a field that a row lacks it would read a blank.

    Raises:
        ValueError: There are none.
    """
    wanted, rows = WantedRows(source), list[Row]()
    most = min((count for count in (limit, source.max_rows) if count is not None), default=math.inf)
    for file, line, row in numbered_rows(source, errors):
        if len(rows) >= most:
            break
        try:
            if wanted.why_not(row):
                continue
            named = names.raw(row)
            adapted = known.adapt(named) if known.adapt else named
            chosen = {name: adapted[name] for name in known.fields}
            if "label" in chosen:
                # It compares numbers; CSV has none.
                chosen["label"] = int(chosen["label"])
        except KeyError as error:
            errors.add(file, line, f"no field {error}")
        except (RowError, TypeError, ValueError) as error:
            errors.add(file, line, str(error))
        else:
            rows.append(chosen)
    if not rows:
        raise ValueError(
            f"{', '.join(source.paths)} has no rows for the harness's {known.name}, which needs the fields "
            f"{', '.join(known.fields)}, as on the Hub: {'; '.join(errors.examples[:3]) or 'it is empty'}"
        )
    return rows


# --- Results


def _result(
    task: str, name: str, found: Mapping[str, Any], errors: RowErrors, train_errors: RowErrors
) -> dict[str, Any]:
    samples = found["samples"][name]
    metrics = {}
    for key, value in found["results"][name].items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            each = [sample[metric] for sample in samples if sample["filter"] == kind]
            low, high = _interval(float(value), each)
            metrics[metric] = {"value": float(value), "low": low, "high": high}
    return {
        "task": task,
        "harness_task": name,
        "shots": found["n-shot"][name],
        "rows": found["n-samples"][name]["effective"],
        "metrics": metrics,
        "bad_rows": errors.count,
        "bad_examples": errors.examples[:NAMED_ROWS],
        "bad_train_rows": train_errors.count,
        "bad_train_examples": train_errors.examples[:NAMED_ROWS],
    }


def _interval(value: float, samples: Sequence[Any]) -> tuple[float | None, float | None]:
    """95% of a mean of hits; nothing of what is no such mean."""
    if len(samples) < 2 or not all(isinstance(sample, (bool, int, float)) and 0 <= sample <= 1 for sample in samples):
        return None, None
    error = 1.96 * math.sqrt(value * (1 - value) / (len(samples) - 1))
    return max(value - error, 0.0), min(value + error, 1.0)


def harness_lines(results: Sequence[Mapping[str, Any]], harness: Mapping[str, Any]) -> list[str]:
    """Ours and the harness's in one table, and below it in what the two protocols differ.

    Args:
        results: Ours: mappings with `task`, `shots`, `rows` and `metrics` ({name: {value, low, high}}).
        harness: Of `harness_scores`.
    """
    table = [["", "examples", "by", "rows", "metric", "value", "95% interval"]]
    for theirs in harness["results"]:
        both = [
            ("hfgpt", ours) for ours in results if (ours["task"], ours["shots"]) == (theirs["task"], theirs["shots"])
        ]
        for by, result in [*both, ("harness", theirs)]:
            for metric, score in result["metrics"].items():
                name = f"{theirs['task']}*" if theirs["task"] in harness["notes"] else theirs["task"]
                cells = [name, str(theirs["shots"]), by, f"{result['rows']:,}", metric]
                table.append([*cells, _shown(metric, score["value"]), _shown_interval(metric, score)])
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [f"Beside lm-evaluation-harness {harness['version']}, which asks the same model in its own way.", ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in table]
    notes = [f"* {name} in the harness: {differs}" for name, differs in harness["notes"].items()]
    for kind, what in (("bad", "rows"), ("bad_train", "training rows")):
        notes += [
            f"{one['task']}: {one[f'{kind}_rows']} {what} left out of the harness's: {'; '.join(one[f'{kind}_examples'])}"
            for one in harness["results"]
            if one[f"{kind}_rows"]
        ]
    if harness["missing"]:
        notes.append(f"The harness has no {', '.join(harness['missing'])}.")
    return [*lines, "", *notes, ALL_TASKS]


# Of the harness's metrics; the others are shares.
NO_SHARES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter")


def _shown(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric in NO_SHARES else show(metric, value)


def _shown_interval(metric: str, score: Mapping[str, Any]) -> str:
    if score["low"] is None:
        return ""
    return f"{_shown(metric, score['low'])} to {_shown(metric, score['high'])}"


__all__ = ["HARNESS_TASKS", "HarnessTask", "harness_lines", "harness_scores"]
