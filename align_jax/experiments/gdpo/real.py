"""GDPO: on real opinions, a model learns what groups of people believe, also about questions that it never saw.

People's answers to the open questions of a survey, with their sentiment as the belief. A third of the questions is held out
whole. Compared are the model before training, SFT, DPO after SFT, GDPO alone, GDPO with a term for the likelihood of the
accepted text, GDPO after SFT (the authors' recipe), both together, at equal steps, and the mean predictor, which gives every
question the average distribution. Texts given a belief are judged by a classifier that is measured on people's own texts first.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from align_jax.experiments import plots, survey
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
from align_jax.experiments.work import Workplace

ARMS = {
    "start": "before training",
    "sft": "SFT",
    "dpo": "SFT, then DPO",
    "gdpo": "GDPO alone",
    "gdpo-text": "GDPO with SFT term",
    "sft-gdpo": "SFT, then GDPO",
    "sft-gdpo-text": "SFT, then GDPO with SFT term",
}
BEST = "sft-gdpo"
KEYS = ("first", "second", "rows", "rate", "tokens", "samples", "new", "answers")
SIZES = {  # (tiny or not, quick or not) -> settings
    (True, False): dict(zip(KEYS, (150, 150, 8, 1e-3, 96, 4, 48, 200), strict=True)),
    (True, True): dict(zip(KEYS, (40, 40, 8, 1e-3, 64, 2, 32, 60), strict=True)),
    (False, False): dict(zip(KEYS, (30, 30, 8, 1e-4, 96, 2, 40, 60), strict=True)),
    (False, True): dict(zip(KEYS, (8, 8, 4, 1e-4, 48, 1, 24, 16), strict=True)),
}
OBJECTIVES = {
    "sft": {"name": "sft"},
    "dpo": {"name": "dpo", "beta": 0.1},
    "gdpo": {"name": "gdpo", "beta": 0.1},
    "gdpo-text": {"name": "gdpo", "beta": 0.1, "sft_weight": 1.0},
}


def cells(options: Options) -> list[Cell]:
    size = SIZES[options.model == "tiny", options.quick]
    made = [Cell("judge", {"arm": "judge", "seed": 0})]
    for seed in range(options.seeds):
        arms = [arm for arm in ARMS if arm != "start" or seed == 0]
        made += [Cell(f"{arm}-{seed}", {"arm": arm, "seed": seed, **size}) for arm in arms]
    return made


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    train, held = survey.split(work)
    asked = survey.questions(held)
    judge = survey.judge(train)
    if cell.settings["arm"] == "judge":
        return _of_data(judge, train, held, asked)
    size = cell.settings
    values = survey.config(work, train, size["tokens"])
    run = _trained(cell, work, values)
    spoken = survey.speak(work, values, run, asked, size["samples"], size["new"])
    firsts = _first_of_each(asked, spoken)
    predicted = [row["distribution"] for row in firsts]
    return {
        "distances": [survey.distance(p, one.probs) for p, one in zip(predicted, asked, strict=True)],
        "predicted": predicted,
        "mass": float(np.mean([row["mass"] for row in firsts])),
        "consistency": survey.consistency(judge, asked, spoken),
        "repeats": survey.repeats(asked, spoken, values["data"]["belief_template"]),
        "surprise": survey.surprise(work, values, run, held, size["answers"]),
        "texts": _examples(asked, spoken),
    }


def _trained(cell: Cell, work: Workplace, values: dict[str, Any]) -> str | None:
    """Trains the arm; the name of its run, None where nothing is trained."""
    arm, size, seed = cell.settings["arm"], cell.settings, cell.settings["seed"]
    if arm == "start":
        return None

    def run(objective: str, steps: int, name: str, model: str | None = None, shared: bool = False):
        sections = {
            "objective": OBJECTIVES[objective],
            "optimizer": {"name": "adamw", "learning_rate": size["rate"], "schedule": "cosine", "warmup_steps": 5},
            "train": {"steps": steps, "groups_per_step": size["rows"]},
            "run": {"seed": seed},
        }
        start = values["model"] if model is None else values["model"] | {"path": model}
        return work.train({**values, **sections, "model": start}, name, shared=shared)

    both = size["first"] + size["second"]
    if arm in ("sft", "gdpo", "gdpo-text"):
        run(arm, both, "run")
    else:
        first = f"sft-{seed}"
        start = functools.partial(run, "sft", size["first"], first, shared=True)
        model = work.once(f"{first}-model", lambda path: work.export_to(start(), path))
        run(arm.removeprefix("sft-"), size["second"], "run", str(model))
    return "run"


def _of_data(judge, train, held, asked) -> dict[str, Any]:
    """The questions, what the mean predictor says of them, and how far the judge can be trusted."""
    mean = survey.mean_prediction(train)
    rows = survey.read_rows(held)
    right = {seen: [] for seen in (True, False)}
    verdicts = judge([survey.Question(row["prompt"], tuple(row["options"]), row["accept_response"]) for row in rows]).answers
    for row, found in zip(rows, verdicts, strict=True):
        right[row["seen"]].append(found == row["accept_choice_id"])
    return {
        "questions": [one.prompt for one in asked],
        "groups": [one.group for one in asked],
        "seen": [one.seen for one in asked],
        "targets": [one.probs for one in asked],
        "mean_distances": [survey.distance(mean, one.probs) for one in asked],
        "judge": judge.quality,
        "judge_on_people": {"seen": float(np.mean(right[True])), "unseen": float(np.mean(right[False]))},
    }


def _first_of_each(asked, spoken) -> list[dict]:
    starts = np.cumsum([0, *(len(one.options) for one in asked)])[:-1]
    return [spoken[i] for i in starts]


def _examples(asked, spoken) -> list[dict[str, str]]:
    """A few texts to read: the first of every belief of two unseen questions."""
    given = [(one, row) for one, row in zip([one for one in asked for _ in one.options], spoken, strict=True) if not one.seen]
    return [{"prompt": one.prompt, "belief": one.options[row["belief"]], "text": row["texts"][0]} for one, row in given[:6]]


def _over_questions(values: np.ndarray, draws: int = 4000) -> Interval:
    """The mean of `[questions]` and its 95% interval, by the percentile bootstrap over questions."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _parts(measured: list[Measurement]) -> tuple[Measurement, dict[str, list[Measurement]], np.ndarray]:
    """The data, the cells of each arm, and which questions training saw."""
    arms = by_setting(measured, "arm")
    data = arms.pop("judge")[0]
    return data, arms, np.asarray(data["seen"])


def _distances(cells: list[Measurement]) -> np.ndarray:
    """`[questions]`, the mean over seeds."""
    return np.mean(values_of(cells, "distances"), axis=0)


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    data, arms, seen = _parts(measured)
    mean, best = np.asarray(data["mean_distances"]), _distances(arms[BEST])
    figures = {f"{arm}, {kind}": _over_questions(_distances(cells)[which])
               for arm, cells in arms.items() for kind, which in (("seen", seen), ("unseen", ~seen))}  # fmt: skip
    figures |= {"mean predictor, seen": _over_questions(mean[seen]), "mean predictor, unseen": _over_questions(mean[~seen])}
    gain_seen, gain_unseen = _over_questions((best - mean)[seen]), _over_questions((best - mean)[~seen])
    groups = np.asarray(data["groups"])
    figures |= {f"{BEST}, round {g}": _over_questions(best[groups == g]) for g in sorted(set(groups))}
    figures["worst round"] = max((figures[f"{BEST}, round {g}"] for g in set(groups)), key=lambda found: found.value)
    figures |= {"gain on the mean predictor, seen": gain_seen, "gain on the mean predictor, unseen": gain_unseen}
    for key in ("consistency", "repeats", "surprise", "mass"):
        figures |= {f"{key}, {arm}": over_seeds(values_of(cells, key)) for arm, cells in arms.items()}
    word = all_of(below(gain_seen, 0.0), below(gain_unseen, 0.0))
    line = (
        f"distance {figures[f'{BEST}, seen']} on seen and {figures[f'{BEST}, unseen']} on unseen questions after SFT and "
        f"GDPO, {gain_seen} and {gain_unseen} from the mean predictor's; texts express their belief in "
        f"{figures[f'consistency, {BEST}']} (chance 0.33, the judge itself {data['judge']['accuracy']:.2f}); beliefs are "
        f"divided by their sum, the probability of any statement, which is {figures[f'mass, {BEST}'].value:.2g}, and "
        f"{figures['mass, dpo'].value:.2g} after DPO"
    )
    return Verdict(word, line, figures)


def draw(measured: list[Measurement], options: Options):
    data, arms, seen = _parts(measured)
    verdict = conclude(measured, options)
    model = "a model of 260 thousand parameters" if options.model == "tiny" else options.model
    title = {"holds": "predicts", "fails": "does not predict", "unclear": "may predict"}[verdict.word]
    note = (
        "Dots: means over questions, lines: 95% intervals over questions. The mean predictor gives every question the average "
        "of the training questions. Right: share of texts in which a judge finds the belief that they were given "
        f"(of people's own texts it finds {data['judge']['accuracy']:.0%} right), and share in which a statement stands once "
        "more, as the template writes it."
    )
    figure, axes = plots.figure(
        f"GDPO after SFT {title} what people believe better than the average does ({model})", note, columns=3, size=(4.6, 3.9)
    )
    names = ["mean predictor", *arms]
    labels = ["average of questions", *(ARMS[arm] for arm in arms)]
    for panel, kind in ((axes[0, 0], "seen"), (axes[0, 1], "unseen")):
        plots.intervals(panel, labels, [verdict.figures[f"{name}, {kind}"] for name in names],
                        "Jensen-Shannon distance to people's beliefs\n(0: the same)")  # fmt: skip
        where = f"in the training data ({seen.sum()})" if kind == "seen" else f"not in the training data ({(~seen).sum()})"
        panel.set_title(f"questions {where}", fontsize=10)
        panel.set_xlim(left=0)
    axes[0, 1].set_yticklabels([])
    panel = axes[0, 2]
    rows = np.arange(len(arms))
    for i, (key, name) in enumerate((("consistency", "expresses its belief"), ("repeats", "states a belief again"))):
        shares = [verdict.figures[f"{key}, {arm}"].value for arm in arms]
        panel.plot(shares, rows, plots.MARKERS[i], color=plots.COLOURS[i], label=name)
    panel.axvline(1 / 3, color="black", linewidth=0.9, linestyle="--", label="chance")
    panel.axvline(data["judge"]["accuracy"], color="0.5", linewidth=0.9, linestyle=":", label="judge on people's texts")
    panel.set_yticks(rows, [ARMS[arm] for arm in arms])
    panel.set_ylim(len(arms) - 0.4, -0.6)
    panel.set(xlim=(-0.03, 1.03), xlabel="share of texts")
    panel.set_title("texts written for a given belief", fontsize=10)
    plots.legend(panel, loc="upper right")
    return figure


EXPERIMENT = Experiment(
    number=4,
    claim="trained on real opinions, GDPO gives what groups believe, also on questions that it never saw",
    source="arXiv 2412.20299, the experiments on opinions; Global Dialogues, rounds 1 to 3",
    criterion="holds where the distance of SFT, then GDPO is below that of the mean predictor on seen and on unseen questions "
    "(95% interval of the paired difference over questions below 0); fails where one is above",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("opinions",),
    models=("tiny", "smollm2"),
    seconds=(240, 900),
)
