"""How rewards order the answers to prompts, prompt by prompt, and what a difference of two orders is known to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.experiments.claim import Interval


def orders(rewards: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """How rewards order the answers to each prompt, as `align-jax evaluate` counts; prompts of equal scores are left out.

    Args:
      rewards, scores: of every prompt, `[n][K]`.

    Returns:
      Of each prompt, `wins`: pairs of an answer scored above the prompt's mean and one that is not, in which the first has the
      higher reward, ties counting half; `pairs`: how many there are; `rank`: Spearman's correlation, 0 where all rewards tie.
    """
    found: dict[str, list[float]] = {"wins": [], "pairs": [], "rank": []}
    for reward, score in zip(map(np.asarray, rewards), map(np.asarray, scores), strict=True):
        good = score > score.mean()
        if score.min() == score.max():
            continue
        gaps = np.sign(reward[good][:, None] - reward[~good][None])
        found["wins"].append(float((gaps + 1).sum() / 2))
        found["pairs"].append(gaps.size)
        found["rank"].append(_spearman(reward, score))
    return found


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    x, y = (rankdata(one) - (len(one) + 1) / 2 for one in (a, b))
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def summed(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Accuracy and rank correlation over the prompts of `orders`."""
    return {"accuracy": float(np.sum(found["wins"]) / np.sum(found["pairs"])), "rank": float(np.mean(found["rank"]))}


def over_prompts(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], key: str, draws: int = 2000
) -> Interval:
    """A difference in accuracy or rank correlation, the mean of seeds, and its 95% interval by a paired bootstrap over prompts.

    Args:
      ours, theirs: of each seed what `orders` found, on the same prompts. key: `accuracy` or `rank`.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals); a prompt is drawn for both arms and all seeds at once.
    """
    top, bottom = ("wins", "pairs") if key == "accuracy" else ("rank", None)
    arms = [np.mean([one[top] for one in arm], axis=0) for arm in (ours, theirs)]
    weights = np.asarray(ours[0][bottom] if bottom else np.ones(len(arms[0])), np.float64)
    count = len(weights)
    drawn = np.random.default_rng((17, count)).multinomial(count, np.full(count, 1 / count), draws)
    gaps = drawn @ (arms[0] - arms[1]) / (drawn @ weights)
    low, high = np.percentile(gaps, [2.5, 97.5])
    return Interval(float((arms[0] - arms[1]).sum() / weights.sum()), float(low), float(high))
