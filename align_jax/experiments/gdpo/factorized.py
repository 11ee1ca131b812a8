"""GDPO: a belief first and then a text gives the group's opinions better than texts alone do, at equal compute.

Direct: the model answers with a text. Factorised: it states a belief and writes a text that follows from it. Both begin with
the same model, see the same rows, and train for as many response tokens; compared is what the texts express, which is known
exactly. SFT on statements and texts is shown too: it says how much of a difference is the statement's, and how much GDPO's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.experiments import judging, plots, spoken, world
from align_jax.experiments.claim import (
    Cell,
    Experiment,
    Measurement,
    Options,
    Verdict,
    below,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.gdpo.pipeline import topics
from align_jax.experiments.work import Workplace, write_rows

ARMS = {
    "direct-sft": "text alone: SFT",
    "direct-dpo": "text alone: SFT, then DPO",
    "stated-sft": "belief, then text: SFT",
    "stated-gdpo": "belief, then text: SFT, then GDPO",
}
BEST, OTHER, STATED = "stated-gdpo", "direct-sft", "stated-sft"
# Response tokens of a row, the mean: a text and its end 12.6, a statement 4; a pair has two texts, GDPO four statements too.
TOKENS = {"direct-sft": 12.6, "direct-dpo": 25.3, "stated-sft": 16.6, "stated-gdpo": 41.3}
RATE = {"sft": 1.0e-3, "dpo": 3.0e-4, "gdpo": 1.0e-3}


def cells(options: Options) -> list[Cell]:
    size = {"steps": 240, "samples": 32, "heard": 1} if options.quick else {"steps": 600, "samples": 100, "heard": 1}
    return [
        Cell(f"{arm}-{seed}", {"arm": arm, "seed": seed, "stages": [list(one) for one in stages(arm, size["steps"])], **size})
        for seed in range(options.seeds)
        for arm in ARMS
    ]


def stages(arm: str, steps: int) -> list[tuple[str, int]]:
    """(objective, steps) of an arm: about as many response tokens as `steps` of SFT on texts alone."""
    way, last = arm.split("-")
    if last == "sft":
        return [("sft", round(steps * TOKENS["direct-sft"] / TOKENS[arm]))]
    half = steps * TOKENS["direct-sft"] / 2
    return [("sft", round(half / TOKENS[f"{way}-sft"])), (last, round(half / TOKENS[arm]))]


def without_beliefs(rows: Iterable[dict[str, Any]], pairs: bool) -> list[dict[str, str]]:
    """The same rows as texts alone: pairs, or prompts with the accepted text."""
    named = {"chosen": "accept_response", "rejected": "reject_response"} if pairs else {"completion": "accept_response"}
    return [{"prompt": row["prompt"]} | {name: row[column] for name, column in named.items()} for row in rows]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, arm = cell.settings["seed"], cell.settings["arm"]
    asked = topics()
    rows, model, way = world.rows(asked, 200, seed), None, arm.split("-")[0]
    values: dict[str, Any] = {}
    for number, (objective, steps) in enumerate(cell.settings["stages"]):
        train = work.folder / f"train-{number}.jsonl"
        write_rows(train, rows if way == "stated" else without_beliefs(rows, objective == "dpo"))
        values = _config(work, train, objective, way, seed)
        values["train"] |= {"steps": max(1, steps)}
        if model is not None:
            values["model"]["path"] = str(model)
        run = work.train(values, f"run-{number}")
        model = work.export_to(run, work.folder / f"model-{number}")
    values["model"]["path"] = str(model)
    found = spoken.expressed(work, values, asked, cell.settings["samples"], run=None)
    if way == "stated":
        found["distance"] = spoken.heard(work, values, asked, cell.settings["heard"], run=None)["distance"]
    return found


def _config(work: Workplace, train: Path, objective: str, way: str, seed: int) -> dict[str, Any]:
    chosen = {"name": objective} | ({"beta": 0.1} if objective != "sft" else {})
    if objective == "gdpo":
        chosen["sft_weight"] = 1.0
    data = {} if way == "stated" else {"format": "auto", "belief_template": None}
    return world.config(
        work, train, objective=chosen, data=data, run={"seed": seed}, optimizer={"learning_rate": RATE[objective]}
    )


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms = by_setting(measured, "arm")
    says = {arm: over_seeds(values_of(found, "text_distance")) for arm, found in arms.items()}
    figures = {f"distance of what texts say, {ARMS[arm]}": found for arm, found in says.items()}
    figures |= {f"texts that say a belief, {ARMS[arm]}": judging.share(values_of(arms[arm], "readable")) for arm in arms}
    gain = judging.less(arms[BEST], arms[OTHER], "text_distance")
    figures["belief first (GDPO) less text alone (SFT)"] = gain
    stated = judging.less(arms[STATED], arms[OTHER], "text_distance")
    figures["belief first (SFT) less text alone (SFT)"] = stated
    believed = {arm: over_seeds(values_of(arms[arm], "distance")) for arm in (STATED, BEST)}
    figures |= {f"distance of stated beliefs, {ARMS[arm]}": found for arm, found in believed.items()}
    floor, readable = spoken.floor(topics(), arms[BEST][0]["samples"]), np.mean(values_of(arms[BEST], "readable"))
    line = (
        f"what texts say is from people by {says[BEST].value:.3f} with the belief first (SFT, then GDPO; {readable:.0%} of "
        f"texts readable) against {says[OTHER].value:.3f} with text alone (SFT), a difference of {gain}; belief first by SFT "
        f"{says[STATED].value:.3f} (difference {stated}), text alone by SFT, then DPO {says['direct-dpo'].value:.3f}; "
        f"perfect draws {floor:.3f}; stated beliefs: GDPO {believed[BEST].value:.3f}, SFT {believed[STATED].value:.3f}"
    )
    return Verdict(below(gain, 0.0), line, figures)


def draw(measured: list[Measurement], options: Options):
    arms = by_setting(measured, "arm")
    samples = arms[BEST][0]["samples"]
    note = (
        f"All arms train on about as many response tokens. Small dots: {spoken.seeds(arms[BEST])}, bars: 95% intervals. "
        f"A text that expresses no belief counts as one that nobody holds. Dashed: {samples} perfect draws a topic."
    )
    figure, axes = plots.figure("Does stating a belief first give the group's opinions better?", note, columns=2, size=(6, 3.6))
    label = "Jensen-Shannon distance of what texts say\nto people's beliefs (0: the same)"
    found = [values_of(of_arm, "text_distance") for of_arm in arms.values()]
    plots.bars(axes[0, 0], [ARMS[arm] for arm in arms], found, label, spoken.floor(topics(), samples))
    axes[0, 0].set_xlim(left=0)
    found = [values_of(of_arm, "readable") for of_arm in arms.values()]
    plots.bars(axes[0, 1], [ARMS[arm] for arm in arms], found, "texts that express a belief at all", possible=(0, 1))
    axes[0, 1].set_xlim(0, 1.08)
    axes[0, 1].set_yticklabels([])
    return figure


EXPERIMENT = Experiment(
    number=6,
    claim="stating a belief first, and then a text, gives the group's opinions better than texts alone, at equal compute",
    source="arXiv 2412.20299, the factorisation pi(y|x) = sum_b pi(b|x) pi(y|b,x)",
    criterion="holds where what texts say is nearer to people's beliefs after SFT and GDPO with beliefs than after SFT on "
    "texts alone, for as many response tokens (95% interval of the paired difference over seeds); fails where it is farther. "
    "Prompt tokens, the reference's pass and sampling are not counted; learning rates and the split of steps between stages "
    f"were not searched, so it speaks of this recipe. {judging.explained(0.05)}",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="world",
    seconds=(120, 300),
)
