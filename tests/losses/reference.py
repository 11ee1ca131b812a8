"""Every loss once more, slowly: float64, one group at a time, only the valid members, the formula as it is printed.

Functions take one group (`[K]`, `[N]` or numbers) and return a number; `rows` maps one over the leading axis.
"""

from __future__ import annotations

import numpy as np


def rows(function, *arrays, **options) -> np.ndarray:
    """The function of each row, float64 `[G]`."""
    count = len(arrays[0])
    return np.array([function(*(np.asarray(a)[g] for a in arrays), **options) for g in range(count)], np.float64)


def logsumexp(values) -> float:
    top = max(values)
    return top + np.log(sum(np.exp(v - top) for v in values))


def softmax(values) -> np.ndarray:
    return np.exp(np.asarray(values) - logsumexp(values))


def log_sigmoid(x: float) -> float:
    return -np.logaddexp(0.0, -x)


def valid(mask, *arrays) -> list[list[float]]:
    return [[float(value) for value, there in zip(array, mask, strict=True) if there] for array in arrays]


def mpo(policy, ref, scores, mask, *, beta, alpha=0.0, power=1):
    policy, ref, scores = valid(mask, policy, ref, scores)
    if len(set(scores)) < 2:
        return 0.0
    mean = sum(scores) / len(scores)
    z = [beta * (p - r) + alpha * abs(s - mean) ** power for p, r, s in zip(policy, ref, scores, strict=True)]
    return logsumexp(z) - logsumexp([zi for zi, s in zip(z, scores, strict=True) if s > mean])


def ordered_mpo(policy, ref, levels, mask, *, beta):
    policy, ref, levels = valid(mask, policy, ref, levels)
    z = [beta * (p - r) for p, r in zip(policy, ref, strict=True)]
    total = 0.0
    for level in sorted(set(levels))[:-1]:
        total += logsumexp([zi for zi, m in zip(z, levels, strict=True) if m >= level])
        total -= logsumexp([zi for zi, m in zip(z, levels, strict=True) if m == level])
    return total


def levels_by_range(scores, mask, count):
    """Counts the edges `max - k (max - min) / count` that a score has fallen to."""
    chosen = [s for s, m in zip(scores, mask, strict=True) if m]
    result = []
    for s, m in zip(scores, mask, strict=True):
        edges = [k for k in range(1, count) if m and max(chosen) > min(chosen)]
        result.append(sum((max(chosen) - s) * count >= k * (max(chosen) - min(chosen)) for k in edges))
    return np.array(result)


def levels_by_quantiles(scores, mask, count):
    """Sorts; a tie has the mean of its places."""
    chosen = sorted((float(s) for s, m in zip(scores, mask, strict=True) if m), reverse=True)
    result = []
    for s, m in zip(scores, mask, strict=True):
        places = [i for i, other in enumerate(chosen) if m and other == s]
        result.append(int(count * sum(places) / len(places) / len(chosen)) if places else 0)
    return np.array(result)


def levels_by_thresholds(scores, mask, thresholds):
    return np.array([sum(s < t for t in thresholds) if m else 0 for s, m in zip(scores, mask, strict=True)])


def levels_of_grades(scores, mask, most):
    grades = sorted({float(s) for s, m in zip(scores, mask, strict=True) if m}, reverse=True)
    last = len(grades) if most is None else most - 1
    return np.array([min(grades.index(s), last) if m else 0 for s, m in zip(scores, mask, strict=True)])


def infonca(policy, ref, scores, mask, *, beta, temperature):
    policy, ref, scores = valid(mask, policy, ref, scores)
    if not scores:
        return 0.0
    z = beta * (np.array(policy) - np.array(ref))
    return -float(sum(softmax(np.array(scores) / temperature) * np.log(softmax(z))))


def nca(policy, ref, scores, mask, *, beta, temperature):
    policy, ref, scores = valid(mask, policy, ref, scores)
    if not scores:
        return 0.0
    z = beta * (np.array(policy) - np.array(ref))
    targets = softmax(np.array(scores) / temperature)
    return -sum(t * log_sigmoid(x) + log_sigmoid(-x) / len(scores) for t, x in zip(targets, z, strict=True))


def _h(chosen, rejected, ref_chosen, ref_rejected):
    return float(chosen) - float(rejected) - float(ref_chosen) + float(ref_rejected)


def dpo(*logps, beta, label_smoothing=0.0):
    x = beta * _h(*logps)
    return -(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)


def robust_dpo(*logps, beta, label_smoothing=0.0):
    x, eps = beta * _h(*logps), label_smoothing
    return (-(1 - eps) * log_sigmoid(x) + eps * log_sigmoid(-x)) / (1 - 2 * eps)


def hinge(*logps, beta):
    return max(0.0, 1 - beta * _h(*logps))


def ipo(*logps, beta):
    return (_h(*logps) - 1 / (2 * beta)) ** 2


def simpo(chosen, rejected, *, beta, gamma):
    return -log_sigmoid(beta * (float(chosen) - float(rejected)) - gamma)


def kto_kl(policy, ref, mask):
    policy, ref = valid(mask, policy, ref)
    return max(0.0, float(np.mean(np.array(policy) - np.array(ref)))) if policy else 0.0


def kto(policy, ref, desirable, *, kl, beta, desirable_weight=1.0, undesirable_weight=1.0):
    x = beta * (float(policy) - float(ref) - kl)
    if desirable:
        return desirable_weight * (1 - 1 / (1 + np.exp(-x)))
    return undesirable_weight * (1 - 1 / (1 + np.exp(x)))


def bradley_terry(chosen, rejected):
    return -log_sigmoid(float(chosen) - float(rejected))


def bradley_terry_set(scores, labels, mask):
    return mpo(scores, np.zeros(len(scores)), labels, mask, beta=1.0)


def _pairs(scores, labels, mask):
    """(accepted score, rejected score) of every pair."""
    scores, labels = valid(mask, scores, labels)
    if len(set(labels)) < 2:
        return []
    mean = sum(labels) / len(labels)
    each = list(zip(scores, labels, strict=True))
    return [(a, b) for a, x in each for b, y in each if x > mean >= y]


def bradley_terry_pairs(scores, labels, mask):
    pairs = _pairs(scores, labels, mask)
    return -sum(log_sigmoid(a - b) for a, b in pairs) / max(len(pairs), 1)


def score_center(scores, labels, mask):
    pairs = _pairs(scores, labels, mask)
    return sum((a + b) ** 2 for a, b in pairs) / max(len(pairs), 1)


def calibration(logps, targets, mask=None, *, renormalize=False):
    mask = np.ones(len(targets), bool) if mask is None else mask
    logps, targets = valid(mask, logps, targets)
    if sum(targets) == 0:
        return 0.0
    shift = logsumexp(logps) if renormalize else 0.0
    return sum(p * (np.log(p) - (logp - shift)) for p, logp in zip(targets, logps, strict=True) if p > 0)


def _outcomes(logps, targets, mask, renormalize):
    """(policy, target) over the beliefs and, unless renormalised, no belief; None for a row without targets."""
    mask = np.ones(len(targets), bool) if mask is None else mask
    logps, targets = valid(mask, logps, targets)
    if sum(targets) == 0:
        return None
    if renormalize:
        return softmax(logps).tolist(), targets
    probs = np.exp(logps).tolist()
    return [*probs, 1 - sum(probs)], [*targets, 0.0]


def reverse_kl(logps, targets, mask=None, *, renormalize=False, smoothing=1e-3):
    found = _outcomes(logps, targets, mask, renormalize)
    if found is None:
        return 0.0
    smoothed = [(1 - smoothing) * t + smoothing / len(found[1]) for t in found[1]]
    return sum(p * np.log(p / t) for p, t in zip(found[0], smoothed, strict=True) if p > 0)


def jensen_shannon_divergence(logps, targets, mask=None, *, renormalize=False):
    found = _outcomes(logps, targets, mask, renormalize)
    return 0.0 if found is None else _halved_divergences(*found)


def total_variation(logps, targets, mask=None, *, renormalize=False):
    found = _outcomes(logps, targets, mask, renormalize)
    return 0.0 if found is None else sum(abs(p - t) for p, t in zip(*found, strict=True)) / 2


def posterior_sum(beliefs, texts, values, mask):
    """The expectation of some values under the posterior."""
    beliefs, texts, values = valid(mask, beliefs, texts, values)
    return float(softmax(np.array(beliefs) + np.array(texts)) @ values) if beliefs else 0.0


def gdpo(logps, targets, statement, preference, *, weights=(1.0, 1.0, 1.0), divergence=calibration):
    return weights[0] * divergence(logps, targets) - weights[1] * float(statement) + weights[2] * float(preference)


def jensen_shannon(p, q):
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    return np.sqrt(_halved_divergences(p / p.sum(), q / q.sum()))


def _halved_divergences(p, q):
    divergence = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        divergence += (a * np.log(a / m) if a > 0 else 0.0) / 2 + (b * np.log(b / m) if b > 0 else 0.0) / 2
    return divergence


def gradient(function, arrays, index: int, step: float = 1e-5) -> np.ndarray:
    """Central differences, float64, of the sum of `function(*arrays) -> [G]` by every entry of `arrays[index]`."""
    arrays = [np.array(a, np.float64) if np.issubdtype(np.asarray(a).dtype, np.floating) else a for a in arrays]
    result = np.zeros(np.shape(arrays[index]))
    for position in np.ndindex(result.shape):
        sums = []
        for sign in (1, -1):
            moved = [np.array(a) for a in arrays]
            moved[index][position] += sign * step
            sums.append(np.sum(function(*moved)))
        result[position] = (sums[0] - sums[1]) / (2 * step)
    return result
