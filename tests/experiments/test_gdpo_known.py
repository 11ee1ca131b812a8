"""What is concluded of calibration and of conflicting preferences, on made-up measurements; and the world that they are on."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from align_jax.experiments import world
from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.gdpo import calibration, conflict
from align_jax.experiments.opinions import BELIEFS, sentence
from tests.experiments.made_up import readable

pytest.importorskip("matplotlib")


def calibrated(last: float, seeds: int = 3, spread: float = 1e-4) -> list[Measurement]:
    options, found = Options(seeds=seeds), []
    for cell in calibration.EXPERIMENT.cells(options):
        value = last + spread * cell.settings["seed"]
        curves = {f"distance/{kind}": [0.3, 0.001] for kind in calibration.TARGETS} | {"distance/95/5": [0.5, value]}
        found.append(Measurement(cell, {"steps_measured": [0, 10], "mass": 0.99, **curves}))
    return found


@pytest.mark.parametrize(
    "last, seeds, word", [(0.01, 3, "holds"), (0.05, 3, "fails"), (0.02, 3, "unclear"), (0.01, 1, "unclear")]
)
def test_calibration_is_judged_by_its_worst_target(last, seeds, word):
    options = Options(seeds=seeds)
    verdict = calibration.EXPERIMENT.conclude(calibrated(last, seeds, 0.01 if word == "unclear" else 1e-4), options)
    assert verdict.word == word
    readable(calibration.EXPERIMENT.draw(calibrated(last, seeds), options))


def test_a_quick_run_that_misses_the_limit_of_calibration_is_unclear():
    for quick, word in ((False, "fails"), (True, "unclear")):
        verdict = calibration.EXPERIMENT.conclude(calibrated(0.05), Options(quick=quick))
        assert verdict.word == word and "0.5" in verdict.line and "95/5 taken for 93.7/6.3" in verdict.line


def test_what_is_left_on_the_belief_that_nobody_holds():
    left = calibration.left_on_zero(0.05)
    truth = np.asarray(calibration.TARGETS[calibration.ZERO])
    assert 0 < left < 0.05
    assert jensenshannon([0.5 * (1 - left), 0.3 * (1 - left), 0.2 * (1 - left), left], truth) == pytest.approx(0.05)


def conflicts(dpo: float, gdpo: float) -> list[Measurement]:
    found = []
    for cell in conflict.EXPERIMENT.cells(Options()):
        own = cell.settings
        if own["what"] == "gradients":
            values = {"dpo": 1e-6, "gdpo": 0.6 + own["seed"] / 100}
        else:
            minority = {"dpo": dpo, "gdpo": gdpo}[own["objective"]] + own["seed"] / 100
            values = {"steps_measured": [0, 10], "majority": [0.0, 2.0], "minority": [0.0, minority]}
        found.append(Measurement(cell, values))
    return found


@pytest.mark.parametrize(
    "dpo, gdpo, word", [(-1.0, 1.0, "holds"), (1.0, 1.0, "fails"), (-1.0, -1.0, "fails"), (-0.01, 1.0, "unclear")]
)
def test_a_conflict_is_judged_by_the_minority(dpo, gdpo, word):
    measured = conflicts(dpo, gdpo)
    assert conflict.EXPERIMENT.conclude(measured, Options()).word == word
    readable(conflict.EXPERIMENT.draw(measured, Options()))


def test_both_sides_are_about_the_same_two_texts():
    topics = world.topics({"half": (0.5, 0.5)}, 3, seed=1)
    for one, other in conflict.opposites(topics, seed=1):
        assert one["accept_response"] == other["reject_response"] and one["prompt"] == other["prompt"]
        assert one["reject_choice_id"] == other["accept_choice_id"] and one["accept_choice"] == "support"
        assert one["options"] == ["support", "oppose"]


def test_beliefs_of_the_world_are_told_by_its_sentences():
    rng = np.random.default_rng(0)
    for i, belief in enumerate(BELIEFS):
        assert {world.belief_of(sentence(rng, "city parks", belief)) for _ in range(20)} == {i}
    assert world.belief_of("a sentence of another world") is None


def test_rows_of_the_world_have_the_shares_that_are_asked_for():
    (topic,) = world.topics({"most": (0.9, 0.1, 0.0)}, 1, seed=0)
    rows = world.rows([topic], 2000, seed=0)
    shares = np.bincount([row["accept_choice_id"] for row in rows], minlength=3) / 2000
    np.testing.assert_allclose(shares, topic.probs, atol=0.03)
    assert all(row["reject_choice_id"] != row["accept_choice_id"] and len(row["options"]) == 3 for row in rows)
    assert rows[0]["probabilities"] == pytest.approx(topic.probs) and rows[0]["group"] == "most"
