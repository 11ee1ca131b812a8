"""MPO: contrasting a prompt's accepted answers with its rejected ones beats DPO on the best against the worst.

Eight objectives are trained on the same real answers, each with the learning rate and beta that were best for it among the same
small number of trials on prompts of their own, and compared on prompts that nothing has seen. Trials of the tiny model are
compared by rank correlation, the mean of two seeds: by the accuracy of one seed two pairs of 278 would decide.
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
DECIDES = {"accuracy": "accuracy", "controlled": "length-controlled accuracy"}
SAID = {**DECIDES, "rank": "rank correlation"}
SEARCH = {"chosen_by": "rank", "search_seeds": 2}  # of the tiny model
SEARCH_LARGE = {"chosen_by": "accuracy", "search_seeds": 1}  # not in the settings of its cells


def cells(options: Options) -> list[Cell]:
    large = options.model != "tiny"
    arms = [arm for arm in ARMS if arm in QUICK or not options.quick]
    steps = 20 if large else 60
    own = {"steps": (10 if large else 20) if options.quick else steps, "trials": _trials(options), **({} if large else SEARCH)}
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
    best = best_of([one["trial"] for one in search])
    objective, rate = trials(arm, count, work.large)[best]
    values = _config(work, cell, objective, rate)
    # The best trial's runs are those of the first seeds.
    shared = seed < _search(cell)["search_seeds"]
    run = work.train(values, _name(arm, best, seed), shared=True) if shared else work.train(values)
    held = preferences.held_out(work, preferences.size_of(work))
    spoken = {"samples": 1, "max_new_tokens": 48}
    found = preferences.agreement(work, values, run.folder, held, **spoken)
    return {
        **preferences.figures(found),
        "kl": found["kl/reference"]["value"],
        "rate": rate,
        "beta": objective.get("beta"),
        "search": search,
        "rivals": preferences.rivals(work),
        "samples": preferences.samples_of(work.folder / "evaluation", 3),
    }


def _search(cell: Cell) -> dict[str, Any]:
    return {key: cell.settings.get(key, value) for key, value in SEARCH_LARGE.items()}


def best_of(found: Sequence[float]) -> int:
    """The first of the highest."""
    return max(range(len(found)), key=found.__getitem__)


def _trial(work: Workplace, cell: Cell, number: int) -> dict[str, Any]:
    """A trial's mean figures on the prompts of the search, and `trial`, by which it is chosen; keeps the best one's runs."""
    seeds, key = _search(cell)["search_seeds"], _search(cell)["chosen_by"]
    every = [_measured_trial(work, cell, number, seed) for seed in range(seeds)]
    figures = [name for name, value in every[0].items() if isinstance(value, float) and name not in ("rate", "beta")]
    found = {**every[0], **{name: sum(one[name] for one in every) / seeds for name in figures}}
    found["trial"] = found[key]
    _drop_worse(work, cell, number)
    return found


def _measured_trial(work: Workplace, cell: Cell, number: int, seed: int) -> dict[str, Any]:
    arm, count = cell.settings["arm"], cell.settings["trials"]
    objective, rate = trials(arm, count, work.large)[number]

    def make(path: Path) -> None:
        values = _config(work, Cell(cell.name, {**cell.settings, "seed": seed}), objective, rate)
        run = work.train(values, _name(arm, number, seed), shared=True)
        found = preferences.agreement(work, values, run.folder, _files(work, cell)["search"], resamples=0)
        preferences.stored(path, {"rate": rate, "beta": objective.get("beta"), **preferences.figures(found)})
        shutil.rmtree(work.folder / "evaluation", ignore_errors=True)

    return json.loads(work.once(f"{_name(arm, number, seed)}.json", make).read_text(encoding="utf-8"))


def _drop_worse(work: Workplace, cell: Cell, last: int) -> None:
    """Runs of trials that others beat are removed: a large model's take gigabytes."""
    arm, seeds, key = cell.settings["arm"], range(_search(cell)["search_seeds"]), _search(cell)["chosen_by"]
    kept = [
        sum(json.loads((work.shared / f"{_name(arm, number, seed)}.json").read_text(encoding="utf-8"))[key] for seed in seeds)
        for number in range(last + 1)
    ]
    for number in range(last + 1):
        if number != best_of(kept):
            for seed in seeds:
                shutil.rmtree(work.shared / _name(arm, number, seed), ignore_errors=True)


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


def _name(arm: str, number: int, seed: int) -> str:
    return f"{_plain(arm)}-trial-{number}" + (f"-seed-{seed}" if seed else "")


def gain(measured: Sequence[Measurement], key: str, arm: str = SET, other: str = PAIR) -> Interval:
    """How much more an arm has than another: over seeds, in pairs; of one seed, over prompts, as if the two were "
    "independent."""
    arms = by_setting(measured, "arm")
    ours, theirs = arms[arm], arms[other]
    if len(ours) > 1:
        return over_seeds([a[key] - b[key] for a, b in zip(ours, theirs, strict=True)])
    value = ours[0][key] - theirs[0][key]
    halves = [
        (one.values.get(f"{key}/high", math.nan) - one.values.get(f"{key}/low", math.nan)) / 2 for one in (*ours, *theirs)
    ]
    half = math.hypot(*halves)
    return Interval(value) if math.isnan(half) else Interval(value, value - half, value + half)


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    arms = by_setting(measured, "arm")
    gains = {key: gain(measured, key) for key in SAID}
    said = ", ".join(f"{name} {_short(gains[key])}" for key, name in SAID.items())
    prompts = " (over prompts)" if len(measured) == len(arms) else ""
    line = (
        f"{SET} less {PAIR}{prompts}: {said}; {SET} less SFT: {_short(gain(measured, 'rank', SET, 'SFT'))} in rank "
        "correlation; "
        f"best of {_trials(options)} trials: {_chosen(arms[SET], SET)}, {_chosen(arms[PAIR], PAIR)}"
        f"{preferences.rivals_said(preferences.rivals_of(measured, options))}"
    )
    figures = {
        f"{arm} less {other}: {name}": gain(measured, key, arm, other)
        for arm, other in ((SET, PAIR), (SET, "SFT"), (PAIR, "SFT"), ("W-MPO", PAIR))
        for key, name in SAID.items()
    }
    figures |= {
        f"{arm}: {name}": _mean(found, key) for arm, found in arms.items() for key, name in {**SAID, "kl": "KL, nats"}.items()
    }
    return Verdict(all_of(*(above(gains[key], 0) for key in DECIDES)), line, figures)


def _short(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.known else str(found)


def _mean(found: Sequence[Measurement], key: str) -> Interval:
    return _interval(found[0], key) if len(found) == 1 else over_seeds(values_of(found, key))


def _chosen(found: Sequence[Measurement], arm: str) -> str:
    """What the search chose, and how far it took the model."""
    one = found[0].values
    rate = f" rate {one['rate']:g}" if "rate" in one else ""
    beta = f", beta {one['beta']:g}" if one.get("beta") is not None else ""
    return f"{arm}{rate}{beta}, KL {over_seeds(values_of(found, 'kl')).value:.3g}"


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
    rivals, size = preferences.rivals_of(measured, options), preferences.TINY if options.model == "tiny" else preferences.LARGE
    count, key = _trials(options), _search(measured[0].cell)["chosen_by"]
    note = (
        f"{size.held} held-out prompts with {size.held_answers} answers each; {spread}. Dashed: chance. DPO: best answer "
        "against "
        f"worst. Each objective at the best of {count} trials, by {SAID[key]} on other prompts: {_tried(options)}."
        f"{preferences.rivals_noted(rivals)}"
    )
    title = f"What objectives learn of real preferences, each at the best of {count} trials"
    figure, axes = plots.figure(title, note, columns=len(SHOWN), size=(3.1, 4.2))
    for axis, (key, label) in zip(axes[0], SHOWN.items(), strict=True):
        limit = {"kl": None, "rank": 0.0}.get(key, 0.5)
        if one:
            plots.intervals(axis, list(arms), [_interval(found[0], key) for found in arms.values()], label, limit)
        else:
            plots.bars(axis, list(arms), [values_of(found, key) for found in arms.values()], label, limit)
        preferences.draw_rival(axis, rivals, key)
        preferences.possible(axis, key)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    return figure


def _tried(options: Options) -> str:
    """The learning rates and betas of MPO's trials, in words."""
    found = trials(SET, _trials(options), options.model != "tiny")
    rates, betas = ({f"{rate:g}": None for _, rate in found}, {f"{objective['beta']:g}": None for objective, _ in found})
    return f"learning rate {' or '.join(rates)}, beta {' or '.join(betas)}"


def _interval(one: Measurement, key: str) -> Interval:
    return Interval(one[key], one.values.get(f"{key}/low"), one.values.get(f"{key}/high"))


EXPERIMENT = Experiment(
    number=12,
    claim="contrasting a prompt's accepted answers with its rejected ones beats DPO on the best answer against the worst",
    source="arXiv 2412.04628, the comparison with DPO; docs/results.md",
    criterion="holds where MPO's accuracy and its length-controlled accuracy on held-out prompts are both above those of DPO "
    "(best against worst), by the 95% interval of the gain over seeds, or over prompts where there is one seed; fails where "
    "one of them is below; each objective with the learning rate and beta that gave it the best rank "
    "correlation on other prompts (mean of two seeds; of a large model the accuracy of one), of equally many trials: 4, and 2 "
    "of quick runs and large models, which try one beta",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny", "smollm2"),
    seconds=(120, 800),
)
