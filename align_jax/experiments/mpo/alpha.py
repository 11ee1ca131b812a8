"""MPO: weighting answers by how far their scores are from the mean (W-MPO) orders answers better than no weights do.

The weight is exp(alpha |S - mean|^p), with scores from 0 to 10. Twice: a tiny language model on real preferences, asked about
held-out prompts; and a table of logits over 64 answers whose true scores are known, trained on noisy ones. With p = 0 all
weights are equal, and alpha must not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.experiments import orders, plots, preferences, tabular
from align_jax.experiments.claim import (
    UNCLEAR,
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    above,
    all_of,
    over_seeds,
    values_of,
)
from align_jax.experiments.tabular import TabularObjective
from align_jax.experiments.work import Workplace

BETA, RATE = 0.1, 3.0e-4  # of configs/mpo-preferences.yaml
REAL, TABLE = "real preferences", "a table"
PAIRS = ((0.0, 1), (0.2, 1), (1.0, 1), (4.0, 1), (0.2, 2), (1.0, 2), (4.0, 2), (1.0, 0))  # (alpha, p)
QUICK = ((0.0, 1), (0.2, 1), (1.0, 1))
# The alpha of mpo-objectives and mpo-rounds, and one at which an answer 4 points off the mean weighs exp(4) = 55.
PLAIN, DECIDES = (0.0, 1), ((0.2, 1), (1.0, 1))
TABLE_ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
ANSWERS, IN_SET, SETS, NOISE, NATS, STEPS = 64, 8, 64, 1.0, 0.5, 600


def cells(options: Options) -> list[Cell]:
    steps, tables = (20, 2) if options.quick else (50, 8)
    pairs = QUICK if options.quick else PAIRS
    real = [
        Cell(
            f"real-alpha-{alpha:g}-p-{p}-{seed}",
            {"where": REAL, "alpha": alpha, "p": p, "seed": seed, "steps": steps, "unit": "prompt"},
        )
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
    work.train(values)
    found = preferences.by_prompt(work, values, preferences.held_out(work, preferences.size_of(work)))
    return {**orders.summed(found), "prompts": found, "rivals": preferences.rivals(work)}


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


def over_prompts(measured: Sequence[Measurement], key: str, pair: tuple[float, int]) -> Interval:
    """The same difference with its interval over prompts."""
    arms = _real(measured)
    return orders.over_prompts(values_of(arms[pair], "prompts"), values_of(arms[PLAIN], "prompts"), key)


def word(measured: Sequence[Measurement]) -> str:
    """Of both alphas: one gains, or loses, where both its intervals, over seeds and over prompts, say so."""
    found = [{above(of(measured, "rank", pair), 0) for of in (gain, over_prompts)} for pair in DECIDES]
    return all_of(*(one.pop() if len(one) == 1 else UNCLEAR for one in found))


def table(measured: Sequence[Measurement], p: int) -> np.ndarray:
    """The gains of tables, `[seeds, alphas]`."""
    return np.asarray(values_of([one for one in measured if one["where"] == TABLE and one["p"] == p], "gain"), float)


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    means = {pair: np.mean(values_of(found, "rank")) for pair, found in _real(measured).items()}
    best = max(means, key=means.get)
    at = [TABLE_ALPHAS.index(alpha) for alpha, _ in DECIDES]
    on_table = {
        pair: over_seeds(table(measured, 1)[:, i] - table(measured, 1)[:, 0]) for pair, i in zip(DECIDES, at, strict=True)
    }
    said = "; ".join(
        f"alpha {pair[0]:g} {_short(gain(measured, 'rank', pair))} over seeds, "
        f"{_short(over_prompts(measured, 'rank', pair))} over prompts"
        for pair in DECIDES
    )
    line = (
        f"rank correlation with weights (p 1) less that without: {said}; accuracy: "
        f"{', '.join(_short(gain(measured, 'accuracy', pair)) for pair in DECIDES)}; the highest rank correlation is that of "
        f"{_name(best)}, {means[best]:.3f}{preferences.rivals_said(preferences.rivals_of(measured, options))}"
    )
    figures = {
        f"{_name(pair)} less no weights: {key}{over}": of(measured, key, pair)
        for pair in means
        if pair != PLAIN
        for key in ("rank", "accuracy")
        for over, of in (("", gain), (", over prompts", over_prompts))
    }
    figures |= {f"table: {_name(pair)} less no weights, share of the possible gain": one for pair, one in on_table.items()}
    return Verdict(word(measured), line, figures)


def _short(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.known else str(found)


def _name(pair: tuple[float, int]) -> str:
    return "no weights" if pair == PLAIN else f"alpha {pair[0]:g}, p {pair[1]}"


def draw(measured: list[Measurement], options: Options):
    arms, rivals = _real(measured), preferences.rivals_of(measured, options)
    title = "Weighting answers by the distance of their scores from the mean"
    note = (
        "Left: 80 held-out prompts with 8 answers each; small dots: seeds, line: 95% interval over seeds; dashed: no weights "
        "(of equal steps, the same runs as two sets in mpo-levels). Right: a table of logits, no language model; 100% is the "
        f"highest mean true score that any policy within {NATS:g} nats of the reference has; "
        f"line = mean of seeds, band = range.{preferences.rivals_noted(rivals)}"
    )
    figure, axes = plots.figure(title, note, columns=3, size=(4.6, 4.4))
    labels = {
        "rank": "rank correlation of reward and score",
        "accuracy": "accuracy: answers above the mean score\nagainst the others",
    }
    for axis, (key, label) in zip(axes[0], labels.items(), strict=False):
        plain = float(np.mean(values_of(arms[PLAIN], key)))
        plots.bars(axis, [_name(pair) for pair in arms], [values_of(found, key) for found in arms.values()], label, plain)
        preferences.draw_rival(axis, rivals, key)
        preferences.possible(axis, key)
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
    criterion="holds where the rank correlation of implicit rewards and scores on held-out prompts is higher after training "
    "with alpha 0.2 and with alpha 1 (p 1) than with no weights, each by the 95% interval of the difference over seeds and by "
    "that over prompts (paired bootstrap, mean of seeds); fails where one of both alphas is lower by both intervals; other "
    "alphas and p, and a table with known true scores, are shown beside it",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny",),
    seconds=(60, 300),
)
