"""GDPO: under DPO opposite preferences cancel or the majority's wins; conditioned on the belief, both are learned.

Some people prefer one text and others the opposite one, because of what they believe. First the gradients: of the two
preferences together, over the sum of both alone, on a model at its start. Then training, at 50/50 and at 80/20: does the model
come to prefer what each side prefers?

Half of the answer is known beforehand: both sides compare the same two texts, and a model without beliefs can prefer only one
of them, so that DPO must cancel. What is tried is whether a statement of the belief in front is enough to keep both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from align_jax.experiments import plots, world
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
from align_jax.experiments.work import Workplace, write_rows

SHARES = {"50/50": (0.5, 0.5), "80/20": (0.8, 0.2)}
SIDES = ("majority", "minority")
OBJECTIVES = {"dpo": {"name": "dpo", "beta": 0.1}, "gdpo": {"name": "gdpo", "beta": 0.1}}
NAMES = {"dpo": "DPO", "gdpo": "GDPO (given the belief)"}
TOPICS, BETA, RATE = 8, 0.1, 3.0e-4
OPTIMUM = float(np.log(SHARES["80/20"][0] / SHARES["80/20"][1]))  # of DPO: the log-odds of the preference, as a margin


def cells(options: Options) -> list[Cell]:
    made = [Cell(f"gradients-{seed}", {"what": "gradients", "seed": seed}) for seed in range(options.seeds)]
    steps = 60 if options.quick else 150
    for seed in range(options.seeds):
        for shares in SHARES:
            for name in OBJECTIVES:
                own = {"objective": name, "beta": OBJECTIVES[name]["beta"], "rate": RATE}
                settings = {"what": "training", "seed": seed, **own, "shares": shares, "steps": steps}
                made.append(Cell(f"{name}-{shares.replace('/', '-')}-{seed}", settings))
    return made


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    return _gradients(cell, work) if cell.settings["what"] == "gradients" else _training(cell, work)


def opposites(topics: list[world.Topic], seed: int) -> list[tuple[dict, dict]]:
    """For every topic a row of each side, about the same two texts: what one accepts, the other rejects."""
    rng, found = np.random.default_rng(seed), []
    for topic in topics:
        row = world.row(rng, topic, 0, 1)
        other = dict(row)
        for key in ("choice_id", "choice", "response"):
            other[f"accept_{key}"], other[f"reject_{key}"] = row[f"reject_{key}"], row[f"accept_{key}"]
        found.append((row, other))
    return found


def _gradients(cell: Cell, work: Workplace) -> dict[str, Any]:
    """How much of the gradients of two opposite preferences is left when they are added: 0 none, 1 all."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from align_jax import losses
    from align_jax.hf import load_model, read_tokenizer
    from align_jax.scoring.texts import response_logps

    folder = world.base_model(work)
    model, tokenizer = load_model(folder), read_tokenizer(folder)
    seed = cell.settings["seed"]
    pairs = opposites(world.topics({"50/50": SHARES["50/50"]}, TOPICS, seed), seed)

    def gradient(given: bool, side: int):
        rows = [pair[side] for pair in pairs]
        statements = [
            f" {world.STATEMENT.format(id=row['accept_choice_id'], belief=row['accept_choice'])}" if given else ""
            for row in rows
        ]
        prompts = [world.PROMPT.format(prompt=row["prompt"]) + text for row, text in zip(rows, statements, strict=True)]
        texts = [[row["accept_response"], row["reject_response"]] for row in rows]
        ref = jax.lax.stop_gradient(response_logps(model, prompts, texts, tokenizer=tokenizer))

        def loss(model):
            logps = response_logps(model, prompts, texts, tokenizer=tokenizer)
            return jnp.sum(losses.dpo_loss(logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1], beta=BETA))

        leaves = jax.tree.leaves(nnx.grad(loss)(model))
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])

    left = {}
    for name, given in (("dpo", False), ("gdpo", True)):
        one, other = gradient(given, 0), gradient(given, 1)
        left[name] = float(np.linalg.norm(one + other) / (np.linalg.norm(one) + np.linalg.norm(other)))
    return left


def _training(cell: Cell, work: Workplace) -> dict[str, Any]:
    settings = cell.settings
    seed, probs = settings["seed"], SHARES[settings["shares"]]
    pairs = opposites(world.topics({settings["shares"]: probs}, TOPICS, seed), seed)
    for pair in pairs:  # the first side is the majority, whatever its belief
        for row in pair:
            row["probabilities"] = list(probs)
    if settings["objective"] == "dpo":  # which knows no beliefs
        pairs = [tuple(map(_without_belief, pair)) for pair in pairs]
    counts = [round(50 * p) for p in probs]
    files = {name: work.folder / f"{name}.jsonl" for name in ("train", *SIDES)}
    write_rows(files["train"], [row for pair in pairs for row, count in zip(pair, counts, strict=True) for _ in range(count)])
    for side, name in enumerate(SIDES):
        write_rows(files[name], [pair[side] for pair in pairs])
    values = world.config(
        work,
        files["train"],
        data={"eval": [str(files[name]) for name in SIDES], "format": "auto"},
        objective=OBJECTIVES[settings["objective"]],
        train={"steps": settings["steps"], "eval_every": max(1, settings["steps"] // 10)},
        optimizer={"learning_rate": settings["rate"]},
        run={"seed": seed},
    )
    metric = "eval/source/{}/rewards/margins".format
    lines = [line for line in work.train(values).history if metric(SIDES[0]) in line]
    return {"steps_measured": [line["step"] for line in lines]} | {
        side: [line[metric(side)] for line in lines] for side in SIDES
    }


def _without_belief(row: dict[str, Any]) -> dict[str, str]:
    return {"prompt": row["prompt"], "chosen": row["accept_response"], "rejected": row["reject_response"]}


def _parts(measured: list[Measurement]) -> tuple[list[Measurement], dict[tuple, list[Measurement]]]:
    kinds = by_setting(measured, "what")
    return kinds["gradients"], by_setting(kinds["training"], "objective", "shares")


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    gradients, training = _parts(measured)
    left = {f"gradient left, {NAMES[name]}": over_seeds(values_of(gradients, name)) for name in OBJECTIVES}
    kept = {name: left[f"gradient left, {NAMES[name]}"] for name in OBJECTIVES}
    margins: dict[str, Interval] = {}
    for (name, shares), found in training.items():
        for side in SIDES:
            margins[f"margin of the {_called(side, shares)}, {NAMES[name]}, {shares}"] = over_seeds(
                [one[side][-1] for one in found]
            )
    even = over_seeds([one[SIDES[0]][-1] - one[SIDES[1]][-1] for one in training["gdpo", "50/50"]])
    margins[f"margin of the first side less that of the second, {NAMES['gdpo']}, 50/50"] = even
    minority = {name: margins[f"margin of the minority, {NAMES[name]}, 80/20"] for name in OBJECTIVES}
    word = all_of(
        below(kept["dpo"], 0.01),
        above(kept["gdpo"], 0.1),
        below(minority["dpo"], 0.0),
        above(minority["gdpo"], 0.0),
    )
    majority = margins[f"margin of the majority, {NAMES['gdpo']}, 80/20"]
    line = (
        f"of two opposite gradients DPO keeps {max(kept['dpo'].value, 0):.1g} and GDPO {kept['gdpo']} (all: 1); after training "
        f"at 80/20 the minority's margin is {minority['dpo']} under DPO, whose own optimum is -ln(80/20) = {-OPTIMUM:.2f} (the "
        f"majority wins), and {minority['gdpo']} under GDPO, the majority's {majority} (above 0: learned; start: 0)"
    )
    return Verdict(word, line, left | margins)


def _called(side: str, shares: str) -> str:
    """A side's name: where both are equally many, none is the majority."""
    return side if shares != "50/50" else ("first side", "second side")[SIDES.index(side)]


def draw(measured: list[Measurement], options: Options):
    gradients, training = _parts(measured)
    note = (
        f"Two texts of opposite beliefs for each of {TOPICS} topics; a margin above 0 means that the model prefers what this "
        f"side prefers (implicit reward, nats). {len(gradients)} seeds: line = mean, band = range. Dashed at 80/20: "
        f"+-{OPTIMUM:.2f}, DPO's own optimum. Why GDPO learns one side further than the other at 50/50, too, is not known."
    )
    figure, axes = plots.figure(
        "In DPO opposite preferences cancel, or the majority's wins; given the belief, both are learned"
        if conclude(measured, options).word == "holds"
        else "What opposite preferences leave of each other in DPO, and given the belief",
        note, columns=3, size=(4.4, 3.6),
    )  # fmt: skip
    names = [NAMES[name] for name in OBJECTIVES]
    plots.bars(
        axes[0, 0], names, [values_of(gradients, name) for name in OBJECTIVES],
        "part of the gradient that is left\nwhen both sides are added (0: none, 1: all)", possible=(0, 1),
    )  # fmt: skip
    axes[0, 0].set_xlim(-0.05, 1.05)
    axes[0, 0].set_title("at the start", fontsize=10)
    for panel, shares in zip(axes[0, 1:], SHARES, strict=True):
        for i, name in enumerate(OBJECTIVES):
            found = training[name, shares]
            for j, side in enumerate(SIDES):
                label = f"{NAMES[name].split()[0]}: {_called(side, shares)}"
                plots.curve(panel, found[0]["steps_measured"], values_of(found, side), label, 2 * i + j)
        panel.axhline(0, color="black", linewidth=0.9)
        for optimum in (OPTIMUM, -OPTIMUM) if shares == "80/20" else ():
            panel.axhline(optimum, color="0.4", linewidth=0.9, linestyle="--")
        panel.set(xlabel="training steps", ylabel="margin (nats)")
        panel.set_title(f"people are split {shares}", fontsize=10)
        plots.legend(panel)
    return figure


EXPERIMENT = Experiment(
    number=2,
    claim="under DPO opposite preferences about the same texts cancel, or the majority's wins; conditioned on its belief, each "
    "is learned",
    source="arXiv 2412.20299, the motivation of belief conditioning; docs/gdpo.md",
    criterion="holds where DPO keeps less than 0.01 of two opposite gradients and GDPO more than 0.1, and after training at "
    "80/20 the minority's margin is below 0 under DPO and above 0 under GDPO (95% intervals over seeds); fails where one is "
    "reversed. That DPO cannot keep both follows from the data, in which both sides compare the same two texts; whether a "
    "stated belief is enough to keep them does not",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="check",
    seconds=(90, 180),
)
