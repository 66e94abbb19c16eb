"""Scaling laws: the loss of small runs against their compute, and what it says of the next size.

    loss(C) = a + b * C^-k

C is the training compute of a run in FLOPs, a the loss that no compute removes. Source: the form of Kaplan et al. 2020
(arXiv 2001.08361) with the constant of Henighan et al. 2020 (arXiv 2010.14701); Brown et al. 2020, figure 3.1.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .model import GPT3Config
from .planner import flops_per_token


MIN_RUNS = 4  # three numbers are fitted


@dataclass(frozen=True)
class Run:
    """A finished pretraining run as a point of the curve.

    Attributes:
        name: Its folder.
        parameters: Of its model.
        tokens: Trained on.
        flops: Training compute: dense-equivalent FLOPs a token times tokens.
        loss: Held-out loss, nats a token.
    """

    name: str
    parameters: int
    tokens: int
    flops: float
    loss: float


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
    from .planner import count_parameters

    flops = flops_per_token(config, sequence_length).dense * tokens
    return Run(name, count_parameters(config), tokens, flops, loss)


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
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def report(runs: list[Run], target: Run | None) -> dict[str, Any]:
    """The fit and the prediction as numbers."""
    law = fit(runs)
    result: dict[str, Any] = {
        "law": {"a": law.a, "b": law.b, "k": law.k, "unit_flops": law.unit},
        "max_relative_error": law.max_relative_error,
        "runs": [vars(run) for run in sorted(runs, key=lambda run: run.flops)],
    }
    if target is not None:
        value, (low, high) = predict(runs, target.flops)
        result |= {"predicted_loss": value, "predicted_range": [low, high], "target_flops": target.flops}
        if np.isfinite(target.loss):
            result |= {"measured_loss": target.loss, "prediction_error": value / target.loss - 1.0}
    return result
