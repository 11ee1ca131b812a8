"""What wrong scores are, and what is concluded of them."""

import numpy as np
import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import miscalibrated
from align_jax.experiments.mpo.miscalibrated import CONTROL, EXPERIMENT, FOOLED, NOISE
from tests.experiments.made_up import readable


def measured(options, harm):
    """MPO takes `harm` more than the others of both kinds."""
    made = []
    for cell in EXPERIMENT.cells(options):
        more = harm * (cell.settings["arm"] == "MPO") + 0.001 * cell.settings["seed"]
        accuracy = 0.7 - cell.settings["share"] * (0.1 + more / 0.6)
        values = {"accuracy": accuracy} if cell.settings["kind"] == NOISE else {"beaten": 0.99, "margin": 0.4 + more}
        made.append(Measurement(cell, values))
    return made


@pytest.mark.parametrize(("harm", "word"), [(0.0, "holds"), (-0.2, "holds"), (0.2, "fails")])
@pytest.mark.parametrize("quick", [False, True])
def test_verdicts(harm, word, quick):
    options = Options(quick=quick)
    found = EXPERIMENT.conclude(measured(options, harm), options)
    assert found.word == word
    for kind in miscalibrated.WHAT.values():
        assert found.figures[f"MPO less DPO: {kind}"].value == pytest.approx(harm, abs=1e-9)
    assert len(found.line) < 450


def test_harm_of_one_kind_is_enough_to_fail():
    found = measured(Options(), 0.0)
    for one in found:
        if one["arm"] == "MPO" and one["kind"] == FOOLED:
            one.values["margin"] += 0.3
    assert EXPERIMENT.conclude(found, Options()).word == "fails"


def test_one_seed_is_unclear():
    options = Options(seeds=1)
    assert EXPERIMENT.conclude(measured(options, 0.2), options).word == "unclear"


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), 0.1), Options()))


def test_cells_have_names_of_their_own():
    for options in (Options(), Options(quick=True)):
        names = [cell.name for cell in EXPERIMENT.cells(options)]
        assert len(set(names)) == len(names)
        assert {cell.settings["kind"] for cell in EXPERIMENT.cells(options)} == {NOISE, FOOLED, CONTROL}


def test_noise_replaces_its_share_of_the_scores_by_others_of_the_data():
    rows = [{"prompt": "p", "responses": list("abcd"), "scores": [float(4 * i + j) for j in range(4)]} for i in range(500)]
    assert [row["scores"] for row in miscalibrated.noisy(rows, 0.0, 1)] == [row["scores"] for row in rows]
    found = miscalibrated.noisy(rows, 0.6, 1)
    before, after = (np.concatenate([row["scores"] for row in part]) for part in (rows, found))
    assert np.mean(before != after) == pytest.approx(0.6, abs=0.04)
    assert set(after) <= set(before) and rows[0]["scores"] == [0.0, 1.0, 2.0, 3.0]


def test_rows_with_and_without_the_string():
    row = {"prompt": "p", "responses": ["a", "b", "c", "d", "string"], "scores": [1.0, 9.0, 3.0, 2.0, 7.0]}
    kept = miscalibrated.with_string(row, 2, True)
    assert kept["responses"] == ["b", "a", "string"] and kept["scores"] == [9.0, 1.0, 7.0]
    assert miscalibrated.with_string(row, 2, False)["responses"] == ["b", "a"]
    assert miscalibrated.real_above_string(row)["scores"] == [1.0, 1.0, 1.0, 1.0, 0.0]
