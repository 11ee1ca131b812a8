"""The bound against float64 InfoNCE, and what is concluded of it and of where training ends."""

import numpy as np
import pytest

from align_jax.experiments.claim import Cell, Measurement, Options
from align_jax.experiments.mpo import infonce
from align_jax.experiments.mpo.infonce import EXPERIMENT, INFORMATION, REFERENCE, SCORES, SIZES
from tests.experiments.made_up import readable
from tests.losses import reference


def measured(options, over=0.0, off=0.001, away=0.0, spread=1e-5, apart=0.2):
    """Bounds at the information plus `over`; MPO with `off` outside the accepted set; InfoNCA `away` from its optimum.

    The two ends of MPO are `apart`.
    """
    accepted, made = np.asarray(SCORES) > np.mean(SCORES), []
    for cell in EXPERIMENT.cells(options):
        repeats = [cell.settings["seed"] - 1.45 + 0.1 * i for i in range(cell.settings["repeats"])]
        values = {f"bound/{i:g}": [[i + over + spread * r] * len(SIZES) for r in repeats] for i in INFORMATION}
        for start in infonce.STARTS:
            ends = [np.where(accepted, (1 - off - spread * r) / 4, (off + spread * r) / 4) for r in repeats]
            moved = apart * (start == "elsewhere") * np.array([1, -1, *[0] * 6])
            values[f"mpo/{start}"] = [(one + moved).tolist() for one in ends]
            other = [infonce.infonca_optimum() + (away + spread * r) * np.array([1, -1, *[0] * 6]) for r in repeats]
            values[f"infonca/{start}"] = [one.tolist() for one in other]
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
        ({"off": 0.0099, "spread": 0.002}, "unclear"),
        ({"over": 0.0099, "spread": 0.002}, "unclear"),  # an interval's high end decides
        ({"apart": 0.001}, "fails"),
    ],
)
def test_verdicts(given, word):
    assert EXPERIMENT.conclude(measured(Options(), **given), Options()).word == word


def test_the_line_is_short_and_names_the_highest_end():
    line = EXPERIMENT.conclude(measured(Options(), over=0.004, spread=0.0), Options()).line
    assert "0.0040 nats" in line and len(line) < 450


def test_a_cell_measures_its_repeats(monkeypatch):
    for name, value in (("STEPS", 3), ("SIZES", (2, 8)), ("CHUNK", 2**12)):
        monkeypatch.setattr(infonce, name, value)
    cell = EXPERIMENT.cells(Options(quick=True))[0]
    found = EXPERIMENT.measure(Cell(cell.name, {**cell.settings, "repeats": 2, "answers": 2**12}), None)
    assert np.shape(found["bound/0.5"]) == (2, 2) and np.shape(found["mpo/elsewhere"]) == (2, len(SCORES))
    for key in ("mpo/elsewhere", "bound/4"):
        assert not np.allclose(found[key][0], found[key][1], rtol=1e-6)


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
