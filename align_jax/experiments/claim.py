"""What an experiment is: a claim of a paper, the cells that are measured for it, a criterion, and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align_jax.experiments.options import Options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from align_jax.experiments.work import Workplace

HOLDS, FAILS, UNCLEAR = "holds", "fails", "unclear"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One thing to measure: an arm at a seed.

    Attributes:
      name: of its file; unique within the experiment. settings: all that decides its numbers, as JSON has it.
    """

    name: str
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A cell with what was measured: numbers, lists of numbers, or texts, as JSON has them.

    Attributes:
      seconds: that it took. cpu: seconds of computing, over all cores, which other work on the machine does not change.
      code: a hash of the experiment's file at that time.
    """

    cell: Cell
    values: dict[str, Any]
    seconds: float = 0.0
    cpu: float = 0.0
    code: str = ""

    def __getitem__(self, key: str) -> Any:
        """A value, or one of the settings."""
        return self.values[key] if key in self.values else self.cell.settings[key]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and its 95% interval; `low` and `high` are None where one seed alone says nothing of others."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3g} (one seed)"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def known(self) -> bool:
        return self.low is not None and self.high is not None


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of seeds and its 95% interval by Student's t with `n - 1` degrees of freedom."""
    from scipy import stats

    found = np.asarray(values, np.float64)
    mean, n = float(found.mean()), len(found)
    if n < 2:
        return Interval(mean)
    half = float(stats.t.ppf(0.975, n - 1) * found.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How an experiment ends.

    Attributes:
      word: `holds`, `fails` or `unclear`. line: the figure that decided, with its interval, in a sentence.
      figures: name -> interval, of all that the criterion speaks of.
    """

    word: str
    line: str
    figures: dict[str, Interval] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.word not in (HOLDS, FAILS, UNCLEAR):
            raise ValueError(f"a verdict is {HOLDS}, {FAILS} or {UNCLEAR}, got {self.word!r}")


def below(found: Interval, limit: float) -> str:
    """`holds` where the whole interval is below a limit, `fails` where all of it is above, else `unclear`."""
    if not found.known:
        return UNCLEAR
    return HOLDS if found.high < limit else FAILS if found.low > limit else UNCLEAR


def above(found: Interval, limit: float) -> str:
    """`holds` where the whole interval is above a limit, `fails` where all of it is below, else `unclear`."""
    if not found.known:
        return UNCLEAR
    return HOLDS if found.low > limit else FAILS if found.high < limit else UNCLEAR


def all_of(*words: str) -> str:
    """`fails` where one fails, else `unclear` where one is unclear, else `holds`."""
    return next((word for word in (FAILS, UNCLEAR) if word in words), HOLDS)


# What a verdict can say at most.
KINDS = {
    "check": "known beforehand, from the mathematics or by construction: a check of code and set-up",
    "table": "a simulation, or a policy that is a table of logits: no language model",
    "world": "a small model on a generated world of opinions, whose truth is known",
    "real": "real answers of people or models",
    "cost": "time and memory",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A claim and how it is tried.

    Attributes:
      number: its place among the claims. claim: the statement that is tried, in a sentence. source: where it stands.
      criterion: when it holds and when it fails, with the thresholds, which stand here before anything is run.
      cells: options -> what is measured. measure: (cell, work) -> values.
      conclude: (measured, options) -> verdict. draw: (measured, options) -> a figure that says it without the code.
      data: folders of `$ALIGN_JAX_DATA` that it needs. models: those that it can be run on; none: it needs no language model.
      kind: of `KINDS`. seconds: (quick, full) on 2 cores, about; of the first model.
    """

    number: int
    claim: str
    source: str
    criterion: str
    cells: Callable[[Options], list[Cell]]
    measure: Callable[[Cell, Workplace], dict[str, Any]]
    conclude: Callable[[list[Measurement], Options], Verdict]
    draw: Callable[[list[Measurement], Options], Figure]
    kind: str
    data: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    seconds: tuple[int, int] = (60, 600)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a kind is one of {', '.join(KINDS)}, got {self.kind!r}")


def by_setting(measured: Sequence[Measurement], *keys: str) -> dict[Any, list[Measurement]]:
    """The measured cells by one setting, or a tuple of several, in their order."""
    found: dict[Any, list[Measurement]] = {}
    for one in measured:
        key = tuple(one[key] for key in keys)
        found.setdefault(key if len(keys) > 1 else key[0], []).append(one)
    return found


def values_of(measured: Sequence[Measurement], key: str) -> list[float]:
    """One value of several cells."""
    return [one[key] for one in measured]
