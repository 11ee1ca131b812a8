"""Slow, obvious metrics of one group of scored responses, one response and one pair at a time."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import spearmanr


def log_likelihood(rewards, scores):
    good = [r for r, s in zip(rewards, scores, strict=True) if s > np.mean(scores)]
    return math.log(sum(map(math.exp, good)) / sum(map(math.exp, rewards)))


def best_of_n(rewards, scores):
    top = [s for r, s in zip(rewards, scores, strict=True) if r == max(rewards)]
    return sum(s == max(scores) for s in top) / len(top)


def correlation(a, b):
    return 0.0 if len(set(a)) == 1 or len(set(b)) == 1 else float(spearmanr(a, b).statistic)


def pair_accuracy(rewards, scores, lengths, longer):
    """(right, pairs) over the accepted-rejected pairs whose accepted response is the longer (shorter) one."""
    right = pairs = 0
    for i, si in enumerate(scores):
        for j, sj in enumerate(scores):
            if si > np.mean(scores) >= sj and (lengths[i] > lengths[j] if longer else lengths[i] < lengths[j]):
                right += 1.0 if rewards[i] > rewards[j] else 0.5 if rewards[i] == rewards[j] else 0.0
                pairs += 1
    return right, pairs
