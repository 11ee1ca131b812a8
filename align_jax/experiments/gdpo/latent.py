"""GDPO: beliefs that nobody labelled can be had from the texts, as long as the texts tell them apart.

The same answers are learned from with their labels; without, by expectation-maximization under the reference or the policy
(`latent_beliefs`); by stance detection (`align-jax data beliefs`: a language model's posterior, or a classifier of a few
labelled answers); and not at all: beliefs at random, or DPO. With a probability that is varied a person's text is one of
another belief. The model to begin with has learned statements and texts from another population of the same language, in
which all beliefs are equally frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.experiments import judging, plots, spoken, world
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
from align_jax.experiments.work import Workplace, write_rows
from align_jax.recipes.beliefs import label_beliefs

LABELLED, RANDOM = "labelled", "random"
NAMES = {
    LABELLED: "labelled",
    "latent": "latent, by the reference",
    "latent-policy": "latent, by the policy",
    "stance-model": "stance, by the model",
    "stance-classifier": "stance, by a classifier",
    RANDOM: "beliefs at random",
    "dpo": "DPO",
}
WITHOUT = ("latent", "latent-policy", "stance-model", "stance-classifier")
QUICK = (LABELLED, "latent", "latent-policy", "stance-model", RANDOM)
CLAIMED = ("latent", "stance-model")  # these need no label at all, and one E-step
TARGETS = {"skewed": (0.7, 0.15, 0.1, 0.05), "94/2/2/2": (0.94, 0.02, 0.02, 0.02), "two sides": (0.45, 0.45, 0.05, 0.05)}
TOPICS, ROWS, FEW = 12, 40, 40  # topics, answers to each, labelled answers for the classifier
NEAR = 0.05  # Jensen-Shannon distance above that of labels
RECIPE = {"name": "gdpo", "beta": 0.1, "sft_weight": 1.0}


def cells(options: Options) -> list[Cell]:
    mixed = (0.0, 0.5) if options.quick else (0.0, 0.3, 0.6)
    steps = 120 if options.quick else 240
    return [
        Cell(f"{arm}-{eps:g}-{seed}", {"arm": arm, "mixed": eps, "seed": seed, "steps": steps})
        for eps in mixed
        for seed in range(options.seeds)
        for arm in (QUICK if options.quick else NAMES)
    ]


def mixed_rows(asked: Sequence[world.Topic], each: int, seed: int, eps: float) -> list[dict[str, Any]]:
    """Rows of the world in which a text is, with probability `eps`, one of another belief than its author's."""
    rng, names = np.random.default_rng((seed, 3)), {topic.prompt: topic for topic in asked}
    made = world.rows(asked, each, seed)
    for row in made:
        topic = names[row["prompt"]]
        for side in ("accept", "reject"):
            if rng.random() < eps:
                other = int(rng.choice([b for b in range(len(topic.probs)) if b != row[f"{side}_choice_id"]]))
                row[f"{side}_response"] = world.sentence(rng, topic.name, topic.options[other])
    return made


def answers(row: dict[str, Any]) -> dict[str, Any]:
    """A row of which only the answers are known."""
    return {key: row[key] for key in ("prompt", "options", "accept_response", "reject_response", "group")}


def without_distribution(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its labels; its distribution is estimated from them."""
    return {key: value for key, value in row.items() if key != "probabilities"}


def start(work: Workplace, eps: float) -> Path:
    """The model to begin with: of the same language, texts as mixed, all beliefs equally frequent."""

    def make(path: Path) -> None:
        alike = [world.Topic(name, (0.25,) * 4) for name in world.TOPICS]
        file = work.shared / f"start-{eps:g}.jsonl"
        write_rows(file, mixed_rows(alike, world.BASE_ROWS // len(alike), 99, eps))
        values = world.packaged("quickstart-base", data=file, tokenizer=world.tokenizer(work))
        work.export_to(work.train(values, f"start-{eps:g}", shared=True), path)

    return work.once(f"start-{eps:g}-model", make) if eps else world.base_model(work)


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    arm, eps, seed = (cell.settings[key] for key in ("arm", "mixed", "seed"))
    topics = world.topics(TARGETS, TOPICS, seed)
    rows, train = mixed_rows(topics, ROWS, seed, eps), work.folder / "train.jsonl"
    values = world.config(
        work,
        train,
        model={"path": str(start(work, eps))},
        objective=RECIPE | _latent(arm),
        train={"steps": cell.settings["steps"], "groups_per_step": 16},
        optimizer={"learning_rate": 3.0e-3},
        run={"seed": seed},
    )
    found: dict[str, Any] = {}
    if arm == "dpo":
        pairs = [{"prompt": r["prompt"], "chosen": r["accept_response"], "rejected": r["reject_response"]} for r in rows]
        write_rows(train, pairs)
        plain = {key: value for key, value in values["data"].items() if key != "belief_template"}
        work.train({**values, "data": plain | {"format": "pairs"}, "objective": {"name": "dpo", "beta": 0.1}})
    else:
        if arm.startswith("stance"):
            found["agreement"] = _detected(arm, work, values, rows, topics, cell)
        else:
            write_rows(train, _shown(arm, rows, seed))
        work.train(values)
    heard = spoken.heard(work, values, topics, 2)
    return found | {key: heard[key] for key in ("distance", "mass", "consistency", "predicted", "texts")}


def _latent(arm: str) -> dict[str, Any]:
    if not arm.startswith("latent"):
        return {}
    return {"latent_beliefs": True, "posterior": "policy" if arm == "latent-policy" else "reference"}


def _shown(arm: str, rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """What training is shown of the rows."""
    if arm.startswith("latent"):
        return [answers(row) for row in rows]
    rng, shown = np.random.default_rng((seed, 4)), []
    for row in map(without_distribution, rows):
        if arm == RANDOM:
            accepted, rejected = (int(b) for b in rng.permutation(len(row["options"]))[:2])
            for side, belief in (("accept", accepted), ("reject", rejected)):
                row |= {f"{side}_choice_id": belief, f"{side}_choice": row["options"][belief]}
        shown.append(row)
    return shown


def _detected(arm: str, work: Workplace, values: dict[str, Any], rows, topics, cell: Cell) -> float:
    """Writes what stance detection makes of the answers; returns how often its label of an accepted text is its author's."""
    given, train = work.folder / "labels.jsonl", work.folder / "train.jsonl"
    write_rows(given, [without_distribution(row) for row in rows])  # the labels are read for `agreement` alone
    data = values["data"] | {"train": str(given)}
    how: dict[str, Any] = {"by": "model"}
    if arm == "stance-classifier":
        few = work.folder / "few.jsonl"
        others = mixed_rows(topics, ROWS, cell.settings["seed"] + 1000, cell.settings["mixed"])
        write_rows(few, [{"text": row["accept_response"], "belief": row["accept_choice"]} for row in others[:FEW]])
        how = {"by": "classifier", "labelled": str(few)}
    config = work.config({"model": values["model"], "data": data}, "labelling")
    return label_beliefs(config, train, force=True, **how).agreement["accuracy"]


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms, figures = by_setting(measured, "arm", "mixed"), {}
    levels = list(dict.fromkeys(values_of(measured, "mixed")))
    for (arm, eps), found in arms.items():
        figures |= {
            f"{key}, {NAMES[arm]}, mixed {eps:g}": over_seeds(values_of(found, key)) for key in ("distance", "consistency")
        }
    without = [arm for arm in WITHOUT if (arm, levels[0]) in arms]
    above_labels = {arm: _difference(arms, arm, LABELLED, levels[0]) for arm in (*without, RANDOM)}
    figures |= {f"distance above labels, {NAMES[arm]}, mixed {levels[0]:g}": found for arm, found in above_labels.items()}
    said = ", ".join(f"{NAMES[arm]} {above_labels[arm]}" for arm in CLAIMED)
    agreement = {eps: judging.share(values_of(arms["stance-model", eps], "agreement")) for eps in levels}
    texts = {eps: over_seeds([perfect(one["seed"], eps) for one in arms[LABELLED, eps]]) for eps in levels}
    for eps in levels:
        figures |= {f"labels that are the author's, {NAMES['stance-model']}, mixed {eps:g}": agreement[eps],
                    f"distance of perfect labels of these texts, mixed {eps:g}": texts[eps]}  # fmt: skip
    ends = ", ".join(f"{NAMES[arm]} {_collapse(arms, arm, levels)}" for arm in without)
    first, last = (figures[f"distance, {NAMES[LABELLED]}, mixed {levels[i]:g}"].value for i in (0, -1))
    most = {arm: figures[f"distance, {NAMES[arm]}, mixed {levels[-1]:g}"].value for arm in ("stance-model", RANDOM)}
    line = (
        f"the start learned labelled statements; distance {first:.3f} with labels, above it: {said} "
        f"(right for {agreement[levels[0]].value:.0%} of texts), at random {above_labels[RANDOM].value:.3f}; not surely better "
        f"than random: {ends} (at {levels[-1]:.0%} mixed labels {last:.3f}, stance {most['stance-model']:.3f}, random "
        f"{most[RANDOM]:.3f}, perfect labels of the texts {texts[levels[-1]].value:.3f})"
    )
    return Verdict(all_of(*(below(above_labels[arm], NEAR) for arm in CLAIMED)), line, figures)


def perfect(seed: int, eps: float) -> float:
    """The distance to the group's beliefs of those that its texts express: of labels that read every text right."""
    topics = world.topics(TARGETS, TOPICS, seed)
    rows, shares = mixed_rows(topics, ROWS, seed, eps), []
    for topic in topics:
        mine = [world.belief_of(row["accept_response"]) for row in rows if row["prompt"] == topic.prompt]
        shares.append(np.bincount(mine, minlength=len(topic.probs)) / len(mine))
    return spoken.mean_distance(shares, topics)


def _difference(arms: dict[tuple, list[Measurement]], one: str, other: str, eps: float) -> Interval:
    """Of the distances of two arms, paired by seed."""
    return over_seeds([a["distance"] - b["distance"] for a, b in zip(arms[one, eps], arms[other, eps], strict=True)])


def _collapse(arms: dict[tuple, list[Measurement]], arm: str, levels: Sequence[float]) -> str:
    """From which share of mixed texts an arm is not surely better than beliefs at random."""
    for eps in levels:
        found = _difference(arms, arm, RANDOM, eps)
        if not found.known:
            return "not known of one seed"
        if below(found, 0.0) != "holds":
            return f"from {eps:.0%}"
    return f"nowhere up to {levels[-1]:.0%}"


def draw(measured: list[Measurement], options: Options):
    arms, word = by_setting(measured, "arm", "mixed"), conclude(measured, options).word
    levels = list(dict.fromkeys(values_of(measured, "mixed")))
    title = {
        "holds": "Beliefs that nobody labelled are had from the texts, where texts tell them apart",
        "fails": "Beliefs that nobody labelled are not had from the texts as well as from labels",
        "unclear": "What is learned of beliefs that nobody labelled, against labels, and beliefs at random",
    }[word]
    seeds = len(arms[LABELLED, levels[0]])
    shown = ("stance-classifier", levels[0]) in arms
    learned = f"The classifier has learned from {FEW} labelled answers. " if shown else ""
    note = (
        f"{TOPICS} topics, 4 beliefs, {ROWS} answers each, {seeds} seed(s): mark = mean, bar or band = range. {learned}"
        "Right: dashed, what texts that ignore their belief would get; grey strokes, people's own texts. "
        f"All begin with a model that learned labelled statements of this language. Perfect labels: shares in {ROWS} texts."
    )
    figure, axes = plots.figure(title, note, columns=2, size=(5.6, 4.3))
    for panel, key in zip(axes[0], ("distance", "consistency"), strict=True):
        for i, arm in enumerate(NAMES):
            if (arm, levels[0]) not in arms:
                continue
            seeds = np.asarray([values_of(arms[arm, eps], key) for eps in levels]).T
            _marks(panel, levels, seeds, NAMES[arm], i)
        panel.set_xticks(levels, [f"{eps:.0%}" for eps in levels])
        panel.set_xlabel("share of people's texts that are of another belief")
    texts = [[perfect(one["seed"], eps) for one in arms[LABELLED, eps]] for eps in levels]
    axes[0, 0].plot(levels, np.mean(texts, axis=1), "_", color="black", markersize=22, label="perfect labels\nof these texts")
    axes[0, 0].set_ylabel("Jensen-Shannon distance to the group's beliefs\n(0: the same)")
    axes[0, 1].set_ylabel("share of texts that express\nthe belief that they were given")
    axes[0, 1].axhline(0.25, color="black", linewidth=0.9, linestyle="--")
    axes[0, 1].plot(levels, [1 - eps for eps in levels], "_", color="0.5", markersize=22)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 1].set_ylim(0, 1.03)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    return figure


def _marks(panel, levels: Sequence[float], seeds: np.ndarray, name: str, number: int) -> None:
    """A curve; of two levels only its ends beside each other, as nothing is known between them."""
    if len(levels) > 2:
        plots.curve(panel, levels, seeds, name, number)
        return
    at = np.asarray(levels) + 0.012 * (number - len(NAMES) / 2)
    away = np.abs(np.stack([seeds.min(0), seeds.max(0)]) - seeds.mean(0))
    panel.errorbar(at, seeds.mean(0), away, fmt=plots.MARKERS[number], color=plots.COLOURS[number], markersize=6, label=name)


EXPERIMENT = Experiment(
    number=9,
    claim="beliefs that nobody labelled can be had from the texts, latent or by stance detection, by a model that has learned "
    "labelled statements and texts of the same language from other people",
    source="arXiv 2412.20299, open question on unlabelled beliefs; docs/gdpo.md, latent beliefs; docs/data.md, answers "
    "without beliefs",
    criterion="holds where, with texts that tell beliefs apart, latent beliefs by the reference and stances by the model "
    f"both end less than {NEAR} in Jensen-Shannon distance above labels (95% intervals of the paired difference over seeds); "
    "fails where one ends further. The starting model was trained on labelled statements "
    "and texts of this language, of people whose beliefs are all equally frequent. An arm collapses where it is not surely "
    f"below beliefs at random. {judging.explained(NEAR)}",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="world",
    seconds=(200, 600),
)
