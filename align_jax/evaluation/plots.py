"""Pictures of an evaluation, as PNG files: a row of panels for what was measured, and a panel a model for single answers."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from align_jax import losses
from align_jax.evaluation.intervals import Estimate
from align_jax.evaluation.responses import Responses

Shown = Mapping[str, tuple[Responses, Mapping[str, Estimate]]]  # model -> what it said, what was measured
_POINTS, _GROUPS = 4000, 7  # of a scatter plot, and panels of groups, at most
_DISTANCE, _SAMPLED, _CONSISTENCY = "beliefs/js_distance", "beliefs/js_distance_sampled", "consistency/accuracy"
_WORST = f"{_DISTANCE}/worst_group"
_IMPLICIT = "how much likelier the model makes an answer than the reference model does (its implicit reward)"
_SCORE = "the reward model's score"


def write_plots(shown: Shown, beta: float, folder: Path, scores: bool = False) -> Iterator[Path]:
    """Writes the pictures that the data allows; yields their paths.

    Args:
      shown: by the name that a picture gives a model.
      beta: what log-ratios are multiplied by. scores: these are a reward model's scores.
    """
    labels = next(iter(shown.values()))[0].labels
    preference = _SCORE if scores else _IMPLICIT
    figures = {}
    if "scores" in labels and "characters" in labels:
        figures["agreement"] = _agreement(shown, preference)
        figures["reward_and_length"] = _against(shown, beta, preference, _Axis("characters", "longer", "length", "characters"))
        figures["reward_and_score"] = _against(shown, beta, preference, _Axis("scores", "better scored", "score", "points"))
    if "target_probs" in labels and np.isfinite(labels["target_probs"]).all(-1).any():
        figures["belief_distance"] = _distances(shown)
        figures["belief_reliability"] = _reliability(shown)
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        yield path


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A metric in words: what it says, its scale, and what a model that knows nothing would get."""

    metric: str
    title: str
    scale: str
    chance: float | None = None
    chance_name: str = "chance"
    from_zero: bool = False


def _agreement(shown: Shown, preference: str) -> Figure:
    responses = next(iter(shown.values()))[0]
    pairs, ranks = "share of pairs of answers", "rank correlation (-1 to 1)"
    panels = [
        _Panel("rewards/accuracies", "Prefers the better answer", pairs, 0.5),
        _Panel("length/controlled_accuracy", "Prefers the better answer, whether it is longer or shorter", pairs, 0.5),
        _Panel("rewards/best_of_n", "Puts a best answer first", "share of prompts", _chance_of_best(responses)),
        _Panel("rewards/rank_correlation", "Orders answers as their scores do", ranks, 0.0, "no relation"),
        _Panel("length/reward_correlation", "Prefers longer answers", ranks, 0.0, "no relation"),
    ]
    title = f"Do the models prefer what was scored better? ({len(responses.rows)} prompts)"
    return _dots(shown, panels, title, f"A preference is {preference}. Lines: 95% intervals.")


def _chance_of_best(responses: Responses) -> float:
    """How often an answer drawn at random has the highest score of its prompt; prompts with equal scores do not count."""
    scores = np.where(responses.mask, responses.labels["scores"], -np.inf)
    best, count = (scores == scores.max(-1, keepdims=True)).sum(-1), responses.mask.sum(-1)
    counts = best < count
    return float((best / np.maximum(count, 1))[counts].mean()) if counts.any() else 0.0


def _distances(shown: Shown) -> Figure:
    responses = next(iter(shown.values()))[0]
    names = dict.fromkeys(name for _, known in shown.values() for name in known if name.startswith(f"{_DISTANCE}/"))
    few = [name for name in names if name != _WORST][:_GROUPS]
    groups = {name: f"group {name.removeprefix(f'{_DISTANCE}/')}" for name in few} | {_WORST: "the worst group"}
    scale, options = "distance (0: the same shares)", _options(responses)
    equal = _equal_guess(responses, options)
    panels = [
        _Panel(_DISTANCE, "From its probabilities", scale, equal, "equal shares", True),
        _Panel(_SAMPLED, "From what it says", scale, equal, "equal shares", True),
        *(_Panel(name, f"From its probabilities, {group}", scale, from_zero=True) for name, group in groups.items()),
        _Panel(_CONSISTENCY, "Its texts express the belief they are given", "share, by the judge", float((1 / options).mean())),
    ]
    title = f"How far are the models from what people believe? ({len(responses.rows)} rows)"
    note = "Jensen-Shannon distance to the shares of the beliefs among people. Lines: 95% intervals."
    return _dots(shown, panels, title, note)


def _options(responses: Responses) -> np.ndarray:
    """How many beliefs each row has."""
    return np.maximum(responses.mask[:, : responses.labels["target_probs"].shape[1]].sum(-1), 1)


def _equal_guess(responses: Responses, options: np.ndarray) -> float:
    """The distance of a model that gives all beliefs of a row the same probability."""
    targets = responses.labels["target_probs"]
    mask = responses.mask[:, : targets.shape[1]]
    guess = np.where(mask, 1 / options[:, None], 0)
    distances = np.asarray(losses.jensen_shannon_distance(np.where(mask, targets, 0), guess))
    return float(np.nanmean(distances))  # NaN where nobody knows the target


def _dots(shown: Shown, panels: list[_Panel], title: str, note: str) -> Figure:
    """A panel a metric, a line a model: its value as a dot with its number, its interval, and chance as a dashed line."""
    panels = [panel for panel in panels if any(panel.metric in known for _, known in shown.values())]
    names = ["\n".join(textwrap.wrap(name, 22)) for name in shown]
    columns = min(len(panels), 5)
    lines = -(-len(panels) // columns)
    size = (2.5 * columns + 1.2, lines * (1.5 + 0.34 * sum(1 + name.count("\n") for name in names)) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for unused in axes.flat[len(panels) :]:
        unused.set_visible(False)
    for panel, axis in zip(panels, axes.flat, strict=False):
        if panel.chance is not None:
            axis.axvline(panel.chance, color="black", linewidth=0.9, linestyle="--", zorder=1)
            axis.annotate(
                panel.chance_name, (panel.chance, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
                textcoords="offset points", fontsize=6.5, va="top", color="0.25",
            )  # fmt: skip
        for i, (_, known) in enumerate(shown.values()):
            found = known.get(panel.metric)
            if found is None or not np.isfinite(found.value):
                axis.annotate("not measured", (0.5, i), xycoords=("axes fraction", "data"), fontsize=7, ha="center")
                continue
            if found.low is not None and found.high is not None:
                axis.plot([found.low, found.high], [i, i], color=f"C{i}", linewidth=2, alpha=0.6, solid_capstyle="butt")
            axis.plot([found.value], [i], "o", color=f"C{i}", markersize=6, zorder=3)
            axis.annotate(
                f"{found.value:.2f}".replace("-0.00", "0.00"), (found.value, i), xytext=(0, 6), textcoords="offset points",
                zorder=2, ha="center", fontsize=7.5, bbox={"boxstyle": "round,pad=0.1", "color": "white", "alpha": 0.8},
            )  # fmt: skip
        if panel.from_zero:
            axis.plot([0], [0], alpha=0)
        axis.margins(x=0.18)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_ylim(len(names) - 0.5, -0.85)  # the first model on top, and room for chance's name
        axis.set_yticks(range(len(names)), names)
        axis.set_title("\n".join(textwrap.wrap(panel.title, 26)), fontsize=9)
        axis.set_xlabel(panel.scale, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(note, fontsize=8, color="0.3")
    return figure


@dataclasses.dataclass(frozen=True)
class _Axis:
    """A label of the data in words."""

    label: str
    comparative: str
    name: str
    unit: str


def _panels(shown: Shown, **options):
    """A panel a model, with its name above it."""
    columns = len(shown) if len(shown) <= 4 else 3
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(max(3.4 * columns, 5.4), 3.2 * lines + 0.8), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options)
    for i in range(len(shown), lines * columns):
        axes.flat[i].set_visible(False)
        axes.flat[i - columns].tick_params(labelbottom=True)
    for axis, name in zip(axes.flat, shown, strict=False):
        axis.set_title("\n".join(textwrap.wrap(name, 36)), fontsize=9)
        axis.grid(alpha=0.3)
    return figure, list(axes.flat)[: len(shown)]


def _against(shown: Shown, beta: float, preference: str, of: _Axis) -> Figure:
    """Preferences against a label, both from the prompt's mean, with the mean of tenths of the answers."""
    figure, panels = _panels(shown, sharex=True, sharey=True)
    for panel, (responses, _) in zip(panels, shown.values(), strict=True):
        x, y = (_centred(values, responses.mask) for values in (responses.labels[of.label], beta * responses.log_ratios))
        keep = np.random.default_rng(0).permutation(len(x))[:_POINTS]
        panel.axhline(0, color="grey", linewidth=0.8, linestyle="--")
        panel.scatter(x[keep], y[keep], s=6, alpha=0.35, linewidths=0, label="an answer")
        tenths = [part for part in np.array_split(np.argsort(x, kind="stable"), 10) if len(part)]
        middle = ([x[part].mean() for part in tenths], [y[part].mean() for part in tenths])
        panel.plot(*middle, color="black", marker="o", ms=3, label="mean of a tenth of the answers")
    figure.suptitle(f"Do the models prefer {of.comparative} answers? (rising: yes)", fontsize=11)
    what = "against the mean\nof the prompt's answers"
    _explain(figure, panels, f"A preference is {preference}.", f"{of.name} ({of.unit}), {what}", f"preference, {what}")
    return figure


def _explain(figure: Figure, panels, note: str, xlabel: str, ylabel: str) -> None:
    """What the axes are, at the panels that show their numbers, and one legend for all below the figure."""
    for panel in panels:
        shape = panel.get_subplotspec()
        if panel.xaxis.get_tick_params()["labelbottom"]:
            panel.set_xlabel(xlabel, fontsize=8)
        if shape.is_first_col():
            panel.set_ylabel(ylabel, fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, title=note, title_fontsize=8)


def _centred(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    values = np.where(mask, values, 0.0).astype(np.float64)
    return (values - values.sum(-1, keepdims=True) / np.maximum(mask.sum(-1, keepdims=True), 1))[mask]


def _reliability(shown: Shown) -> Figure:
    """Predicted against target probability of every belief of every prompt."""
    figure, panels = _panels(shown, sharex=True, sharey=True)
    for panel, (responses, _) in zip(panels, shown.values(), strict=True):
        targets = responses.labels["target_probs"]
        count = targets.shape[1]
        mask, logps = responses.mask[:, :count], responses.logps[:, :count]
        logps = np.where(mask, logps, -np.inf)
        predicted = np.exp(logps - logps.max(-1, keepdims=True))
        predicted /= predicted.sum(-1, keepdims=True)
        mask = mask & np.isfinite(targets)
        points = np.unique(np.stack([targets[mask], predicted[mask]], 1).round(4), axis=0)
        panel.plot([0, 1], [0, 1], color="grey", linewidth=0.9, linestyle="--", label="as people believe")
        panel.scatter(*points.T, s=9, alpha=0.5, linewidths=0, label="a belief of a prompt", clip_on=False)
        panel.set(xlim=(0, 1), ylim=(0, 1))
    figure.suptitle("Do the models give beliefs the shares that people give them?", fontsize=11)
    note = "The model's probabilities are taken over the beliefs of the prompt."
    _explain(figure, panels, note, "share of the people\nwho hold the belief", "probability that\nthe model gives it")
    return figure
