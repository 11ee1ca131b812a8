"""MPO: with one accepted answer its loss is InfoNCE and bounds information; with more it settles where InfoNCA does not.

First the bound: prompt and accepted answer are correlated Gaussians, whose mutual information is known; the other K - 1
answers belong to other prompts, and the policy is the true one. Then where training ends: a table of logits over 8 answers,
trained on all of them from two starts, by MPO and by InfoNCA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax import losses
from align_jax.experiments import plots, tabular
from align_jax.experiments.claim import (
    FAILS,
    HOLDS,
    UNCLEAR,
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    all_of,
    below,
    over_seeds,
    values_of,
)
from align_jax.experiments.tabular import TabularObjective
from align_jax.experiments.work import Workplace

INFORMATION = (0.5, 1.5, 4.0)  # nats
SIZES = (2, 4, 8, 32, 128, 512)
ALLOWED = 0.01  # nats above the information that many comparisons show by chance
TIGHT, LARGE = 0.05, 50  # nats; "K is large against exp(I)" is K >= LARGE exp(I)
CHUNK = 2**20
SCORES = (9.0, 8.0, 7.5, 6.0, 4.0, 3.0, 2.0, 1.0)
REFERENCE = (0.05, 0.1, 0.15, 0.1, 0.2, 0.1, 0.2, 0.1)
BETA, TEMPERATURE = 1.0, 4.0
STEPS, RATE = 800, 0.05
REACHED = 0.01  # total variation, or mass that is not on the accepted answers
MPO, NCA = TabularObjective("mpo", beta=BETA), TabularObjective("infonca", beta=BETA, temperature=TEMPERATURE)
STARTS = ("reference", "elsewhere")


def cells(options: Options) -> list[Cell]:
    answers = 2**21 if options.quick else 2**23
    return [Cell(f"seed-{seed}", {"seed": seed, "answers": answers}) for seed in range(options.seeds)]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, answers = cell.settings["seed"], cell.settings["answers"]
    rng = np.random.default_rng(seed)
    bounds = {
        f"bound/{known:g}": [float(np.log(k) - mean_loss(rng, known, k, answers)) for k in SIZES] for known in INFORMATION
    }
    return bounds | stationary(np.random.default_rng((seed, 1)))


def mean_loss(rng: np.random.Generator, known: float, k: int, answers: int) -> float:
    """MPO's loss on sets of one accepted answer and `k - 1` of other prompts, the mean over `answers // k` sets."""
    each = CHUNK // k
    return float(np.mean([np.mean(gaussian_loss(rng, known, k, each)) for _ in range(answers // CHUNK)]))


def gaussian_loss(rng: np.random.Generator, known: float, k: int, count: int) -> np.ndarray:
    """The losses `[count]` of sets of `k` where prompt and accepted answer have `known` nats of information."""
    rho = float(np.sqrt(1 - np.exp(-2 * known)))
    prompts, answers = rng.standard_normal((count, 1), np.float32), rng.standard_normal((count, k), np.float32)
    answers[:, 0] = rho * prompts[:, 0] + np.sqrt(1 - rho**2) * answers[:, 0]
    return np.asarray(_loss(prompts, answers, np.eye(1, k, dtype=np.float32).repeat(count, 0), rho))


@jax.jit
def _loss(prompts, answers, scores, rho):
    policy = -0.5 * jnp.square(answers - rho * prompts) / (1 - rho**2) - 0.5 * jnp.log1p(-(rho**2))
    ref = -0.5 * jnp.square(answers)
    return losses.mpo_loss(policy, ref, scores, jnp.ones(answers.shape, bool), beta=1.0)


def stationary(rng: np.random.Generator) -> dict[str, Any]:
    """The policies that MPO and InfoNCA end at, from the reference and from a random start."""
    ref, sets = np.log(REFERENCE), np.arange(len(SCORES))[None]
    scores, elsewhere = np.asarray(SCORES)[None], ref + rng.normal(size=len(SCORES))
    found: dict[str, Any] = {"start/elsewhere": tabular.probabilities(elsewhere)}
    for name, objective in (("mpo", MPO), ("infonca", NCA)):
        for start, logits in zip(STARTS, (ref, elsewhere), strict=True):
            path = tabular.trained(objective, ref, sets, scores, steps=STEPS, rate=RATE, start=logits)
            found[f"{name}/{start}"] = tabular.probabilities(path[-1])
            found[f"{name}/{start}/loss"] = tabular.loss_of(objective, path[-1], ref, sets, scores)
    return found


def infonca_optimum() -> np.ndarray:
    """`pi_ref exp(S / (beta tau))`, normalized."""
    return tabular.probabilities(np.log(REFERENCE) + np.asarray(SCORES) / (BETA * TEMPERATURE))


def variation(p: Sequence[float], q: Sequence[float]) -> float:
    """Total variation distance of two distributions."""
    return float(np.abs(np.asarray(p) - np.asarray(q)).sum() / 2)


def ends(measured: Sequence[Measurement]) -> dict[str, Interval]:
    """What is said of the ends of training, over seeds; of the two starts, the worse, or the difference."""
    accepted = np.asarray(SCORES) > np.mean(SCORES)
    off = [max(1 - np.asarray(one[f"mpo/{start}"])[accepted].sum() for start in STARTS) for one in measured]
    apart = [variation(*(one[f"mpo/{start}"] for start in STARTS)) for one in measured]
    away = [max(variation(one[f"infonca/{start}"], infonca_optimum()) for start in STARTS) for one in measured]
    return {
        "MPO: mass off the accepted answers": over_seeds(off),
        "MPO: total variation between the ends from two starts": over_seeds(apart),
        "InfoNCA: total variation to pi_ref exp(S / (beta tau))": over_seeds(away),
    }


def excess(measured: Sequence[Measurement]) -> dict[tuple[float, int], Interval]:
    """The bound minus the information, for every information and number of answers."""
    return {
        (known, k): over_seeds([one[f"bound/{known:g}"][i] - known for one in measured])
        for known in INFORMATION
        for i, k in enumerate(SIZES)
    }


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    over, at = excess(measured), ends(measured)
    off, apart, away = at.values()
    large = {pair: one for pair, one in over.items() if pair[1] >= LARGE * np.exp(pair[0])}
    loosest, highest = min(large, key=lambda pair: large[pair].value), max(over, key=lambda pair: over[pair].value)
    words = [FAILS if one.known and one.low > ALLOWED else HOLDS if one.known else UNCLEAR for one in over.values()]
    words += [below(Interval(-one.value, *((-one.high, -one.low) if one.known else ())), TIGHT) for one in large.values()]
    words += [below(off, REACHED), below(away, REACHED)]
    line = (
        f"log K - L is at most {over[highest]} nats above the information (K = {highest[1]}), and {large[loosest]} from it for "
        f"I = {loosest[0]:g}, K = {loosest[1]}; MPO leaves {off} off the accepted answers, its ends differ by "
        f"{apart}; InfoNCA ends "
        f"{away} from its optimum"
    )
    figures = {f"log K - L - I, I = {known:g}, K = {k}": one for (known, k), one in over.items()} | at
    return Verdict(all_of(*words), line, figures)


def draw(measured: list[Measurement], options: Options):
    title = "MPO with one accepted answer as a bound on information, and where training by MPO and by InfoNCA ends"
    note = (
        "Left: dashed lines are the true information. Middle and right: one table of 8 answers, scores as named, those "
        "above the mean score accepted; the policies after training from two starts (of the first seed)."
    )
    figure, axes = plots.figure(title, note, columns=3, size=(4.9, 4.3))
    bound, first = axes[0, 0], measured[0]
    for i, known in enumerate(INFORMATION):
        plots.curve(bound, SIZES, values_of(measured, f"bound/{known:g}"), f"information {known:g} nats", i)
        bound.axhline(known, color=plots.COLOURS[i], linestyle="--", linewidth=1)
    bound.plot(SIZES, np.log(SIZES), ":", color="0.5", linewidth=1.2)
    bound.annotate("log K", (SIZES[-2], np.log(SIZES[-2])), xytext=(-4, 4), textcoords="offset points", ha="right", color="0.4")
    bound.set(xscale="log", xlabel="answers in a set, K", ylabel="log K - loss, nats", ylim=(0, max(INFORMATION) * 1.25))
    bound.set_xticks(SIZES, [str(k) for k in SIZES])
    bound.minorticks_off()
    plots.legend(bound, loc="center right")
    names = [f"{score:g}{'*' if score > np.mean(SCORES) else ''}" for score in SCORES]
    _policies(axes[0, 1], "MPO", names, {"reference": REFERENCE, **_both(first, "mpo")})
    _policies(axes[0, 2], "InfoNCA", names, {"its optimum, in theory": infonca_optimum(), **_both(first, "infonca")})
    return figure


def _both(one: Measurement, name: str) -> dict[str, Sequence[float]]:
    return {"from the reference": one[f"{name}/reference"], "from elsewhere": one[f"{name}/elsewhere"]}


def _policies(axis, title: str, names: Sequence[str], policies: dict[str, Sequence[float]]) -> None:
    for i, (name, p) in enumerate(policies.items()):
        colour = ("0.7", *plots.COLOURS)[i]
        axis.bar(np.arange(len(names)) + 0.27 * (i - 1), p, 0.25, color=colour, label=name, hatch=("", "", "//")[i])
    axis.set_xticks(range(len(names)), names)
    axis.set(xlabel="answer, by its score (* accepted)", ylabel="probability", title=title)
    plots.legend(axis)


EXPERIMENT = Experiment(
    number=21,
    claim="with one accepted answer MPO is InfoNCE, a bound on information; with more it ends anywhere on the accepted "
    "answers, where InfoNCA has one optimum",
    source="arXiv 2412.04628, relation to InfoNCA; arXiv 1807.03748 for the bound; arXiv 2402.05369 for InfoNCA",
    criterion=f"holds where log K - L is nowhere more than {ALLOWED} nats above the known information, less than {TIGHT} "
    f"nats from it where K is at least {LARGE} exp(I), MPO leaves less than {REACHED} of the mass off the "
    f"accepted answers, and InfoNCA ends less than {REACHED} (total variation) from pi_ref exp(S / (beta tau)), "
    "by 95% intervals over seeds; fails where one is not so; that MPO's ends differ by where it began is shown",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="check",
    seconds=(8, 20),
)
