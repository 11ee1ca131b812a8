"""What weights conclude, and that with p = 0 they are none."""

import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import alpha
from align_jax.experiments.mpo.alpha import DECIDES, EXPERIMENT, REAL, TABLE_ALPHAS
from tests.experiments.made_up import readable


def measured(options, gain, spread=0.001, prompt=0.0):
    made = []
    for cell in EXPERIMENT.cells(options):
        if cell.settings["where"] == REAL:
            own = (cell.settings["alpha"], cell.settings["p"]) in DECIDES
            value = 0.4 + own * (gain + spread * cell.settings["seed"])
            prompts = {"rank": [value + prompt * own, value - prompt * own], "wins": [8 * value] * 2, "pairs": [8, 8]}
            made.append(Measurement(cell, {"rank": value, "accuracy": value, "prompts": prompts}))
        else:
            made.append(Measurement(cell, {"gain": [0.8 + gain * a for a in TABLE_ALPHAS]}))
    return made


@pytest.mark.parametrize(("gain", "spread", "word"), [(0.1, 0.001, "holds"), (-0.1, 0.001, "fails"), (0.0, 0.05, "unclear")])
@pytest.mark.parametrize("quick", [False, True])
def test_verdicts(gain, spread, word, quick):
    options = Options(quick=quick)
    found = EXPERIMENT.conclude(measured(options, gain, spread), options)
    assert found.word == word
    for name in ("alpha 0.2, p 1 less no weights: rank", "alpha 1, p 1 less no weights: rank, over prompts"):
        assert found.figures[name].value == pytest.approx(gain + spread)
    assert found.figures["table: alpha 1, p 1 less no weights, share of the possible gain"].value == pytest.approx(gain)
    assert len(found.line) < 450


def test_other_prompts_must_say_the_same():
    assert EXPERIMENT.conclude(measured(Options(), 0.1, prompt=0.5), Options()).word == "unclear"


def test_one_alpha_that_loses_fails_the_claim():
    found = measured(Options(), 0.1)
    for one in found:
        if one.cell.settings.get("alpha") == 0.2:
            one.values.update(rank=0.2, prompts={"rank": [0.2] * 2, "wins": [1.0] * 2, "pairs": [8, 8]})
    assert EXPERIMENT.conclude(found, Options()).word == "fails"


def test_one_seed_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1), 0.2), Options(seeds=1)).word == "unclear"


def test_alpha_does_not_matter_where_all_deviations_weigh_the_same(monkeypatch):
    monkeypatch.setattr(alpha, "TABLE_ALPHAS", (0.0, 4.0))
    monkeypatch.setattr(alpha, "STEPS", 200)
    none, much = alpha.table_gains(0, 0, 1)
    assert 0 < none < 1 and much == pytest.approx(none, rel=1e-4)


def test_cells_have_names_of_their_own():
    for options in (Options(), Options(quick=True)):
        names = [cell.name for cell in EXPERIMENT.cells(options)]
        assert len(set(names)) == len(names)


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), 0.1, 0.01), Options()))
