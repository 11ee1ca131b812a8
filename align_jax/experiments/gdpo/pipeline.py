"""GDPO: after SFT, GDPO brings a model's beliefs, and what its texts say, nearer to the group's than DPO does.

A world whose distributions are known: SFT first, then DPO (at two learning rates), or GDPO with DPO, KTO or MPO as its
preference term, on the same rows and for as many steps. Followed are the distance of the stated beliefs through training, that
of the texts written to the prompt alone, how often a text given a belief expresses it, and how many texts are sentences of this
world at all; what such a sentence expresses is known exactly.
"""

from __future__ import annotations

import textwrap
from typing import Any

from align_jax.experiments import opinions, plots, spoken, world
from align_jax.experiments.claim import (
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
from align_jax.experiments.opinions import TOPICS
from align_jax.experiments.work import Workplace, write_rows

ARMS = {
    "sft": {"name": "sft"},
    "dpo": {"name": "dpo", "beta": 0.1},
    "dpo-slow": {"name": "dpo", "beta": 0.1},
    "gdpo": {"name": "gdpo", "beta": 0.1},
    "gdpo-text": {"name": "gdpo", "beta": 0.1, "sft_weight": 1.0},
    "gdpo-kto": {"name": "gdpo", "beta": 0.1, "preference": "kto"},
    "gdpo-mpo": {"name": "gdpo", "beta": 0.1, "preference": "mpo"},
}
QUICK = ("sft", "dpo", "dpo-slow", "gdpo", "gdpo-text")
NAMES = {
    "sft": "SFT alone",
    "dpo": "SFT, then DPO",
    "dpo-slow": "SFT, then DPO (slower)",
    "gdpo": "SFT, then GDPO (DPO)",
    "gdpo-text": "SFT, then GDPO (DPO) with SFT term",
    "gdpo-kto": "SFT, then GDPO (KTO)",
    "gdpo-mpo": "SFT, then GDPO (MPO)",
}
DISTANCE, CHANCE = "eval/beliefs/js_distance", 1 / 4
RATE, SLOW = 1.0e-3, 3.0e-4  # the quick start's; DPO is tried at both, as its texts suffer from a rate that calibration needs
KEYS = {"distance": "stated beliefs", "text_distance": "what texts say"}
RIVALS = ("dpo", "dpo-slow")


def cells(options: Options) -> list[Cell]:
    size = {"first": 40, "steps": 60, "samples": 12} if options.quick else {"first": 60, "steps": 200, "samples": 50}
    return [
        Cell(f"{arm}-{seed}", {"arm": arm, "seed": seed, "objective": ARMS[arm], "rate": _rate(arm), **size})
        for seed in range(options.seeds)
        for arm in ARMS
        if arm in QUICK or not options.quick
    ]


def _rate(arm: str) -> float:
    return SLOW if arm == "dpo-slow" else RATE


def topics() -> list[world.Topic]:
    """All topics of the world, with the distributions of the quick start."""
    probs = opinions.distributions(0)
    return [world.Topic(name, tuple(map(float, probs[i]))) for i, name in enumerate(TOPICS)]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, size = cell.settings["seed"], cell.settings
    asked = topics()
    train, held = work.folder / "train.jsonl", work.folder / "eval.jsonl"
    write_rows(train, world.rows(asked, 100, seed))
    write_rows(held, world.rows(asked, 2, seed + 1))
    values = world.config(work, train, run={"seed": seed}, data={"eval": str(held)}, optimizer={"learning_rate": RATE})
    first = {**values, "objective": ARMS["sft"], "train": {"steps": size["first"], "groups_per_step": 32}}
    name = f"sft-{seed}"
    start = work.once(f"{name}-model", lambda path: work.export_to(work.train(first, name, shared=True), path))
    values |= {
        "model": values["model"] | {"path": str(start)},
        "objective": size["objective"],
        "optimizer": values["optimizer"] | {"learning_rate": size["rate"]},
        "train": {"steps": size["steps"], "groups_per_step": 32, "eval_every": max(1, size["steps"] // 8)},
    }
    lines = [line for line in work.train(values).history if DISTANCE in line]
    return {
        "steps_measured": [line["step"] for line in lines],
        "curve": [line[DISTANCE] for line in lines],
        **spoken.heard(work, values, asked, 4),
        **spoken.expressed(work, values, asked, size["samples"]),
    }


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms = by_setting(measured, "arm")
    figures = {}
    for arm, found in arms.items():
        for key, what in (("distance", "distance of stated beliefs"), ("text_distance", "distance of what texts say"),
                          ("consistency", "texts that express the belief they were given"),
                          ("readable", "texts that express a belief at all")):  # fmt: skip
            figures[f"{what}, {NAMES[arm]}"] = over_seeds(values_of(found, key))
    gains = {key: {rival: _gain(arms["gdpo"], arms[rival], key) for rival in RIVALS} for key in KEYS}
    for key, of_rivals in gains.items():
        figures |= {f"GDPO less {NAMES[rival]}, {KEYS[key]}": found for rival, found in of_rivals.items()}
    gain = {key: max(of_rivals.values(), key=lambda found: found.value) for key, of_rivals in gains.items()}
    given = {arm: figures[f"texts that express the belief they were given, {NAMES[arm]}"] for arm in arms}
    fits = given["gdpo"]
    spoken_by = {arm: figures[f"distance of what texts say, {NAMES[arm]}"] for arm in arms}
    words = [below(found, 0.0) for of_rivals in gains.values() for found in of_rivals.values()]
    word = all_of(*words, above(fits, 2 * CHANCE))
    line = (
        f"GDPO less the nearer DPO is {gain['distance']} in the distance of stated beliefs and {gain['text_distance']} in "
        f"that of what texts say (below 0: nearer to people), where as much SFT alone has {spoken_by['sft'].value:.3f}, the "
        f"nearer DPO {min(spoken_by[rival].value for rival in RIVALS):.3f}, GDPO {spoken_by['gdpo'].value:.3f} and with an SFT "
        f"term {spoken_by['gdpo-text'].value:.3f}; {fits} of GDPO's texts express the belief that they were given "
        f"(DPO {given['dpo'].value:.2f}, slower {given['dpo-slow'].value:.2f}, SFT {given['sft'].value:.2f}, GDPO with an "
        f"SFT term {given['gdpo-text'].value:.2f}, chance {CHANCE})"
    )
    return Verdict(word, line, figures)


def _gain(own: list[Measurement], rival: list[Measurement], key: str) -> Interval:
    return over_seeds([a[key] - b[key] for a, b in zip(own, rival, strict=True)])


def draw(measured: list[Measurement], options: Options):
    arms = by_setting(measured, "arm")
    samples = arms["dpo"][0]["samples"]
    note = (
        f"{spoken.seeds(arms['dpo'])}: line or large mark = mean, band = range, bar = 95% interval, dots = seeds. What a "
        f"sentence of this world expresses is known exactly. "
        f"A text that expresses no belief counts as one that nobody holds. Dashed in the second panel: {samples} perfect draws."
    )
    title = "What beliefs and texts become after SFT: by DPO, by GDPO, by more SFT"
    figure, axes = plots.figure(title, note, columns=4, size=(4.6, 4.4))
    for i, (arm, found) in enumerate(arms.items()):
        plots.curve(axes[0, 0], found[0]["steps_measured"], values_of(found, "curve"), NAMES[arm], i)
    label = "Jensen-Shannon distance of stated beliefs\nto people's (0: the same)"
    axes[0, 0].set(xlabel="training steps after SFT", ylabel=label)
    axes[0, 0].set_ylim(0, 1.8 * axes[0, 0].get_ylim()[1])  # room for the legend
    plots.legend(axes[0, 0], loc="upper left")
    names = ["\n".join(textwrap.wrap(NAMES[arm], 22)) for arm in arms]
    label = "Jensen-Shannon distance of what texts say\nto people's beliefs"
    floor = spoken.floor(topics(), samples)
    plots.bars(axes[0, 1], names, [values_of(found, "text_distance") for found in arms.values()], label, floor)
    axes[0, 1].set_xlim(left=0)
    label = "texts that express the belief\nthat they were given (dashed: chance)"
    plots.bars(axes[0, 2], names, [values_of(found, "consistency") for found in arms.values()], label, CHANCE, possible=(0, 1))
    label = "texts to the prompt alone that\nexpress a belief at all"
    plots.bars(axes[0, 3], names, [values_of(found, "readable") for found in arms.values()], label, possible=(0, 1))
    for axis in axes[0, 2:]:
        axis.set_xlim(0, 1.08)
        axis.set_yticklabels([])
    return figure


EXPERIMENT = Experiment(
    number=3,
    claim="after SFT, GDPO brings beliefs and texts nearer to the group's than DPO does",
    source="arXiv 2412.20299, the controllable task; docs/gdpo.md",
    criterion="holds where stated beliefs and what texts say are nearer to people's under GDPO than under DPO at either rate "
    "(paired difference), and more than half of its texts express the belief that they were given (95% intervals over "
    "seeds); fails where one is reversed",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="world",
    seconds=(150, 400),
)
