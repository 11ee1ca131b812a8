"""What is concluded of the choices in which this library and the authors' code differ."""

import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.gdpo.authors import ARMS, EXPERIMENT, OURS
from align_jax.objectives import find_objective
from tests.experiments.made_up import readable

pytest.importorskip("matplotlib")


def measured(options, distance=0.05, consistency=0.9):
    """Ours has 0.05 and 0.9; `tv` what is given."""
    found = []
    for cell in EXPERIMENT.cells(options):
        noise = cell.settings["seed"] / 1000 * (cell.settings["arm"] != OURS)
        other = cell.settings["arm"] == "tv"
        last = (distance if other else 0.05) + noise
        values = {"distance": last, "consistency": consistency if other else 0.9, "mass": 0.99}
        found.append(
            Measurement(cell, values | {"steps_measured": [0, 8], "distances": [0.3, last], "near": 8 if last < 0.05 else None})
        )
    return found


@pytest.mark.parametrize(
    ("distance", "consistency", "word"),
    [(0.05, 0.9, "holds"), (0.2, 0.5, "holds"), (0.02, 0.9, "fails"), (0.05, 0.97, "fails"), (0.0365, 0.9, "unclear")],
)
def test_an_alternative_that_is_better_decides(distance, consistency, word):
    found = measured(Options(), distance, consistency)
    assert EXPERIMENT.conclude(found, Options()).word == word
    readable(EXPERIMENT.draw(found, Options()))


def test_one_seed_is_unclear_and_steps_are_told():
    verdict = EXPERIMENT.conclude(measured(Options(seeds=1), 0.02), Options(seeds=1))
    assert (
        verdict.word == "unclear"
        and "TV 8" in verdict.line
        and "ours none" in verdict.line
        and "not within 300" in verdict.line
    )


def test_objectives_that_exist():
    for given in ARMS.values():
        assert find_objective("gdpo")(beta=0.1, **given).name == "gdpo"
