"""How answers are divided into sets, and what more of them conclude."""

import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import responses
from align_jax.experiments.mpo.responses import COMPUTE, EXPERIMENT, PROMPTS
from tests.experiments.made_up import readable


def measured(options, gain, spread=0.001, kinds=(PROMPTS, COMPUTE)):
    made = []
    for cell in EXPERIMENT.cells(options):
        more = (cell.settings["k"] > 2) * (cell.settings["kind"] in kinds) * (gain + spread * cell.settings["seed"])
        made.append(Measurement(cell, {key: 0.4 + more for key in ("rank", "accuracy")} | {"rank/low": 0.3, "rank/high": 0.5}))
    return made


@pytest.mark.parametrize(("gain", "spread", "word"), [(0.1, 0.001, "holds"), (-0.1, 0.001, "fails"), (0.0, 0.05, "unclear")])
@pytest.mark.parametrize("quick", [False, True])
def test_verdicts(gain, spread, word, quick):
    options = Options(quick=quick)
    assert EXPERIMENT.conclude(measured(options, gain, spread), options).word == word


def test_more_answers_must_help_in_both_comparisons():
    assert EXPERIMENT.conclude(measured(Options(), 0.1, kinds=(PROMPTS,)), Options()).word == "unclear"
    assert EXPERIMENT.conclude(measured(Options(seeds=1), 0.1), Options(seeds=1)).word == "unclear"


def test_answers_are_divided_into_sets_of_k():
    rows = [{"prompt": p, "responses": [f"{p}{i}" for i in range(7)], "scores": [float(i) for i in range(7)]} for p in "ab"]
    one, every = (responses.divided(rows, 3, 0, whole=whole) for whole in (False, True))
    assert [len(row["responses"]) for row in one] == [3, 3] and [len(row["responses"]) for row in every] == [3] * 4
    assert len({text for row in every for text in row["responses"]}) == 12
    assert all(
        text == f"{row['prompt']}{score:g}"
        for row in every
        for text, score in zip(row["responses"], row["scores"], strict=True)
    )
    assert responses.divided(rows, 3, 0, whole=True) == every != responses.divided(rows, 3, 1, whole=True)


def test_sets_without_contrast_are_left_out():
    rows = [{"prompt": "p", "responses": list("abcd"), "scores": [1.0, 1.0, 1.0, 1.0]}]
    assert responses.divided(rows, 2, 0, whole=True) == []


def test_as_many_answers_a_step_at_equal_compute():
    for options in (Options(), Options(quick=True)):
        found = EXPERIMENT.cells(options)
        assert len({cell.name for cell in found}) == len(found)
        rows = [c.settings["groups"] * c.settings["k"] for c in found if c.settings["kind"] == COMPUTE]
        assert min(rows) >= 0.89 * max(rows)
        assert {c.settings["groups"] for c in found if c.settings["kind"] == PROMPTS} == {responses.GROUPS}


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), 0.1, 0.01), Options()))
