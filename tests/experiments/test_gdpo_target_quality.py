"""How p* is estimated and moved, and what is concluded of what reaches the model."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.gdpo import target_quality as quality
from tests.experiments.made_up import readable

pytest.importorskip("matplotlib")
TOPICS = quality.EACH * len(quality.ANSWERS)


def measured(options, added=0.0, shrunk=0.1):
    found = []
    for cell in quality.EXPERIMENT.cells(options):
        told = np.full(TOPICS, {"raw": 0.2, "shrunk": shrunk}.get(cell.settings["arm"], 0.15)) + cell.settings["seed"] / 1000
        values = {"of_estimate": told.tolist(), "of_model": (told + added).tolist(), "between": [abs(added)] * TOPICS}
        found.append(Measurement(cell, values | {"band": [[0.1, 0.2]] * TOPICS, "mass": 1.0, "consistency": 1.0}))
    for one in found:  # a gain that is not the same for all seeds
        if one["arm"] == "shrunk":
            one.values["of_model"] = [x + 0.004 * (one["seed"] - 1) for x in one["of_model"]]
    return found


@pytest.mark.parametrize(
    ("added", "shrunk", "word"),
    [(0.0, 0.1, "holds"), (0.1, 0.1, "fails"), (-0.1, 0.1, "fails"), (0.0, 0.3, "fails"), (0.0, 0.199, "unclear")],
)
def test_what_is_told_must_be_what_is_learned(added, shrunk, word):
    found = measured(Options(), added, shrunk)
    assert quality.EXPERIMENT.conclude(found, Options()).word == word
    readable(quality.EXPERIMENT.draw(found, Options()))


def test_errors_that_cancel_do_not_hold():
    found = measured(Options())
    for one in found:  # nearer to the truth than what was told at one level, farther at another: on average as far
        if one["arm"] == "raw":
            one.values["between"] = [0.08] * quality.EACH + [0.0] * (TOPICS - quality.EACH)
    verdict = quality.EXPERIMENT.conclude(found, Options())
    assert verdict.word == "fails" and "0.08 [0.08, 0.08] (raw frequencies, 5 answers" in verdict.line
    quick = Options(quick=True)
    assert quality.EXPERIMENT.conclude(found, quick).word == "unclear"


def test_one_seed_is_unclear():
    found = measured(Options(seeds=1))
    assert quality.EXPERIMENT.conclude(found, Options(seeds=1)).word == "unclear"
    readable(quality.EXPERIMENT.draw(found, Options(seeds=1)))


def test_a_moved_distribution_is_off_by_that_much():
    for truth in quality.truths(0):
        for by in quality.MOVED:
            told = quality.moved(truth, by)
            assert told.min() >= 0 and told.sum() == pytest.approx(1)
            assert np.abs(told - truth).sum() / 2 == pytest.approx(min(by, 1 - truth.min()))


def test_estimates():
    rng, truth = np.random.default_rng(0), quality.truths(3)
    counts = np.stack([rng.multinomial(5, p) for p in truth])
    raw, band = quality.estimates("raw", counts)
    np.testing.assert_allclose(raw, counts / 5)
    smoothed, _ = quality.estimates("prior", counts)
    np.testing.assert_allclose(smoothed, (counts + 1) / 9)
    shrunk, _ = quality.estimates("shrunk", counts)
    away = [np.mean([jensenshannon(p, q) for p, q in zip(found, truth, strict=True)]) for found in (raw, smoothed, shrunk)]
    assert away[2] < away[1] < away[0] and all(0 < mean < high < 1 for mean, high in band)
