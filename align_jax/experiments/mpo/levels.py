"""MPO: answers in several ordered levels teach a finer order of answers than two sets do.

MPO divides a prompt's answers in two, above their mean score and not. Its paper asks whether more levels help. Levels come from
scores in several ways: equal parts of the range of a prompt's scores, equally many answers each, fixed scores, or one for every
different score; the same model is trained with each, and its order of held-out answers is compared with that of their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align_jax.experiments import plots, preferences
from align_jax.experiments.claim import (
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    above,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.work import Workplace

BETA, RATE = 0.1, 3.0e-4  # of configs/mpo-preferences.yaml
TWO, MORE = "two sets (MPO)", "4 levels by quantiles"  # what the verdict compares; the others are shown


def _levels(by: str, levels: int | None, **more: Any) -> dict[str, Any]:
    return {"name": "ordered_mpo", "beta": BETA, "levels": levels, "levels_by": by, **more}


ARMS: dict[str, dict[str, Any]] = {
    TWO: {"name": "mpo", "beta": BETA},
    "two sets (W-MPO)": {"name": "mpo", "beta": BETA, "alpha": 0.2},
    "2 levels by range": _levels("range", 2),
    "3 levels by range": _levels("range", 3),
    "4 levels by range": _levels("range", 4),
    "2 levels by quantiles": _levels("quantiles", 2),
    MORE: _levels("quantiles", 4),
    "4 levels: 1, 5, 9": _levels("thresholds", 4, thresholds=[1.0, 5.0, 9.0]),
    "a level a score": _levels("given", None),
}
QUICK = (TWO, "4 levels by range", MORE)


def cells(options: Options) -> list[Cell]:
    arms, steps = (QUICK, 20) if options.quick else (tuple(ARMS), 50)
    return [
        Cell(f"{'-'.join(_words(arm))}-{seed}", {"arm": arm, "seed": seed, "steps": steps, "rate": RATE})
        for seed in range(options.seeds)
        for arm in arms
    ]


def _words(arm: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in arm.lower()).split()


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    train = preferences.written(work, "train", preferences.rows_of(work.data("preferences/train.jsonl")))
    values = preferences.config(
        work,
        train,
        ARMS[cell.settings["arm"]],
        train={"steps": cell.settings["steps"]},
        optimizer={"learning_rate": cell.settings["rate"]},
        run={"seed": cell.settings["seed"]},
    )
    held = preferences.held_out(work, preferences.size_of(work))
    found = preferences.agreement(work, values, work.train(values).folder, held, resamples=0)
    return {**preferences.figures(found), "rivals": preferences.rivals(work)}


def gain(measured: Sequence[Measurement], key: str, arm: str) -> Interval:
    """How much an arm has more than two sets, over seeds in pairs."""
    arms = by_setting(measured, "arm")
    return over_seeds([a[key] - b[key] for a, b in zip(arms[arm], arms[TWO], strict=True)])


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms = by_setting(measured, "arm")
    rank = {arm: over_seeds(values_of(found, "rank")).value for arm, found in arms.items()}
    found, best = gain(measured, "rank", MORE), max(rank, key=rank.get)
    line = (
        f"rank correlation {rank[MORE]:.3f} with {MORE}, {rank[TWO]:.3f} with {TWO}: the first less the second {found}, in "
        f"accuracy {gain(measured, 'accuracy', MORE)}; the highest rank correlation is that of {best}, {rank[best]:.3f}"
        f"{preferences.rivals_said(preferences.rivals_of(measured, options))}"
    )
    figures = {
        f"{arm} less {TWO}: {key}": gain(measured, key, arm) for arm in arms if arm != TWO for key in ("rank", "accuracy")
    }
    return Verdict(above(found, 0), line, figures)


SHOWN = {
    "rank": "rank correlation of reward and score",
    "accuracy": "accuracy: answers above the mean score\nagainst those that are not",
    "best_of_n": "the answer with the highest reward\nhas the highest score",
}


def draw(measured: list[Measurement], options: Options):
    arms = by_setting(measured, "arm")
    rivals = preferences.rivals_of(measured, options)
    note = (
        "80 held-out prompts with 8 answers each, the same for all; small dots: seeds; line: 95% interval over seeds. Dashed: "
        f"chance.{preferences.rivals_noted(rivals)}"
    )
    title = "Two sets of answers against more levels, taken from scores in several ways"
    figure, axes = plots.figure(title, note, columns=3, size=(4, 4.4))
    for axis, (key, label) in zip(axes[0], SHOWN.items(), strict=True):
        limit = {"rank": 0.0, "accuracy": 0.5, "best_of_n": 1 / 8}[key]
        plots.bars(axis, list(arms), [values_of(found, key) for found in arms.values()], label, limit)
        preferences.draw_rival(axis, rivals, key)
        preferences.possible(axis, key)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    return figure


EXPERIMENT = Experiment(
    number=19,
    claim="several ordered levels of answers teach a finer order of answers than two sets",
    source="arXiv 2412.04628, open question 1",
    criterion="holds where the rank correlation of implicit rewards and scores on held-out prompts is higher after training "
    "with 4 levels by quantiles than with MPO's two sets, by the 95% interval of the gain over seeds; fails where it is lower; "
    "the other levels are shown beside them",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny",),
    seconds=(56, 300),
)
