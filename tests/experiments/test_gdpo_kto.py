"""What is concluded of KTO and rounds with beliefs first; and the preferences that the reward model learns."""

import numpy as np
import pytest

from align_jax.experiments import world
from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.gdpo import kto
from tests.experiments.made_up import readable

pytest.importorskip("matplotlib")


def measured(options, distance, fits=0.9):
    """Alone: distance 0.3 and consistency 0.9; with beliefs what is given."""
    found, start = [], 0.38
    for cell in kto.EXPERIMENT.cells(options):
        given, noise = cell.settings["arm"].startswith("gdpo"), cell.settings["seed"] / 100
        values = {
            "distance": start if cell.settings["arm"] == "start" else distance + noise if given else 0.3,
            "consistency": fits if given else 0.9,
        }
        found.append(Measurement(cell, values | {"mass": 1.0, "entropy": 1.0}))
    return found


@pytest.mark.parametrize(
    ("distance", "fits", "word"),
    [(0.1, 0.9, "holds"), (0.5, 0.9, "fails"), (0.1, 0.6, "fails"), (0.29, 0.9, "unclear")],
)
def test_verdicts(distance, fits, word):
    found = measured(Options(), distance, fits)
    verdict = kto.EXPERIMENT.conclude(found, Options())
    assert verdict.word == word and "GDPO with KTO" in verdict.line
    readable(kto.EXPERIMENT.draw(found, Options()))


def test_beliefs_that_end_no_nearer_than_they_began_do_not_hold():
    found = measured(Options(), 0.1)
    for one in found:
        if one["arm"] == "start":
            one.values["distance"] = 0.07
    verdict = kto.EXPERIMENT.conclude(found, Options())
    assert verdict.word == "fails" and "before training 0.070" in verdict.line


def test_one_seed_is_unclear():
    assert kto.EXPERIMENT.conclude(measured(Options(seeds=1), 0.1), Options(seeds=1)).word == "unclear"


def test_the_reward_learns_what_people_prefer_and_what_fits():
    (topic,) = world.topics({"most": (0.9, 0.1)}, 1, seed=0)
    row = world.row(np.random.default_rng(0), topic, 0, 1)
    whole, judged = kto.whole(row), kto.judged(row)
    assert whole["chosen"] == judged["chosen"] == f"0 : support : {row['accept_response']}"
    assert whole["rejected"] == f"1 : oppose : {row['reject_response']}"
    assert judged["rejected"] == f"0 : support : {row['reject_response']}"
