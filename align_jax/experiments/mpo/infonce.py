"""MPO: with one accepted answer its loss is InfoNCE and bounds information; with more, where it ends is where it began.

First the bound: prompt and accepted answer are correlated Gaussians, whose mutual information is known; the other K - 1
answers belong to other prompts, and the policy is the true one. Then where training ends: a table of logits over 8 answers,
trained on all of them from two starts, the reference and a random one, by MPO and by InfoNCA.
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
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    above,
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
REPEATS = 10  # of a seed, each with draws and a random start of its own
MANY = 128  # from so many answers on a set is large and sets are few: four times as many are drawn
CHUNK = 2**18
SCORES = (9.0, 8.0, 7.5, 6.0, 4.0, 3.0, 2.0, 1.0)
REFERENCE = (0.05, 0.1, 0.15, 0.1, 0.2, 0.1, 0.2, 0.1)
BETA, TEMPERATURE = 1.0, 4.0
STEPS, RATE = 800, 0.05
REACHED = 0.01  # total variation, or mass that is not on the accepted answers
APART = 0.05  # total variation, several times what is "reached": ends that are so far apart are two
MPO, NCA = TabularObjective("mpo", beta=BETA), TabularObjective("infonca", beta=BETA, temperature=TEMPERATURE)
STARTS = ("reference", "elsewhere")


def cells(options: Options) -> list[Cell]:
    own = {"answers": 2**18 if options.quick else 2**20, "repeats": REPEATS}
    return [Cell(f"seed-{seed}", {"seed": seed, **own}) for seed in range(options.seeds)]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, answers = cell.settings["seed"], cell.settings["answers"]
    every = [_repeat((seed, number), answers) for number in range(cell.settings["repeats"])]
    return {key: [one[key] for one in every] for key in every[0]}


def _repeat(seed: tuple[int, int], answers: int) -> dict[str, Any]:
    """The bounds of every information and number of answers, and where training ends."""
    rng = np.random.default_rng(seed)
    bounds = {
        f"bound/{known:g}": [float(np.log(k) - mean_loss(rng, known, k, answers * (4 if k >= MANY else 1))) for k in SIZES]
        for known in INFORMATION
    }
    return bounds | stationary(np.random.default_rng((*seed, 1)))


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
    """What is said of the ends of training, over repeats; of the two starts, the worse, or the difference."""
    accepted, optimum = np.asarray(SCORES) > np.mean(SCORES), infonca_optimum()
    mpo, nca = ([_repeats(measured, f"{name}/{start}") for start in STARTS] for name in ("mpo", "infonca"))
    off = np.max([1 - one[:, accepted].sum(1) for one in mpo], axis=0).tolist()
    apart = [variation(p, q) for p, q in zip(*mpo, strict=True)]
    away = [max(variation(p, optimum), variation(q, optimum)) for p, q in zip(*nca, strict=True)]
    return {
        "MPO: mass off the accepted answers": over_seeds(off),
        "MPO: total variation between the ends from two starts": over_seeds(apart),
        "InfoNCA: total variation to pi_ref exp(S / (beta tau))": over_seeds(away),
    }


def _repeats(measured: Sequence[Measurement], key: str) -> np.ndarray:
    """A figure of all repeats of all seeds, `[repeats, ...]`."""
    return np.concatenate([np.asarray(values, np.float64) for values in values_of(measured, key)])


def excess(measured: Sequence[Measurement]) -> dict[tuple[float, int], Interval]:
    """The bound minus the information, for every information and number of answers."""
    return {
        (known, k): over_seeds((_repeats(measured, f"bound/{known:g}")[:, i] - known).tolist())
        for known in INFORMATION
        for i, k in enumerate(SIZES)
    }


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    over, at = excess(measured), ends(measured)
    off, apart, away = at.values()
    large = {pair: one for pair, one in over.items() if pair[1] >= LARGE * np.exp(pair[0])}
    loosest, highest = min(large, key=lambda pair: large[pair].value), max(over, key=lambda pair: _high(over[pair]))
    words = [below(one, ALLOWED) for one in over.values()]
    words += [below(Interval(-one.value, *((-one.high, -one.low) if one.known else ())), TIGHT) for one in large.values()]
    words += [below(off, REACHED), below(away, REACHED), above(apart, APART)]
    line = (
        f"the highest end of an interval of log K - L less I is {_high(over[highest]):.4f} nats (I = {highest[0]:g}, K = "
        f"{highest[1]}; limit {ALLOWED}); where K >= {LARGE} exp(I) ({len(large)} points, none of I = {max(INFORMATION):g}) "
        "the "
        f"bound is below I by at most {-large[loosest].value:.4f}; MPO leaves {off} off the accepted answers, its ends from "
        "two "
        f"starts are {apart} apart; InfoNCA ends {away} from its optimum"
    )
    figures = {f"log K - L less I, I = {known:g}, K = {k}": one for (known, k), one in over.items()} | at
    return Verdict(all_of(*words), line, figures)


def _high(found: Interval) -> float:
    return found.value if found.high is None else found.high


def draw(measured: list[Measurement], options: Options):
    title = "MPO with one accepted answer as a bound on information, and where training by MPO and by InfoNCA ends"
    note = (
        "Left: dashed lines are the true information. Middle and right: one table of 8 answers, scores as named, those "
        "above the mean score accepted; the policies after training from two starts, the reference and a random one (the first "
        "repeat's)."
    )
    figure, axes = plots.figure(title, note, columns=3, size=(4.9, 4.3))
    bound, first = axes[0, 0], measured[0]
    for i, known in enumerate(INFORMATION):
        plots.curve(bound, SIZES, _repeats(measured, f"bound/{known:g}"), f"information {known:g} nats", i)
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
    return {"from the reference": one[f"{name}/reference"][0], "from a random start": one[f"{name}/elsewhere"][0]}


def _policies(axis, title: str, names: Sequence[str], policies: dict[str, Sequence[float]]) -> None:
    for i, (name, p) in enumerate(policies.items()):
        colour = ("0.7", *plots.COLOURS)[i]
        axis.bar(np.arange(len(names)) + 0.27 * (i - 1), p, 0.25, color=colour, label=name, hatch=("", "", "//")[i])
    axis.set_xticks(range(len(names)), names)
    axis.set(xlabel="answer, by its score (* accepted)", ylabel="probability", title=title)
    plots.legend(axis)


EXPERIMENT = Experiment(
    number=21,
    claim="with one accepted answer MPO is InfoNCE, a bound on information; with more it ends on the accepted answers, how "
    "depends on its start, where InfoNCA has one optimum",
    source="arXiv 2412.04628, relation to InfoNCA; arXiv 1807.03748 for the bound; arXiv 2402.05369 for InfoNCA",
    criterion=f"holds where log K - L is everywhere less than {ALLOWED} nats above the known information, and less than "
    f"{TIGHT} nats below it where K is at least {LARGE} exp(I), MPO leaves less than {REACHED} of the mass off the accepted "
    f"answers and ends more than {APART} (total variation) apart from two starts, and InfoNCA ends less than {REACHED} from "
    f"pi_ref exp(S / (beta tau)), each by the whole 95% interval over {REPEATS} repeats of each seed; fails where an interval "
    "lies wholly on the other side",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="check",
    seconds=(12, 45),
)
