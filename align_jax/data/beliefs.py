"""Target belief distributions: given with the rows, or estimated from the beliefs that were accepted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import numpy as np

from align_jax.data.formats import Example
from align_jax.errors import UserError


def smoothed(counts: np.ndarray, prior: float) -> np.ndarray:
    """Mean of the Dirichlet posterior, `(n_b + prior) / sum_b (n_b + prior)`.

    Args:
      counts: `[N]`, how often each belief was accepted. prior: pseudo-count of each belief.
    """
    return (counts + prior) / np.sum(counts + prior)


def belief_key(example: Example) -> Hashable:
    """What a belief distribution belongs to: the prompt, its context and the group of people, with these options."""
    prompt = example.prompt if isinstance(example.prompt, str) else tuple((m["role"], m["content"]) for m in example.prompt)
    return prompt, example.context, example.group, example.opinion.options


class BeliefCounts:
    """Accepted beliefs counted for every prompt and group of people."""

    def __init__(self, prior: float):
        self._prior = prior
        self._counts: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(0))

    def add(self, example: Example) -> None:
        """Counts a row that has no distribution of its own."""
        if example.opinion.probabilities is None:
            key, count = belief_key(example), len(example.opinion.options)
            if key not in self._counts:
                self._counts[key] = np.zeros(count)
            self._counts[key][example.opinion.accepted] += 1

    def distribution(self, example: Example) -> np.ndarray:
        """The target distribution of a row: float32 `[N]`, given or estimated."""
        if example.opinion.probabilities is not None:
            return np.array(example.opinion.probabilities, np.float32)
        key = belief_key(example)
        if key not in self._counts:
            raise UserError("a row without probabilities was not counted when the data was read; was the file changed?")
        return smoothed(self._counts[key], self._prior).astype(np.float32)
