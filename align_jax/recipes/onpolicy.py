"""What on-policy rounds draw and report: which prompts a round takes, and how good sampled responses are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000  # of the bootstrap


def derived_seed(seed: int, *numbers: int) -> int:
    """A seed below 2^31 for one use of a run's seed."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0] >> 1)


def round_prompts(count: int, per_round: int, number: int, seed: int) -> list[int]:
    """Which prompts a round takes, in order.

    All are taken in a random order; where fewer than `per_round` are left, a new order begins.

    Args:
      count: how many prompts there are, at least `per_round`.
      number: of the round, from 1.
    """
    epoch, place = divmod(number - 1, count // per_round)
    order = np.random.default_rng(derived_seed(seed, 1, epoch)).permutation(count)
    return sorted(order[place * per_round : (place + 1) * per_round].tolist())


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean of `[n]` values and its 95% interval, by the percentile bootstrap."""
    generator, n = np.random.default_rng(seed), len(values)
    means = [values[generator.integers(n, size=n)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def training_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a round's training samples are like.

    Args:
      rows: one per prompt, with `scores`, `tokens` and `finish_reasons` of its responses.

    Returns:
      `samples/prompts`, and how many of them are `samples/without_contrast` (all scores equal); means over prompts of the
      `samples/reward`, its standard deviation among the responses of a prompt (`samples/reward_spread`), and the
      tokens of a response (`samples/length`).
    """
    spread = np.asarray([np.std(row["scores"]) for row in rows])
    return {
        "samples/prompts": len(rows),
        "samples/without_contrast": sum(len(set(row["scores"])) < 2 for row in rows),
        "samples/reward": float(_of_prompts(rows, "scores").mean()),
        "samples/reward_spread": float(spread.mean()),
        "samples/length": float(_lengths(rows).mean()),
    }


def held_out_summary(
    rows: Sequence[Mapping[str, Any]], start: Sequence[Mapping[str, Any]], log_ratios: np.ndarray
) -> dict[str, float]:
    """How good samples on held-out prompts are, with 95% intervals over prompts.

    Args:
      rows: one per prompt, with `scores`, `tokens` and `finish_reasons` of its samples.
      start: the same prompts in the same order, with samples of the model at the start of the run.
      log_ratios: `[prompts, samples]`, `log pi(y|x) - log pi_start(y|x)` of the samples in `rows`.

    Returns:
      Means over prompts: `eval/reward`; `eval/gain`, its paired difference with the start; `eval/kl`, the mean log-ratio,
      which is the KL divergence to the start where sampling was at temperature 1 without filters; each with `_low` and
      `_high`. `eval/length` in tokens, and `eval/finished`, the fraction of samples that ended themselves.
    """
    result = {"eval/prompts": len(rows), "eval/samples": log_ratios.shape[1]}
    result |= reward_summary("reward", rows, start) | measured("kl", log_ratios.mean(axis=1))
    ended = [reason != "length" for row in rows for reason in row["finish_reasons"]]
    return result | {"eval/length": float(_lengths(rows).mean()), "eval/finished": float(np.mean(ended))}


def reward_summary(name: str, rows: Sequence[Mapping[str, Any]], start: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean score of held-out samples under one judge, and its paired difference with the start, with intervals.

    Args:
      name: `reward`, of the reward model that is trained on; or of another judge, such as `gold`.
      rows, start: as of `held_out_summary`, with the `scores` of this judge.

    Returns:
      `eval/NAME`, and its gain, `eval/gain` or `eval/NAME_gain`; each with `_low` and `_high`.
    """
    found = _of_prompts(rows, "scores")
    gain = "gain" if name == "reward" else f"{name}_gain"
    return measured(name, found) | measured(gain, found - _of_prompts(start, "scores"))


def measured(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean of values `[prompts]` and its 95% interval, as `eval/NAME`, `eval/NAME_low` and `eval/NAME_high`."""
    mean, low, high = interval(values)
    return {f"eval/{name}": mean, f"eval/{name}_low": low, f"eval/{name}_high": high}


def best_round(lines: Sequence[Mapping[str, Any]], by: str) -> int:
    """The round that stands for a run: the last one, or the first of those with the highest `eval/BY`; 0 where none was made.

    Args:
      lines: of rounds.jsonl, from round 0, which is the start and no round. by: `last`, `gold` or `reward`.
    """
    made = range(1, len(lines))
    if by == "last" or not made:
        return len(lines) - 1
    return max(made, key=lambda number: lines[number][f"eval/{by}"])


def _of_prompts(rows: Sequence[Mapping[str, Any]], column: str) -> np.ndarray:
    return np.asarray([np.mean(row[column]) for row in rows])


def _lengths(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.asarray([len(tokens) for row in rows for tokens in row["tokens"]])
