"""What correlated answers conclude."""

import numpy as np
import pytest

from align_jax.experiments.claim import Cell, Measurement, Options
from align_jax.experiments.mpo import correlated
from align_jax.experiments.mpo.correlated import EXPERIMENT, SIZES, effective
from tests.experiments.made_up import readable


def measured(options, factor=1.0, lost=0.5, spread=0.001):
    return [
        Measurement(
            cell,
            {
                "error": [[factor * effective(n, cell.settings["rho"]) ** -0.5 for n in SIZES]] * cell.settings["repeats"],
                "gain": [
                    2.0 - (lost + spread * (cell.settings["seed"] - 1 + 0.1 * i)) * cell.settings["rho"]
                    for i in range(cell.settings["repeats"])
                ],
            },
        )
        for cell in EXPERIMENT.cells(options)
    ]


@pytest.mark.parametrize(
    ("given", "word"),
    [({}, "holds"), ({"factor": 1.2}, "fails"), ({"lost": -0.5}, "fails"), ({"lost": -0.2, "spread": 0.5}, "unclear")],
)
def test_verdicts(given, word):
    found = EXPERIMENT.conclude(measured(Options(), **given), Options())
    assert found.word == word
    assert found.figures["measured error / predicted error, rho 0.3"].value == pytest.approx(given.get("factor", 1.0))


def test_what_is_lost_is_said_in_standard_deviations_and_as_a_share():
    found = EXPERIMENT.conclude(measured(Options(), lost=0.5, spread=0.0), Options()).figures
    assert found["gain with rho 0 less that with rho 0.6, standard deviations"].value == pytest.approx(0.3)
    assert found["the same as a share of the gain with rho 0"].value == pytest.approx(0.15)


def test_a_cell_measures_its_repeats(monkeypatch):
    monkeypatch.setattr(correlated, "STEPS", 3)
    cell = EXPERIMENT.cells(Options(quick=True))[1]
    found = EXPERIMENT.measure(Cell(cell.name, {**cell.settings, "repeats": 2}), None)
    assert np.shape(found["error"]) == (2, len(SIZES)) and len(set(found["gain"])) == 2


def test_the_effective_number_is_that_of_the_variance_of_a_mean():
    n, rho = 7, 0.3
    covariance = np.full((n, n), rho) + (1 - rho) * np.eye(n)
    assert 1 / effective(n, rho) == pytest.approx(covariance.sum() / n**2)
    assert effective(n, 0.0) == n and effective(n, 1.0) == 1


def test_cells_and_the_picture():
    names = [cell.name for cell in EXPERIMENT.cells(Options())]
    assert len(set(names)) == len(names) == 3 * len(correlated.CORRELATIONS)
    readable(EXPERIMENT.draw(measured(Options()), Options()))
