"""Rows that contradict each other: the same two answers to one prompt ordered one way here and the other way there."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np

from align_jax.data.inspect.findings import Finding, of_all, percent
from align_jax.data.inspect.gather import Gathered
from align_jax.terminal import plural

_Key = tuple[int, int, int]  # unit, text of the better answer, text of the worse one
_EXAMPLES = 5  # of one prompt and pair of answers


def contradiction_findings(gathered: Gathered) -> list[Finding]:
    """Pairs of answers that other rows of the same prompt (and group) order the other way; answers that are desirable in one
    row and not in another.
    """
    if not gathered.has_scores:
        return []
    return [*_orders(gathered), *_labels(gathered)]


def _repeated(gathered: Gathered) -> np.ndarray:
    """Which good rows share prompt and group with another, bool `[good rows]`."""
    _, inverse, counts = np.unique(gathered.unit, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _comparisons(gathered: Gathered) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of every row with several answers: its position, their texts and their scores."""
    ends = np.cumsum(gathered.size)[:-1]
    parts = zip(np.split(gathered.text, ends), np.split(gathered.score, ends), strict=True)
    for position, (words, scores) in enumerate(parts):
        if len(words) > 1 and np.isfinite(scores).all():
            yield position, words, scores


def _orders(gathered: Gathered) -> list[Finding]:
    again, rows, total = _repeated(gathered), collections.defaultdict(list), 0
    for position, words, scores in _comparisons(gathered):
        better = (scores[:, None] > scores[None, :]) & (words[:, None] != words[None, :])
        total += int(better.sum())
        if again[position]:
            for i, j in np.argwhere(better).tolist():
                rows[(int(gathered.unit[position]), int(words[i]), int(words[j]))].append(position)
    found = [(key, at) for key, at in rows.items() if _beyond(at, rows.get(_reversed(key)))]
    if not found:
        return []
    count, prompts = sum(len(at) for _, at in found), len({key[0] for key, _ in found})
    pairs = [(at, rows[_reversed(key)]) for key, at in found if key < _reversed(key)]
    text = f"{of_all(count, total, 'comparison')} of two answers ({percent(count, total)}), to {plural(prompts, 'prompt')}, "
    text += "contradict another row, which has the same two answers to the same prompt the other way round; "
    text += "`align-jax data convert --join` gives each answer its mean score (of pairs: its share of wins)"
    return [Finding("warning", "contradicting_rows", text, tuple(_places(gathered, *sides) for sides in pairs), count)]


def _reversed(key: _Key) -> _Key:
    return key[0], key[2], key[1]


def _beyond(at: list[int], other: list[int] | None) -> bool:
    """Whether another row says the opposite; one that has an answer twice is spoken of elsewhere."""
    return other is not None and (set(at) != set(other) or len(set(at)) > 1)


def _places(gathered: Gathered, one: list[int], other: list[int]) -> str:
    first, second = (_some(gathered, at) for at in sorted(sorted(set(at)) for at in (one, other)))
    return f"{first} against {second}"


def _some(gathered: Gathered, positions: list[int]) -> str:
    more = f" and {len(positions) - _EXAMPLES} more" if len(positions) > _EXAMPLES else ""
    return ", ".join(map(gathered.where, positions[:_EXAMPLES])) + more


def _labels(gathered: Gathered) -> list[Finding]:
    """Single answers that are desirable in one row and not in another."""
    if not len(gathered.of) or not (gathered.size == 1).all() or not np.isin(gathered.score, (0.0, 1.0)).all():
        return []
    rows: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for position in np.flatnonzero(_repeated(gathered)).tolist():
        key = int(gathered.unit[position]), int(gathered.text[position])
        rows.setdefault(key, ([], []))[int(gathered.score[position])].append(position)
    both = [sides for sides in rows.values() if all(sides)]
    if not both:
        return []
    count = sum(len(at) for sides in both for at in sides)
    text = f"{of_all(count, len(gathered.of), 'label')} ({percent(count, len(gathered.of))}) contradict another row: the same "
    text += "answer to the same prompt is desirable in one and not in the other"
    return [Finding("warning", "contradicting_labels", text, tuple(_places(gathered, *sides) for sides in both), count)]
