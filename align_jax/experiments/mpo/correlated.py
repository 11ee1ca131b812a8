"""MPO: correlated answers count as fewer: n of them as n / (1 + (n - 1) rho).

Answers to one prompt resemble each other (one model, one temperature). Here every answer is, with a known probability, the one
answer that its set shares, so that any two have correlation rho. First the error of a set's mean attribute is compared with
that of the effective number; then a policy over 64 answers, a table of logits, is trained on sets of correlated answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
from align_jax.experiments.mpo.bias import rms
from align_jax.experiments.work import Workplace

CORRELATIONS = (0.0, 0.1, 0.3, 0.6)
SIZES = tuple(2**i for i in range(1, 10))
NEAR = 0.05  # of the predicted error
ANSWERS, IN_SET, SETS, STEPS, RATE = 64, 8, 32, 150, 0.03
REPEATS = 10  # of a seed, each with answers of its own
MPO = tabular.TabularObjective("mpo", beta=1.0)


def cells(options: Options) -> list[Cell]:
    return [
        Cell(
            f"rho-{rho:g}-{seed}",
            {"rho": rho, "seed": seed, "trials": 500 if options.quick else 2000, "repeats": REPEATS},
        )
        for seed in range(options.seeds)
        for rho in CORRELATIONS
    ]


def effective(n: int, rho: float) -> float:
    """How many independent answers err as much as `n` with correlation rho."""
    return n / (1 + (n - 1) * rho)


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    rho, seed, trials, repeats = (cell.settings[key] for key in ("rho", "seed", "trials", "repeats"))
    every = [_repeat(np.random.default_rng((seed, number)), rho, trials) for number in range(repeats)]
    return {key: [one[key] for one in every] for key in every[0]}


def _repeat(rng: np.random.Generator, rho: float, trials: int) -> dict[str, Any]:
    """The errors of sets of every size, and the gain of training, of one table of answers."""
    scores, uniform = rng.normal(size=ANSWERS), np.ones(ANSWERS)
    scores = (scores - scores.mean()) / scores.std()
    error = [rms(scores[tabular.drawn_sets(rng, uniform, trials, n, rho)].mean(1)) for n in SIZES]
    gains = []
    for _ in range(trials // 500):  # the same table of scores, other sets
        sets = tabular.drawn_sets(rng, uniform, SETS, IN_SET, rho)
        path = tabular.trained(MPO, np.zeros(ANSWERS), sets, scores[sets], steps=STEPS, rate=RATE)
        gains.append(float(tabular.expected(path[-1], scores)))
    return {"error": error, "gain": float(np.mean(gains))}


def repeats_of(measured: Sequence[Measurement], rho: float, key: str) -> np.ndarray:
    """A figure of all repeats of all seeds, `[repeats, ...]`."""
    return np.concatenate([np.asarray(values, np.float64) for values in values_of(by_setting(measured, "rho")[rho], key)])


def _near(found: Interval) -> str:
    if not found.known:
        return UNCLEAR
    low, high = 1 - NEAR, 1 + NEAR
    return HOLDS if low < found.low and found.high < high else FAILS if found.high < low or found.low > high else UNCLEAR


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    most = CORRELATIONS[-1]
    ratios = {
        rho: over_seeds((repeats_of(measured, rho, "error") * np.sqrt(_effective(rho))).mean(1).tolist())
        for rho in CORRELATIONS
    }
    free, bound = (repeats_of(measured, rho, "gain") for rho in (0.0, most))
    lost, share = over_seeds((free - bound).tolist()), over_seeds(((free - bound) / free.mean()).tolist())
    worst = max(ratios, key=lambda rho: abs(ratios[rho].value - 1))
    line = (
        f"measured error / predicted error is {ratios[worst]} (worst, rho {worst:g}): {SIZES[-1]} answers with rho {most:g} "
        "count "
        f"as {effective(SIZES[-1], most):.2g}; training with rho {most:g} gains less than with rho 0 by {lost} standard "
        f"deviations of the scores, a share of {share} of the gain"
    )
    figures = {f"measured error / predicted error, rho {rho:g}": one for rho, one in ratios.items()}
    figures |= {
        f"gain with rho 0 less that with rho {most:g}, standard deviations": lost,
        "the same as a share of the gain with rho 0": share,
    }
    return Verdict(all_of(*map(_near, ratios.values()), above(lost, 0)), line, figures)


def _effective(rho: float) -> np.ndarray:
    return np.asarray([effective(n, rho) for n in SIZES])


def draw(measured: list[Measurement], options: Options):
    title = "Sets of correlated answers: their error, and what is learned from them"
    note = (
        "Left: lines are the prediction for n / (1 + (n - 1) rho) independent answers, points what was measured; so must it "
        "be by "
        f"how sets are drawn here: a check. Right: MPO on a table of {ANSWERS} answers (no language model), {SETS} sets of "
        f"{IN_SET}; mean of {len(repeats_of(measured, 0.0, 'gain'))} repeats, line: its 95% interval."
    )
    figure, axes = plots.figure(title, note, columns=2, size=(5.4, 4.2))
    axis = axes[0, 0]
    for i, rho in enumerate(CORRELATIONS):
        colour = plots.COLOURS[i]
        axis.plot(SIZES, _effective(rho) ** -0.5, plots.STYLES[i % 4], color=colour, linewidth=1.5)
        found = repeats_of(measured, rho, "error")
        axis.plot(SIZES, found.mean(0), plots.MARKERS[i], color=colour, label=f"rho {rho:g}", markersize=6)
    axis.set(
        xscale="log", yscale="log", xlabel="answers in a set, n",
        ylabel="root mean square error of the set's\nmean attribute, standard deviations",
    )  # fmt: skip
    axis.set_xticks(SIZES, [str(n) for n in SIZES])
    axis.minorticks_off()
    plots.legend(axis, title="correlation", loc="lower left")
    names = [f"rho {rho:g}\n(8 count as {effective(IN_SET, rho):.1f})" for rho in CORRELATIONS]
    label = "gain in expected true score after training,\nstandard deviations of the answers' scores"
    gains = [over_seeds(repeats_of(measured, rho, "gain").tolist()) for rho in CORRELATIONS]
    plots.intervals(axes[0, 1], names, gains, label)
    axes[0, 1].set_xlim(left=0)
    return figure


EXPERIMENT = Experiment(
    number=16,
    claim="n answers with correlation rho are worth n / (1 + (n - 1) rho) independent ones, and teach less",
    source="arXiv 2412.04628, the limits of its theorem for answers that are not independent",
    criterion=f"holds where the error of a set's mean attribute, over the predicted one, is within {NEAR:.0%} of 1 for every "
    f"rho (averaged over n = 2 to {SIZES[-1]}), and a tabular policy trained with rho 0 gains more true "
    "score than one with rho "
    f"{CORRELATIONS[-1]:g}, each by the 95% interval over {REPEATS} repeats of each seed; fails where one of them is outside",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="check",
    seconds=(5, 10),
)
