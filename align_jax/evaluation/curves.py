"""The picture of a run: how loss, rewards, beliefs and the learning rate went, with evaluations as dots."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import MissingPackage, optional

_SMOOTH = 25  # a curve of more points than this gets a running mean
_PART = 20  # which is over this part of all its points
_OF_EVERY_SET = ("loss", "rewards/accuracies", "beliefs/js_distance")  # an evaluation has one of these


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      title, ylabel: what it shows.
      metrics: name -> what its curve is called, where there are several. Evaluations of it (`eval/` + name) are dots.
      dots: evaluations of which the steps have nothing, and what they are called.
      level: a value that means something, and its name. log: of the y axis. smooth: draw a running mean.
    """

    title: str
    ylabel: str
    metrics: Mapping[str, str]
    dots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    level: tuple[float, str] | None = None
    log: bool = False
    smooth: bool = True


_REWARDS = {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}
_PARTS = {"loss/calibration": "calibration of beliefs", "loss/belief": "belief statements", "loss/preference": "preference"}
_WORST = {"eval/beliefs/js_distance/worst_group": "worst group"}
PANELS = (
    Panel("Loss", "loss per prompt", {"loss": ""}),
    Panel("Parts of the loss", "loss per prompt (log scale)", _PARTS, log=True),
    Panel("Rewards", "reward", _REWARDS, level=(0.0, "")),
    Panel("Margin of rewards", "chosen minus rejected", {"rewards/margins": ""}, level=(0.0, "")),
    Panel("Accuracy", "part of pairs: chosen above rejected", {"rewards/accuracies": ""}, level=(0.5, "chance")),
    Panel("Beliefs: distance to the target", "Jensen-Shannon distance", {"beliefs/js_distance": "all"}, _WORST, (0.0, "")),
    Panel("KL to the reference", "nats per response", {}, {"eval/kl/reference": ""}, (0.0, "")),
    Panel("Loss on texts (data.eval_text)", "nats per token", {}, {"eval/text/loss": ""}),
    Panel("Consistency of belief and text", "part of texts that say their belief", {}, {"eval/consistency/accuracy": ""}),
    Panel("Gradient norm", "norm before clipping (log scale)", {"grad_norm": ""}, log=True),
    Panel("Learning rate", "learning rate of the step", {"learning_rate": ""}, level=(0.0, ""), smooth=False),
)


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> str:
    """Draws a run's curves to a PNG file, whatever happens: a run does not fail for its picture.

    Args:
      history: lines of metrics.jsonl, `step` among their values.

    Returns:
      A line for the user: where the picture is, or why there is none.
    """
    try:
        figure = curves(history, path.parent.name)
        if figure is None:
            return "picture  none: no step was logged"
        figure.savefig(path, dpi=110)
    except MissingPackage as error:
        return f"picture  none: {error}"
    except Exception as error:  # matplotlib fails in ways of its own, and the weights are what was wanted
        return f"picture  none: {type(error).__name__}: {error}"
    return f"picture  {path}"


def curves(history: Sequence[Mapping[str, Any]], title: str = "") -> Any:
    """The figure, with the panels for which there is anything; None where there is none.

    Raises:
      MissingPackage: matplotlib is not installed.
    """
    optional("matplotlib", "plots", "a picture")
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(len(points(history, name)[0]) for name in _names(panel, history))]
    if not panels:
        return None
    width = min(len(panels), 3 if len(panels) <= 6 else 4)
    lines = -(-len(panels) // width)
    figure = Figure(figsize=(4.4 * width, 3.2 * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, width, squeeze=False, sharex=True).flat
    smooth = max(_smooth(len(points(history, name)[0])) for panel in panels for name in panel.metrics or ["loss"])
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, history)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[len(panels) - width : len(panels)]:  # those with nothing below them
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.tick_params(labelbottom=True)
    lines_are = "thin lines: each step's batch; thick lines: mean of" if smooth > 1 else "lines: each step's batch"
    lines_are += f" {smooth} steps" if smooth > 1 else ""
    dots_are = "; dots: evaluation on data.eval" if any(name.startswith("eval/") for line in history for name in line) else ""
    figure.suptitle(f"{title}\n{lines_are}{dots_are}".strip(), fontsize=10)
    return figure


def points(history: Iterable[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, where it was measured and is finite."""
    found = [(record["step"], record[name]) for record in history if record.get(name) is not None]
    found = [(step, value) for step, value in found if math.isfinite(value)]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps), np.asarray(values, np.float64)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean around every value, over up to `width` of them: as many on one side as on the other, so fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    half = np.minimum(width // 2, np.minimum(at, at[::-1]))  # a mean of one side alone would run ahead of a trend
    low, high = at - half, at + half + 1
    return (sums[high] - sums[low]) / (high - low)


def _smooth(count: int) -> int:
    """Over how many points the running mean is; 1 where there is none."""
    return count // _PART * 2 + 1 if count > _SMOOTH else 1


def evaluation_sets(history: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the evaluation sets that metrics are of; none where there is one set without a name."""
    names = dict.fromkeys(name for record in history for name in record)
    parts = [name.split("/", 2) for name in names if name.startswith("eval/") and not name.startswith("eval/text/")]
    return list(dict.fromkeys(part[1] for part in parts if len(part) == 3 and part[2] in _OF_EVERY_SET))


def _of_sets(history: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """An evaluation metric of every set that there is -> what its dots are called."""
    sets = evaluation_sets(history)
    return {f"eval/{of}/{name}": of for of in sets} if sets else {f"eval/{name}": ""}


def _names(panel: Panel, history: Sequence[Mapping[str, Any]]) -> list[str]:
    dots = [_of_sets(history, name.removeprefix("eval/")) for name in panel.dots if not name.startswith("eval/text/")]
    of_metrics = [_of_sets(history, name) for name in panel.metrics]
    return [*panel.metrics, *panel.dots, *(name for found in [*dots, *of_metrics] for name in found)]


def _draw(axes: Any, panel: Panel, history: Sequence[Mapping[str, Any]]) -> None:
    colours = itertools.cycle(f"C{i}" for i in range(10))
    for name, text in panel.metrics.items():
        colour = next(colours)
        _line(axes, points(history, name), colour, text, panel)
        for dots, of in _of_sets(history, name).items():
            # of one curve, evaluations have a colour of their own; of several, each that of its curve
            own, called = (colour, _called(of, text)) if len(panel.metrics) > 1 else (next(colours), of)
            _dots(axes, *points(history, dots), own, called if of else "", _marker(history, of))
    for name, text in panel.dots.items():
        sets = {name: ""} if name.startswith("eval/text/") else _of_sets(history, name.removeprefix("eval/"))
        for dots, of in sets.items():
            _dots(axes, *points(history, dots), next(colours), _called(of, text), _marker(history, of))
    if panel.level is not None:
        value, name = panel.level
        axes.axhline(value, color="black", linewidth=0.8, linestyle="--" if name else "-", alpha=0.6, label=name or None)
    _axes(axes, panel)


def _line(axes: Any, found: tuple[np.ndarray, np.ndarray], colour: str, text: str, panel: Panel) -> None:
    steps, values = found
    if not len(steps):
        return
    width = _smooth(len(values)) if panel.smooth else 1
    thin = {"linewidth": 0.8, "alpha": 0.35} if width > 1 else {"linewidth": 1.6, "label": text or None}
    axes.plot(steps, values, color=colour, marker="." if len(steps) == 1 else None, **thin)
    if width > 1:
        mean = np.exp(running_mean(np.log(values), width)) if panel.log and (values > 0).all() else running_mean(values, width)
        axes.plot(steps, mean, color=colour, linewidth=1.9, label=text or None)


def _called(of: str, text: str) -> str:
    """A set's dots in the legend."""
    return ", ".join(filter(None, (of, text)))


def _marker(history: Sequence[Mapping[str, Any]], of: str) -> str:
    """Of the dots of a set."""
    return "osD^vP"[evaluation_sets(history).index(of) % 6] if of else "o"


def _dots(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, text: str, marker: str = "o") -> None:
    if len(steps):
        style = {"linestyle": ":", "linewidth": 1.2, "markersize": 7, "markeredgecolor": "white", "zorder": 5}
        axes.plot(steps, values, color=colour, marker=marker, label=text or None, **style)


def _axes(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

    if panel.log and any((np.asarray(line.get_ydata(), np.float64) > 0).any() for line in axes.lines):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        wide = high / low > 200
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(LogFormatterSciNotation() if high > 1e4 or low < 1e-3 else lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif not panel.smooth:  # a learning rate
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylabel(panel.ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.7)
