"""What shapes of scores conclude."""

import numpy as np
import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import distribution
from align_jax.experiments.mpo.distribution import ARMS, DPO, EXPERIMENT, MPO, SHAPES
from tests.experiments.made_up import readable


def measured(options, gain, spread=0.001, but=None):
    made = []
    for cell in EXPERIMENT.cells(options):
        more = gain if cell.settings["shape"] != but else -gain
        more += spread * cell.settings["seed"]
        values = {f"gain/{arm}": 0.5 + more * (arm != DPO) for arm in ARMS} | {"accepted": 0.5, "heaviest": 0.3}
        made.append(Measurement(cell, values))
    return made


@pytest.mark.parametrize(
    ("gain", "spread", "but", "word"),
    [(0.1, 0.001, None, "holds"), (-0.1, 0.001, None, "fails"), (0.1, 0.001, "few good", "fails"), (0.0, 0.2, None, "unclear")],
)
def test_verdicts(gain, spread, but, word):
    found = EXPERIMENT.conclude(measured(Options(), gain, spread, but), Options())
    assert found.word == word
    assert found.figures[f"{MPO} - DPO, uniform"].value == pytest.approx(gain + spread)


def test_one_seed_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1), 0.1), Options(seeds=1)).word == "unclear"


def test_shapes_are_what_their_names_say():
    found = {shape: distribution.true_scores(np.random.default_rng(0), shape, 20000) for shape in SHAPES}
    assert all(0 <= scores.min() and scores.max() <= 10 for scores in found.values())
    share = {shape: float(np.mean(scores > 5)) for shape, scores in found.items()}
    assert share["few good"] < 0.1 and share["few bad"] > 0.9 and abs(share["uniform"] - 0.5) < 0.02
    assert np.mean(np.abs(found["two heaps"] - 5) < 1) < 0.01


def test_figures_of_sets():
    found = distribution.set_figures(np.array([[0.0, 0.0, 0.0, 4.0], [1.0, 1.0, 1.0, 1.0]]))
    heavy = np.exp(distribution.ALPHA * 3) / (np.exp(distribution.ALPHA * 3) + 3 * np.exp(distribution.ALPHA))
    assert found["accepted"] == pytest.approx(1 / 8)
    assert found["heaviest"] == pytest.approx((heavy + 0.25) / 2)


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), 0.1), Options()))
