"""What two sets against more levels concludes."""

import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo.levels import ARMS, EXPERIMENT, MORE, SHOWN, TWO
from align_jax.objectives import find_objective
from tests.experiments.made_up import readable


def measured(options, gain, spread=0.0):
    return [
        Measurement(cell, dict.fromkeys(SHOWN, 0.4 + (gain + spread * cell.settings["seed"]) * (cell.settings["arm"] == MORE)))
        for cell in EXPERIMENT.cells(options)
    ]


@pytest.mark.parametrize(("gain", "spread", "word"), [(0.1, 0.001, "holds"), (-0.1, 0.001, "fails"), (0.0, 0.05, "unclear")])
@pytest.mark.parametrize("quick", [False, True])
def test_verdicts(gain, spread, word, quick):
    options = Options(quick=quick)
    found = EXPERIMENT.conclude(measured(options, gain, spread), options)
    assert found.word == word
    assert found.figures[f"{MORE} less {TWO}: rank"].value == pytest.approx(gain + spread)
    assert "in accuracy" in found.line and len(found.line) < 450


def test_one_seed_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1), 0.2), Options(seeds=1)).word == "unclear"


def test_cells_have_names_of_their_own():
    for options in (Options(), Options(quick=True)):
        names = [cell.name for cell in EXPERIMENT.cells(options)]
        assert len(set(names)) == len(names)


def test_objectives_that_exist():
    for given in ARMS.values():
        made = find_objective(given["name"])(**{key: value for key, value in given.items() if key != "name"})
        assert made.name == given["name"]


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), 0.3, 0.01), Options()))
