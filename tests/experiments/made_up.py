"""Made-up measurements of an experiment, for tests of what is concluded of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from align_jax.experiments.claim import Cell, Experiment, Measurement, Options

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measurements(experiment: Experiment, values: Callable[[Cell], dict[str, Any]], seeds: int = 3) -> list[Measurement]:
    """A measurement of every cell; names of cells are unique."""
    cells = experiment.cells(Options(seeds=seeds))
    assert len({cell.name for cell in cells}) == len(cells)
    return [Measurement(cell, values(cell)) for cell in cells]


def judged(experiment: Experiment, measured: list[Measurement], seeds: int = 3) -> str:
    """The verdict's word; the picture can be drawn, too."""
    options = Options(seeds=seeds)
    readable(experiment.draw(measured, options))
    return experiment.conclude(measured, options).word


def readable(figure: Figure) -> None:
    """A picture that can be drawn, has a title, and says at every panel's axis what it shows."""
    figure.savefig("/dev/null", format="png", dpi=20)
    assert figure.get_suptitle()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert shown and all(axes.get_xlabel() for axes in shown)
