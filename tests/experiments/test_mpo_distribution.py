"""What shapes of scores conclude."""

import numpy as np
import pytest

from align_jax.experiments.claim import Cell, Measurement, Options
from align_jax.experiments.mpo import distribution
from align_jax.experiments.mpo.distribution import ARMS, DPO, EXPERIMENT, MPO, SHAPES
from tests.experiments.made_up import readable


def measured(options, gain, spread=0.001, but=None):
    made = []
    for cell in EXPERIMENT.cells(options):
        more = gain if cell.settings["shape"] != but else -gain
        tables = np.arange(cell.settings["tables"])
        more = more + spread * (cell.settings["seed"] - 1 + 0.1 * (-1.0) ** tables)
        values = {f"gain/{arm}": (0.5 + more * (arm != DPO)).tolist() for arm in ARMS}
        values |= {key: np.full(len(tables), 0.5).tolist() for key in ("accepted", "heaviest")}
        made.append(Measurement(cell, values))
    return made


@pytest.mark.parametrize(
    ("gain", "spread", "but", "word"),
    [(0.1, 0.001, None, "holds"), (-0.1, 0.001, None, "fails"), (0.1, 0.001, "few good", "fails"), (0.0, 0.2, None, "unclear")],
)
def test_verdicts(gain, spread, but, word):
    found = EXPERIMENT.conclude(measured(Options(), gain, spread, but), Options())
    assert found.word == word
    assert found.figures[f"{MPO} less DPO, uniform"].value == pytest.approx(gain)


def test_the_line_has_the_outcome_of_every_shape():
    line = EXPERIMENT.conclude(measured(Options(), 0.1, but="few good"), Options()).line
    assert line.count("MPO wins") == 3 and line.count("DPO wins") == 1 and all(shape in line for shape in SHAPES)
    assert len(line) < 450


def test_a_cell_keeps_every_table(monkeypatch):
    monkeypatch.setattr(distribution, "NATS", 0.001)
    monkeypatch.setattr(distribution, "STEPS", 3)
    cell = EXPERIMENT.cells(Options(quick=True))[0]
    found = EXPERIMENT.measure(Cell(cell.name, {**cell.settings, "tables": 2}), None)
    assert all(len(found[f"gain/{arm}"]) == 2 for arm in ARMS) and len(found["accepted"]) == 2


def test_shapes_are_what_their_names_say():
    found = {shape: distribution.true_scores(np.random.default_rng(0), shape, 20000) for shape in SHAPES}
    assert all(0 <= scores.min() and scores.max() <= 10 for scores in found.values())
    share = {shape: float(np.mean(scores > 5)) for shape, scores in found.items()}
    assert share["few good"] < 0.1 and share["few bad"] > 0.9 and abs(share["uniform"] - 0.5) < 0.02
    assert np.mean(np.abs(found["two heaps"] - 5) < 1) < 0.01


def test_figures_of_sets():
    found = distribution.set_figures(np.array([[0.0, 0.0, 0.0, 4.0], [1.0, 1.0, 1.0, 1.0]]))
    heavy = np.exp(distribution.ALPHA * 3) / (np.exp(distribution.ALPHA * 3) + 3 * np.exp(distribution.ALPHA))
    assert found["accepted"] == pytest.approx(1 / 8)
    assert found["heaviest"] == pytest.approx((heavy + 0.25) / 2)


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), 0.1), Options()))
