"""Few of many shapes, so that what they leave unused and what they take to compile is least."""

from __future__ import annotations

import numpy as np

MOST_SHAPES = 8
# A further shape must save at least this part of all work, however long the run is.
_WORTH = 0.005
# Room above the largest step seen, so that a rare one needs no shape of its own.
SPARE = 1.03


def cover(cost: np.ndarray, first: int, most: int, price: float) -> list[int]:
    """Columns of `cost` `[steps, options]` whose row-wise least has a small mean; `first` is one of them.

    Greedy, then each choice is tried against all others once more. Every further column must lower the mean by `price`.
    """
    chosen = [first]
    while len(chosen) < most:
        best = cost[:, chosen].min(1)
        totals = np.minimum(cost, best[:, None]).mean(0)
        further = int(np.argmin(totals))
        if totals[further] > best.mean() - max(price, _WORTH * best.mean()):
            break
        chosen.append(further)
        for i in range(1, len(chosen)):
            others = cost[:, chosen[:i] + chosen[i + 1 :]].min(1)
            chosen[i] = int(np.argmin(np.minimum(cost, others[:, None]).mean(0)))
    return chosen
