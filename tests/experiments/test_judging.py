"""What the experiments of the world judge by."""

import pytest
from scipy.spatial.distance import jensenshannon

from align_jax.experiments import judging
from align_jax.experiments.claim import Cell, Interval, Measurement, Options


def test_a_distance_is_pictured_by_shares_that_are_as_far():
    assert judging.example(0.02) == "95/5 taken for 93.7/6.3"
    assert jensenshannon([0.95, 0.05], [0.937, 0.063]) == pytest.approx(0.02, abs=2e-4)
    assert "0.02 is about 95/5 taken for 93.7/6.3" in judging.explained(0.02)


def test_shares_stay_within_what_is_possible():
    found = judging.share([0.9, 1.0, 1.0])
    assert found.high == 1.0 and found.low < 0.9 and found.value == pytest.approx(29 / 30)
    assert judging.share([0.9]) == Interval(0.9)


def test_equal_numbers_differ_by_nothing():
    own, other = ([Measurement(Cell("a", {}), {"x": x})] for x in (0.1 + 0.2, 0.3))
    assert judging.less(own, other, "x") == Interval(0.0)


@pytest.mark.parametrize("word", ["holds", "fails", "unclear"])
def test_a_limit_that_is_missed_is_unclear_in_a_quick_run_alone(word):
    assert judging.reached(word, Options()) == word
    assert judging.reached(word, Options(quick=True)) == ("unclear" if word == "fails" else word)
