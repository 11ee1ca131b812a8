"""What correlated answers conclude."""

import numpy as np
import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import correlated
from align_jax.experiments.mpo.correlated import EXPERIMENT, SIZES, effective
from tests.experiments.made_up import readable


def measured(options, factor=1.0, lost=0.5, spread=0.001):
    return [
        Measurement(
            cell,
            {
                "error": [factor * effective(n, cell.settings["rho"]) ** -0.5 for n in SIZES],
                "gain": 1.0 - (lost + spread * cell.settings["seed"]) * cell.settings["rho"],
            },
        )
        for cell in EXPERIMENT.cells(options)
    ]


@pytest.mark.parametrize(
    ("given", "word"),
    [({}, "holds"), ({"factor": 1.2}, "fails"), ({"lost": -0.5}, "fails"), ({"lost": 0.0, "spread": 0.5}, "unclear")],
)
def test_verdicts(given, word):
    found = EXPERIMENT.conclude(measured(Options(), **given), Options())
    assert found.word == word
    assert found.figures["error over predicted, rho 0.3"].value == pytest.approx(given.get("factor", 1.0))


def test_one_seed_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1)), Options(seeds=1)).word == "unclear"


def test_the_effective_number_is_that_of_the_variance_of_a_mean():
    n, rho = 7, 0.3
    covariance = np.full((n, n), rho) + (1 - rho) * np.eye(n)
    assert 1 / effective(n, rho) == pytest.approx(covariance.sum() / n**2)
    assert effective(n, 0.0) == n and effective(n, 1.0) == 1


def test_cells_and_the_picture():
    names = [cell.name for cell in EXPERIMENT.cells(Options())]
    assert len(set(names)) == len(names) == 3 * len(correlated.CORRELATIONS)
    readable(EXPERIMENT.draw(measured(Options()), Options()))
