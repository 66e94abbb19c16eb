"""Scaling laws: the loss of small runs against their compute, and what it says of the next size.

    loss(C) = a + b * C^-k

C is the training compute of a run in FLOPs, a the loss that no compute removes. Source: the form of Kaplan et al. 2020
(arXiv 2001.08361) with the constant of Henighan et al. 2020 (arXiv 2010.14701); Brown et al. 2020, figure 3.1.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .model import GPT3Config
from .planner import PlanOptions, count_parameters, flops_per_token, load_config, read_recipe


MIN_RUNS = 4  # three numbers are fitted
TOKENS_TOLERANCE = 0.01  # a run trains on whole steps: a little more than its recipe says


@dataclass(frozen=True)
class Run:
    """A finished pretraining run as a point of the curve.

    Attributes:
        name: Its folder.
        parameters: Of its model.
        tokens: Trained on.
        flops: Training compute: dense-equivalent FLOPs a token times tokens.
        loss: Held-out loss, nats a token.
        vocab_size: Words; losses a token of different vocabularies do not compare.
    """

    name: str
    parameters: int
    tokens: int
    flops: float
    loss: float
    vocab_size: int | None = None


@dataclass(frozen=True)
class ScalingLaw:
    """loss = a + b * (C / unit)^-k, with `unit` the geometric mean of the runs' compute.

    Attributes:
        a: Loss that no compute removes, nats a token.
        b: What compute removes, at C = unit.
        k: How fast.
        unit: FLOPs.
        max_relative_error: The worst of the runs' own losses against the curve.
    """

    a: float
    b: float
    k: float
    unit: float
    max_relative_error: float

    def loss(self, flops: float) -> float:
        """The loss that a run of so much compute should reach."""
        return self.a + self.b * (flops / self.unit) ** -self.k


def read_run(folder: str | Path) -> Run:
    """A run from what pretraining left in its folder.

    Raises:
        ValueError: It is not the folder of a finished run with held-out text.
    """
    folder = Path(folder)
    try:
        results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
        config = GPT3Config.from_pretrained(folder)
        tokens, loss = results["train_tokens"], results["eval_loss"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} is not the folder of a finished pretraining run (all_results.json with `train_tokens` and "
            f"`eval_loss`, and config.json): {error}"
        ) from None
    length = results.get("sequence_length") or config.max_position_embeddings
    return make_run(str(folder), config, length, tokens, loss)


def make_run(name: str, config: GPT3Config, sequence_length: int, tokens: int, loss: float) -> Run:
    """A point of the curve."""
    flops = flops_per_token(config, sequence_length).dense * tokens
    return Run(name, count_parameters(config), tokens, flops, loss, config.vocab_size)


@dataclass(frozen=True)
class Ladder:
    """Finished runs, and the size that they are to predict.

    Attributes:
        runs: What is fitted.
        target: The next size; its loss is that measured, or not a number. None where none is named.
        vocab_size: That of the target's corpus; None where it is not known.
        notes: What the figures do not say.
    """

    runs: list[Run]
    target: Run | None
    vocab_size: int | None
    notes: list[str] = field(default_factory=list)


def read_ladder(folders: list[str], options: PlanOptions) -> Ladder:
    """Finished runs from their folders, and the model or recipe of `options` as the next size.

    The target's vocabulary is `options.vocab_size`, else that of the runs where they share one, unless the recipe's
    `model_overrides` or the model's own config say another. Its tokens are `options.tokens`, else the recipe's, else
    those of the runs where they are equal. Where the recipe's `output_dir` (or the model's folder) is a finished run of
    that size, its loss is the measured one, and it is not fitted.

    Raises:
        ValueError: A folder is not that of a finished run, one is given twice, the target's tokens are not known, or an
            option is wrong.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(folder for folder, path in zip(folders, paths) if paths.count(path) > 1)
        raise ValueError(f"`--fit` names {twice} twice; each run counts once.")
    recipe = read_recipe(options.recipe)
    wanted = options.model or recipe.get("preset")
    trained = None
    if wanted is not None:
        own = options.model if options.model and Path(options.model).is_dir() else recipe.get("output_dir")
        trained = Path(own) if own is not None and (Path(own) / "all_results.json").exists() else None
    fitted = [folder for folder, path in zip(folders, paths) if trained is None or path != trained.resolve()]
    runs = [read_run(folder) for folder in fitted]
    notes = []
    if len(fitted) < len(folders):
        notes.append(f"{trained} is what is predicted, so it is not among the runs that were fitted.")
    words = {run.vocab_size for run in runs}
    if len(words) > 1:
        notes.append("The runs have different vocabularies: their losses a token do not compare.")
    vocab_size = options.vocab_size or (words.pop() if len(words) == 1 else None)
    if wanted is None:
        return Ladder(runs, None, vocab_size, notes)

    name, config = load_config(options.model, recipe, vocab_size)
    length = options.sequence_length or recipe.get("sequence_length") or config.max_position_embeddings
    tokens = options.tokens or recipe.get("train_tokens")
    if tokens is None:
        counts = {run.tokens for run in runs}
        if len(counts) != 1:
            raise ValueError(
                f"On how many tokens is {name} to be trained? The runs had different numbers of them: give `--tokens`."
            )
        tokens = counts.pop()
    target = make_run(options.recipe or name, config, length, tokens, math.nan)
    if trained is not None:
        done = read_run(trained)
        near = abs(done.tokens / tokens - 1.0) <= TOKENS_TOLERANCE
        if near and done.parameters == target.parameters:
            target = done
        else:
            notes.append(
                f"{trained} is a run of {done.parameters:,} parameters on {done.tokens:,} tokens, not of "
                f"{target.parameters:,} on {tokens:,}: its loss is not compared."
            )
    return Ladder(runs, target, vocab_size, notes)


def fit(runs: list[Run]) -> ScalingLaw:
    """The law that passes nearest to the runs, in relative error of the loss.

    Raises:
        ValueError: Fewer than four runs, runs of equal compute, or a loss that does not fall with it.
    """
    from scipy.optimize import least_squares

    runs = sorted(runs, key=lambda run: run.flops)
    if len(runs) < MIN_RUNS or len({run.flops for run in runs}) < MIN_RUNS:
        raise ValueError(f"A fit needs {MIN_RUNS} or more runs of different compute, got {len(runs)}.")
    if runs[-1].loss >= runs[0].loss:
        raise ValueError(
            f"The loss does not fall with compute: {runs[0].loss:.3f} ({runs[0].name}) to {runs[-1].loss:.3f} "
            f"({runs[-1].name}). Give larger sizes a lower learning rate, or all of them more tokens."
        )
    losses = np.array([run.loss for run in runs])
    unit = float(np.exp(np.mean([np.log(run.flops) for run in runs])))
    scaled = np.log(np.array([run.flops for run in runs]) / unit)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        a, b, k = np.exp(parameters)
        return np.log((a + b * np.exp(-k * scaled)) / losses)

    # Several beginnings: from hardly any constant to nearly all of it.
    best = min(
        (
            least_squares(residuals, np.log([share * losses.min(), (1 - share) * losses.mean(), k]))
            for share in (0.01, 0.3, 0.6, 0.9)
            for k in (0.05, 0.2, 0.5)
        ),
        key=lambda result: result.cost,
    )
    a, b, k = (float(value) for value in np.exp(best.x))
    worst = float(np.abs(np.expm1(best.fun)).max())
    return ScalingLaw(a, b, k, unit, worst)


def predict(runs: list[Run], flops: float) -> tuple[float, tuple[float, float]]:
    """The loss at `flops`, and the range of it over fits that leave out one run each (where enough are left)."""
    value = fit(runs).loss(flops)
    values = [value]
    if len(runs) > MIN_RUNS:
        for left_out in runs:
            try:
                values.append(fit([run for run in runs if run is not left_out]).loss(flops))
            except ValueError:
                continue
    return value, (min(values), max(values))


def draw(path: str | Path, runs: list[Run], target: Run | None = None, predicted: float | None = None) -> None:
    """The runs, the curve, and the next size, as a PNG: loss against compute, both logarithmic.

    Args:
        path: The PNG.
        runs: Those that were fitted.
        target: The next size; its loss is that measured, or not a number.
        predicted: Its predicted loss.

    Raises:
        ValueError: A file of a kind that is not drawn, or that cannot be written.
    """
    from matplotlib.figure import Figure

    law = fit(runs)
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    flops = [run.flops for run in runs] + ([target.flops] if target else [])
    curve = np.geomspace(min(flops) / 1.3, max(flops) * 1.3, 200)
    axes.plot(curve, [law.loss(c) for c in curve], "-", linewidth=1.2, label=f"{law.a:.2f} + b C^-{law.k:.3f}")
    axes.plot([run.flops for run in runs], [run.loss for run in runs], "o", label="fitted runs")
    if target is not None and predicted is not None:
        axes.plot([target.flops], [predicted], "s", fillstyle="none", markersize=9, label="predicted")
        if np.isfinite(target.loss):
            axes.plot([target.flops], [target.loss], "x", markersize=8, label="measured")
    axes.set(xscale="log", yscale="log", xlabel="training compute (FLOPs)", ylabel="held-out loss (nats per token)")
    axes.yaxis.set_major_formatter("{x:g}")  # losses span less than a power of ten
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"Cannot write the plot {path}: {error.strerror}.") from None


def report(runs: list[Run], target: Run | None) -> dict[str, Any]:
    """The fit and the prediction as numbers; `predicted_range` is None where too few runs are left without one."""
    law = fit(runs)
    result: dict[str, Any] = {
        "law": {"a": law.a, "b": law.b, "k": law.k, "unit_flops": law.unit},
        "max_relative_error": law.max_relative_error,
        "runs": [],
    }
    for run in sorted(runs, key=lambda run: run.flops):
        fitted = law.loss(run.flops)
        result["runs"].append({**vars(run), "fitted_loss": fitted, "relative_error": fitted / run.loss - 1.0})
    if target is not None:
        value, (low, high) = predict(runs, target.flops)
        result |= {
            "target": target.name,
            "target_parameters": target.parameters,
            "target_tokens": target.tokens,
            "target_flops": target.flops,
            "predicted_loss": value,
            "predicted_range": [low, high] if len(runs) > MIN_RUNS else None,
        }
        if np.isfinite(target.loss):
            result |= {"measured_loss": target.loss, "prediction_error": value / target.loss - 1.0}
    return result


def report_lines(fitted: dict[str, Any]) -> list[str]:
    """A report for reading."""
    law, runs = fitted["law"], fitted["runs"]
    width = max(len("run"), *(len(run["name"]) for run in runs))
    lines = [f"{'run':{width}}  {'parameters':>15}  {'tokens':>15}  {'FLOPs':>9}   loss  fitted   error"]
    for run in runs:
        lines.append(
            f"{run['name']:{width}}  {run['parameters']:15,}  {run['tokens']:15,}  {run['flops']:9.3g}  {run['loss']:5.3f}  "
            f"{run['fitted_loss']:6.3f}  {run['relative_error']:+6.1%}"
        )
    lines += [
        "",
        f"loss = {law['a']:.3f} + {law['b']:.3f} (C / {law['unit_flops']:.3g})^-{law['k']:.3f}: held-out nats a token "
        "after C FLOPs of training (dense-equivalent)",
    ]
    if "predicted_loss" in fitted:
        spread = fitted["predicted_range"]
        words = f"no range: leaving out one run each needs {MIN_RUNS + 1} of them"
        if spread is not None:
            words = f"{spread[0]:.3f} to {spread[1]:.3f} by leaving out one run each"
        lines.append(
            f"{fitted['target']}: {fitted['target_parameters']:,} parameters on {fitted['target_tokens']:,} tokens, "
            f"{fitted['target_flops']:.3g} FLOPs"
        )
        lines.append(f"predicted loss {fitted['predicted_loss']:.3f} ({words})")
    if "measured_loss" in fitted:
        lines.append(
            f"measured loss {fitted['measured_loss']:.3f}: the prediction is off by {fitted['prediction_error']:+.1%}"
        )
    return lines
