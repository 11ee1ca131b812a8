"""GDPO: groups with opposite beliefs are told apart by the prompt; an unseen mixture is the mixture of their answers.

Open question 1 of the paper. The prompt names how much of the audience is of the one group and of the other (`city 3 street
0`). Training sees either each group alone, or also one mixture; asked are mixtures that it never saw. The model's answer is the
mixture of its answers to the groups, or its answer to the prompt that names the mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.experiments import judging, plots, spoken, survey, world
from align_jax.experiments.claim import (
    Cell,
    Experiment,
    Measurement,
    Options,
    Verdict,
    all_of,
    below,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.opinions import TOPICS
from align_jax.experiments.work import Workplace, write_rows

PARTS = 3  # a mixture is `city n street m`, n + m = 3, in words of the world's tokenizer
TEMPLATE = "question : {group} : {prompt}"
OWN = {"one": (0.7, 0.2, 0.1, 0.0), "other": (0.0, 0.1, 0.2, 0.7)}
ARMS = {"none": (0, 3), "groups": (0, 3), "one mixture": (0, 1, 3)}  # parts of the first group that training sees
NAMES = {"none": "both groups, not named", "groups": "each group alone", "one mixture": "each group, and 1/3 first group"}
LIMIT = 0.05
OBJECTIVE = {"name": "gdpo", "beta": 0.1, "sft_weight": 1.0}
DECIDES = "groups"


def cells(options: Options) -> list[Cell]:
    size = {"topics": 5, "steps": 200} if options.quick else {"topics": 10, "steps": 600}
    return [
        Cell(f"{arm.replace(' ', '-')}-{seed}", {"arm": arm, "seed": seed, "objective": OBJECTIVE, **size})
        for seed in range(options.seeds)
        for arm in ARMS
    ]


def audience(parts: int) -> str:
    """How a prompt names a mixture."""
    return f"city {parts} street {PARTS - parts}"


def mixed(one: Sequence[float], other: Sequence[float], parts: float) -> np.ndarray:
    """`sum_g w_g p(b|x,g)`, with `parts` of the first group."""
    weight = parts / PARTS
    return weight * np.asarray(one) + (1 - weight) * np.asarray(other)


def topics(seed: int, parts: int, count: int = 10) -> list[world.Topic]:
    """Topics as an audience sees them; on each the groups are opposed."""
    rng = np.random.default_rng(seed)
    chosen, found = rng.permutation(TOPICS)[:count], []
    for name in chosen:
        order = rng.permutation(len(OWN["one"]))
        probs = mixed(np.asarray(OWN["one"])[order], np.asarray(OWN["other"])[order], parts)
        found.append(world.Topic(str(name), tuple(map(float, probs)), audience(parts)))
    return found


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, arm, count = (cell.settings[key] for key in ("seed", "arm", "topics"))
    train = work.folder / "train.jsonl"
    seen = [topic for parts in ARMS[arm] for topic in topics(seed, parts, count)]
    write_rows(train, world.rows(seen, 80, seed))
    template = world.PROMPT if arm == "none" else TEMPLATE
    values = world.config(
        work,
        train,
        data={"prompt_template": template},
        objective=cell.settings["objective"],
        train={"steps": cell.settings["steps"]},
        run={"seed": seed},
    )
    work.train(values)
    every = [topics(seed, parts, count) for parts in range(PARTS + 1)]
    heard = spoken.heard(work, values, [topic for of_parts in every for topic in of_parts], 1)["predicted"]
    named = np.asarray(heard).reshape(PARTS + 1, len(every[0]), -1)
    return {
        "named": [_distance(named[parts], every[parts]) for parts in range(PARTS + 1)],
        "mixed": [_distance(mixed(named[PARTS], named[0], parts), every[parts]) for parts in range(PARTS + 1)],
    }


def _distance(predicted: np.ndarray, asked: Sequence[world.Topic]) -> float:
    return float(np.mean([survey.distance(p, topic.probs) for p, topic in zip(predicted, asked, strict=True)]))


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms = by_setting(measured, "arm")
    figures = {}
    for arm, found in arms.items():
        groups = [np.mean([one["named"][0], one["named"][PARTS]]) for one in found]
        figures[f"each group, {NAMES[arm]}"] = over_seeds(groups)
        # Parts 2: a mixture that no arm trains on.
        if arm != "none":  # which gives both groups the same answer
            figures[f"unseen mixture, its answers mixed, {NAMES[arm]}"] = over_seeds([one["mixed"][2] for one in found])
        figures[f"unseen mixture, named in the prompt, {NAMES[arm]}"] = over_seeds([one["named"][2] for one in found])
    own, mixture = figures[f"each group, {NAMES[DECIDES]}"], figures[f"unseen mixture, its answers mixed, {NAMES[DECIDES]}"]
    named = {arm: figures[f"unseen mixture, named in the prompt, {NAMES[arm]}"] for arm in arms}
    blind = figures[f"each group, {NAMES['none']}"]
    guess = figures[f"unseen mixture, named in the prompt, {NAMES['none']}"]
    figures[f"unseen mixture, answers mixed ({NAMES[DECIDES]}) less one answer to all ({NAMES['none']})"] = gain = over_seeds(
        [a["mixed"][2] - b["named"][2] for a, b in zip(arms[DECIDES], arms["none"], strict=True)]
    )
    line = (
        f"distance {own} to each group's beliefs, limit {LIMIT} ({blind.value:.3f} where the prompt names no group; "
        f"{without_group():.3f} is the best possible so); to an unseen mixture {mixture} by mixing the two answers, outside "
        f"the model (one answer to all has {guess.value:.3f}); the model itself does not mix: {named[DECIDES]} by naming the "
        f"mixture in the prompt, {named['one mixture']} where training saw another mixture"
    )
    words = [judging.reached(below(found, LIMIT), options) for found in (own, mixture)]
    return Verdict(all_of(*words, below(gain, 0.0)), line, figures)


def without_group() -> float:
    """The least mean distance to both groups' beliefs of one answer to both."""
    half = mixed(OWN["one"], OWN["other"], PARTS / 2)
    return float(np.mean([survey.distance(half, own) for own in OWN.values()]))


def draw(measured: list[Measurement], options: Options):
    arms = by_setting(measured, "arm")
    note = (
        f"{spoken.seeds(arms[DECIDES])}: line = mean, band = range. On every topic the two groups are opposed (70/20/10/0 and "
        f"0/10/20/70). Groups not named: one answer to all. Dashed: {LIMIT}. The panels have scales of their own."
    )
    title = "How near is the model to an audience that mixes two opposed groups?"
    figure, axes = plots.figure(title, note, columns=2, size=(5, 4))
    for axis, (key, title) in zip(
        axes[0], {"named": "the prompt names the mixture", "mixed": "its answers to both groups, mixed"}.items(), strict=True
    ):
        for i, (arm, found) in enumerate(arms.items()):
            plots.curve(axis, list(range(PARTS + 1)), values_of(found, key), NAMES[arm], i)
        axis.axhline(LIMIT, color="black", linewidth=0.9, linestyle="--")
        axis.set_xticks(
            range(PARTS + 1), ["none\n(trained on)", "1/3\n(green: trained on)", "2/3\n(unseen)", "all\n(trained on)"]
        )
        axis.set(xlabel="share of the first group in the audience", ylabel="Jensen-Shannon distance (0: the same)")
        axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
        axis.set_title(title, fontsize=10)
        plots.legend(axis, loc="upper center", title="prompts in training")
    return figure


EXPERIMENT = Experiment(
    number=8,
    claim="groups with opposite beliefs are told apart by the prompt, and mixing the answers to them, outside the model, "
    "answers an unseen mixture",
    source="arXiv 2412.20299, open question 1 (several groups)",
    criterion="holds where the distance to each group's own beliefs, and to an unseen mixture of them by mixing the answers, "
    f"is below {LIMIT} ({judging.QUICK}), and the latter below that of a model that is told no group (95% intervals over "
    "seeds); fails where one is above. Mixing the answers is arithmetic outside the model; what it does with a mixture named "
    f"in the prompt is shown beside it. {judging.explained(LIMIT)}",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="world",
    seconds=(120, 240),
)
