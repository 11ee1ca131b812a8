"""What the comparison of objectives concludes, and that each has as many trials."""

import json

import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import objectives
from align_jax.experiments.mpo.objectives import ARMS, EXPERIMENT, SHOWN
from align_jax.experiments.work import Workplace
from align_jax.objectives import find_objective
from tests.experiments.made_up import readable


def measured(options, gain, spread=0.0):
    """Every arm at 0.7, MPO above it."""
    cells = EXPERIMENT.cells(options)
    return [
        Measurement(c, dict.fromkeys(SHOWN, 0.7 + (gain + spread * c.settings["seed"] if c.settings["arm"] == "MPO" else 0)))
        for c in cells
    ]


@pytest.mark.parametrize(("gain", "spread", "word"), [(0.1, 0.001, "holds"), (-0.1, 0.001, "fails"), (0.0, 0.05, "unclear")])
@pytest.mark.parametrize("quick", [False, True])
def test_verdicts(gain, spread, word, quick):
    found = EXPERIMENT.conclude(measured(Options(quick=quick), gain, spread), Options(quick=quick))
    assert found.word == word
    interval = found.figures["MPO less DPO: accuracy"]
    assert f"accuracy {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]" in found.line


def test_one_seed_of_a_tiny_model_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1), 0.3), Options(seeds=1)).word == "unclear"


@pytest.mark.parametrize(("half", "word"), [(0.03, "holds"), (0.2, "unclear")])
def test_one_seed_of_a_large_model_has_its_interval_over_prompts(half, word):
    options = Options(seeds=1, model="smollm2")
    found = measured(options, 0.1)
    for one in found:
        for key in objectives.DECIDES:
            one.values.update({f"{key}/low": one[key] - half, f"{key}/high": one[key] + half})
    verdict = EXPERIMENT.conclude(found, options)
    interval = verdict.figures["MPO less DPO: accuracy"]
    assert verdict.word == word and interval.value == pytest.approx(0.1)
    assert interval.high - interval.value == pytest.approx(half * 2**0.5)


def test_as_many_trials_for_all_and_objectives_that_exist():
    for large, count in ((False, 4), (False, 2), (True, 2)):
        for arm in ARMS:
            found = objectives.trials(arm, count, large)
            assert len(found) == count and len({str(trial) for trial in found}) == count
            for objective, rate in found:
                find_objective(objective["name"])(**{key: value for key, value in objective.items() if key != "name"})
                assert rate > 0


def test_the_line_names_what_was_chosen_and_the_rival():
    options, kept = Options(quick=True), {"characters": {"accuracy": 0.9, "rank": 0.7}}
    found = measured(options, 0.1)
    for one in found:
        one.values.update(rate=1e-3, beta=None if one["arm"] == "SFT" else 0.1, rivals=kept)
    line = EXPERIMENT.conclude(found, options).line
    assert "best of 2 trials: MPO rate 0.001, beta 0.1, KL 0.8" in line and "rank correlation 0.700" in line
    assert len(line) < 450


def test_cells_of_a_large_model_have_the_settings_that_they_had():
    """What was measured of them takes an hour, and is kept."""
    cell = EXPERIMENT.cells(Options(seeds=1, model="smollm2"))[0]
    assert (cell.name, cell.settings) == ("mpo-0", {"arm": "MPO", "seed": 0, "steps": 20, "trials": 2})
    assert objectives._search(cell) == {"chosen_by": "accuracy", "search_seeds": 1}
    assert objectives._search(EXPERIMENT.cells(Options())[0]) == {"chosen_by": "rank", "search_seeds": 2}


def test_a_trial_is_the_mean_of_its_seeds_and_worse_ones_are_dropped(tmp_path):
    work = Workplace(tmp_path / "own", tmp_path, tmp_path / "common", Options())
    cell = EXPERIMENT.cells(Options(quick=True))[0]
    for number, ranks in enumerate(((0.5, 0.1), (0.4, 0.4))):  # by the first seed alone the first would be chosen
        for seed, rank in enumerate(ranks):
            name = objectives._name("MPO", number, seed)
            (tmp_path / name).mkdir()
            (tmp_path / f"{name}.json").write_text(json.dumps({"rate": 1.0, "beta": 0.1, "rank": rank}), encoding="utf-8")
    found = [objectives._trial(work, cell, number) for number in (0, 1)]
    assert [one["trial"] for one in found] == pytest.approx([0.3, 0.4]) and found[0]["rate"] == 1.0
    kept = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert sorted(kept) == ["mpo-trial-1", "mpo-trial-1-seed-1"]


def test_cells_have_names_of_their_own():
    for options in (Options(), Options(quick=True), Options(model="smollm2"), Options(quick=True, model="smollm2")):
        names = [cell.name for cell in EXPERIMENT.cells(options)]
        assert len(set(names)) == len(names)


def test_the_picture():
    for options in (Options(quick=True), Options(seeds=1, model="smollm2")):
        readable(EXPERIMENT.draw(measured(options, 0.1, 0.01), options))
