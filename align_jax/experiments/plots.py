"""The house style of experiments' pictures: a title that is a sentence, axes with units, intervals, colours told apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align_jax.experiments.claim import Interval, over_seeds

# Okabe and Ito's, which the colour-blind tell apart; with a marker each, so that grey prints are read too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", "-.", ":")


def figure(title: str, note: str = "", *, columns: int = 1, rows: int = 1, size: tuple[float, float] = (5.2, 3.8), **axes):
    """A figure with a title above and an explanation below all panels; returns it and its axes `[rows, columns]`.

    Args:
      title: a sentence that says what is seen. note: what a reader must know. size: of a panel, in inches.
    """
    width = size[0] * columns
    extra = 0.55 + 0.17 * note.count("\n")
    made = Figure(figsize=(width, size[1] * rows + extra), layout="constrained")
    panels = made.subplots(rows, columns, squeeze=False, **axes)
    letters = max(40, int(width * 13))
    made.suptitle("\n".join(textwrap.wrap(title, letters)), fontsize=12)
    if note:
        made.supxlabel("\n".join(textwrap.wrap(note, int(letters * 1.25))), fontsize=8, color="0.3")
    for axis in panels.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return made, panels


def curve(axis: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], name: str, number: int) -> None:
    """The mean of seeds `[seeds, points]` as a line with its marker, and their range as a band."""
    values = np.asarray(seeds, np.float64)
    colour = COLOURS[number % len(COLOURS)]
    axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
    every = max(1, len(x) // 8)
    axis.plot(
        x, values.mean(0), STYLES[number % len(STYLES)], color=colour, label=name, linewidth=1.8,
        marker=MARKERS[number % len(MARKERS)], markevery=every, markersize=5,
    )  # fmt: skip


def bars(
    axis: Axes, names: Sequence[str], seeds: Sequence[Sequence[float]], label: str, limit: float | None = None,
    possible: tuple[float, float] = (-np.inf, np.inf),
) -> None:  # fmt: skip
    """A horizontal dot a name with its 95% interval over seeds, cut to what is possible, and every seed as a small dot.

    Args:
      limit: a dashed line. possible: the least and the most that a value can be, such as (0, 1) for shares.
    """
    for i, values in enumerate(seeds):
        found, colour = over_seeds(values), COLOURS[i % len(COLOURS)]
        if found.known:
            ends = np.clip([found.low, found.high], *possible)
            axis.plot(ends, [i, i], color=colour, linewidth=2.5, alpha=0.5, solid_capstyle="butt")
        axis.plot(values, [i] * len(values), ".", color="0.25", markersize=4, zorder=3)
        axis.plot([found.value], [i], MARKERS[i % len(MARKERS)], color=colour, markersize=8, zorder=2)
        _number(axis, f"{found.value:.3g}", found.value, i)
    _rows(axis, names, label, limit)


def legend(axis: Axes, **options) -> None:
    """The legend of a panel, small, where it hides least."""
    axis.legend(fontsize=8, frameon=True, framealpha=0.85, **options)


def intervals(axis: Axes, names: Sequence[str], found: Sequence[Interval], label: str, limit: float | None = None) -> None:
    """A horizontal dot a name with its interval and its number; `limit` as a dashed line."""
    for i, one in enumerate(found):
        colour = COLOURS[i % len(COLOURS)]
        if one.known:
            axis.plot([one.low, one.high], [i, i], color=colour, linewidth=2.5, alpha=0.5, solid_capstyle="butt")
        axis.plot([one.value], [i], MARKERS[i % len(MARKERS)], color=colour, markersize=8, zorder=2)
        number = f"{one.value:.3g}"
        _number(axis, number, one.value, i)
    _rows(axis, names, label, limit)


def _number(axis: Axes, text: str, value: float, row: int) -> None:
    """A number above its dot, on white: a dashed line may stand there."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    axis.annotate(text, (value, row), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8, bbox=box, zorder=4)


def _rows(axis: Axes, names: Sequence[str], label: str, limit: float | None) -> None:
    if limit is not None:
        axis.axvline(limit, color="black", linewidth=0.9, linestyle="--", zorder=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.7)
    axis.margins(x=0.12)
    axis.set_xlabel(label)
