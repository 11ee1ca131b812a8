"""GDPO: the choices in which this library differs from the authors' code, and the alternatives to them, side by side.

The authors calibrate the token of a belief's id alone, and raise the statement's likelihood without its end; here both are of
the whole statement. Calibration by the KL divergence is set against reverse KL, Jensen-Shannon and total variation, and texts
given the accepted belief against texts given all beliefs, weighted by the group's distribution. Everything else is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from align_jax.experiments import judging, plots, spoken, world
from align_jax.experiments.claim import (
    HOLDS,
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    above,
    all_of,
    below,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.work import Workplace, write_rows

OURS = "ours"
ARMS = {
    OURS: {},
    "authors": {"calibrate": "id", "statement": "authors"},
    "reverse_kl": {"divergence": "reverse_kl"},
    "js": {"divergence": "js"},
    "tv": {"divergence": "tv"},
    "distribution": {"condition": "distribution"},
}
NAMES = {
    OURS: "ours: whole statement, KL, accepted belief",
    "authors": "the authors' tokens",
    "reverse_kl": "reverse KL",
    "js": "Jensen-Shannon",
    "tv": "total variation",
    "distribution": "texts given all beliefs",
}
SHORT = {OURS: "ours", "authors": "authors'", "reverse_kl": "reverse KL", "js": "JS", "tv": "TV", "distribution": "all beliefs"}
# The recommended recipe. Without the term for the accepted text every arm's texts fall apart, and there is nothing to compare.
RECIPE = {"name": "gdpo", "beta": 0.1, "sft_weight": 1.0}
TARGETS = {
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "skewed": (0.6, 0.25, 0.1, 0.05),
    "94/2/2/2": (0.94, 0.02, 0.02, 0.02),
    "a zero": (0.5, 0.3, 0.2, 0.0),
}
WORSE, PART, LESS_CONSISTENT = 0.02, 1 / 4, 0.05  # a distance, a part of ours where that is less; one text in twenty
NEAR = 0.05  # the distance whose step is told
DISTANCE = "eval/beliefs/js_distance"


def cells(options: Options) -> list[Cell]:
    steps = 100 if options.quick else 300
    return [Cell(f"{arm}-{seed}", {"arm": arm, "seed": seed, "steps": steps}) for seed in range(options.seeds) for arm in ARMS]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, steps = cell.settings["seed"], cell.settings["steps"]
    topics = world.topics(TARGETS, 20, seed)
    train, held = work.folder / "train.jsonl", work.folder / "eval.jsonl"
    write_rows(train, world.rows(topics, 60, seed))
    write_rows(held, world.rows(topics, 1, seed + 1))
    values = world.config(
        work,
        train,
        data={"eval": str(held)},
        objective=RECIPE | ARMS[cell.settings["arm"]],
        train={"steps": steps, "groups_per_step": 20, "eval_every": max(1, steps // 10)},
        optimizer={"learning_rate": 2.0e-3},
        run={"seed": seed},
    )
    lines = [line for line in work.train(values).history if DISTANCE in line]
    heard = spoken.heard(work, values, topics, 4)
    at, distances = [line["step"] for line in lines], [line[DISTANCE] for line in lines]
    return {
        "steps_measured": at,
        "distances": distances,
        "near": next((step for step, found in zip(at, distances, strict=True) if found < NEAR), None),
        **{key: heard[key] for key in ("distance", "mass", "consistency", "texts")},
    }


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms, figures = by_setting(measured, "arm"), {}
    lost: dict[str, tuple[Interval, Interval]] = {}
    for arm, found in arms.items():
        figures |= {f"{key}, {NAMES[arm]}": over_seeds(values_of(found, key)) for key in ("distance", "mass", "consistency")}
        if arm != OURS:
            lost[arm] = tuple(judging.less(found, arms[OURS], key) for key in ("distance", "consistency"))
            figures[f"distance less ours, {NAMES[arm]}"], figures[f"consistency less ours, {NAMES[arm]}"] = lost[arm]
    ours = figures[f"distance, {NAMES[OURS]}"]
    margin = min(WORSE, PART * ours.value)
    words = [above(far, -margin) for far, _ in lost.values()] + [below(fits, LESS_CONSISTENT) for _, fits in lost.values()]
    nearest, furthest = (pick(lost, key=lambda arm: lost[arm][0].value) for pick in (min, max))
    better = [NAMES[arm] for arm, (far, _) in lost.items() if below(far, 0.0) == HOLDS]
    line = (
        f"distance {ours} and consistency {figures[f'consistency, {NAMES[OURS]}']} by ours; surely nearer: "
        f"{', '.join(better) or 'none'} (margin {margin:.3g}); distance less ours is lowest for {NAMES[nearest]} "
        f"({lost[nearest][0]}), highest for {NAMES[furthest]} ({lost[furthest][0]}); {_steps(arms)}"
    )
    return Verdict(all_of(*words), line, figures)


def _steps(arms: dict[str, list[Measurement]]) -> str:
    """When each arm came near, the median of seeds."""
    found = {}
    for arm, cells in arms.items():
        median = sorted(np.inf if step is None else step for step in values_of(cells, "near"))[len(cells) // 2]
        found[arm] = "none" if np.isinf(median) else str(median)
    told = ", ".join(f"{SHORT[arm]} {step}" for arm, step in found.items())
    run = arms[OURS][0]["steps"]
    return f"steps to a distance of {NEAR}, median seed (none: not within {run}): {told}"


def draw(measured: list[Measurement], options: Options):
    arms, word = by_setting(measured, "arm"), conclude(measured, options).word
    title = {
        "holds": "No alternative to our choices gives beliefs or texts that are better by more than a trifle",
        "fails": "At least one alternative to our choices gives better beliefs or texts",
        "unclear": "Beliefs and texts by our choices, by the authors' tokens, and by other divergences",
    }[word]
    note = (
        f"20 topics, 4 beliefs, known distributions; {len(measured) // len(arms)} seed(s). Left: line = mean, band = range of "
        f"seeds; dashed: {NEAR}. Others: small dots = seeds, bars = 95% intervals."
    )
    figure, axes = plots.figure(title, note, columns=4, size=(4.3, 4.0))
    for i, (arm, found) in enumerate(arms.items()):
        name = NAMES[arm].split(":")[0]
        plots.curve(axes[0, 0], found[0]["steps_measured"], values_of(found, "distances"), name, i)
    axes[0, 0].axhline(NEAR, color="black", linewidth=0.9, linestyle="--")
    axes[0, 0].set(xlabel="training steps", ylabel="Jensen-Shannon distance to the group's beliefs\n(0: the same)")
    axes[0, 0].set_ylim(bottom=0)
    plots.legend(axes[0, 0])
    names = [NAMES[arm].replace(": ", ":\n").replace("KL, ", "KL,\n") for arm in arms]
    panels = {"distance": ("distance after training", None), "mass": ("probability that any belief is stated", None),
              "consistency": ("texts that fit the belief given\n(share; not from 0; chance: 0.25)", None)}  # fmt: skip
    for axis, (key, (label, limit)) in zip(axes[0, 1:], panels.items(), strict=True):
        seeds = [values_of(found, key) for found in arms.values()]
        plots.bars(axis, names, seeds, label, limit, (0.0, 0.83 if key == "distance" else 1.0))
        if key != "distance":
            axis.set_yticklabels([])
    axes[0, 1].set_xlim(left=0)
    axes[0, 2].set_xlim(right=1.02)
    fits = values_of(measured, "consistency")
    axes[0, 3].set_xlim(min(fits) - 0.05, 1.01)
    return figure


EXPERIMENT = Experiment(
    number=10,
    claim="whole statements, KL and texts given the accepted belief are not worse than the authors' tokens, other divergences, "
    "or texts given all beliefs",
    source="arXiv 2412.20299 and its authors' code; docs/gdpo.md, the options divergence, calibrate, statement and condition",
    criterion=f"holds where no alternative's Jensen-Shannon distance after training is lower by more than {WORSE}, or a "
    "quarter of ours where that is less, and none's "
    f"consistency of texts with their belief higher by more than {LESS_CONSISTENT} (95% intervals of the paired difference "
    f"over seeds); fails where one is. One learning rate for all, searched for none. {judging.explained(WORSE)}",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="world",
    seconds=(140, 240),
)
