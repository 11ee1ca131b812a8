"""Plots of an evaluation, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from align_jax.evaluation.intervals import Estimate
from align_jax.evaluation.responses import Responses

Shown = Mapping[str, tuple[Responses, Mapping[str, Estimate]]]  # model -> what it said, what was measured
_POINTS = 4000  # of a scatter plot, at most

_AGREEMENT = {
    "rewards/accuracies": "accuracy",
    "length/controlled_accuracy": "length-controlled\naccuracy",
    "rewards/best_of_n": "best of n",
    "rewards/rank_correlation": "rank correlation",
    "length/reward_correlation": "correlation\nwith length",
}
_DISTANCE, _SAMPLED = "beliefs/js_distance", "beliefs/js_distance_sampled"


def write_plots(shown: Shown, beta: float, folder: Path, reward: str = "implicit reward") -> Iterator[Path]:
    """Writes the plots that the data allows; yields their paths. `reward` is what `beta` times the log-ratios are called."""
    labels = next(iter(shown.values()))[0].labels
    figures = {}
    if "scores" in labels and "characters" in labels:
        figures["agreement"] = _agreement(shown, reward)
        length = "length against the prompt's mean (characters)"
        figures["reward_and_length"] = _against(shown, beta, reward, "characters", length)
        figures["reward_and_score"] = _against(shown, beta, reward, "scores", "score against the prompt's mean")
    if "target_probs" in labels:
        figures["belief_distance"] = _distances(shown)
        figures["belief_reliability"] = _reliability(shown)
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        yield path


def _bars(shown: Shown, metrics: Mapping[str, str], title: str, ylabel: str) -> Figure:
    """A group of bars per metric, a bar per model, with intervals."""
    metrics = {name: text for name, text in metrics.items() if any(name in known for _, known in shown.values())}
    figure = Figure(figsize=(max(6, 1.6 * len(metrics) + 2), 4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(shown)
    for i, (model, (_, known)) in enumerate(shown.items()):
        found = [known.get(name) for name in metrics]
        values = np.asarray([e.value if e else np.nan for e in found])
        low, high = (np.asarray([v if e and (v := getattr(e, end)) is not None else np.nan for e in found])
                     for end in ("low", "high"))  # fmt: skip
        # The percentile interval of a skewed metric may leave its own value out.
        errors = np.nan_to_num(np.stack([values - low, high - values])).clip(0)
        places = np.arange(len(metrics)) + (i - (len(shown) - 1) / 2) * width
        axes.bar(places, values, width, yerr=errors, label=model, capsize=2, error_kw={"linewidth": 0.8})
    axes.set_xticks(np.arange(len(metrics)), list(metrics.values()))
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(title=title, ylabel=ylabel)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _agreement(shown: Shown, reward: str) -> Figure:
    return _bars(shown, _AGREEMENT, f"{reward.capitalize()} against scores and length (95% intervals)", "")


def _distances(shown: Shown) -> Figure:
    names = dict.fromkeys(name for _, known in shown.values() for name in known if name.startswith(f"{_DISTANCE}/"))
    groups = {name: name.removeprefix(f"{_DISTANCE}/").replace("worst_group", "worst group") for name in names}
    metrics = {_DISTANCE: "predicted", _SAMPLED: "sampled"} | groups
    return _bars(shown, metrics, "Distance of the beliefs to the target (95% intervals)", "Jensen-Shannon distance")


def _panels(shown: Shown, **options):
    columns = len(shown) if len(shown) <= 4 else 3
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options)
    for i in range(len(shown), lines * columns):
        axes.flat[i].set_visible(False)
        axes.flat[i - columns].tick_params(labelbottom=True)
    return figure, axes.flat


def _against(shown: Shown, beta: float, reward: str, label: str, xlabel: str) -> Figure:
    """Rewards against a label, both from the prompt's mean, with the mean of tenths of the responses."""
    figure, panels = _panels(shown, sharex=True)
    for panel, (model, (responses, _)) in zip(panels, shown.items(), strict=False):
        x, y = (_centred(values, responses.mask) for values in (responses.labels[label], beta * responses.log_ratios))
        keep = np.random.default_rng(0).permutation(len(x))[:_POINTS]
        panel.scatter(x[keep], y[keep], s=5, alpha=0.35, linewidths=0)
        tenths = [part for part in np.array_split(np.argsort(x, kind="stable"), 10) if len(part)]
        panel.plot([x[part].mean() for part in tenths], [y[part].mean() for part in tenths], color="black", marker="o", ms=3)
        panel.axhline(0, color="grey", linewidth=0.6)
        panel.set_title(model, fontsize=9)
        panel.grid(alpha=0.3)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(f"{reward} against the prompt's mean", fontsize=9)
    return figure


def _centred(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    values = np.where(mask, values, 0.0).astype(np.float64)
    return (values - values.sum(-1, keepdims=True) / np.maximum(mask.sum(-1, keepdims=True), 1))[mask]


def _reliability(shown: Shown) -> Figure:
    """Predicted against target probability of every belief of every prompt."""
    figure, panels = _panels(shown, sharex=True, sharey=True)
    for panel, (model, (responses, _)) in zip(panels, shown.items(), strict=False):
        targets = responses.labels["target_probs"]
        count = targets.shape[1]
        mask, logps = responses.mask[:, :count], responses.logps[:, :count]
        logps = np.where(mask, logps, -np.inf)
        predicted = np.exp(logps - logps.max(-1, keepdims=True))
        predicted /= predicted.sum(-1, keepdims=True)
        points = np.unique(np.stack([targets[mask], predicted[mask]], 1).round(4), axis=0)
        panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        panel.scatter(*points.T, s=8, alpha=0.5, linewidths=0)
        panel.set_title(model, fontsize=9)
        panel.grid(alpha=0.3)
    figure.supxlabel("target probability of a belief", fontsize=9)
    figure.supylabel("predicted (renormalised over the beliefs)", fontsize=9)
    return figure
