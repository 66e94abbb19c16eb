"""The model card, written from what the run left: data, schedule, hardware, scores, carbon, and how to use the model.

Nothing in it is made up: a part whose facts are not in the folder is not in the card.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .files import CARD_FILE, TOKENIZER_FILES, Contents, read_json
from .shards import count_parameters


RUN_FILE = "run.json"
RESULTS_FILE = "all_results.json"
LOSS_CURVE_FILE = "loss_curve.png"
EVALUATION_FILE = "results.json"  # of `hfgpt evaluate --output`
# By which a card of ours is told from one that a person has written.
MARK = (
    "<!-- This card was written from the run by hfgpt. Remove this line, and it is yours: no push will replace it. -->"
)
PLACEHOLDER = "[More Information Needed]"  # of the cards that peft leaves beside an adapter
# The head of a card: what is between two lines of three hyphens.
HEAD = re.compile(r"\A\s*---[ \t]*\r?\n(?:.*?\r?\n)??---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# Without one of these there is no tokenizer in a repository.
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model"} & {*TOKENIZER_FILES}

# Grams of CO2 equivalent a kWh: about the mean of the world's electricity in 2024.
WORLD_CARBON_INTENSITY = 475.0
WATTS_PER_CPU_CORE = 5.0

ADAPTER_PIPELINE_TAGS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
MODEL_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
PRETRAINING_METRICS = ("eval_loss", "eval_perplexity", "eval_bits_per_byte")  # of all_results.json
DEDUPLICATED = {"minhash": "Near duplicates were removed by MinHash.", "exact": "Exact duplicates were removed."}
METRIC_TYPES = {"macro_f1": "f1", "bits_per_byte": "bits_per_byte"}
GPT3_PAPER = "https://arxiv.org/abs/2005.14165"


@dataclass(frozen=True)
class CardOptions:
    """What only its owner knows of a model.

    Attributes:
        license: The Hub's identifier of the weights' licence, such as apache-2.0; None leaves it open, and says so.
        carbon_intensity: Grams of CO2 equivalent a kWh of the electricity that was used.
        with_code: Whether the model's code is pushed beside it.
        kept_metadata: Of the card that is replaced: each key stays of which ours has none.
    """

    license: str | None = None
    carbon_intensity: float = WORLD_CARBON_INTENSITY
    with_code: bool = False
    kept_metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.license is not None:  # as the Hub spells its identifiers
            object.__setattr__(self, "license", self.license.lower())


def model_card(
    found: Contents, repo_id: str, options: CardOptions = CardOptions(), base_model: str | None = None
) -> ModelCard:
    """The card of a folder's model, adapter or tokenizer.

    Args:
        found: The folder, and what of it is pushed.
        repo_id: "owner/name".
        options: What the folder cannot know.
        base_model: An adapter's base on the Hub, where its folder has another name for it.

    Returns:
        A card whose metadata the Hub reads: base model, data sets, languages, licence, scores (`model-index`), emissions.

    Raises:
        ValueError: A file of the run is damaged.
    """
    facts = _Facts(found, repo_id, options, base_model)
    sections = [
        MARK,
        f"# {repo_id.rpartition('/')[2]}",
        facts.summary(),
        facts.usage(),
        facts.data(),
        facts.schedule(),
        facts.curve(),
        facts.scores(),
        facts.hardware(),
        facts.limits(),
        facts.origin(),
    ]
    text = "\n\n".join(section for section in sections if section)
    card = ModelCard(f"---\n{facts.metadata().to_yaml()}\n---\n\n{text}\n")
    return card


def own_words(folder: Path) -> ModelCard | None:
    """The card that a person has written into the folder; None where there is none, or a program's.

    Raises:
        ValueError: Its metadata are no YAML.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return _parsed(text, path) if is_by_hand(text) else None


def _parsed(text: str, path: Path) -> ModelCard:
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except Exception as error:  # YAML's own, of several classes
        raise ValueError(
            f"The metadata of {path} are no YAML ({str(error).splitlines()[0]}): mend its head."
        ) from None


def _is_head_alone(text: str) -> bool:
    head = HEAD.match(text)
    return head is not None and not text[head.end() :].strip()


def is_by_hand(text: str) -> bool:
    """Whether a card is a person's, going by its text: a head alone, as a repository made on the website has, is not."""
    if _is_head_alone(text):
        return False
    generated = (
        "This model card has been generated automatically according to the information the Trainer had access to"
    )
    return (
        bool(text.strip()) and MARK not in text and PLACEHOLDER not in text and generated not in " ".join(text.split())
    )


def completed(card: ModelCard, metadata: ModelCardData) -> ModelCard:
    """A person's card with the metadata it lacks; what it has stays."""
    ours = metadata.to_dict()
    theirs = card.data.to_dict()
    for name, value in ours.items():
        if name not in theirs:
            theirs[name] = value
    return ModelCard(f"---\n{ModelCardData(**theirs).to_yaml()}\n---\n{card.text}")


def card_metadata(
    found: Contents, repo_id: str, options: CardOptions = CardOptions(), base_model: str | None = None
) -> ModelCardData:
    """The head of `model_card` alone."""
    return _Facts(found, repo_id, options, base_model).metadata()


def carbon(run: Mapping[str, Any], grams_per_kwh: float = WORLD_CARBON_INTENSITY) -> dict[str, Any] | None:
    """Electricity and emissions of a run, from its devices' rated power and the time of its sessions.

    Returns:
        `kwh`, `grams`, `device_hours`, `hardware` and `watts` of a device; None where the time or the power is not known.
    """
    kwh = hours = 0.0
    names, powers = [], []
    for session in run.get("sessions", []):
        seconds, devices = session.get("seconds"), session.get("devices")
        if seconds is None or not devices:
            return None
        watts = _watts(session)
        if watts is None:
            return None
        count = 1 if session.get("on_cpu") else devices  # the processes of a machine share its cores
        kwh += watts * count * seconds / 3.6e6
        hours += count * seconds / 3600
        names.append(f"{count} x {session['device']}" if count > 1 else str(session["device"]))
        powers.append(watts)
    if not names:
        return None
    return {
        "kwh": kwh, "grams": kwh * grams_per_kwh, "device_hours": hours, "hardware": ", ".join(dict.fromkeys(names)),
        "watts": sorted(set(powers)),
    }  # fmt: skip


def _watts(session: Mapping[str, Any]) -> float | None:
    """Of a session's GPU, or of all cores of its machine; None where it is not known."""
    if session.get("on_cpu"):
        return WATTS_PER_CPU_CORE * session.get("cpu_cores", 1)
    from ..planner import find_gpu

    gpu = find_gpu(session.get("device", ""))
    return None if gpu is None else gpu.power_watts


def _evaluations(folder: Path, repo_id: str) -> list[dict[str, Any]]:
    """What `hfgpt evaluate --output` found of a folder's model and left in it or in a folder of it."""
    found = []
    for path in sorted([*folder.glob(EVALUATION_FILE), *folder.glob(f"*/{EVALUATION_FILE}")]):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if _is_evaluation(values) and _is_of(values["model"], folder, repo_id):
            found.append(values)
    return found


def _is_evaluation(values: Any) -> bool:
    """Whether it has the shape of our own: other programs give their files the same name."""
    if not (isinstance(values, dict) and isinstance(values.get("model"), str)):
        return False
    results = values.get("results")
    return isinstance(results, list) and all(
        isinstance(result, dict)
        and isinstance(result.get("task"), str)
        and isinstance(result.get("language"), str)
        and isinstance(result.get("shots"), int)
        and isinstance(result.get("metrics"), dict)
        and all(
            isinstance(score, dict) and (score.get("value") is None or _is_number(score["value"]))
            for score in result["metrics"].values()
        )
        for result in results
    )


def _is_of(model: str, folder: Path, repo_id: str) -> bool:
    """Whether a model's name is a folder's: its path here, or the end of it where it was scored from elsewhere."""
    if model == repo_id:
        return True
    path = Path(model)
    if os.path.exists(model):
        return path.resolve() == folder.resolve()
    if path.is_absolute():  # of another machine, or before it was moved
        return path.name == folder.resolve().name
    parts = [part for part in Path(os.path.normpath(path)).parts if part not in ("..", ".")]
    return bool(parts) and list(folder.resolve().parts[-len(parts) :]) == parts


class _Facts:
    """All that a folder says of its model, section by section."""

    def __init__(self, found: Contents, repo_id: str, options: CardOptions, base_model: str | None):
        self.found, self.repo_id, self.options = found, repo_id, options
        folder = found.folder
        self.config = found.config
        self.run = read_json(folder / RUN_FILE)
        self.results = read_json(folder / RESULTS_FILE)
        self.task = read_json(folder / "task.json")
        self.evaluations = _evaluations(folder, repo_id)
        self.name = repo_id.rpartition("/")[2]
        self.is_adapter = found.is_adapter
        base = base_model or (
            self.config.get("base_model_name_or_path") if self.is_adapter else self.run.get("base_model")
        )
        self.base = (
            base if base and "/" in base and not Path(base).is_absolute() and not base.startswith(".") else None
        )

        self.kept: dict[str, Any] = {**options.kept_metadata}
        own = folder / CARD_FILE
        head = own.read_text(encoding="utf-8") if own.is_file() else ""
        if _is_head_alone(head):
            self.kept.update(_parsed(head, own).data.to_dict())
        self.kept = {name: value for name, value in self.kept.items() if isinstance(name, str)}
        stated = self.kept.get("license")
        self.license = options.license or (stated.lower() if isinstance(stated, str) else None)
        if self.license and stated and self.license != str(stated).lower():  # name and text of another licence
            self.kept = {name: value for name, value in self.kept.items() if not name.startswith("license")}

    # Metadata

    def metadata(self) -> ModelCardData:
        values: dict[str, Any] = {
            "language": self._languages() or None,
            "license": self.license,
            "library_name": "peft" if self.is_adapter else "transformers",
            "tags": self._tags(),
            "base_model": self.base,
            "datasets": self._hub_datasets() or None,
        }
        if self.found.kind != "tokenizer":
            values["pipeline_tag"] = self.pipeline_tag()
            scores = self._eval_results()
            if scores:
                values.update(model_name=self.name, eval_results=scores)
        emissions = carbon(self.run, self.options.carbon_intensity)
        if emissions:
            values["co2_eq_emissions"] = {
                "emissions": round(emissions["grams"], 3 if emissions["grams"] < 10 else 0),
                "source": "estimate: rated power of the devices x time x carbon intensity of the electricity",
                "training_type": "fine-tuning" if self.run.get("kind") == "fine-tuning" else "pre-training",
                "hardware_used": emissions["hardware"],
            }
        ours = ModelCardData(**{name: value for name, value in values.items() if value is not None}).to_dict()
        kept = {name: value for name, value in self.kept.items() if name not in ours and value is not None}
        return ModelCardData(**ours, **kept, ignore_metadata_errors=True)

    def pipeline_tag(self) -> str:
        if self.is_adapter:
            return ADAPTER_PIPELINE_TAGS.get(str(self.config.get("task_type")), "text-generation")
        architecture = next(iter(self.config.get("architectures") or []), "")
        for name, tag in (
            ("SequenceClassification", "text-classification"),
            ("TokenClassification", "token-classification"),
            ("QuestionAnswering", "question-answering"),
        ):
            if architecture.endswith(name):
                return tag
        return "text-generation"

    def _languages(self) -> list[str]:
        language = self.task.get("language") or self.run.get("language") or ""
        found = [part for part in str(language).split("-") if len(part) in (2, 3)]
        found += [source["language"] for source in self._sources() if source.get("language")]
        return list(dict.fromkeys(found))

    def _tags(self) -> list[str]:
        tags = ["hfgpt"]
        model_type = self.config.get("model_type")
        if model_type:
            tags.append(str(model_type))
        if self.is_adapter:
            tags.append("lora")
        if self.task:
            tags.append(str(self.task["task"]["name"]))
        if self.options.with_code:
            tags.append("custom_code")
        return tags

    def _hub_datasets(self) -> list[str]:
        names = [source.get("hub_dataset") for source in [*self._sources(), self.run.get("data", {})]]
        return list(dict.fromkeys(name for name in names if name))

    def _sources(self) -> list[dict[str, Any]]:
        return list(self.run.get("data", {}).get("sources", []))

    def _rows(self) -> list[tuple[str, str, str, float, str, str]]:
        """(task, data, metric, value, 95% interval, baseline), of all that was scored."""
        rows = []
        if self.task:
            name = self.task["task"]["name"]
            data = (
                self.run.get("data", {}).get("hub_dataset")
                or self.run.get("data", {}).get("from")
                or "the run's test rows"
            )
            for metric in self.task["task"].get("metrics", []):
                value = self.results.get(f"eval_{metric}")
                if _is_number(value):
                    low, high = self.results.get(f"eval_{metric}_low"), self.results.get(f"eval_{metric}_high")
                    interval = f"{_number(low)} to {_number(high)}" if _is_number(low) and _is_number(high) else ""
                    rows.append((name, f"{data}, test", metric, float(value), interval, self._baseline(metric)))
        else:
            sources = ", ".join(source["name"] for source in self._sources())
            data = f"{sources}, held out" if sources else "held-out text of the corpus"
            for key in PRETRAINING_METRICS:
                if _is_number(self.results.get(key)):
                    rows.append(("text-generation", data, key.removeprefix("eval_"), float(self.results[key]), "", ""))
        for evaluation in self.evaluations:
            for result in evaluation.get("results", []):
                for metric, score in result.get("metrics", {}).items():
                    if _is_number(score.get("value")):
                        low, high = score.get("low"), score.get("high")
                        interval = f"{_number(low)} to {_number(high)}" if _is_number(low) and _is_number(high) else ""
                        task = result["task"]
                        data = f"{task}, {result['shots']}-shot, {result['language']}"
                        rows.append((task, data, metric, float(score["value"]), interval, ""))
        return rows

    def _baseline(self, metric: str) -> str:
        found = [
            (float(value), key.removeprefix("baseline_").removesuffix(f"_{metric}"))
            for key, value in self.results.items()
            if key.startswith("baseline_") and key.endswith(f"_{metric}") and _is_number(value)
        ]
        if not found:
            return ""
        value, name = max(found)
        return f"{_number(value)} ({name.replace('_', ' ')})"

    def _eval_results(self) -> list[EvalResult]:
        return [
            EvalResult(
                task_type=self.pipeline_tag(),
                task_name=task,
                dataset_type=_slug(data),
                dataset_name=data,
                metric_type=METRIC_TYPES.get(metric, metric),
                metric_name=metric,
                metric_value=round(value, 4),
            )
            for task, data, metric, value, _, _ in self._rows()
        ]

    # Sections

    def summary(self) -> str:
        if self.found.kind == "tokenizer":
            return "A byte-level BPE tokenizer."
        if self.is_adapter:
            base = f"[{self.base}](https://huggingface.co/{self.base})" if self.base else "its base model"
            lora = self.run.get("lora") or {}
            rank = lora.get("lora_r", self.config.get("r"))
            task = f" for {self.task['task']['name']} ({self.task['language']})" if self.task else ""
            return f"A LoRA adapter of rank {rank} for {base}, fine-tuned{task}."
        config = self.config
        size = count_parameters(self.found.folder, self.found.files)
        if config.get("model_type") == "gpt3":
            kinds = config.get("layer_types") or []
            banded = sum(kind == "sliding_attention" for kind in kinds)
            attention = (
                f"{len(kinds) - banded} dense and {banded} banded layers (window of {config.get('sliding_window')} tokens)"
                if banded
                else "dense attention in all layers"
            )
            words = (
                f"A GPT-3 as published ({GPT3_PAPER}): {config.get('num_hidden_layers')} layers, {config.get('hidden_size')} "
                f"wide, {config.get('num_attention_heads')} heads, {config.get('max_position_embeddings'):,} positions, "
                f"{config.get('vocab_size'):,} words; {attention}."
            )
        else:
            words = f"A {config.get('model_type', 'language')} model."
        if size:
            words += f" {size:,} parameters."
        if self.task:
            base = f", from {self.base or self.run.get('base_model')}" if self.run.get("base_model") else ""
            words += f" Fine-tuned for {self.task['task']['name']} ({self.task['language']}){base}."
        return words

    def usage(self) -> str:
        if self.found.kind == "tokenizer":
            code = f'from transformers import AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained("{self.repo_id}")'
            return f"## How to use\n\n```python\n{code}\n```"
        tag = self.pipeline_tag()
        is_gpt3 = self.is_adapter or self.config.get("model_type") == "gpt3"
        trust = "trust_remote_code=True" if self.options.with_code else ""
        lines = []
        if is_gpt3 and not self.options.with_code:
            other = "; or trust_remote_code=True, where its base has its code" if self.is_adapter else ""
            lines.append(f"import hfgpt  # registers gpt3 with transformers' Auto classes{other}")
        class_name = MODEL_CLASSES[tag]
        has_tokenizer = not VOCABULARIES.isdisjoint(self.found.files)
        tokenizer_of = self.repo_id if has_tokenizer else self.base
        from_transformers = ["AutoTokenizer"] if tokenizer_of else []
        if self.is_adapter:
            class_name = f"AutoPeft{class_name.removeprefix('Auto')}"
            lines.append(f"from peft import {class_name}")
        else:
            from_transformers.insert(0, class_name)
        if from_transformers:
            lines.append(f"from transformers import {', '.join(from_transformers)}")
        arguments = ", ".join(part for part in (f'"{self.repo_id}"', trust) if part)
        lines.append(f"\nmodel = {class_name}.from_pretrained({arguments})")
        if tokenizer_of:
            arguments = ", ".join(part for part in (f'"{tokenizer_of}"', trust) if part)
            lines.append(f"tokenizer = AutoTokenizer.from_pretrained({arguments})")
        else:
            lines.append("# There is no tokenizer here: `tokenizer` is the one that the model was trained with.")
        prompt = self._example_prompt()
        if tag == "text-generation":
            tokens = 1 if self.task.get("kind") == "choice" else 40
            lines.append(f'inputs = tokenizer({prompt!r}, return_tensors="pt")')
            lines.append(f"print(tokenizer.decode(model.generate(**inputs, max_new_tokens={tokens})[0]))")
        else:
            lines.append(f'outputs = model(**tokenizer({prompt!r}, return_tensors="pt"))')
        note = ""
        if self.task:
            note = f"\n\nIts prompt is `{self.task['task']['prompt']}`."
            choices = self.task["task"].get("choices")
            if choices and tag == "text-generation":
                note += " It answers with " + ", ".join(f"`{word}` ({label})" for label, word in choices.items()) + "."
        # Both commands load the tokenizer from beside the model, and `evaluate` the task.
        can_evaluate = has_tokenizer and "task.json" in self.found.files
        shell = ""
        if tag == "text-generation" and has_tokenizer:
            shell = f"hfgpt generate {self.repo_id} {_quoted(prompt)}"
            if can_evaluate:
                note += f" `hfgpt evaluate {self.repo_id} --data FILE` scores it on rows of your own."
        elif can_evaluate:
            shell = f"hfgpt evaluate {self.repo_id} --data FILE  # scores it on rows of your own"
        if shell:
            shell = f"\n\nor in a terminal:\n\n```bash\n{shell}\n```"
        code = "\n".join(lines)
        return f"## How to use\n\n```python\n{code}\n```{shell}{note}"

    def _example_prompt(self) -> str:
        if self.task:
            prompt = str(self.task["task"]["prompt"])
            return prompt.replace(
                "{text}", "영화가 정말 재미있었다." if self.task["language"] == "ko" else "A warm and funny film."
            )
        return "옛날 옛적에" if self._languages()[:1] == ["ko"] else "Once upon a time"

    def data(self) -> str:
        data = self.run.get("data") or {}
        lines = []
        if self._sources():
            mixture = self.results.get("mixture", [])
            # A name that is the end of an address may go on there, and has no query here.
            read = {row["source"].partition("?")[0]: row for row in mixture}
            read.update({row["source"]: row for row in mixture})
            table = [["source", "from", "documents", "tokens in the corpus", "share of training", "epochs"]]
            for source in self._sources():
                row = read.get(source["name"], {})
                table.append(
                    [
                        source["name"],
                        source.get("from") or "",
                        _count(source.get("documents")),
                        _count(source.get("tokens")),
                        f"{row['realised_weight']:.1%}" if _is_number(row.get("realised_weight")) else "",
                        f"{row['epochs']:.2f}" if _is_number(row.get("epochs")) else "",
                    ]
                )
            lines.append(_table(table))
            seen = self.results.get("train_tokens")
            steps = [f"{seen:,} tokens were seen in training."] if seen else []
            if data.get("deduplicate") in DEDUPLICATED:
                steps.append(DEDUPLICATED[data["deduplicate"]])
            steps.append(
                "Cleaned of texts that overlap with benchmarks."
                if data.get("decontaminated")
                else "Not searched for overlaps with benchmarks."
            )
            lines.append(" ".join(steps))
        elif data.get("from"):
            lines.append(f"Fine-tuned on `{data['from']}`.")
            rows = self.results.get("train_rows")
            if rows:
                lines[-1] = (
                    f"Fine-tuned on {rows:,} rows of `{data['from']}`; tested on {self.results.get('test_rows', 0):,}."
                )
            overlap = self.results.get("test_rows_in_train")
            if overlap:
                lines.append(f"{overlap:,} test rows are training rows, too.")
        return "## Training data\n\n" + "\n\n".join(lines) if lines else ""

    def schedule(self) -> str:
        run = self.run
        if not run:
            return ""
        rows = [["", ""]]

        def add(name: str, value: Any) -> None:
            if value is not None and value != "":
                rows.append([name, str(value)])

        precision = "bfloat16" if run.get("bf16") else "float16" if run.get("fp16") else "float32"
        optimizer = "Muon for the matrices of the blocks, Adam for the rest" if run.get("muon") else run.get("optim")
        if run.get("kind") == "pretraining":
            add("tokens", _count(self.results.get("train_tokens") or run.get("train_tokens")))
            add("sequence length", _count(self.results.get("sequence_length")))
            add("full batch, tokens", _count(run.get("batch_tokens")))
            if run.get("batch_ramp_tokens"):
                add(
                    "batch ramp",
                    f"from {_count(run.get('batch_ramp_start_tokens'))} tokens over the first {_count(run['batch_ramp_tokens'])}",
                )
            add("peak learning rate", _number(run.get("learning_rate")))
            add("warm-up, tokens", _count(run.get("warmup_tokens")))
            add(
                "decay",
                f"cosine to {run.get('min_learning_rate_ratio', 0):.0%} of the peak at {_count(run.get('decay_tokens'))} tokens",
            )
        else:
            add("epochs", _number(self.results.get("epoch") or run.get("num_train_epochs")))
            add("batch, rows", _count(run.get("batch_rows")))
            add("peak learning rate", _number(run.get("learning_rate")))
            add("schedule", run.get("lr_scheduler_type"))
            lora = run.get("lora") or {}
            if lora:
                add(
                    "LoRA",
                    f"rank {lora.get('lora_r')}, alpha {lora.get('lora_alpha')}, dropout {lora.get('lora_dropout')}",
                )
            if _is_number(self.results.get("trainable_share")):
                add(
                    "weights trained",
                    f"{self.results['trainable_parameters']:,} ({self.results['trainable_share']:.2%})",
                )
        add("optimizer", optimizer)
        add(
            "Adam's betas, epsilon",
            ", ".join(_number(run.get(name)) for name in ("adam_beta1", "adam_beta2", "adam_epsilon")),
        )
        add("weight decay", _number(run.get("weight_decay")))
        add("gradient clipping", _number(run.get("max_grad_norm")))
        add("precision", precision)
        add("seed", run.get("seed"))
        return "## Training\n\n" + _table(rows)

    def curve(self) -> str:
        if LOSS_CURVE_FILE not in self.found.files:
            return ""
        return f"![Loss, learning rate and batch over the run]({LOSS_CURVE_FILE})"

    def scores(self) -> str:
        rows = self._rows()
        if not rows:
            return ""
        with_intervals = any(interval or baseline for _, _, _, _, interval, baseline in rows)
        header = ["task", "data", "metric", "value"] + (["95% interval", "baseline"] if with_intervals else [])
        table = [header]
        for task, data, metric, value, interval, baseline in rows:
            table.append([task, data, metric, _number(value), *([interval, baseline] if with_intervals else [])])
        return "## Evaluation\n\n" + _table(table)

    def hardware(self) -> str:
        sessions = self.run.get("sessions") or []
        if not sessions:
            return ""
        alike: dict[str, list[dict[str, Any]]] = {}
        for session in sessions:
            alike.setdefault(_described(session), []).append(session)
        lines: list[str] = []
        for what, group in alike.items():
            seconds = sum(session.get("seconds") or 0 for session in group)
            times = f" in {len(group)} sessions" if len(group) > 1 else ""
            lines.append(f"{'Also' if lines else 'Trained'} on {what}: {_duration(seconds)}{times}{_power(group[0])}.")
        speed = self.results.get("train_tokens_per_second")
        if _is_number(speed):
            when = ", in the last session" if len(sessions) > 1 else ""
            last = list(alike).index(_described(sessions[-1]))
            lines[last] += f" {speed:,.0f} tokens a second{when}."
        emissions = carbon(self.run, self.options.carbon_intensity)
        if emissions:
            lines.append(
                f"About {_number(emissions['kwh'])} kWh and {_number(emissions['grams'] / 1000)} kg of CO2 equivalent: an "
                f"estimate from {'this power' if len(alike) == 1 else 'these powers'} at "
                f"{self.options.carbon_intensity:,.0f} g a kWh, without cooling, networks, or the runs before this one."
            )
        versions = self.run.get("versions") or {}
        if versions:
            lines.append(", ".join(f"{name} {number}" for name, number in versions.items()))
        return "## Hardware and carbon\n\n" + "\n\n".join(lines)

    def limits(self) -> str:
        if self.found.kind == "tokenizer":
            return ""
        words = (
            "It repeats what its training text says, errors and prejudice included, and states what is false as fluently as "
            "what is true. Scores hold for the data named beside them; test it on yours before people depend on it."
        )
        licence = (
            ""
            if self.license or self.kept.get("license")
            else "\n\nIts owner has not stated a licence for the weights: ask before you use them."
        )
        return f"## Limits\n\n{words}{licence}"

    def origin(self) -> str:
        if self.found.kind == "tokenizer" or (self.config.get("model_type") not in (None, "gpt3")):
            return ""
        return (
            "## Citation\n\n```bibtex\n@article{brown2020language,\n  title={Language Models are Few-Shot Learners},\n"
            "  author={Brown, Tom B. and others},\n  journal={Advances in Neural Information Processing Systems},\n"
            "  volume={33},\n  year={2020}\n}\n```"
        )


def _described(session: Mapping[str, Any]) -> str:
    device, count = session.get("device"), session.get("devices") or 1
    if session.get("on_cpu"):
        return f"{device}, {session.get('cpu_cores')} cores, {count} process{'es' if count > 1 else ''}"
    return f"{count} x {device}"


def _power(session: Mapping[str, Any]) -> str:
    watts = _watts(session)
    if watts is None:
        return ""
    return (
        f", {WATTS_PER_CPU_CORE:.0f} W a core assumed" if session.get("on_cpu") else f", {watts:,.0f} W a GPU as rated"
    )


def _table(rows: list[list[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + "-|" * len(rows[0]), *lines[1:]])


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> str:
    if not _is_number(value):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or "data"


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
