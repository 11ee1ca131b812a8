"""GDPO: a minority keeps its share, also at 95/5; under DPO it does not.

Two beliefs about each topic, held by 50/50 to 99/1 of the people. SFT, DPO, DPO after SFT and GDPO train on the same rows for
as many steps. Compared are the share that a model gives the minority, the share of its texts that express the minority's
belief, and how many express neither belief.
"""

from __future__ import annotations

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
    above,
    all_of,
    below,
    by_setting,
    over_seeds,
)
from align_jax.experiments.work import Workplace, write_rows

SPLITS = {"50/50": (0.5, 0.5), "80/20": (0.8, 0.2), "95/5": (0.95, 0.05), "99/1": (0.99, 0.01)}
START = "start"
ARMS = {
    "sft": {"name": "sft"},
    "dpo": {"name": "dpo", "beta": 0.1},
    "sft-dpo": {"name": "dpo", "beta": 0.1},
    "gdpo": {"name": "gdpo", "beta": 0.1, "sft_weight": 1.0},
}
RATES = {"sft": 1.0e-3, "dpo": 3.0e-4, "sft-dpo": 3.0e-4, "gdpo": 1.0e-3}
NAMES = {START: "before training", "sft": "SFT", "dpo": "DPO", "sft-dpo": "SFT, then DPO", "gdpo": "GDPO"}
RIVALS = ("dpo", "sft-dpo")
DECIDES, LIMIT, RAREST, TIMES = "95/5", 0.02, "99/1", 2.0  # a share of 1% may be half or twice as much, not within 0.02
FLOOR = 0.1  # percent, of the picture: a logarithm has no 0


def cells(options: Options) -> list[Cell]:
    size = {"steps": 150, "samples": 32} if options.quick else {"steps": 400, "samples": 100}
    made = [Cell(f"{START}-{seed}", {"arm": START, "seed": seed, "samples": size["samples"]}) for seed in range(options.seeds)]
    return made + [
        Cell(f"{arm}-{seed}", {"arm": arm, "seed": seed, "objective": ARMS[arm], "rate": RATES[arm], **size})
        for seed in range(options.seeds)
        for arm in ARMS
    ]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    topics = world.topics(SPLITS, 20, cell.settings["seed"])
    values = _trained(cell, work, topics)
    run = None if cell.settings["arm"] == START else "run"
    heard = spoken.heard(work, values, topics, 1, run)
    texts = spoken.texts_of(work, values, topics, cell.settings["samples"], run)
    counts = [spoken.counted(of_topic) / len(of_topic) for of_topic in texts]
    found: dict[str, Any] = {}
    for split in SPLITS:
        mine = [i for i, topic in enumerate(topics) if topic.group == split]
        rare = [int(np.argmin(topics[i].probs)) for i in mine]
        found[f"predicted/{split}"] = float(np.mean([heard["predicted"][i][b] for i, b in zip(mine, rare, strict=True)]))
        found[f"written/{split}"] = float(np.mean([counts[i][b] for i, b in zip(mine, rare, strict=True)]))
        found[f"neither/{split}"] = float(np.mean([1 - counts[i][: len(topics[i].probs)].sum() for i in mine]))
        found[f"error/{split}"] = float(
            np.mean([abs(heard["predicted"][i][b] - topics[i].probs[b]) for i, b in zip(mine, rare, strict=True)])
        )
    return found


def _trained(cell: Cell, work: Workplace, topics: list[world.Topic]) -> dict[str, Any]:
    """Trains the arm; its config."""
    seed, train, arm = cell.settings["seed"], work.folder / "train.jsonl", cell.settings["arm"]
    write_rows(train, world.rows(topics, 100, seed))
    if arm == START:
        return world.config(work, train, run={"seed": seed})
    steps, after = cell.settings["steps"], arm == "sft-dpo"
    values = _config(work, train, cell.settings["objective"], cell.settings["rate"], steps // 2 if after else steps, seed)
    if after:
        first = _config(work, train, ARMS["sft"], RATES["sft"], steps - steps // 2, seed)
        start = work.export_to(work.train(first, "first"), work.folder / "first-model")
        values["model"] = values["model"] | {"path": str(start)}
    work.train(values)
    return values


def _config(work: Workplace, train: Path, objective: dict[str, Any], rate: float, steps: int, seed: int) -> dict[str, Any]:
    optimizer = {"learning_rate": rate}
    return world.config(work, train, objective=objective, train={"steps": steps}, optimizer=optimizer, run={"seed": seed})


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms = by_setting(measured, "arm")
    figures = {
        f"{what} of the minority, {NAMES[arm]}, {split}": judging.share([one[f"{key}/{split}"] for one in found])
        for arm, found in arms.items()
        for split in SPLITS
        for key, what in (("predicted", "predicted share"), ("written", "share in texts"), ("error", "error"))
    }
    for arm, found in arms.items():
        for split, probs in SPLITS.items():
            ratio = [one[f"predicted/{split}"] / min(probs) for one in found]
            figures[f"predicted share divided by the true one, {NAMES[arm]}, {split}"] = over_seeds(ratio)
        figures[f"texts of neither belief, {NAMES[arm]}"] = judging.share([_neither(one) for one in found])
    error = f"error/{DECIDES}"
    gdpo = over_seeds([one[error] for one in arms["gdpo"]])
    more = {}
    for rival in (*RIVALS, "sft"):
        more[rival] = judging.less(arms[rival], arms["gdpo"], error)
        figures[f"error of {NAMES[rival]} less that of GDPO, {DECIDES}"] = more[rival]
    predicted = {name: figures[f"predicted share of the minority, {name}, {DECIDES}"] for name in NAMES.values()}
    rarest = figures[f"predicted share divided by the true one, {NAMES['gdpo']}, {RAREST}"]
    neither = ", ".join(f"{NAMES[arm]} {figures[f'texts of neither belief, {NAMES[arm]}'].value:.0%}" for arm in arms)
    line = (
        f"at {DECIDES} GDPO misses the minority's share by {gdpo} (limit {LIMIT}); the miss of DPO less GDPO's is "
        f"{more['dpo']}, of DPO after SFT {more['sft-dpo']}, of SFT {more['sft']}; "
        f"GDPO predicts {predicted['GDPO'].value:.3f}, SFT {predicted['SFT'].value:.3f}, DPO {predicted['DPO'].value:.3f}, DPO "
        f"after SFT {predicted['SFT, then DPO'].value:.3f}, the start {predicted[NAMES[START]].value:.3f}; at {RAREST} GDPO "
        f"predicts {rarest} times the true share (limit {TIMES:g}); texts that express neither belief: {neither}"
    )
    words = [judging.reached(word, options) for word in (below(gdpo, LIMIT), above(rarest, 1 / TIMES), below(rarest, TIMES))]
    return Verdict(all_of(*words, *(above(more[rival], 0.0) for rival in RIVALS)), line, figures)


def _neither(one: Measurement) -> float:
    return float(np.mean([one[f"neither/{split}"] for split in SPLITS]))


def draw(measured: list[Measurement], options: Options):
    arms = by_setting(measured, "arm")
    note = (
        f"{spoken.seeds(arms['gdpo'])}: line = mean, band = range. Dashed: as people are. First two panels: logarithmic, "
        f"less than {FLOOR}% is drawn at the bottom. {arms['gdpo'][0]['samples']} texts a topic, 5 topics a split."
    )
    figure, axes = plots.figure("Which share does a minority keep in the model?", note, columns=3, size=(4.6, 4.2))
    true = np.asarray([100 * min(probs) for probs in SPLITS.values()])
    for axis, (key, title) in zip(
        axes[0, :2], {"predicted": "probability of its belief", "written": "texts that express its belief"}.items(), strict=True
    ):
        for i, (arm, found) in enumerate(arms.items()):
            seeds = [[max(100 * one[f"{key}/{split}"], FLOOR) for split in SPLITS] for one in found]
            plots.curve(axis, true, seeds, NAMES[arm], i)
        axis.plot(true, true, color="black", linewidth=0.9, linestyle="--")
        axis.set(xscale="log", yscale="log", xlabel="the minority among people (%)", ylabel="the minority in the model (%)")
        axis.set_ylim(0.8 * FLOOR, 130)
        axis.set_xticks(true, [f"{share:g}" for share in true])
        axis.set_yticks([FLOOR, 1, 10, 100], [f"{FLOOR} or less", "1", "10", "100"])
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
    neither = [[_neither(one) * 100 for one in found] for found in arms.values()]
    plots.bars(axes[0, 2], [NAMES[arm] for arm in arms], neither, "texts (%)", possible=(0, 100))
    axes[0, 2].set_xlim(-4, 104)
    axes[0, 2].set_title("texts that express neither belief, all splits", fontsize=10)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    return figure


EXPERIMENT = Experiment(
    number=7,
    claim="a minority keeps its share under GDPO, also at 95/5 and 99/1, and does not under DPO",
    source="arXiv 2412.20299, the imbalance of beliefs; docs/gdpo.md",
    criterion=f"holds where at {DECIDES} the minority's predicted share is within {LIMIT} of the true one under GDPO, and "
    f"nearer than under DPO, alone and after SFT, and at {RAREST} within a factor of {TIMES:g} of the true one (95% intervals "
    f"over seeds); fails where one is reversed. Of the limits {LIMIT} and {TIMES:g}: {judging.QUICK}",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="world",
    seconds=(60, 170),
)
