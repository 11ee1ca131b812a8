"""Several data sets as one: their rows one after the other, and how often each group stands in an epoch."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from align_jax.data.sources import Chained, Source
from align_jax.errors import UserError

_Item = TypeVar("_Item")
_MOST_REPEATS, _MOST_GROUPS = 1000, 2**31  # of an epoch, which is kept as a list


class PartRow(dict):
    """A row of a mixture, and the number of the data set that it is of."""

    def __init__(self, row: Mapping, part: int):
        super().__init__(row)
        self.part = part


class Concatenated(Chained):
    """The rows of several sources, one after the other; each row knows which source it is of.

    Args:
      sources: of the mixture. key: what else decides its rows and their shares, for the digest.
    """

    def __init__(self, sources: Sequence[Source], key: object):
        super().__init__(sources)
        parts = [source.digest for source in sources]
        self.digest = hashlib.sha256(repr((parts, key)).encode()).hexdigest()

    def __getitem__(self, index: int) -> PartRow:
        return PartRow(super().__getitem__(index), self.part_of(index))

    def part_of(self, index: int) -> int:
        """The number of the source that a row is of."""
        return bisect.bisect_right(self._ends, index)

    def notes_of(self, part: int) -> tuple[str, ...]:
        """What is to say of one of the sources."""
        return tuple(self.sources[part].notes)


@dataclasses.dataclass(frozen=True)
class Shares:
    """What an epoch of a mixture takes of its data sets.

    Attributes:
      labels: what each is called. weights: relative shares of the groups of an epoch; None takes every group once.
    """

    labels: tuple[str, ...]
    weights: tuple[float, ...] | None

    def epoch(self, items: Sequence[_Item], sources: np.ndarray) -> list[_Item]:
        """The groups of an epoch, those of each data set spread evenly over it.

        With weights w, N_i groups of data set i occur `n_i = w_i max_j(N_j / w_j)` times together: the data set with the most
        groups for its weight once each, others more often, no two groups of one data set differing by more than one.

        Args:
          items: every group once. sources: int `[items]`, the data set of each.
        """
        counts = np.bincount(sources, minlength=len(self.labels))
        wanted = self._wanted(counts)
        places, chosen = [], []
        for i, count in enumerate(counts):
            own = np.flatnonzero(sources == i)
            if not len(own):
                continue
            # The remainder is drawn, so that it is not always the first rows of a file
            extra = np.random.default_rng((17, i)).permutation(count)[: wanted[i] % count]
            repeated = np.concatenate([np.tile(own, wanted[i] // count), own[np.sort(extra)]])
            chosen.append(repeated)
            places.append((np.arange(len(repeated)) + 0.5) / len(repeated))
        order = np.argsort(np.concatenate(places), kind="stable") if places else []
        return [items[i] for i in np.concatenate(chosen)[order]] if len(order) else []

    def _wanted(self, counts: np.ndarray) -> np.ndarray:
        if self.weights is None:
            return counts
        weights = np.where(counts > 0, self.weights, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            most = np.max(counts[counts > 0] / weights[counts > 0], initial=0.0)
            wanted = np.maximum(counts, np.round(weights * most))
        if not wanted.sum() <= min(_MOST_REPEATS * counts.sum(), _MOST_GROUPS):
            i = int(np.argmax(wanted))
            raise UserError(
                f"data.train: with these weights an epoch has {wanted.sum():.3g} groups of {counts.sum()}, those of "
                f"{self.labels[i]} {wanted[i] / counts[i]:.3g} times each; at most {_MOST_REPEATS} times as many as there are "
                "can be had: give weights that are nearer to one another, or leave out the data set of the smallest"
            )
        return wanted.astype(int)

    def describe(self, sources: np.ndarray) -> str:
        """How many groups there are of each data set, how often they occur in an epoch, and their share of it.

        Args:
          sources: int `[items]`, the data set of every group, each once.
        """
        counts = np.bincount(sources, minlength=len(self.labels))
        wanted = self._wanted(counts)
        said = []
        for label, count, n in zip(self.labels, counts, wanted, strict=True):
            times = f" x {n / count:.3g}" if n != count else ""
            said.append(f"{label} {count}{times} ({n / max(1, wanted.sum()):.1%})")
        return f"groups of an epoch: {', '.join(said)}"
