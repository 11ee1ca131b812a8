"""Which answers say nearly the same: found by a sketch, confirmed by all of their words."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import BANDS, hashed, shingles, words

_ALIKE = 0.8  # Jaccard similarity of their shingles from which texts are nearly the same
_MANY = 5  # responses from which it matters whether they are
_CENTRES = 64  # of texts whose sketches are chained: what is like none of these is alone


def near_duplicates(gathered: Gathered) -> np.ndarray:
    """A number for every response, the same for those that say nearly the same.

    Texts that share a band of the sketch are chained, and a chain of five or more is taken apart by what the texts really
    share: each belongs to a centre to which its shingles have a Jaccard similarity of at least 0.8.
    """
    labels = _chained(gathered)
    order = np.argsort(labels, kind="stable")
    after = int(labels.max()) + 1 if len(labels) else 0
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) >= _MANY and len(set(gathered.text[members].tolist())) > 1:
            parts = _confirmed(gathered, members)
            labels[members] = after + parts
            after += int(parts.max()) + 1
    return labels


def _chained(gathered: Gathered) -> np.ndarray:
    m = len(gathered.of)
    _, nodes = np.unique(gathered.text, return_inverse=True)
    count = int(nodes.max()) + 1 if m else 0
    edges, others = [], []
    for band in range(BANDS):
        _, keys = np.unique(gathered.bands[:, band], return_inverse=True)
        edges.append(nodes)
        others.append(keys + count)
        count += int(keys.max()) + 1 if m else 0
    ends = (np.concatenate(edges), np.concatenate(others))
    graph = coo_array((np.ones(m * BANDS, bool), ends), shape=(count, count))
    return connected_components(graph, directed=False)[1][nodes].astype(np.int64)


def _confirmed(gathered: Gathered, members: np.ndarray) -> np.ndarray:
    """Numbers from 0 for responses of one chain, the same for those that are alike."""
    _, first, inverse = np.unique(gathered.text[members], return_index=True, return_inverse=True)
    company = np.zeros(len(members), np.int64)  # those with most of it are centres
    for band in gathered.bands[members].T:
        _, keys, counts = np.unique(band, return_inverse=True, return_counts=True)
        company += counts[keys]
    centres: list[set[int]] = []
    numbers = np.empty(len(first), np.int64)
    alone = _CENTRES
    for i in np.argsort(-company[first], kind="stable"):
        own = set(shingles(hashed(words(gathered.answer(int(members[first[i]]))))).tolist())
        found = next((k for k, centre in enumerate(centres) if _similarity(own, centre) >= _ALIKE), None)
        if found is None and len(centres) < _CENTRES:
            centres.append(own)
            found = len(centres) - 1
        alone += found is None
        numbers[i] = alone if found is None else found
    return numbers[inverse]


def _similarity(first: set[int], second: set[int]) -> float:
    smaller, larger = sorted((len(first), len(second)))
    if smaller < _ALIKE * larger:
        return 0.0  # it cannot reach what is asked for
    shared = len(first & second)
    return shared / (smaller + larger - shared)
