"""MPO: the whole set teaches more than the best answer against the worst, however the scores are distributed.

A prompt has 64 answers whose true scores, from 0 to 10, are uniform, skewed to either side, or in two heaps; sets of 8 are
drawn, and scored with noise. A table of logits, no language model, is trained on them by MPO, W-MPO and DPO on the best against
the worst. The higher the expected true score at the same distance from the reference (half a nat of KL), the better the
objective knows which answers are good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax import losses
from align_jax.experiments import plots, tabular
from align_jax.experiments.claim import (
    FAILS,
    HOLDS,
    UNCLEAR,
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    above,
    all_of,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.tabular import TabularObjective
from align_jax.experiments.work import Workplace

ANSWERS, IN_SET, SETS, NOISE = 64, 8, 64, 1.0
STEPS, RATE = 600, 0.03
NATS = 0.5  # half of the answers alone are 0.69 nats away, and no objective must be asked for more than it separates
BETA = 0.1  # of configs/mpo-preferences.yaml
SHAPES = ("uniform", "few good", "few bad", "two heaps")
ALPHA = 0.5
ARMS = {
    "DPO, best and worst": TabularObjective("dpo", beta=BETA),
    "MPO": TabularObjective("mpo", beta=BETA),
    f"W-MPO, alpha {ALPHA:g}": TabularObjective("mpo", beta=BETA, alpha=ALPHA),
}
DPO, MPO, WMPO = ARMS


def cells(options: Options) -> list[Cell]:
    tables = 10 if options.quick else 30
    return [
        Cell(f"{shape.replace(' ', '-')}-{seed}", {"shape": shape, "seed": seed, "tables": tables})
        for seed in range(options.seeds)
        for shape in SHAPES
    ]


def true_scores(rng: np.random.Generator, shape: str, count: int) -> np.ndarray:
    """Scores from 0 to 10 of a distribution of this shape."""
    if shape == "uniform":
        return rng.uniform(0, 10, count)
    if shape == "two heaps":
        return np.clip(rng.normal(np.where(rng.random(count) < 0.5, 2.0, 8.0), 0.7), 0, 10)
    skewed = 10 * rng.beta(1.0, 5.0, count)
    return skewed if shape == "few good" else 10 - skewed


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    found = [
        _table(np.random.default_rng((cell.settings["seed"], n)), cell.settings["shape"])
        for n in range(cell.settings["tables"])
    ]
    return {key: [one[key] for one in found] for key in found[0]}


def _table(rng: np.random.Generator, shape: str) -> dict[str, Any]:
    """What one table of answers shows: figures of its sets, and each arm's share of the possible gain at `NATS`."""
    truth, ref = true_scores(rng, shape, ANSWERS), np.zeros(ANSWERS)
    sets = tabular.drawn_sets(rng, np.ones(ANSWERS), SETS, IN_SET)
    scores = (truth + rng.normal(0, NOISE, ANSWERS))[sets]
    values = set_figures(scores)
    start = float(truth.mean())
    for arm, objective in ARMS.items():
        path = tabular.trained(objective, ref, sets, scores, steps=STEPS, rate=RATE)
        reached, distance = tabular.expected(path, truth), tabular.kl(path, ref)
        at = tabular.at_kl(distance, reached, NATS)
        if at is None:
            raise RuntimeError(f"{arm} did not go {NATS} nats from the reference in {STEPS} steps, but {distance.max():.2f}")
        values[f"gain/{arm}"] = (at - start) / (tabular.best_at_kl(ref, truth, NATS) - start)
        values[f"last/{arm}"] = float(reached[-1] - start)
    return values


def set_figures(scores: np.ndarray) -> dict[str, Any]:
    """Of sets `[M, K]`: the share that is accepted, and how much of W-MPO's weight is on its heaviest answer."""
    accepted = np.asarray(losses.partition(scores, np.ones(scores.shape, bool))[0])
    weights = np.exp(ALPHA * np.abs(scores - scores.mean(1, keepdims=True)))
    return {"accepted": float(accepted.mean()), "heaviest": float((weights.max(1) / weights.sum(1)).mean())}


def gain(measured: Sequence[Measurement], arm: str, shape: str) -> Interval:
    """How much more of the possible gain an arm reaches than DPO, over tables in pairs."""
    return over_seeds((_tables(measured, shape, f"gain/{arm}") - _tables(measured, shape, f"gain/{DPO}")).tolist())


def _tables(measured: Sequence[Measurement], shape: str, key: str) -> np.ndarray:
    """A figure of every table of all seeds."""
    return np.concatenate(values_of(by_setting(measured, "shape")[shape], key)).astype(np.float64)


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    found = {(arm, shape): gain(measured, arm, shape) for shape in SHAPES for arm in (MPO, WMPO)}
    shapes = {shape: found[MPO, shape] for shape in SHAPES}
    said = ", ".join(f"{shape} {one} ({OUTCOME[above(one, 0)]})" for shape, one in shapes.items())
    line = f"tables of logits, no language model; share of the possible gain at {NATS:g} nats of KL, MPO less DPO: {said}"
    figures = {f"{arm} less DPO, {shape}": one for (arm, shape), one in found.items()}
    return Verdict(all_of(*(above(one, 0) for one in shapes.values())), line, figures)


OUTCOME = {HOLDS: "MPO wins", FAILS: "DPO wins", UNCLEAR: "no difference shown"}


def draw(measured: list[Measurement], options: Options):
    title = f"What a policy learns from sets of {IN_SET} scored answers, by the shape of the scores' distribution"
    note = (
        f"Top: true scores of answers; share that MPO accepts; share of W-MPO's weight on the heaviest of {IN_SET} answers "
        f"(equal weights: {1 / IN_SET:.0%}). Bottom: 100% is the highest mean score that any policy within {NATS:g} nats of "
        f"the reference has. Mean of {len(_tables(measured, SHAPES[0], 'accepted'))} tables of logits; line: its 95% "
        "interval."
    )
    figure, axes = plots.figure(title, note, columns=len(SHAPES), rows=2, size=(3.6, 2.9))
    for i, shape in enumerate(SHAPES):
        top, below = axes[0, i], axes[1, i]
        top.hist(true_scores(np.random.default_rng(0), shape, 20000), bins=40, range=(0, 10), density=True, color="0.7")
        accepted, heaviest = (float(np.mean(_tables(measured, shape, key))) for key in ("accepted", "heaviest"))
        top.set_title(f"{shape}\naccepted {accepted:.0%}, heaviest {heaviest:.0%}", fontsize=9)
        top.set(xlabel="true score", ylabel="density" if i == 0 else "", yticks=[])
        plots.intervals(
            below,
            list(ARMS),
            [over_seeds((100 * _tables(measured, shape, f"gain/{arm}")).tolist()) for arm in ARMS],
            "% of the possible gain",
        )
        if i:
            below.set_yticklabels([])
    left = min(axis.get_xlim()[0] for axis in axes[1])
    for axis in axes[1]:
        axis.set_xlim(left, 100)
    return figure


EXPERIMENT = Experiment(
    number=18,
    claim="the whole set teaches more than its best answer against its worst, whatever the distribution of scores",
    source="arXiv 2412.04628, open question on skewed and bimodal rewards",
    criterion=f"holds where MPO reaches a larger share of the gain in true score that is possible at {NATS:g} nats of KL "
    "than DPO on the best against the worst answer, by the 95% interval over tables (30 of each seed; quick: "
    "10), for each of four shapes of the scores' distribution; fails where it reaches less for one",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="table",
    seconds=(10, 30),
)
