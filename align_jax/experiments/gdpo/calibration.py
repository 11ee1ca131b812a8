"""GDPO: calibration alone drives the model's belief distribution to a known target, also a 5% minority and a zero.

A small model that states all beliefs equally often is trained by the calibration term alone on topics whose distributions
are known exactly: uniform, skewed, 95/5, and one with a belief that nobody holds.
"""

from __future__ import annotations

from typing import Any

from align_jax.experiments import plots, world
from align_jax.experiments.claim import Cell, Experiment, Measurement, Options, Verdict, all_of, below, over_seeds, values_of
from align_jax.experiments.work import Workplace, write_rows

TARGETS = {
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "skewed": (0.6, 0.25, 0.1, 0.05),
    "95/5": (0.95, 0.05),
    "a zero": (0.5, 0.3, 0.2, 0.0),
}
LIMIT = 0.02  # Jensen-Shannon distance
DISTANCE = "eval/beliefs/js_distance"


def cells(options: Options) -> list[Cell]:
    steps = 300 if options.quick else 1000
    return [Cell(f"seed-{seed}", {"seed": seed, "steps": steps}) for seed in range(options.seeds)]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, steps = cell.settings["seed"], cell.settings["steps"]
    topics = world.topics(TARGETS, 20, seed)
    train, held = work.folder / "train.jsonl", work.folder / "eval.jsonl"
    write_rows(train, world.rows(topics, 100, seed))
    write_rows(held, world.rows(topics, 2, seed + 1))
    values = world.config(
        work,
        train,
        data={"eval": str(held)},
        objective={"name": "gdpo", "beta": 0.1, "belief_weight": 0.0, "preference_weight": 0.0},
        train={"steps": steps, "eval_every": max(1, steps // 15)},
        optimizer={"learning_rate": 3.0e-3},
        run={"seed": seed},
    )
    lines = [line for line in work.train(values).history if DISTANCE in line]
    return {
        "steps_measured": [line["step"] for line in lines],
        **{f"distance/{kind}": [line[f"{DISTANCE}/{kind}"] for line in lines] for kind in TARGETS},
        "mass": lines[-1]["eval/beliefs/mass"],
    }


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    last = {kind: over_seeds([one[f"distance/{kind}"][-1] for one in measured]) for kind in TARGETS}
    worst = max(last, key=lambda kind: last[kind].value)
    words = [below(found, LIMIT) for found in last.values()]
    mass = over_seeds(values_of(measured, "mass"))
    line = f"distance {last[worst]} for the worst target ({worst}), limit {LIMIT}; {mass} of the probability is on beliefs"
    return Verdict(all_of(*words), line, last | {"mass": mass})


def draw(measured: list[Measurement], options: Options):
    note = f"{len(measured)} seeds: line = mean, band = range. Dashed: {LIMIT}, below which two distributions look the same."
    figure, axes = plots.figure("Calibration alone gives the model the beliefs that it is shown", note, size=(7, 4.2))
    axis = axes[0, 0]
    for i, kind in enumerate(TARGETS):
        name = f"{kind}  ({' / '.join(f'{p:.0%}' for p in TARGETS[kind])})"
        plots.curve(axis, measured[0]["steps_measured"], values_of(measured, f"distance/{kind}"), name, i)
    axis.axhline(LIMIT, color="black", linewidth=0.9, linestyle="--")
    axis.set(xlabel="training steps", ylabel="Jensen-Shannon distance to the target\n(0: the same, 0.83: nothing in common)")
    axis.set_ylim(bottom=0)
    plots.legend(axis, title="target")
    return figure


EXPERIMENT = Experiment(
    number=1,
    claim="calibration alone drives the model's belief distribution to a known target",
    source="arXiv 2412.20299, the calibration term; docs/gdpo.md",
    criterion=f"holds where the Jensen-Shannon distance after training is below {LIMIT} for each of four targets (uniform, "
    "skewed, 95/5, a zero), by the 95% interval over seeds; fails where it is above for one",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="check",
    seconds=(60, 180),
)
