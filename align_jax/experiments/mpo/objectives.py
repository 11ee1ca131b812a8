"""MPO: contrasting a prompt's accepted answers with its rejected ones beats DPO on the best against the worst.

Eight objectives are trained on the same real answers, each with the learning rate and beta that were best for it among the same
number of trials on prompts of their own, and compared on prompts that nothing has seen.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
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
    all_of,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.work import Workplace

BETAS = (0.1, 0.02)
# name -> objective, the betas that are tried
ARMS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "MPO": ({"name": "mpo"}, BETAS),
    "W-MPO": ({"name": "mpo", "alpha": 0.2}, BETAS),
    "DPO": ({"name": "dpo"}, BETAS),
    "DPO, all pairs": ({"name": "dpo"}, BETAS),
    "InfoNCA": ({"name": "infonca"}, BETAS),
    "NCA": ({"name": "nca"}, BETAS),
    "SimPO": ({"name": "simpo"}, (2.0, 10.0)),
    "SFT": ({"name": "sft"}, ()),
}
QUICK = ("MPO", "W-MPO", "DPO", "SFT")
SET, PAIR = "MPO", "DPO"  # what the claim compares
RATES, RATES_SFT, RATES_LARGE = (3.0e-4, 1.0e-3), (1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3), (2.0e-5, 1.0e-4)
CHOSEN_BY = "accuracy"
DECIDES = {"accuracy": "accuracy", "controlled": "length-controlled accuracy"}


def cells(options: Options) -> list[Cell]:
    large = options.model != "tiny"
    arms = [arm for arm in ARMS if arm in QUICK or not options.quick]
    steps = 20 if large else 60
    own = {"steps": steps // 2 if options.quick else steps, "trials": _trials(options)}
    return [Cell(f"{_plain(arm)}-{seed}", {"arm": arm, "seed": seed, **own}) for seed in range(options.seeds) for arm in arms]


def _trials(options: Options) -> int:
    return 2 if options.quick or options.model != "tiny" else 4


def trials(arm: str, count: int, large: bool) -> list[tuple[dict[str, Any], float]]:
    """(objective, learning rate) of the search: as many for every arm."""
    objective, betas = ARMS[arm]
    rates = RATES_LARGE if large else RATES_SFT if not betas and count == 4 else RATES
    found = [({**objective, **_scale(objective["name"], beta)}, rate) for beta in betas or (None,) for rate in rates]
    return found[:count]


def _scale(name: str, beta: float | None) -> dict[str, float]:
    if beta is None:
        return {}
    return {"beta": beta, "gamma": beta / 2} if name == "simpo" else {"beta": beta}


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    arm, seed, count = (cell.settings[key] for key in ("arm", "seed", "trials"))
    search = [_trial(work, cell, number) for number in range(count)]
    best = max(range(count), key=lambda number: search[number][CHOSEN_BY])
    objective, rate = trials(arm, count, work.large)[best]
    values = _config(work, cell, objective, rate)
    # The trial that was best is seed 0's run.
    run = work.train(values, _name(arm, best), shared=True) if seed == 0 else work.train(values)
    held = preferences.held_out(work, preferences.size_of(work))
    spoken = {"samples": 1, "max_new_tokens": 48}
    found = preferences.agreement(work, values, run.folder, held, **spoken)
    return {
        **preferences.figures(found),
        "kl": found["kl/reference"]["value"],
        "rate": rate,
        "beta": objective.get("beta"),
        "search": search,
        "samples": preferences.samples_of(work.folder / "evaluation", 3),
    }


def _trial(work: Workplace, cell: Cell, number: int) -> dict[str, Any]:
    """What a trial of the search measured on the prompts of the search; only the run of the best so far is kept."""
    arm, count = cell.settings["arm"], cell.settings["trials"]
    objective, rate = trials(arm, count, work.large)[number]

    def make(path: Path) -> None:
        first = Cell(cell.name, {**cell.settings, "seed": 0})
        values = _config(work, first, objective, rate)
        run = work.train(values, _name(arm, number), shared=True)
        found = preferences.agreement(work, values, run.folder, _files(work, cell)["search"], resamples=0)
        preferences.stored(path, {"rate": rate, "beta": objective.get("beta"), **preferences.figures(found)})
        shutil.rmtree(work.folder / "evaluation", ignore_errors=True)

    found = json.loads(work.once(f"{_name(arm, number)}.json", make).read_text(encoding="utf-8"))
    _drop_worse(work, arm, number)
    return found


def _drop_worse(work: Workplace, arm: str, last: int) -> None:
    """Runs of trials that others beat are removed: a large model's take gigabytes."""
    files = [work.shared / f"{_name(arm, number)}.json" for number in range(last + 1)]
    found = [json.loads(file.read_text(encoding="utf-8"))[CHOSEN_BY] for file in files]
    for number in range(last + 1):
        if number != found.index(max(found)):
            shutil.rmtree(work.shared / _name(arm, number), ignore_errors=True)


def _config(work: Workplace, cell: Cell, objective: dict[str, Any], rate: float) -> dict[str, Any]:
    paired = cell.settings["arm"] == "DPO, all pairs"
    files, groups = _files(work, cell), preferences.size_of(work).groups
    if paired:  # as many prompts a step as the others
        groups = round(groups * _length(files["pairs"]) / _length(files["train"]))
    return preferences.config(
        work,
        files["pairs" if paired else "train"],
        objective,
        train={"steps": cell.settings["steps"], "groups_per_step": groups},
        optimizer={"learning_rate": rate},
        run={"seed": cell.settings["seed"]},
    )


def _files(work: Workplace, cell: Cell) -> dict[str, Path]:
    """Files of rows: to train on, the same as accepted-rejected pairs, and to search on."""
    size = preferences.size_of(work)
    train, search = preferences.split(preferences.rows_of(work.data("preferences/train.jsonl")), size.search)
    train, search = ([preferences.thinned(row, size.answers) for row in part] for part in (train, search))
    if work.large:  # no more than are trained on: the reference's log-probs of others would be computed in vain
        train = train[: cell.settings["steps"] * size.groups]
    made = {"train": train, "pairs": preferences.pairs(train), "search": search}
    return {name: preferences.written(work, name, part) for name, part in made.items()}


def _length(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def _plain(arm: str) -> str:
    return arm.lower().replace(",", "").replace(" ", "-")


def _name(arm: str, number: int) -> str:
    return f"{_plain(arm)}-trial-{number}"


def gain(measured: Sequence[Measurement], key: str, arm: str = SET) -> Interval:
    """How much an arm has more than DPO: over seeds, in pairs; of one seed, over prompts, as if the two were independent."""
    arms = by_setting(measured, "arm")
    ours, theirs = arms[arm], arms[PAIR]
    if len(ours) > 1:
        return over_seeds([a[key] - b[key] for a, b in zip(ours, theirs, strict=True)])
    value = ours[0][key] - theirs[0][key]
    halves = [
        (one.values.get(f"{key}/high", math.nan) - one.values.get(f"{key}/low", math.nan)) / 2 for one in (*ours, *theirs)
    ]
    half = math.hypot(*halves)
    return Interval(value) if math.isnan(half) else Interval(value, value - half, value + half)


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    gains = {key: gain(measured, key) for key in DECIDES}
    arms = {arm: over_seeds(values_of(found, "accuracy")).value for arm, found in by_setting(measured, "arm").items()}
    best = max(arms, key=arms.get)
    said = ", ".join(f"{gains[key]} in {name}" for key, name in DECIDES.items())
    prompts = " (over prompts)" if len(measured) == len(arms) else ""
    line = (
        f"{SET} has {said} more than DPO, best against worst{prompts}; the highest accuracy is that of {best}, {arms[best]:.3g}"
    )
    figures = {f"{SET} - {PAIR}: {key}": found for key, found in gains.items()}
    if "W-MPO" in arms:
        figures |= {f"W-MPO - {PAIR}: {key}": gain(measured, key, "W-MPO") for key in DECIDES}
    return Verdict(all_of(*(above(found, 0) for found in gains.values())), line, figures)


SHOWN = {
    "accuracy": "accuracy: accepted answer\nabove rejected",
    "controlled": "length-controlled accuracy",
    "shorter": "accuracy where the accepted\nanswer is the shorter one",
    "rank": "rank correlation of\nreward and score",
    "kl": "KL to the start, nats per\nsample of up to 48 tokens",
}


def draw(measured: list[Measurement], options: Options):
    arms = by_setting(measured, "arm")
    one = len(next(iter(arms.values()))) == 1
    spread = "line: 95% interval over prompts" if one else "small dots: seeds; line: their 95% interval"
    note = f"Held-out prompts with 8 answers each; {spread}. Dashed: chance. DPO: best answer against worst."
    title = "What objectives learn of real preferences, each with its own best learning rate and beta"
    figure, axes = plots.figure(title, note, columns=len(SHOWN), size=(3.1, 4.2))
    for axis, (key, label) in zip(axes[0], SHOWN.items(), strict=True):
        limit = {"kl": None, "rank": 0.0}.get(key, 0.5)
        if one:
            plots.intervals(axis, list(arms), [_interval(found[0], key) for found in arms.values()], label, limit)
        else:
            plots.bars(axis, list(arms), [values_of(found, key) for found in arms.values()], label, limit)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    return figure


def _interval(one: Measurement, key: str) -> Interval:
    return Interval(one[key], one.values.get(f"{key}/low"), one.values.get(f"{key}/high"))


EXPERIMENT = Experiment(
    number=12,
    claim="contrasting a prompt's accepted answers with its rejected ones beats DPO on the best answer against the worst",
    source="arXiv 2412.04628, the comparison with DPO; docs/results.md",
    criterion="holds where MPO's accuracy and its length-controlled accuracy on held-out prompts are both above those of DPO "
    "(best against worst), by the 95% interval of the gain over seeds, or over prompts where there is one seed; fails where "
    "one of them is below; each objective with the learning rate and beta that gave it the best accuracy on other prompts, "
    "of equally many trials",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny", "smollm2"),
    seconds=(90, 500),
)
