"""How an experiment is run: cells are kept, the verdict and the picture are written, what cannot be run says why."""

from __future__ import annotations

import json
import os
import signal

import pytest

from align_jax import cli
from align_jax.errors import UserError
from align_jax.experiments import claims, command, plots, running
from align_jax.experiments.claim import (
    Cell,
    Experiment,
    Interval,
    Options,
    Verdict,
    above,
    all_of,
    below,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.work import JobStopped, write_rows
from align_jax.lock import held

pytest.importorskip("matplotlib")


def toy(measure, **more) -> Experiment:
    """An experiment of two arms; the value of an arm is `measure`'s."""

    def cells(options):
        return [Cell(f"{arm}-{seed}", {"arm": arm, "seed": seed}) for arm in ("a", "b") for seed in range(options.seeds)]

    def conclude(measured, options):
        arms = by_setting(measured, "arm")
        found = over_seeds([b - a for a, b in zip(values_of(arms["a"], "x"), values_of(arms["b"], "x"), strict=True)])
        return Verdict(above(found, 0), f"b is above a by {found}", {"difference": found})

    def draw(measured, options):
        figure, axes = plots.figure("b is above a")
        arms = by_setting(measured, "arm")
        plots.bars(axes[0, 0], list(arms), [values_of(found, "x") for found in arms.values()], "x")
        return figure

    return Experiment(1, "b is above a", "a test", "holds where it is", cells, measure, conclude, draw, "check", **more)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a toy; returns its verdict and the lines that it said."""

    def run(experiment, again=False, **options):
        monkeypatch.setattr(running, "load", lambda name: experiment)
        lines = []
        return running.run("toy", Options(**options), tmp_path / "out" / "toy", lines.append, again), lines

    return run


def test_cells_are_measured_once_and_a_stopped_experiment_goes_on(run, tmp_path):
    measured, stop = [], ["b-1"]

    def measure(cell, work):
        if cell.name in stop:
            raise JobStopped
        measured.append(cell.name)
        assert work.folder.is_dir() and work.shared.is_dir() and work.common == tmp_path / "out" / "common"
        return {"x": float(cell.settings["arm"] == "b")}

    with pytest.raises(JobStopped):
        run(toy(measure))
    assert measured == ["a-0", "a-1", "a-2", "b-0"] and not (tmp_path / "out/toy/result.json").exists()
    stop.clear()
    verdict, lines = run(toy(measure))
    assert measured[4:] == ["b-1", "b-2"] and verdict.word == "holds"
    assert "4 cells had been measured before" in lines and lines[-1] == "toy: holds: b is above a by 1 [1, 1]"
    result = json.loads((tmp_path / "out/toy/result.json").read_text())
    assert (result["verdict"], result["criterion"], len(result["cells"])) == ("holds", "holds where it is", 6)
    assert result["figures"]["difference"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (tmp_path / "out/toy/plot.png").stat().st_size > 1000 and not (tmp_path / "out/toy/work").exists()


def test_a_cell_of_other_settings_is_measured_again(run):
    run(toy(lambda cell, work: {"x": 1.0}))
    count = []
    experiment = toy(lambda cell, work: count.append(cell.name) or {"x": 2.0})
    cells = experiment.cells
    object.__setattr__(experiment, "cells", lambda options: [Cell(c.name, c.settings | {"steps": 3}) for c in cells(options)])
    _, lines = run(experiment)
    assert len(count) == 6 and sum("was measured with other settings: it is measured anew" in line for line in lines) == 6


@pytest.mark.parametrize("content", ["", '{"settings": {"arm"', "{}", "[]"])
def test_a_damaged_cell_is_measured_again_with_a_word(run, tmp_path, content):
    run(toy(lambda cell, work: {"x": 1.0}))
    (tmp_path / "out/toy/cells/b-1.json").write_text(content)
    count = []
    _, lines = run(toy(lambda cell, work: count.append(cell.name) or {"x": 2.0}))
    assert count == ["b-1"] and any("cells/b-1.json is damaged: it is measured anew" in line for line in lines)


def test_again_measures_what_is_asked_for_and_keeps_other_seeds(run, tmp_path):
    run(toy(lambda cell, work: {"x": 1.0}))
    count = []
    run(toy(lambda cell, work: count.append(cell.name) or {"x": 2.0}), again=True, seeds=1)
    assert count == ["a-0", "b-0"] and (tmp_path / "out/toy/cells/a-2.json").exists()


def test_a_folder_is_one_experiments_at_a_time(run, tmp_path):
    lock = held(_made(tmp_path / "out/toy") / "lock", "--out: x", "y")
    with lock, pytest.raises(UserError, match="toy is in use by process"):
        run(toy(lambda cell, work: {"x": 1.0}))
    run(toy(lambda cell, work: {"x": float(cell.settings["arm"] == "b")}))
    assert not (tmp_path / "out/toy/lock").exists()


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def test_an_out_that_cannot_be_made(run, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="--out: .*toy cannot be made: "):
        run(toy(lambda cell, work: {"x": 1.0}))


def test_folders_of_models_that_are_called_alike_are_two(tmp_path, monkeypatch):
    names = [Options(model=str(tmp_path / part / "smollm2")).model_name for part in "ab"]
    assert len({*names, Options(model="smollm2").model_name}) == 3 and all(name.startswith("smollm2-") for name in names)
    monkeypatch.chdir(tmp_path)
    assert Options(model=".").model_name.startswith(f"{tmp_path.name}-")


def test_sigterm_between_jobs_ends_with_a_word(monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        cli.main(["experiment", "mpo-bias"])
    assert ended.value.code == 143 and command.KEPT in capsys.readouterr().out
    monkeypatch.setattr(command, "run", _stopped)
    assert cli.main(["experiment", "mpo-bias"]) == 143


def _stopped(*args):
    raise JobStopped


def test_cells_of_another_version_of_the_file_are_told_of_and_measured_again_when_asked(run, monkeypatch):
    monkeypatch.setattr(running, "_code", lambda experiment: "before")
    run(toy(lambda cell, work: {"x": 1.0}))
    monkeypatch.undo()
    count = []
    _, lines = run(toy(lambda cell, work: count.append(cell.name) or {"x": 2.0}))
    assert not count and "6 of 6 cells are from another version of what measures them; --again measures them anew" in lines
    _, lines = run(toy(lambda cell, work: count.append(cell.name) or {"x": 2.0}), again=True)
    assert len(count) == 6 and not any("another version" in line for line in lines)


@pytest.mark.parametrize(
    "values, word",
    [([0.1, 0.11, 0.12], "holds"), ([-0.1, -0.11, -0.12], "fails"), ([-0.1, 0.1, 0.2], "unclear"), ([0.3], "unclear")],
)
def test_a_verdict_needs_an_interval_on_one_side(values, word):
    found = over_seeds(values)
    assert above(found, 0.0) == word
    assert below(found, 0.0) == {"holds": "fails", "fails": "holds", "unclear": "unclear"}[word]


def test_students_interval():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.value == 2.0 and found.high - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert str(found) == "2 [-0.484, 4.48]" and str(Interval(0.5)) == "0.5 (one seed)"


def test_one_that_fails_decides():
    assert all_of("holds", "unclear", "fails") == "fails" and all_of("holds", "unclear") == "unclear"
    assert all_of("holds", "holds") == "holds"


def test_what_cannot_be_run_says_why(run, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--model: toy runs on a world, a table or a model of its own"):
        run(toy(None), model="smollm2")
    with pytest.raises(UserError, match="--model: toy runs on tiny, not on smollm2"):
        run(toy(None, models=("tiny",)), model="smollm2")
    with pytest.raises(UserError, match="--model: '/no/such' is neither tiny nor smollm2, and there is no such folder"):
        run(toy(None, models=("smollm2",)), model="/no/such")
    with pytest.raises(UserError, match="holds no model in Hugging Face format: it has no config.json"):
        run(toy(None, models=("smollm2",)), model=str(tmp_path))
    monkeypatch.delenv("ALIGN_JAX_DATA", raising=False)
    with pytest.raises(UserError, match="ALIGN_JAX_DATA must name the folder"):
        run(toy(None, data=("opinions",)))
    monkeypatch.setenv("ALIGN_JAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match="toy needs the folder opinions"):
        run(toy(None, data=("opinions",)))


def test_all_goes_on_after_one_that_cannot_run(monkeypatch, capsys, tmp_path):
    runs = toy(lambda cell, work: {"x": float(cell.settings["arm"] == "b")})
    experiments = {"a-one": runs, "a-two": toy(None, data=("nothing",))}
    monkeypatch.setattr(command, "claims", lambda: list(experiments))
    for module in (command, running):
        monkeypatch.setattr(module, "load", experiments.get)
    monkeypatch.setenv("ALIGN_JAX_DATA", str(tmp_path))
    assert cli.main(["experiment", "all", "--quick", "--seeds", "2", "--out", str(tmp_path / "o")]) == 1
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0].startswith("a-one                    holds    b is above a by 1 [1, 1]")
    assert lines[1].startswith("a-two                    not run  ALIGN_JAX_DATA: a-two needs the folder nothing")
    assert (tmp_path / "o/a-one-quick/plot.png").exists()


@pytest.mark.parametrize("argv, message", [
    (["--seed", "3"], "unrecognized arguments: --seed 3; usage: align-jax experiment gdpo-calibration"),
    (["--seeds", "0"], "'0' is not a number of seeds"),
])  # fmt: skip
def test_options_are_checked(argv, message, capsys):
    assert cli.main(["experiment", "gdpo-calibration", *argv]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("argv, seeds", [
    ([], 3), (["--model", "smollm2"], 1), (["--model", "smollm2", "--seeds", "2"], 2), (["--seeds", "5"], 5),
])  # fmt: skip
def test_seeds_are_as_many_as_asked_for_or_three_and_one_of_a_large_model(argv, seeds, monkeypatch):
    taken = []
    monkeypatch.setattr(command, "run", lambda name, options, *rest: taken.append(options))
    assert cli.main(["experiment", "mpo-objectives", *argv]) == 0
    assert taken[0].seeds == seeds
    cells = running.load("mpo-objectives").cells(taken[0])
    assert {cell.settings["seed"] for cell in cells} == set(range(seeds))


@pytest.mark.parametrize("name", claims())
def test_every_claim_is_stated_before_it_is_run(name):
    experiment = running.load(name)
    assert experiment.claim and experiment.source and "holds where" in experiment.criterion
    assert experiment.criterion.count("fails where") or "fails" in experiment.criterion
    usual = Options(), Options(quick=True), Options(quick=True, seeds=1)
    for options in (*usual, *(Options(model=model) for model in experiment.models)):
        cells = experiment.cells(options)
        names = [cell.name for cell in cells]
        assert len(set(names)) == len(names) > 0
        assert json.loads(json.dumps([cell.settings for cell in cells])) == [cell.settings for cell in cells]
    assert experiment.number == claims().index(name) + 1 or len(claims()) < 22


def test_a_quick_result_does_not_replace_a_full_one(run, tmp_path, capsys):
    from align_jax.experiments import page

    run(toy(lambda cell, work: {"x": float(cell.settings["arm"] == "b"), "texts": [{"text": "a `b`\nc"}]}))
    folder, into = tmp_path / "out/toy", tmp_path / "docs"
    page.take(folder, into)
    text = page.page(into)
    assert "| [toy](#toy) | b is above a | check; 3 seeds | **holds** | b is above a by 1 [1, 1] |" in text
    assert "![b is above a](experiments/toy.png)" in text
    assert "Of 1 results 1 hold (1 check), 0 fail, 0 are unclear." in text
    assert "- text: `a 'b' c`" in text and "Not run yet: gdpo-calibration" in text
    result = json.loads((folder / "result.json").read_text())
    quick = {"verdict": "fails", "options": result["options"] | {"quick": True}}
    write_rows(folder / "result.json", [result | quick])
    page.take(folder, into)
    assert "is a quick run" in capsys.readouterr().out and page.page(into) == text
    write_rows(folder / "result.json", [result | {"options": result["options"] | {"seeds": 1}}])
    page.take(folder, into)
    assert "has 1 seed, fewer than the 3" in capsys.readouterr().out and page.page(into) == text
    (folder / "result.json").write_text("{")
    with pytest.raises(UserError, match="result.json is damaged"):
        page.take(folder, into)
    with pytest.raises(UserError, match="has no result.json"):
        page.take(tmp_path, into)
