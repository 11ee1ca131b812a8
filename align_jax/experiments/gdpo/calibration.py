"""GDPO: calibration alone drives the model's belief distribution to a known target, also a 5% minority and a zero.

A small model that states all beliefs equally often is trained by the calibration term alone on topics whose distributions
are known exactly: uniform, skewed, 95/5, and one with a belief that nobody holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from align_jax.experiments import judging, plots, survey, world
from align_jax.experiments.claim import Cell, Experiment, Measurement, Options, Verdict, all_of, below, over_seeds, values_of
from align_jax.experiments.work import Workplace, write_rows

ZERO = "a zero"
TARGETS = {
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "skewed": (0.6, 0.25, 0.1, 0.05),
    "95/5": (0.95, 0.05),
    ZERO: (0.5, 0.3, 0.2, 0.0),
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
    words = [judging.reached(below(found, LIMIT), options) for found in last.values()]
    start = {kind: over_seeds([one[f"distance/{kind}"][0] for one in measured]) for kind in TARGETS}
    off = judging.share([1 - one["mass"] for one in measured])
    line = (
        f"distance {last[worst]} for the worst target ({worst}; {start[worst].value:.3f} before training), "
        f"limit {LIMIT}, which is about {judging.example(LIMIT)}; the belief that nobody "
        f"holds is left a probability of about {left_on_zero(last[ZERO].value):.1g}; {off.value:.1g} of the probability is "
        "on no belief at all"
    )
    figures = last | {f"before training, {kind}": found for kind, found in start.items()}
    return Verdict(all_of(*words), line, figures | {"probability on no belief": off})


def left_on_zero(distance: float) -> float:
    """The probability of the belief that nobody holds, at which a distribution right in all else is as far as this."""
    from scipy.optimize import brentq

    truth = np.asarray(TARGETS[ZERO])
    taken = lambda by: (1 - by) * truth + by * (truth == 0)  # noqa: E731
    return float(brentq(lambda by: survey.distance(taken(by), truth) - distance, 0.0, 1.0))


def draw(measured: list[Measurement], options: Options):
    note = (
        f"{len(measured)} seeds: line = mean, band = range. Dashed: the limit, {LIMIT}: about {judging.example(LIMIT)}. "
        "The topics are those of training."
    )
    title = {
        "holds": "Calibration alone gives the model the beliefs that it is shown",
        "fails": "Calibration alone does not give the model all beliefs that it is shown",
        "unclear": "How near calibration alone brings the model to the beliefs that it is shown",
    }[conclude(measured, options).word]
    figure, axes = plots.figure(title, note, size=(7, 4.2))
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
    claim="calibration alone drives the model's belief distribution to a known target, on the topics of training",
    source="arXiv 2412.20299, the calibration term; docs/gdpo.md",
    criterion=f"holds where the Jensen-Shannon distance after training is below {LIMIT} for each of four targets (uniform, "
    f"skewed, 95/5, a zero), by the 95% interval over seeds; fails where it is above for one; {judging.QUICK}. "
    f"{judging.explained(LIMIT)}. It is a test of the optimizer: the topics asked are those trained on",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="check",
    seconds=(60, 180),
)
