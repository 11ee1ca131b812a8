"""Made-up measurements of an experiment, for tests of what is concluded of them."""

from collections.abc import Callable
from typing import Any

from align_jax.experiments.claim import Cell, Experiment, Measurement, Options


def measurements(experiment: Experiment, values: Callable[[Cell], dict[str, Any]], seeds: int = 3) -> list[Measurement]:
    """A measurement of every cell; names of cells are unique."""
    cells = experiment.cells(Options(seeds=seeds))
    assert len({cell.name for cell in cells}) == len(cells)
    return [Measurement(cell, values(cell)) for cell in cells]


def judged(experiment: Experiment, measured: list[Measurement], seeds: int = 3) -> str:
    """The verdict's word; the picture can be drawn, too."""
    options = Options(seeds=seeds)
    experiment.draw(measured, options).savefig("/dev/null", format="png", dpi=20)
    return experiment.conclude(measured, options).word
