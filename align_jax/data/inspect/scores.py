"""Scores: their distribution, how they stand within a group, groups without contrast, and whether length explains them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from align_jax.data.inspect.findings import Finding, number, of_all, percent
from align_jax.data.inspect.gather import Gathered

QUANTILES = (0, 5, 25, 50, 75, 95, 100)
_LEVEL = 0.5  # share of groups without contrast from which it is a warning
_PROMPTS = 10  # with contrast, for a correlation with length
_MANY, _WIDE = 50, 0.4  # prompts from which, and an interval up to which, it is said without doubt
_LOPSIDED = 0.1  # share of the rarer label
_DISTINCT = 20  # values that are counted one by one, at most


def described(values: np.ndarray) -> dict[str, Any]:
    """Count, mean, quantiles and distinct values of some numbers; NaN left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"count": 0}
    distinct, counts = np.unique(values, return_counts=True)
    found = {"count": len(values), "mean": float(values.mean()), "std": float(values.std()), "distinct": len(distinct)}
    found["quantiles"] = dict(zip(map(str, QUANTILES), np.percentile(values, QUANTILES).tolist(), strict=True))
    if len(distinct) <= _DISTINCT:
        found["values"] = dict(zip(map(str, distinct.tolist()), counts.tolist(), strict=True))
    return found


def standing(gathered: Gathered) -> np.ndarray:
    """Where each response stands among its row's: (mid-rank - 1/2) / K, so 1/2 on average; of rows with one response, among
    all those.

    Returns:
      float64 `[responses]`; NaN where there is no score.
    """
    size = gathered.size[gathered.of]
    known = (size > 1) & _all_scored(gathered)[gathered.of]
    result = np.where(known, (_ranks(gathered.score, gathered.of) - 0.5) / size, np.nan)
    single = gathered.size[gathered.of] == 1
    if single.any() and np.isfinite(gathered.score[single]).all():
        result[single] = (stats.rankdata(gathered.score[single]) - 0.5) / single.sum()
    return result


def _all_scored(gathered: Gathered) -> np.ndarray:
    """bool `[rows]`: whether all of a row's responses have scores."""
    return np.bincount(gathered.of, ~np.isfinite(gathered.score), len(gathered.size)) == 0


def _ranks(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Mid-ranks from 1 of values among those of the same row, `of`; as scipy's of each row, but for all rows at once."""
    order = np.lexsort((values, of))
    ordered, rows = values[order], of[order]
    place = np.arange(len(values))
    begins_row = np.r_[True, rows[1:] != rows[:-1]][: len(values)]
    begins_tie = begins_row | np.r_[True, ordered[1:] != ordered[:-1]][: len(values)]
    tie = np.cumsum(begins_tie) - 1
    middle = np.bincount(tie, place) / np.bincount(tie) if len(values) else np.empty(0)
    ranks = np.empty(len(values))
    ranks[order] = middle[tie] - np.maximum.accumulate(np.where(begins_row, place, 0)) + 1
    return ranks


def length_correlation(gathered: Gathered) -> dict[str, Any] | None:
    """How far longer answers have higher scores: Spearman's rank correlation within groups, its mean over prompts with a 95%
    interval (prompts are the unit), and over all responses; None where fewer than ten prompts contrast.

    The interval is that of Agresti and Coull 1998 ("Approximate is better than exact"), whose two failures and two successes
    are here two prompts of -1 and two of 1: few prompts that agree are no certainty.
    """
    of, rows = gathered.of, len(gathered.size)
    deviations = []
    for values in (gathered.score, gathered.characters):
        ranks = _ranks(values, of)
        deviations.append(ranks - (np.bincount(of, ranks, rows) / np.maximum(gathered.size, 1))[of])
    scores, lengths = deviations
    spread = np.sqrt(np.bincount(of, scores**2, rows) * np.bincount(of, lengths**2, rows))
    known = (spread > 0) & _all_scored(gathered)
    within = (np.bincount(of, scores * lengths, rows)[known]) / spread[known]
    _, prompt = np.unique(gathered.prompt[known], return_inverse=True)
    values = np.bincount(prompt, within) / np.bincount(prompt)
    if len(values) < _PROMPTS:
        return None
    padded = np.concatenate([values, [-1.0, -1.0, 1.0, 1.0]])
    half = 1.96 * padded.std() / np.sqrt(len(padded))
    known = np.isfinite(gathered.score)
    overall = stats.spearmanr(gathered.score[known], gathered.characters[known]).statistic
    within = float(values.mean())
    middle = float(padded.mean())
    interval = [max(-1.0, middle - half), min(1.0, middle + half)]
    return {"within": within, "interval": [float(v) for v in interval], "overall": float(overall), "prompts": len(values)}


def level_rows(gathered: Gathered) -> np.ndarray:
    """Positions of the rows with several responses that all have one score."""
    parts = np.split(gathered.score, np.cumsum(gathered.size)[:-1])
    return np.asarray([i for i, part in enumerate(parts) if len(part) > 1 and len(set(part.tolist())) == 1], np.int64)


def score_tables(gathered: Gathered) -> dict[str, Any]:
    """Scores overall, by the `group` column and by who wrote the responses."""
    position = standing(gathered)
    tables: dict[str, Any] = {"pairs": _are_pairs(gathered), "overall": described(gathered.score)}
    tables["length"] = length_correlation(gathered)
    of_group = gathered.group[gathered.of] if len(gathered.of) else gathered.of
    tables["by_group"] = {name: described(gathered.score[of_group == i]) for i, name in enumerate(gathered.groups)}
    tables["by_model"] = {
        name: described(gathered.score[gathered.model == i]) | {"standing": _mean(position[gathered.model == i])}
        for i, name in enumerate(gathered.models)
    }
    return tables


def _are_pairs(gathered: Gathered) -> bool:
    """Whether all rows are a chosen and a rejected answer, whose scores say nothing more."""
    return bool((gathered.size == 2).all()) and bool((gathered.score.reshape(-1, 2) == (1.0, 0.0)).all())


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def score_findings(gathered: Gathered, tables: dict[str, Any]) -> list[Finding]:
    """What is to say of contrast, constant scores and length."""
    findings, several = [], int((gathered.size > 1).sum())
    level = level_rows(gathered)
    if len(level):
        findings.append(
            Finding(
                "warning" if len(level) >= _LEVEL * several else "note",
                "no_contrast",
                f"{of_all(len(level), several, 'group')} ({percent(len(level), several)}) "
                f"{'has' if len(level) == 1 else 'have'} one score for all answers: no contrast, so that objectives of pairs "
                f"leave {'it' if len(level) == 1 else 'them'} out",
                tuple(gathered.where(int(i)) for i in level),
                len(level),
                3,
            )
        )
    if tables["overall"].get("distinct") == 1 and tables["overall"]["count"] > 1:
        text = f"every score is {number(tables['overall']['quantiles']['50'])}: there is nothing to contrast"
        findings.append(Finding("warning", "constant_score", text))
    findings += [*_labels(gathered), *_constant_models(gathered)]
    length = tables["length"]
    if length is not None and length["interval"][0] > 0.2:
        findings.append(Finding("note", "length_correlation", _of_length(length)))
    return findings


def _of_length(length: dict[str, Any]) -> str:
    low, high = length["interval"]
    text = f"longer answers have higher scores: rank correlation {length['within']:.2f} (95%: {low:.2f} to {high:.2f}) within "
    few = length["prompts"] < _MANY or high - low > _WIDE
    text += f"groups, of {'only ' if length['prompts'] < _MANY else ''}{length['prompts']} prompts; a model trained on this "
    text += "may come to write longer ones" if few else "tends to write longer ones"
    return text + ", see length/controlled_accuracy in `align-jax evaluate`"


def _labels(gathered: Gathered) -> list[Finding]:
    """How many single answers are desirable, where that is lopsided."""
    if not (gathered.size == 1).all() or not np.isin(gathered.score, (0.0, 1.0)).all():
        return []
    share = float(gathered.score.mean())
    if _LOPSIDED <= share <= 1 - _LOPSIDED:
        return []
    text = f"{percent(share)} of {len(gathered.score)} answers are desirable; objective.desirable_weight and "
    return [Finding("note", "label_imbalance", text + "objective.undesirable_weight balance them in KTO")]


def _constant_models(gathered: Gathered) -> list[Finding]:
    """Models whose answers all have one score, while others' differ: a judge's baseline, or scores that were not computed."""
    findings = []
    for i, name in enumerate(gathered.models):
        scores = gathered.score[gathered.model == i]
        if len(scores) >= 10 and len(set(scores.tolist())) == 1 and 0 < np.mean(gathered.score < scores[0]) < 1:
            text = f"all {len(scores)} answers of {name} have the score {number(scores[0])}: the judge's baseline?"
            findings.append(Finding("note", "constant_model", text, count=len(scores)))
    return findings
