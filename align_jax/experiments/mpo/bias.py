"""MPO: the set of sampled answers stands for all answers with an error that falls as 1/sqrt(n).

The theorem's model: the n answers of a set are drawn independently, and each has an attribute of finite variance, here a
lopsided one (exponential). How far is the set's mean attribute from that of all answers? The same is asked of the answers that
MPO accepts (those above the mean score, as the library divides them), and of the loss itself, whose error has two parts: a
scatter, and a bias that stays when many sets are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax import losses
from align_jax.experiments import plots
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
from align_jax.experiments.work import Workplace

SIZES = tuple(2**i for i in range(1, 10))
EXPECTED, NEAR = -0.5, 0.02
FROM = 16  # answers from which on slopes are fitted: 1/sqrt(n) is what is left where n is large
REPEATS = 10  # of a seed, each with draws of its own
SCALE = 1.0  # standard deviation of an answer's logit, beta times its log-ratio
AGREE = 0.7  # correlation of an answer's score with its logit, and with its attribute
CHUNK = 2**19  # answers drawn at one time
ATTRIBUTE, ACCEPTED, SCATTER, SIGNED = "set", "accepted", "scatter", "signed"


def cells(options: Options) -> list[Cell]:
    own = {"answers": 2**19 if options.quick else 2**21, "repeats": REPEATS}  # of every repeat and n
    return [Cell(f"seed-{seed}", {"seed": seed, **own}) for seed in range(options.seeds)]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    seed, answers = cell.settings["seed"], cell.settings["answers"]
    every = [_repeat(np.random.default_rng((seed, number)), answers) for number in range(cell.settings["repeats"])]
    return {name: [one[name] for one in every] for name in every[0]}


def _repeat(rng: np.random.Generator, answers: int) -> dict[str, list[float]]:
    """The errors of sets of every size, each of `answers` answers in all."""
    found: dict[str, list[float]] = {name: [] for name in (ATTRIBUTE, ACCEPTED, SCATTER, SIGNED)}
    for n in SIZES:
        parts = [errors(rng, CHUNK // n, n) for _ in range(answers // CHUNK)]
        means, accepted, loss = (np.concatenate(one) for one in zip(*parts, strict=True))
        found[ATTRIBUTE].append(rms(means))
        found[ACCEPTED].append(rms(accepted))
        found[SCATTER].append(rms(loss))
        found[SIGNED].append(float(loss.mean()))
    return found


def errors(rng: np.random.Generator, count: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `count` sets of `n` answers: errors of the mean attribute, of that of the accepted answers, and of the loss.

    Scores are normal; the logit and the attribute of an accepted answer depend on its score.
    """
    scores, noise, other = rng.standard_normal((3, count, n), np.float32)
    attributes = rng.standard_exponential((count, n), np.float32)
    graded = AGREE * scores + np.sqrt(1 - AGREE**2) * other
    logits = SCALE * (AGREE * scores + np.sqrt(1 - AGREE**2) * noise)
    accepted, loss = (np.asarray(one) for one in _of_sets(logits, scores))
    chosen = (graded * accepted).sum(1) / accepted.sum(1)
    return attributes.mean(1) - 1.0, chosen - AGREE * np.sqrt(2 / np.pi), loss - loss_of_all()


@jax.jit
def _of_sets(logits, scores):
    mask = jnp.ones(scores.shape, bool)
    return losses.partition(scores, mask)[0], losses.mpo_loss(logits, jnp.zeros_like(scores), scores, mask, beta=1.0)


def loss_of_all() -> float:
    """MPO's loss on infinitely many answers: `-log E[e^z; S > 0] / E[e^z] = -log Phi(Cov(z, S))`, since e^z tilts S."""
    from scipy.stats import norm

    return -float(norm.logcdf(SCALE * AGREE))


def rms(values: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of log |values| over log sizes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.abs(values)), 1)[0])


def repeats(measured: Sequence[Measurement], name: str) -> np.ndarray:
    """The errors of all repeats of all seeds, `[repeats, sizes]`."""
    return np.concatenate([np.asarray(values, np.float64) for values in values_of(measured, name)])


def slopes(measured: Sequence[Measurement], name: str) -> Interval:
    """The slope from `FROM` answers on, over repeats."""
    first = SIZES.index(FROM)
    return over_seeds([slope(SIZES[first:], values[first:]) for values in repeats(measured, name)])


def near(found: Interval) -> str:
    """Whether the interval lies within `NEAR` of the theorem's slope."""
    if not found.known:
        return UNCLEAR
    low, high = EXPECTED - NEAR, EXPECTED + NEAR
    return HOLDS if low < found.low and found.high < high else FAILS if found.high < low or found.low > high else UNCLEAR


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    found = {name: slopes(measured, name) for name in (ATTRIBUTE, ACCEPTED, SCATTER, SIGNED)}
    line = (
        f"slopes from n = {FROM} on, expected -0.5 +- {NEAR}: {_said(found[ATTRIBUTE])} for the error of the set's mean "
        f"attribute, {_said(found[ACCEPTED])} for that of the accepted answers, {_said(found[SCATTER])} for the loss "
        f"(which may be faster); its signed bias, not judged, falls as n^{_said(found[SIGNED])}"
    )
    words = [near(found[ATTRIBUTE]), near(found[ACCEPTED]), below(found[SCATTER], EXPECTED + NEAR)]
    return Verdict(all_of(*words), line, {f"slope: {NAMES[name]}": one for name, one in found.items()})


def _said(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]" if found.known else str(found)


NAMES = {
    ATTRIBUTE: "mean attribute of the set, root mean square error",
    ACCEPTED: "mean attribute of accepted answers, root mean square error",
    SCATTER: "loss, root mean square error",
    SIGNED: "loss, size of its bias (mean of the error)",
}


def draw(measured: list[Measurement], options: Options):
    title = "How fast the errors of a sampled set fall with its number of answers"
    note = (
        f"{len(repeats(measured, ATTRIBUTE))} repeats: line = mean, band = range; of the bias the size of the mean over "
        "repeats. "
        f"Grey lines: 1/sqrt(n), dotted: 1/n. Slopes are fitted from n = {FROM} on."
    )
    figure, axes = plots.figure(title, note, size=(8, 5))
    axis = axes[0, 0]
    for i, (name, words) in enumerate(NAMES.items()):
        found = repeats(measured, name)
        shown = np.abs(found.mean(0, keepdims=True)) if name == SIGNED else np.abs(found)
        plots.curve(axis, SIZES, shown, f"{words}: slope {slopes(measured, name).value:.2f}", i)
    n = np.asarray(SIZES, float)
    axis.plot(n, 0.5 * n**-0.5, color="0.6", linewidth=1, zorder=0)
    axis.plot(n, 0.5 / n, ":", color="0.6", linewidth=1.5, zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="answers in a set, n", ylabel="error (attribute units, or nats of loss)")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    plots.legend(axis, loc="lower left")
    return figure


EXPERIMENT = Experiment(
    number=15,
    claim="the error with which a sampled set of answers stands for all of them falls as 1/sqrt(n)",
    source="arXiv 2412.04628, the theorem on alignment bias: expected deviation of order 1/sqrt(n)",
    criterion=f"holds where the slope of log error over log n, n = {FROM} to {SIZES[-1]}, is within {NEAR} of {EXPECTED} for "
    "the root mean square error of the set's mean attribute, of which the theorem speaks, and of that of its accepted answers, "
    f"and no slower than {EXPECTED + NEAR} for the loss, by 95% intervals over {REPEATS} repeats of each seed; fails where one "
    "lies outside; the signed bias of the loss is another quantity, of which about 1/n is expected, and is shown beside them",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="check",
    seconds=(5, 20),
)
