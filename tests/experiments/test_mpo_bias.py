"""Errors of sets against their slow definitions, and what is concluded of their slopes."""

import numpy as np
import pytest

from align_jax.experiments.claim import Interval, Measurement, Options
from align_jax.experiments.mpo import bias
from align_jax.experiments.mpo.bias import ACCEPTED, ATTRIBUTE, EXPERIMENT, SCATTER, SIGNED, SIZES
from tests.experiments.made_up import readable
from tests.losses import reference


def measured(options, slope, spread=0.0):
    made, n = [], np.asarray(SIZES, float)
    for cell in EXPERIMENT.cells(options):
        own = (n ** (slope + spread * cell.settings["seed"])).tolist()
        values = {ATTRIBUTE: own, ACCEPTED: own, SCATTER: (n**-0.5).tolist(), SIGNED: (-0.5 / n).tolist()}
        made.append(Measurement(cell, values))
    return made


@pytest.mark.parametrize(("slope", "spread", "word"), [(-0.5, 0.001, "holds"), (-0.9, 0.001, "fails"), (-0.5, 0.05, "unclear")])
def test_verdicts(slope, spread, word):
    found = EXPERIMENT.conclude(measured(Options(), slope, spread), Options())
    assert found.word == word
    assert found.figures[f"slope: {bias.NAMES[SIGNED]}"].value == pytest.approx(-1.0)


def test_one_seed_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1), -0.5), Options(seeds=1)).word == "unclear"
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
