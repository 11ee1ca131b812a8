"""What time and memory conclude, and that the step which is measured is one that the library takes."""

import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import scaling
from align_jax.experiments.mpo.scaling import EXPERIMENT
from align_jax.experiments.work import Workplace
from tests.experiments.made_up import readable


def measured(options, power, growth, spread=0.001):
    return [
        Measurement(
            cell,
            {
                "seconds": (1 + spread * cell.settings["seed"])
                * cell.settings["k"] ** (power + spread * cell.settings["seed"]),
                "memory": 30.0 + (growth if cell.settings["rows"] else 10.0) * cell.settings["k"],
            },
        )
        for cell in EXPERIMENT.cells(options)
    ]


@pytest.mark.parametrize(
    ("power", "growth", "spread", "word"),
    [(1.0, 0.01, 0.001, "holds"), (1.5, 0.01, 0.001, "fails"), (1.0, 10.0, 0.001, "fails"), (1.0, 0.01, 0.2, "unclear")],
)
@pytest.mark.parametrize("quick", [False, True])
def test_verdicts(power, growth, spread, word, quick):
    options = Options(quick=quick)
    found = EXPERIMENT.conclude(measured(options, power, growth, spread), options)
    assert found.word == word
    assert found.figures[f"exponent of time, {scaling.WHOLE}"].value == pytest.approx(power + spread)


def test_one_repeat_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1), 1.0, 0.01), Options(seeds=1)).word == "unclear"


def test_the_config_is_one_that_the_library_takes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    work = Workplace(tmp_path, tmp_path, tmp_path, Options(model=str(tmp_path)))
    for cell in EXPERIMENT.cells(Options()):
        found = scaling.config(cell, work)
        assert (found.bench.responses, found.model.rows_per_chunk) == (cell.settings["k"], cell.settings["rows"])


def test_cells_and_the_picture():
    names = [cell.name for cell in EXPERIMENT.cells(Options())]
    assert len(set(names)) == len(names)
    readable(EXPERIMENT.draw(measured(Options(), 1.0, 0.01), Options()))
