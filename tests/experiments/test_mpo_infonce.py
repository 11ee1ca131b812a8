"""The bound against float64 InfoNCE, and what is concluded of it and of where training ends."""

import numpy as np
import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import infonce
from align_jax.experiments.mpo.infonce import EXPERIMENT, INFORMATION, REFERENCE, SCORES, SIZES
from tests.experiments.made_up import readable
from tests.losses import reference


def measured(options, over=0.0, off=0.001, away=0.0, spread=1e-5):
    """Bounds at the information plus `over`; MPO with `off` outside the accepted set; InfoNCA `away` from its optimum."""
    accepted, made = np.asarray(SCORES) > np.mean(SCORES), []
    for cell in EXPERIMENT.cells(options):
        mass = off + spread * cell.settings["seed"]
        mpo = np.where(accepted, (1 - mass) / accepted.sum(), mass / (~accepted).sum())
        nca = infonce.infonca_optimum() + (away + spread * cell.settings["seed"]) * np.array([1, -1, *[0] * 6])
        values = {f"bound/{i:g}": [i + over + spread * cell.settings["seed"]] * len(SIZES) for i in INFORMATION}
        for start in infonce.STARTS:
            values |= {f"mpo/{start}": mpo.tolist(), f"infonca/{start}": nca.tolist()}
        made.append(Measurement(cell, values))
    return made


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "holds"),
        ({"over": 0.1}, "fails"),
        ({"over": -0.2}, "fails"),
        ({"off": 0.2}, "fails"),
        ({"away": 0.1}, "fails"),
        ({"off": 0.009, "spread": 0.002}, "unclear"),
    ],
)
def test_verdicts(given, word):
    assert EXPERIMENT.conclude(measured(Options(), **given), Options()).word == word


def test_one_seed_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1)), Options(seeds=1)).word == "unclear"


def test_losses_are_infonce_of_the_density_ratio():
    known, k, count = 0.8, 6, 4
    found = infonce.gaussian_loss(np.random.default_rng(5), known, k, count)
    rng, rho = np.random.default_rng(5), np.sqrt(1 - np.exp(-2 * known))
    x, y = rng.standard_normal((count, 1), np.float32), rng.standard_normal((count, k), np.float32)
    y[:, 0] = rho * x[:, 0] + np.sqrt(1 - rho**2) * y[:, 0]
    ratio = -0.5 * (y - rho * x) ** 2 / (1 - rho**2) - 0.5 * np.log(1 - rho**2) + 0.5 * y.astype(np.float64) ** 2
    np.testing.assert_allclose(found, [-np.log(reference.softmax(row)[0]) for row in ratio], rtol=1e-4, atol=1e-5)


def test_the_bound_is_below_the_information_and_tight_for_many_answers():
    known, rng = 0.5, np.random.default_rng(0)
    found = {k: np.log(k) - infonce.gaussian_loss(rng, known, k, 2**17 // k).mean() for k in (2, 128)}
    assert found[2] < 0.35 and found[128] == pytest.approx(known, abs=0.05)


def test_the_optimum_of_infonca():
    weights = np.asarray(REFERENCE) * np.exp(np.asarray(SCORES) / (infonce.BETA * infonce.TEMPERATURE))
    np.testing.assert_allclose(infonce.infonca_optimum(), weights / weights.sum())


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options()), Options()))
