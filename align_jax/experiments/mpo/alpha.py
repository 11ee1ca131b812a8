"""MPO: weighting answers by how far their scores are from the mean (W-MPO) orders answers better than no weights do.

The weight is exp(alpha |S - mean|^p), with scores from 0 to 10. Twice: a tiny language model on real preferences, asked about
held-out prompts; and a table of logits over 64 answers whose true scores are known, trained on noisy ones. With p = 0 all
weights are equal, and alpha must not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.experiments import plots, preferences, tabular
from align_jax.experiments.claim import (
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    above,
    over_seeds,
    values_of,
)
from align_jax.experiments.tabular import TabularObjective
from align_jax.experiments.work import Workplace

BETA, RATE = 0.1, 3.0e-4  # of configs/mpo-preferences.yaml
REAL, TABLE = "real preferences", "a table"
PAIRS = ((0.0, 1), (0.2, 1), (1.0, 1), (4.0, 1), (0.2, 2), (1.0, 2), (4.0, 2), (1.0, 0))  # (alpha, p)
QUICK = ((0.0, 1), (1.0, 1), (4.0, 1))
PLAIN, DECIDES = (0.0, 1), (1.0, 1)
TABLE_ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
ANSWERS, IN_SET, SETS, NOISE, NATS, STEPS = 64, 8, 64, 1.0, 0.5, 600


def cells(options: Options) -> list[Cell]:
    steps, tables = (20, 2) if options.quick else (50, 8)
    pairs = QUICK if options.quick else PAIRS
    real = [
        Cell(f"real-alpha-{alpha:g}-p-{p}-{seed}", {"where": REAL, "alpha": alpha, "p": p, "seed": seed, "steps": steps})
        for seed in range(options.seeds)
        for alpha, p in pairs
    ]
    table = [
        Cell(f"table-p-{p}-{seed}", {"where": TABLE, "p": p, "seed": seed, "tables": tables})
        for seed in range(options.seeds)
        for p in (0, 1, 2)
    ]
    return real + table


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    if cell.settings["where"] == TABLE:
        return {"gain": table_gains(cell.settings["p"], cell.settings["seed"], cell.settings["tables"])}
    alpha, p, seed, steps = (cell.settings[key] for key in ("alpha", "p", "seed", "steps"))
    train = preferences.written(work, "train", preferences.rows_of(work.data("preferences/train.jsonl")))
    values = preferences.config(
        work,
        train,
        {"name": "mpo", "beta": BETA, "alpha": alpha, "power": p},
        train={"steps": steps},
        optimizer={"learning_rate": RATE},
        run={"seed": seed},
    )
    held = preferences.held_out(work, preferences.size_of(work))
    return preferences.figures(preferences.agreement(work, values, work.train(values).folder, held, resamples=0))


def table_gains(power: float, seed: int, tables: int) -> list[float]:
    """For every one of `TABLE_ALPHAS`, the share of the possible gain in true score at `NATS`, mean over tables of answers."""
    found = []
    for number in range(tables):
        rng = np.random.default_rng((seed, number))
        truth, ref = rng.uniform(0, 10, ANSWERS), np.zeros(ANSWERS)
        sets = tabular.drawn_sets(rng, np.ones(ANSWERS), SETS, IN_SET)
        scores = (truth + rng.normal(0, NOISE, ANSWERS))[sets]
        best = tabular.best_at_kl(ref, truth, NATS) - truth.mean()
        gains = []
        for alpha in TABLE_ALPHAS:
            objective = TabularObjective("mpo", beta=BETA, alpha=alpha, power=power)
            path = tabular.trained(objective, ref, sets, scores, steps=STEPS, rate=0.03)
            at = tabular.at_kl(tabular.kl(path, ref), tabular.expected(path, truth), NATS)
            gains.append(float("nan") if at is None else (at - truth.mean()) / best)
        found.append(gains)
    return np.mean(found, axis=0).tolist()


def _real(measured: Sequence[Measurement]) -> dict[tuple[float, int], list[Measurement]]:
    found: dict[tuple[float, int], list[Measurement]] = {}
    for one in measured:
        if one["where"] == REAL:
            found.setdefault((one["alpha"], one["p"]), []).append(one)
    return found


def gain(measured: Sequence[Measurement], key: str, pair: tuple[float, int]) -> Interval:
    """How much more a weighting has than none, over seeds in pairs."""
    arms = _real(measured)
    return over_seeds([a[key] - b[key] for a, b in zip(arms[pair], arms[PLAIN], strict=True)])


def table(measured: Sequence[Measurement], p: int) -> np.ndarray:
    """The gains of tables, `[seeds, alphas]`."""
    return np.asarray(values_of([one for one in measured if one["where"] == TABLE and one["p"] == p], "gain"), float)


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    rank, accuracy = (gain(measured, key, DECIDES) for key in ("rank", "accuracy"))
    alpha = TABLE_ALPHAS.index(DECIDES[0])
    on_table = over_seeds(table(measured, 1)[:, alpha] - table(measured, 1)[:, 0])
    means = {pair: np.mean(values_of(found, "rank")) for pair, found in _real(measured).items()}
    best = max(means, key=means.get)
    line = (
        f"alpha 1, p 1 changes the rank correlation on held-out prompts by {rank} and accuracy by {accuracy}; "
        "the best weighting "
        f"was alpha {best[0]:g}, p {best[1]}; on the table alpha 1 changes the share of the possible gain by {on_table}"
    )
    figures = {
        f"{_name(pair)}: gain in {key}": gain(measured, key, pair)
        for pair in means
        for key in ("rank", "accuracy")
        if pair != PLAIN
    }
    return Verdict(above(rank, 0), line, figures | {"table: gain of alpha 1, p 1": on_table})


def _name(pair: tuple[float, int]) -> str:
    return "no weights" if pair == PLAIN else f"alpha {pair[0]:g}, p {pair[1]}"


def draw(measured: list[Measurement], options: Options):
    arms = _real(measured)
    title = "Weighting answers by the distance of their scores from the mean"
    note = (
        "Left: held-out prompts with 8 answers each; small dots: seeds, line: 95% interval over seeds; dashed: no "
        f"weights. Right: 100% is the highest mean true score that any policy within {NATS:g} nats of the reference has; "
        "line = mean of seeds, band = range."
    )
    figure, axes = plots.figure(title, note, columns=3, size=(4.6, 4.4))
    labels = {
        "rank": "rank correlation of reward and score",
        "accuracy": "accuracy: answers above the mean score\nagainst the others",
    }
    for axis, (key, label) in zip(axes[0], labels.items(), strict=False):
        plain = float(np.mean(values_of(arms[PLAIN], key)))
        plots.bars(axis, [_name(pair) for pair in arms], [values_of(found, key) for found in arms.values()], label, plain)
    axes[0, 1].set_yticklabels([])
    axes[0, 0].set_title("real preferences, a tiny language model", loc="left")
    right, x = axes[0, 2], np.arange(len(TABLE_ALPHAS))
    for i, p in enumerate((0, 1, 2)):
        plots.curve(right, x, 100 * table(measured, p), f"p = {p}", i)
    right.set_xticks(x, [f"{alpha:g}" for alpha in TABLE_ALPHAS])
    right.set(xlabel="alpha", ylabel="% of the possible gain in true score", title=f"a table of {ANSWERS} answers")
    plots.legend(right)
    return figure


EXPERIMENT = Experiment(
    number=13,
    claim="weighting answers by the deviation of their scores from the mean orders answers better than no weights do",
    source="arXiv 2412.04628, W-MPO and its ablation of alpha and p",
    criterion="holds where the rank correlation of implicit rewards and scores on held-out prompts is higher after "
    "training with alpha 1, p 1 than with no weights, by the 95% interval of the gain over seeds; fails where "
    "it is lower; other alphas and p, and a table with known true scores, are shown beside it",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny",),
    seconds=(60, 300),
)
