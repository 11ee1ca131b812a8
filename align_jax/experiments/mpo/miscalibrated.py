"""MPO: wrong scores mislead it no more than they mislead DPO on the best answer against the worst.

Two kinds of wrong scores. A judge that was fooled: one and the same senseless string stands among the answers to every prompt,
and a judge, a large model, gave it 7.3 of 10 on average; the objectives are trained on such prompts, and asked about others: by
how much did training raise the log-probability of a token of the string more than that of a token of real answers? (That the
string beats a real answer is shown too, but is so for nearly all under every objective.)
And noise: a share of the scores of real answers is replaced by scores of other answers, drawn at random.
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
    all_of,
    below,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.preferences import Row
from align_jax.experiments.work import Workplace

BETA, RATE = 0.1, 3.0e-4  # of configs/mpo-preferences.yaml
ARMS: dict[str, dict[str, Any]] = {
    "MPO": {"name": "mpo", "beta": BETA},
    "DPO": {"name": "dpo", "beta": BETA},
    "W-MPO, alpha 0.2": {"name": "mpo", "beta": BETA, "alpha": 0.2},
    "W-MPO, alpha 1": {"name": "mpo", "beta": BETA, "alpha": 1.0},
    "InfoNCA": {"name": "infonca", "beta": BETA},
}
QUICK = ("MPO", "DPO")
MARGIN = 0.05  # of all comparisons: a difference that nobody would choose an objective for
NATS = 0.1  # a token, of the string's margin: 10 nats over its 96 tokens
REAL, HELD, STRING_HELD = 3, 80, 11
NOISE, FOOLED, CONTROL = "noise", "fooled", "control"


def cells(options: Options) -> list[Cell]:
    arms = [arm for arm in ARMS if arm in QUICK or not options.quick]
    shares = (0.0, 0.6) if options.quick else (0.0, 0.3, 0.6)
    kinds = [(NOISE, share) for share in shares] + [(FOOLED, 0.0), (CONTROL, 0.0)]
    own = {"steps": 20 if options.quick else 40, "rate": RATE, "beta": BETA, "string": "margin"}
    return [
        Cell(
            f"{_plain(arm)}-{kind}-{share:g}-{seed}",
            {"arm": arm, "kind": kind, "share": share, "seed": seed, **own},
        )
        for seed in range(options.seeds)
        for arm in arms
        for kind, share in kinds
    ]


def _plain(arm: str) -> str:
    return arm.lower().replace(",", "").replace(" ", "-")


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    kind, share, seed = (cell.settings[key] for key in ("kind", "share", "seed"))
    if kind == NOISE:
        rows = [preferences.thinned(row, 4) for row in preferences.rows_of(work.data("preferences/train.jsonl"))]
        train = preferences.written(work, f"noise-{share:g}-{seed}", noisy(rows, share, seed))
        held = preferences.held_out(work, preferences.size_of(work))
    else:
        rows, others = preferences.split(preferences.rows_of(work.data("preferences/miscalibrated.jsonl")), STRING_HELD, seed)
        train = preferences.written(work, f"{kind}-{seed}", [with_string(row, REAL, kind == FOOLED) for row in rows])
        held = preferences.written(work, f"string-{seed}", [real_above_string(row) for row in others])
    values = preferences.config(
        work,
        train,
        ARMS[cell.settings["arm"]],
        train={"steps": cell.settings["steps"]},
        optimizer={"learning_rate": cell.settings["rate"]},
        run={"seed": seed},
    )
    found = preferences.agreement(work, values, work.train(values).folder, held, resamples=0)
    if kind == NOISE:
        return preferences.figures(found)
    tokens = preferences.size_of(work).response  # the string is longer, and cut to this
    string, real = (found[f"rewards/{name}"]["value"] / 0.1 / tokens for name in ("rejected", "chosen"))
    return {"beaten": 1 - found["rewards/accuracies"]["value"], "per_token": string, "margin": string - real}


def noisy(rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Rows in which a share of the scores, drawn anew for each answer, are those of answers drawn from all rows."""
    rng = np.random.default_rng((seed, 17))
    every = np.concatenate([row["scores"] for row in rows])
    return [
        {**row, "scores": np.where(rng.random(n) < share, rng.choice(every, n), row["scores"]).tolist()}
        for row, n in ((row, len(row["scores"])) for row in rows)
    ]


def string_of(row: Row) -> int:
    """Which answer is the string: the last, of the model that the data call NullModel."""
    return len(row["responses"]) - 1


def with_string(row: Row, real: int, keep: bool) -> Row:
    """A row with `real` of its real answers, and the string where it is kept."""
    others = preferences.thinned(preferences.chosen(row, range(string_of(row))), real)
    if not keep:
        return others
    last = preferences.chosen(row, [string_of(row)])
    return {**others, **{key: others[key] + last[key] for key in ("responses", "scores")}}


def real_above_string(row: Row) -> Row:
    """A row whose only right order is every real answer above the string: its accuracy is the share that is."""
    return {**row, "scores": [float(i != string_of(row)) for i in range(len(row["scores"]))]}


def _per_seed(measured: Sequence[Measurement], arm: str, kind: str, key: str, share: float = 0.0) -> list[float]:
    return values_of([one for one in measured if (one["arm"], one["kind"], one["share"]) == (arm, kind, share)], key)


def drawn(measured: Sequence[Measurement], arm: str) -> list[float]:
    """Per seed, the string's margin over real answers to held-out prompts, nats a token."""
    return _per_seed(measured, arm, FOOLED, "margin")


def lost(measured: Sequence[Measurement], arm: str) -> list[float]:
    """Per seed, the accuracy without noise minus that with the most noise."""
    most = max(values_of(measured, "share"))
    clean, worst = (_per_seed(measured, arm, NOISE, "accuracy", share) for share in (0.0, most))
    return [a - b for a, b in zip(clean, worst, strict=True)]


def more_than_dpo(measured: Sequence[Measurement], arm: str) -> dict[str, Interval]:
    """How much more of either kind of harm an arm takes than DPO, over seeds in pairs."""
    kinds = {"string": drawn, "noise": lost}
    return {
        name: over_seeds([a - b for a, b in zip(of(measured, arm), of(measured, "DPO"), strict=True)])
        for name, of in kinds.items()
    }


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    more, arms = more_than_dpo(measured, "MPO"), by_setting(measured, "arm")
    margins = {arm: over_seeds(drawn(measured, arm)).value for arm in arms}
    beaten = {
        (arm, kind): over_seeds(_per_seed(measured, arm, kind, "beaten")).value for arm in arms for kind in (FOOLED, CONTROL)
    }
    line = (
        f"the string's margin over real answers is {margins['MPO']:.2f} nats a token under MPO and {margins['DPO']:.2f} under "
        "DPO, "
        f"MPO less DPO {more['string']} (limit {NATS}); it beats {beaten['MPO', FOOLED]:.0%} and {beaten['DPO', FOOLED]:.0%} "
        "of "
        f"real answers, {beaten['MPO', CONTROL]:.0%} and {beaten['DPO', CONTROL]:.0%} where it was not trained on; accuracy "
        "that "
        f"noise costs, MPO less DPO: {more['noise']} (limit {MARGIN})"
    )
    figures = {
        f"{arm} less DPO: {WHAT[kind]}": found
        for arm in arms
        if arm != "DPO"
        for kind, found in more_than_dpo(measured, arm).items()
    }
    return Verdict(all_of(below(more["string"], NATS), below(more["noise"], MARGIN)), line, figures)


WHAT = {"string": "the string's margin, nats a token", "noise": "accuracy that noise costs"}


def draw(measured: list[Measurement], options: Options):
    arms = list(by_setting(measured, "arm"))
    note = (
        f"{STRING_HELD} held-out prompts with the string; {HELD} with noise. Margin: how much more training raised the "
        "log-probability of the string's tokens than of real answers'. Small dots: seeds; lines: 95% interval over seeds. "
        "Bands: "
        "range of seeds. DPO: best answer against worst."
    )
    title = "What wrong scores do: a senseless string that a judge liked, and scores replaced at random"
    figure, axes = plots.figure(title, note, columns=4, size=(3.9, 3.9))
    margins = [_per_seed(measured, arm, FOOLED, "margin") for arm in arms]
    plots.bars(axes[0, 0], arms, margins, "margin of the string over real answers,\nnats a token, trained with it", 0.0)
    for axis, kind, what in ((axes[0, 1], FOOLED, "trained with it"), (axes[0, 2], CONTROL, "trained without it")):
        label = f"share of real answers that the string beats\non prompts not trained on, {what}"
        plots.bars(axis, arms, [_per_seed(measured, arm, kind, "beaten") for arm in arms], label, 0.5)
        axis.set_xlim(0, 1)
        axis.set_yticklabels([])
    shares = sorted({one["share"] for one in measured if one["kind"] == NOISE})
    for i, arm in enumerate(arms):
        by_share = [_per_seed(measured, arm, NOISE, "accuracy", share) for share in shares]
        plots.curve(axes[0, 3], shares, np.transpose(by_share), arm, i)
    axes[0, 3].axhline(0.5, color="black", linewidth=0.9, linestyle="--")
    axes[0, 3].set(xlabel="share of training scores replaced at random", ylabel="accuracy on true scores (dashed: chance)")
    plots.legend(axes[0, 3])
    return figure


EXPERIMENT = Experiment(
    number=17,
    claim="wrong scores mislead MPO no more than they mislead DPO on the best answer against the worst",
    source="arXiv 2412.04628, which asks for miscalibrated rewards; docs/results.md",
    criterion="two harms: how much more training on prompts where a judge was fooled by a senseless string raises the "
    "log-probability of its tokens than that of real answers' on held-out prompts, and the accuracy lost where 60% of the "
    "scores "
    f"are replaced at random; holds where MPO takes less than {NATS} nats a token and {MARGIN} more of them than DPO, by the "
    "95% "
    "interval over seeds; fails where it takes more of one",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny",),
    seconds=(75, 330),
)
