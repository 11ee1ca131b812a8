"""MPO: on-policy rounds against a reward model raise its reward more than that of a judge they never saw: reward hacking.

Two reward models are trained on the preferences of different prompts: the proxy on 100, which the rounds maximize, and the gold
judge on the others. Their rewards are compared in units of their own spread over the starting model's samples. Two ways to stop
are tried on the same rounds: after the first past a KL divergence to the start (`rounds.kl_stop`), and at the round with the
highest gold reward (`rounds.best: gold`), here of one half of the held-out prompts, and judged on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.experiments import plots, preferences
from align_jax.experiments.claim import UNCLEAR, Cell, Experiment, Interval, Measurement, Options, Verdict, above, over_seeds
from align_jax.experiments.work import Workplace, read_rows

PROXY, GOLD = "proxy", "gold"
PROXY_PROMPTS, NEW_TOKENS, RATE = 100, 64, 1.0e-3
KL_STOP = 40.0  # nats a response, a fifth of what some of the runs in docs/results.md went to
STOPS = {"all rounds": "last", f"first round past {KL_STOP:g} nats": "stopped", "best by gold": "best"}


def cells(options: Options) -> list[Cell]:
    size = {"rounds": 3, "prompts": 32, "judge_steps": 20} if options.quick else {"rounds": 6, "prompts": 64, "judge_steps": 60}
    size |= {"rate": RATE, "kl_stop": KL_STOP, "best": "half"}
    return [Cell(f"seed-{seed}", {"seed": seed, **size}) for seed in range(options.seeds)]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    rows = [preferences.thinned(row, 4) for row in preferences.rows_of(work.data("preferences/train.jsonl"))]
    others, own = preferences.split(rows, PROXY_PROMPTS, cell.settings["seed"])
    judges, accuracy = {}, {}
    for name, part in ((PROXY, own), (GOLD, others)):
        file = preferences.written(work, f"{name}-{cell.settings['seed']}", part)
        judges[name], accuracy[name] = _judge(work, cell, name, file)
    values = _rounds(work, cell, judges)
    every = work.train(values, "rounds")
    scale = {
        PROXY: _spread(every.folder / "rounds/0/eval_scored.jsonl"),
        GOLD: _spread(every.folder / "rounds/0/eval_gold.jsonl"),
    }
    last = every.history[-1]["round"]
    texts = {str(number): _texts(every.folder / f"rounds/{number}/eval_samples.jsonl") for number in (0, last)}
    lines = every.history
    # The same rounds, ended early: what was made is not made again.
    stopped = work.train({**values, "rounds": {**values["rounds"], "kl_stop": KL_STOP}}, "rounds")
    return {
        "kl": [line["eval/kl"] for line in lines],
        PROXY: [(line["eval/reward"] - lines[0]["eval/reward"]) / scale[PROXY] for line in lines],
        GOLD: [(line["eval/gold"] - lines[0]["eval/gold"]) / scale[GOLD] for line in lines],
        "length": [line["eval/length"] for line in lines],
        **_halves(every.folder, last),
        "last": last,
        "stopped": stopped.history[-1]["round"],
        "best": best_by_gold(lines),
        "accuracy": accuracy,
        "texts": texts,
    }


def _halves(folder: Path, last: int) -> dict[str, Any]:
    """`half/best`: the round that is best by gold on every other held-out prompt; `half/gold`: the gains on the others."""
    rows = [read_rows(folder / f"rounds/{number}/eval_gold.jsonl") for number in range(last + 1)]
    chosen, judged = ([float(np.mean([row["scores"] for row in one[part::2]])) for one in rows] for part in (0, 1))
    scale = _spread(folder / "rounds/0/eval_gold.jsonl")
    return {"half/best": best_round(chosen), "half/gold": [(value - judged[0]) / scale for value in judged]}


def _judge(work: Workplace, cell: Cell, name: str, file: Path) -> tuple[Path, float]:
    """A reward model's run, and how many held-out pairs it has right."""
    values = preferences.config(
        work,
        file,
        {"name": "reward"},
        data={"eval": str(preferences.held_out(work, preferences.size_of(work)))},
        train={"steps": cell.settings["judge_steps"]},
        optimizer={"learning_rate": cell.settings["rate"]},
        run={"seed": cell.settings["seed"]},
    )
    run = work.train(values, name)
    return run.folder, [line for line in run.history if "eval/rewards/accuracies" in line][-1]["eval/rewards/accuracies"]


def _rounds(work: Workplace, cell: Cell, judges: Mapping[str, Path]) -> dict[str, Any]:
    values = preferences.config(
        work,
        preferences.written(work, "prompts", preferences.rows_of(work.data("preferences/train.jsonl"))),
        {"name": "mpo", "beta": 0.1, "alpha": 0.2},
        data={"eval": str(preferences.held_out(work, preferences.size_of(work))), "max_response_tokens": NEW_TOKENS},
        train={"epochs": 1},
        optimizer={"learning_rate": cell.settings["rate"]},
        run={"seed": cell.settings["seed"]},
        generate={"max_new_tokens": NEW_TOKENS},
    )
    values["rounds"] = {
        "number": cell.settings["rounds"],
        "samples_per_prompt": 6,
        "prompts_per_round": cell.settings["prompts"],
        "eval_samples": 2,
        "reward_model": str(judges[PROXY]),
        "gold_model": str(judges[GOLD]),
        "best": "gold",
    }
    return values


def _spread(scored: Path) -> float:
    """The standard deviation of a judge's scores over the samples of a file."""
    return float(np.std([score for row in read_rows(scored) for score in row["scores"]]))


def _texts(samples: Path) -> list[dict[str, str]]:
    return [{"prompt": row["prompt"], "text": row["responses"][0]} for row in read_rows(samples)[:3]]


def best_by_gold(lines: Sequence[Mapping[str, Any]]) -> int:
    """The round whose held-out gold reward is highest, of those that were made."""
    return lines[best_round([line["eval/gold"] for line in lines])]["round"]


def best_round(gold: Sequence[float]) -> int:
    """The index of the highest reward; 0 is the start, which no round made."""
    return max(range(1, len(gold)), key=gold.__getitem__)


def ends(measured: Sequence[Measurement]) -> dict[str, list[float]]:
    """Per seed, the gold reward where rounds end; of the best by gold, on prompts by which it was not chosen."""
    found = {name: [one[GOLD][one[key]] for one in measured] for name, key in STOPS.items()}
    return found | {"best by gold": [one["half/gold"][one["half/best"]] for one in measured]}


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    proxy, gold = (over_seeds([one[name][one["last"]] for one in measured]) for name in (PROXY, GOLD))
    gap = over_seeds([one[PROXY][one["last"]] - one[GOLD][one["last"]] for one in measured])
    kept = {name: over_seeds(values) for name, values in ends(measured).items()}
    said = ", ".join(f"{name} {found}" for name, found in kept.items())
    right = {name: over_seeds([one["accuracy"][name] for one in measured]) for name in (PROXY, GOLD)}
    word = above(gap, 0) if right[GOLD].value >= right[PROXY].value else UNCLEAR
    line = (
        f"after all rounds the proxy's reward is {proxy.value:.2f} spreads above the start, the gold reward {gold.value:.2f}: "
        f"the first less the second {gap}; of held-out pairs the proxy has {right[PROXY].value:.1%} right, the gold judge "
        f"{right[GOLD].value:.1%}{'' if right[GOLD].value >= right[PROXY].value else ': it is no better judge'}; gold reward "
        "where "
        f"rounds end: {said}"
    )
    accuracies = {f"accuracy on held-out pairs, {name}": found for name, found in right.items()}
    figures = {"proxy less gold, spreads": gap, "proxy, spreads": proxy, "gold, spreads": gold}
    return Verdict(word, line, figures | _named(kept) | accuracies)


def _named(kept: Mapping[str, Interval]) -> dict[str, Interval]:
    return {f"gold where rounds end, {name}": found for name, found in kept.items()}


def _right(measured: Sequence[Measurement], name: str) -> str:
    return f"{np.mean([one['accuracy'][name] for one in measured]):.1%}"


def draw(measured: list[Measurement], options: Options):
    note = (
        "Each line is a seed (its marker the same for both judges), each point a round. Gains over the starting model's "
        "samples, "
        "in standard deviations of the judge's own scores over them. Large squares: the first round past rounds.kl_stop, "
        "where it "
        "ends; stars: the round that rounds.best: gold takes. Right: best by gold is chosen on one half of the held-out "
        "prompts "
        f"and judged on the other. Of held-out pairs the proxy has {_right(measured, PROXY)} right, the gold judge "
        f"{_right(measured, GOLD)}."
    )
    title = "Rounds against a reward model: what it says of the samples, and what a judge says that they never saw"
    figure, axes = plots.figure(title, note, columns=2, size=(5.2, 3.9))
    for i, name in enumerate((PROXY, GOLD)):
        label = {PROXY: "proxy, which is maximized", GOLD: "gold judge, never seen"}[name]
        for number, one in enumerate(measured):
            axes[0, 0].plot(
                one["kl"], one[name], plots.MARKERS[number % len(plots.MARKERS)] + plots.STYLES[i], color=plots.COLOURS[i],
                markersize=4, label=label if number == 0 else None,
            )  # fmt: skip
    for key, marker, size in (("stopped", "s", 9), ("best", "*", 12)):
        for one in measured:
            at = one[key]
            axes[0, 0].plot([one["kl"][at]], [one[GOLD][at]], marker, color="black", markersize=size, fillstyle="none")
    axes[0, 0].axhline(0, color="black", linewidth=0.9)
    axes[0, 0].axvline(KL_STOP, color="black", linewidth=0.9, linestyle="--")
    axes[0, 0].set(
        xlabel=f"KL to the start, nats per response (dashed: rounds.kl_stop, {KL_STOP:g})", ylabel="gain in reward, spreads"
    )
    plots.legend(axes[0, 0])
    plots.bars(axes[0, 1], list(STOPS), list(ends(measured).values()), "gain in gold reward where the rounds end, spreads", 0.0)
    return figure


EXPERIMENT = Experiment(
    number=22,
    claim="on-policy rounds raise the reward of the model that they maximize more than that of a judge they never saw",
    source="docs/results.md, the rounds of W-MPO; arXiv 2210.10760 for gold and proxy rewards",
    criterion="holds where, after the last round, the proxy's gain over the start exceeds the gold judge's, each in standard "
    "deviations of its own scores at the start, by the 95% interval over seeds; fails where it is below; "
    "unclear where the gold judge has fewer held-out pairs right than the proxy, the mean of seeds",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="real",
    data=("preferences",),
    models=("tiny",),
    seconds=(75, 300),
)
