"""What the experiments of a world of opinions judge by: distances said by example, shares, paired differences, and limits."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from align_jax.experiments import survey
from align_jax.experiments.claim import FAILS, UNCLEAR, Interval, Measurement, Options, over_seeds

# Said where a limit is missed that training only approaches.
QUICK = "a quick run that misses this limit is unclear, as more steps may reach it"


@functools.cache
def example(distance: float) -> str:
    """A Jensen-Shannon distance as a reader can picture it: as what 95/5 is then taken for."""
    from scipy.optimize import brentq

    truth = (0.95, 0.05)
    more = brentq(lambda by: survey.distance((truth[0] - by, truth[1] + by), truth) - distance, 0.0, 0.9)
    return f"95/5 taken for {100 * (truth[0] - more):.3g}/{100 * (truth[1] + more):.2g}"


def explained(limit: float) -> str:
    """What the Jensen-Shannon distance is, and how much a limit is, for a criterion."""
    return (
        "Jensen-Shannon distance: the square root of the divergence with natural logarithms, 0 where two distributions are the "
        f"same, at most 0.83; {limit:g} is about {example(limit)}"
    )


def share(values: Sequence[float]) -> Interval:
    """The mean of seeds and its 95% interval, within what a share can be."""
    return within(over_seeds(values), 0.0, 1.0)


def within(found: Interval, low: float, high: float) -> Interval:
    """An interval cut to what is possible."""
    if not found.known:
        return found
    return Interval(found.value, max(found.low, low), min(found.high, high))


def less(own: Sequence[Measurement], other: Sequence[Measurement], key: str) -> Interval:
    """Own less other, paired by seed; what rounding leaves of two equal numbers is 0."""
    return over_seeds([round(a[key] - b[key], 9) for a, b in zip(own, other, strict=True)])


def reached(word: str, options: Options) -> str:
    """The word of a limit that training approaches: missed by a quick run, it is unclear."""
    return UNCLEAR if options.quick and word == FAILS else word
