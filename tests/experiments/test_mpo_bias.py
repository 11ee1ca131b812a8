"""Errors of sets against their slow definitions, and what is concluded of their slopes."""

import numpy as np
import pytest

from align_jax.experiments.claim import Cell, Interval, Measurement, Options
from align_jax.experiments.mpo import bias
from align_jax.experiments.mpo.bias import ACCEPTED, ATTRIBUTE, EXPERIMENT, SCATTER, SIGNED, SIZES
from tests.experiments.made_up import readable
from tests.losses import reference


def measured(options, slope, spread=0.0, loss=-0.5):
    made, n = [], np.asarray(SIZES, float)
    for cell in EXPERIMENT.cells(options):
        repeats = range(cell.settings["repeats"])
        own = [(n ** (slope + spread * (cell.settings["seed"] - 1 + 0.1 * i))).tolist() for i in repeats]
        values = {ATTRIBUTE: own, ACCEPTED: own, SCATTER: [(n**loss).tolist() for _ in repeats]}
        made.append(Measurement(cell, {**values, SIGNED: [(-0.5 / n).tolist() for _ in repeats]}))
    return made


@pytest.mark.parametrize(("slope", "spread", "word"), [(-0.5, 0.001, "holds"), (-0.9, 0.001, "fails"), (-0.5, 0.1, "unclear")])
def test_verdicts(slope, spread, word):
    found = EXPERIMENT.conclude(measured(Options(), slope, spread), Options())
    assert found.word == word
    assert found.figures[f"slope: {bias.NAMES[SIGNED]}"].value == pytest.approx(-1.0)


@pytest.mark.parametrize("loss, word", [(-0.56, "holds"), (-0.44, "fails")])
def test_the_loss_may_fall_faster_and_not_slower(loss, word):
    assert EXPERIMENT.conclude(measured(Options(), -0.5, 0.001, loss=loss), Options()).word == word


def test_slopes_are_of_large_sets():
    """Whatever small sets do."""
    found = measured(Options(), -0.5)
    for one in found:
        one.values[SCATTER] = [[9.0 if n < bias.FROM else e for n, e in zip(SIZES, r, strict=True)] for r in one[SCATTER]]
    assert bias.slopes(found, SCATTER).value == pytest.approx(-0.5)


def test_a_cell_measures_its_repeats(monkeypatch):
    for name, value in (("CHUNK", 2**10), ("SIZES", (2, 16))):
        monkeypatch.setattr(bias, name, value)
    cell = EXPERIMENT.cells(Options(quick=True))[0]
    small = Cell(cell.name, {**cell.settings, "repeats": 2, "answers": bias.CHUNK})
    found = EXPERIMENT.measure(small, None)
    assert np.shape(found[ATTRIBUTE]) == (2, 2) and found[ATTRIBUTE][0] != found[ATTRIBUTE][1]


def test_one_interval_unknown_is_unclear():
    assert bias.near(Interval(-0.5)) == "unclear"


def test_errors_are_those_of_mpo_on_the_same_sets():
    count, n = 5, 8
    _, accepted, loss = bias.errors(np.random.default_rng(3), count, n)
    rng = np.random.default_rng(3)
    scores, noise, other = rng.standard_normal((3, count, n), np.float32).astype(np.float64)
    z = bias.SCALE * (bias.AGREE * scores + np.sqrt(1 - bias.AGREE**2) * noise)
    graded = bias.AGREE * scores + np.sqrt(1 - bias.AGREE**2) * other
    slow = reference.rows(reference.mpo, z, np.zeros_like(z), scores, np.ones(z.shape, bool), beta=1.0)
    np.testing.assert_allclose(loss + bias.loss_of_all(), slow, rtol=1e-5)
    means = [g[s > s.mean()].mean() - bias.AGREE * np.sqrt(2 / np.pi) for g, s in zip(graded, scores, strict=True)]
    np.testing.assert_allclose(accepted, means, rtol=1e-4, atol=1e-6)


def test_the_loss_of_all_answers_is_that_of_a_large_set():
    errors = bias.errors(np.random.default_rng(0), 1, 2**20)
    assert [float(one[0]) for one in errors] == pytest.approx([0, 0, 0], abs=0.01)


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), -0.5, 0.01), Options()))
