"""MPO: more answers to a prompt teach a better order of answers, at equal prompts and at equal compute.

30 prompts have 56 real answers each. At equal prompts, a step takes as many prompts whatever K is, with K of their answers:
more answers are more data and more compute. At equal compute, all answers of a prompt are divided into sets of K at random,
and a step takes as many answers whatever K is. Both are asked about 80 other prompts; the interval over these is wide, that of
a difference between two K over seeds (other sets, other order) less so. With K = 2 the two answers are drawn at random: they
are not the best and the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.experiments import plots, preferences
from align_jax.experiments.claim import (
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
from align_jax.experiments.preferences import Row
from align_jax.experiments.work import Workplace

BETA, RATE = 0.1, 3.0e-4  # of configs/mpo-preferences.yaml
PROMPTS, COMPUTE = "equal prompts", "equal compute"
SIZES, QUICK = (2, 3, 5, 10, 56), (2, 10)
GROUPS = 2  # prompts a step, at equal prompts
ANSWERS, ANSWERS_QUICK = 56, 20  # answers a step, at equal compute


def cells(options: Options) -> list[Cell]:
    sizes, steps = (QUICK, 15) if options.quick else (SIZES, 30)
    answers = ANSWERS_QUICK if options.quick else ANSWERS
    return [
        Cell(
            f"{kind.replace(' ', '-')}-{k}-{seed}",
            {"kind": kind, "k": k, "seed": seed, "steps": steps, "groups": GROUPS if kind == PROMPTS else answers // k},
        )
        for seed in range(options.seeds)
        for kind in (PROMPTS, COMPUTE)
        for k in sizes
    ]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    kind, k, seed = (cell.settings[key] for key in ("kind", "k", "seed"))
    rows = divided(preferences.rows_of(work.data("preferences/many_responses.jsonl")), k, seed, whole=kind == COMPUTE)
    values = preferences.config(
        work,
        preferences.written(work, f"{cell.name}-train", rows),
        {"name": "mpo", "beta": BETA},
        train={"steps": cell.settings["steps"], "groups_per_step": cell.settings["groups"]},
        optimizer={"learning_rate": RATE},
        run={"seed": seed},
    )
    held = preferences.held_out(work, preferences.size_of(work))
    found = preferences.agreement(work, values, work.train(values).folder, held)
    return {**preferences.figures(found), "rivals": preferences.rivals(work)}


def divided(rows: Sequence[Row], k: int, seed: int, *, whole: bool) -> list[Row]:
    """Rows of `k` answers drawn at random: one a prompt, or as many as its answers make (`whole`).

    Sets whose scores are all equal say nothing and are left out.
    """
    rng, made = np.random.default_rng((seed, k)), []
    for row in rows:
        order = rng.permutation(len(row["scores"]))
        sets = [order[i : i + k] for i in range(0, len(order) - k + 1, k)]
        told = [preferences.chosen(row, one) for one in sets if len({row["scores"][i] for i in one}) > 1]
        made += told if whole else told[:1]
    return made


def gain(measured: Sequence[Measurement], kind: str, k: int, key: str = "rank") -> Interval:
    """How much more `k` answers have than 2, over seeds in pairs."""
    arms = by_setting(measured, "kind", "k")
    return over_seeds([a[key] - b[key] for a, b in zip(arms[kind, k], arms[kind, 2], strict=True)])


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    most = max(values_of(measured, "k"))
    found = {kind: gain(measured, kind, most) for kind in (PROMPTS, COMPUTE)}
    half = np.mean([(one["rank/high"] - one["rank/low"]) / 2 for one in measured])
    line = (
        f"rank correlation with K = {most} less that with K = 2 (a random pair): {found[PROMPTS]} at equal prompts, "
        f"{found[COMPUTE]} at equal compute, where a step has {_prompts_a_step(measured)}; one figure is known to +-{half:.2f} "
        f"from 80 prompts{preferences.rivals_said(preferences.rivals_of(measured, options))}"
    )
    figures = {
        f"{kind}, K = {k} less K = 2: {key}": gain(measured, kind, k, key)
        for kind in found
        for k in sorted(set(values_of(measured, "k")) - {2})
        for key in ("rank", "accuracy")
    }
    return Verdict(all_of(*(above(one, 0) for one in found.values())), line, figures)


def _prompts_a_step(measured: Sequence[Measurement]) -> str:
    """The sets a step, of the fewest and of the most answers."""
    at = {one["k"]: one["groups"] for one in measured if one["kind"] == COMPUTE}
    few, most = min(at), max(at)
    return f"{at[most]} sets of {most}, or {at[few]} of {few}" if at[most] > 1 else f"1 set of {most}, or {at[few]} of {few}"


def draw(measured: list[Measurement], options: Options):
    arms, sizes = by_setting(measured, "kind", "k"), sorted(set(values_of(measured, "k")))
    title = "More answers to a prompt: what the model learns about the order of other answers"
    rivals = preferences.rivals_of(measured, options)
    note = (
        "80 held-out prompts with 8 answers each. Small dots: seeds; large: their mean; dark line: 95% interval over seeds; "
        "light line: 95% interval over the held-out prompts (mean of seeds), which all points share; dashed: chance. K = 2: a "
        f"random pair, not best and worst. At equal compute a step has {_prompts_a_step(measured)}."
        f"{preferences.rivals_noted(rivals)}"
    )
    figure, axes = plots.figure(title, note, columns=2, size=(5.6, 4.2))
    labels = {
        "rank": "rank correlation of reward and score",
        "accuracy": "accuracy: answers above the mean score\nagainst the others",
    }
    for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
        for i, kind in enumerate((PROMPTS, COMPUTE)):
            for j, k in enumerate(sizes):
                _point(axis, j + 0.2 * i - 0.1, arms[kind, k], key, i, kind if j == 0 else None)
        axis.axhline(0.5 if key == "accuracy" else 0.0, color="black", linewidth=0.9, linestyle="--")
        preferences.draw_rival(axis, rivals, key, across=True)
        preferences.possible(axis, key, across=True)
        axis.set_xticks(range(len(sizes)), [str(k) for k in sizes])
        axis.set_xlim(-0.5, len(sizes) - 0.5)
        axis.set(xlabel="answers in a set, K", ylabel=label)
    plots.legend(axes[0, 0])
    return figure


def _point(axis, x: float, found: Sequence[Measurement], key: str, number: int, name: str | None) -> None:
    colour, over = plots.COLOURS[number], over_seeds(values_of(found, key))
    if all(f"{key}/low" in one.values for one in found):
        ends = [np.mean(values_of(found, f"{key}/{end}")) for end in ("low", "high")]
        axis.plot([x, x], ends, color=colour, alpha=0.25, linewidth=6, solid_capstyle="butt")
    if over.known:
        axis.plot([x, x], [over.low, over.high], color=colour, linewidth=2)
    axis.plot([x + 0.05] * len(found), values_of(found, key), ".", color="0.25", markersize=4)
    axis.plot([x], [over.value], plots.MARKERS[number], color=colour, label=name, markersize=7)


EXPERIMENT = Experiment(
    number=14,
    claim="more answers to a prompt teach a better order of answers, at equal prompts and at equal compute",
    source="arXiv 2412.04628, the ablation of the number of responses",
    criterion="holds where the rank correlation of implicit rewards and scores on held-out prompts is higher with the "
    "most answers (56; quick: 10) than with 2, by the 95% interval of the gain over seeds, both at equal "
    "prompts and at equal compute; fails where it is lower in one",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny",),
    seconds=(60, 240),
)
