"""Belief distributions with their uncertainty: what the rows say, and whether the stated probabilities agree with them."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
from scipy import stats

from align_jax.data.formats.example import Opinion
from align_jax.data.inspect.findings import LISTED, Finding, of_all
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import plain, shortened
from align_jax.terminal import plural

_LEVEL = 0.05  # false discovery rate of the test against the stated probabilities
_FEW = 20  # rows of a prompt below which its distribution is hardly known
_RARE, _MAJORITY = 0.05, 0.9  # shares of the rarest and of the most frequent belief


def wilson(count: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if total <= 0:
        return 0.0, 1.0
    share, square = count / total, z**2 / total
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * np.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def posterior(counts: np.ndarray, prior: float) -> list[tuple[float, float, float]]:
    """Mean and 95% interval of every belief's share under a Dirichlet prior with this pseudo-count of each.

    The marginal of `Dirichlet(n + prior)` is `Beta(n_b + prior, sum (n + prior) - n_b - prior)`.
    """
    alpha = np.asarray(counts, float) + max(prior, 1e-9)
    rest = alpha.sum() - alpha
    low, high = (stats.beta.ppf(q, alpha, rest) for q in (0.025, 0.975))
    return [tuple(map(float, values)) for values in zip(alpha / alpha.sum(), low, high, strict=True)]


def belief_tables(gathered: Gathered, prior: float) -> dict[str, Any] | None:
    """Every prompt's distribution (and group's, where there is a `group` column), and each group's over all prompts.

    Args:
      prior: pseudo-count of every belief, `data.belief_prior`.

    Returns:
      `units`: of each prompt its beliefs, how often each was accepted, the posterior with its interval, the stated
      probabilities, and the p-value of their agreement; `by_group`: shares with Wilson intervals; None where no row says one.
    """
    units = _units(gathered)
    if not units:
        return None
    return {"units": [_unit(gathered, members, prior) for members in units], "by_group": _by_group(gathered)}


def unstated_findings(gathered: Gathered) -> list[Finding]:
    """How many rows have options and do not say which of them their texts state."""
    count = sum(opinion is not None and not _states(opinion) for opinion in gathered.opinions)
    if not count:
        return []
    text = (
        f"{of_all(count, len(gathered.opinions), 'row', 'lack')} the beliefs that the texts state: for objective.latent_beliefs"
    )
    return [Finding("note", "beliefs_not_said", text, count=count)]


def _units(gathered: Gathered) -> list[np.ndarray]:
    order = np.argsort(gathered.unit, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(gathered.unit[order])) + 1)
    parts = [np.asarray([i for i in part if _states(gathered.opinions[i])], np.int64) for part in parts]
    return [part for part in parts if len(part)]


def _states(opinion: Opinion | None) -> bool:
    """Whether a row says which belief its accepted text states."""
    return opinion is not None and opinion.accepted is not None


def _unit(gathered: Gathered, members: np.ndarray, prior: float) -> dict[str, Any]:
    opinions = [gathered.opinions[i] for i in members]
    counts = np.bincount([o.accepted for o in opinions], minlength=len(opinions[0].options))
    stated = [o.probabilities for o in opinions if o.probabilities is not None]
    name = gathered.groups[gathered.group[members[0]]] if gathered.group[members[0]] >= 0 else ""
    unit: dict[str, Any] = {
        "prompt": plain(gathered.example(int(members[0])).prompt),
        "group": name,
        "where": gathered.where(int(members[0])),
        "options": list(opinions[0].options),
        "counts": counts.tolist(),
        "posterior": [dict(zip(("mean", "low", "high"), p, strict=True)) for p in posterior(counts, prior)],
    }
    if len(stated) == len(opinions):
        mean, p_value, impossible = _agreement(counts, np.asarray(stated))
        unit |= {"stated": mean.tolist(), "p_value": p_value, "impossible": impossible}
        unit["statements"] = len({tuple(np.round(p, 6)) for p in stated})
    return unit


def _agreement(counts: np.ndarray, stated: np.ndarray) -> tuple[np.ndarray, float, int]:
    """The stated shares, the p-value of the counts under them (chi-square; cells below 1 expected pooled), and how many rows
    accept what is stated to have no probability.
    """
    expected = stated.sum(0)
    impossible = int(counts[expected == 0].sum())
    small = expected < 1
    observed, expect = counts[~small].tolist(), expected[~small].tolist()
    if small.any() and expected[small].sum() > 0:
        observed, expect = [*observed, counts[small].sum()], [*expect, expected[small].sum()]
    if len(observed) < 2:
        return expected / len(stated), 1.0, impossible
    observed, expect = np.asarray(observed, float), np.asarray(expect, float)
    value = ((observed - expect) ** 2 / expect).sum()
    return expected / len(stated), float(stats.chi2.sf(value, len(observed) - 1)), impossible


def _by_group(gathered: Gathered) -> dict[str, Any]:
    """How often each belief is accepted, by its text, of each group and of all."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for position, opinion in enumerate(gathered.opinions):
        if _states(opinion):
            name = gathered.groups[gathered.group[position]] if gathered.group[position] >= 0 else ""
            counts["all"][opinion.options[opinion.accepted]] += 1
            if name:
                counts[f"group {name}"][opinion.options[opinion.accepted]] += 1
    return {name: {belief: _share(n, found.total()) for belief, n in found.most_common()} for name, found in counts.items()}


def _share(count: int, total: int) -> dict[str, float]:
    low, high = wilson(count, total)
    return {"count": count, "share": count / total, "low": low, "high": high}


def belief_findings(tables: dict[str, Any] | None) -> list[Finding]:
    """Stated probabilities that the rows contradict, beliefs without any, imbalance, prompts with few rows."""
    if tables is None:
        return []
    units = tables["units"]
    return [*_contradictions(units), *_stated(units), *_balance(units)]


def _noun(units: list[dict[str, Any]]) -> str:
    """What a unit is called; a prompt where each has its own."""
    if len({unit["prompt"] for unit in units}) == len(units):
        return "prompt"
    return "combination of prompt and group" if any(unit["group"] for unit in units) else "combination of prompt and options"


def _contradictions(units: list[dict[str, Any]]) -> list[Finding]:
    known = [unit for unit in units if "p_value" in unit]
    findings, noun = [], _noun(units)
    impossible = [unit for unit in known if unit["impossible"]]
    if impossible:
        rows = sum(unit["impossible"] for unit in impossible)
        text = f"{plural(rows, 'row accepts', 'rows accept')} a belief whose stated probability is 0"
        findings.append(Finding("problem", "impossible_belief", text, tuple(map(_unit_line, impossible)), rows, LISTED))
    # Benjamini and Hochberg's step-up procedure
    order = sorted(known, key=lambda unit: unit["p_value"])
    passed = [i for i, unit in enumerate(order) if unit["p_value"] <= _LEVEL * (i + 1) / len(order)]
    beyond = order[: passed[-1] + 1] if passed else []
    if beyond:
        text = (
            f"the accepted beliefs of {of_all(len(beyond), len(known), noun)} differ from the stated probabilities by more "
            "than sampling explains; training aims at the stated ones"
        )
        findings.append(Finding("warning", "beliefs_disagree", text, tuple(map(_unit_line, beyond)), len(beyond), 5))
    return findings


def _unit_line(unit: dict[str, Any]) -> str:
    total = sum(unit["counts"])
    shares = ", ".join(
        f"{option} {n / total:.2f} (stated {p:.2f})"
        for option, n, p in zip(unit["options"], unit["counts"], unit["stated"], strict=True)
    )
    group = f", group {unit['group']}" if unit["group"] else ""
    return f"{shortened(unit['prompt'], 50)}{group}: {shares} of {plural(total, 'row')}, p = {unit['p_value']:.2g}"


def _stated(units: list[dict[str, Any]]) -> list[Finding]:
    findings, noun = [], _noun(units)
    several = [unit for unit in units if unit.get("statements", 1) > 1]
    if several:
        text = f"{of_all(len(several), len(units), noun, 'have')} several stated distributions, one up to "
        text += f"{max(unit['statements'] for unit in several)}: each row is trained towards its own"
        places = tuple(f"{unit['where']}: {shortened(unit['prompt'])}" for unit in several)
        findings.append(Finding("note", "several_distributions", text, places, len(several), 3))
    few = [unit for unit in units if "stated" not in unit and sum(unit["counts"]) < _FEW]
    if few:
        text = (
            f"{of_all(len(few), len(units), noun, 'have')} no stated probabilities and fewer than {_FEW} rows to estimate them "
        )
        text += "from; data.belief_prior decides much of them"
        places = tuple(f"{unit['where']}: {plural(sum(unit['counts']), 'row')}" for unit in few)
        findings.append(Finding("warning", "uncertain_beliefs", text, places, len(few), 3))
    return findings


def _balance(units: list[dict[str, Any]]) -> list[Finding]:
    shares = [unit.get("stated") or [p["mean"] for p in unit["posterior"]] for unit in units]
    rare = [min(found) for found in shares]
    findings, count, noun = [], sum(value < _RARE for value in rare), _noun(units)
    if count:
        text = f"{of_all(count, len(units), noun, 'have')} a belief below {_RARE:.0%} (the rarest {min(rare):.1%}): what is "
        text += "measured on such minorities has wide intervals"
        findings.append(Finding("note", "rare_beliefs", text, count=count))
    one_sided = sum(max(found) > _MAJORITY for found in shares)
    if one_sided:
        text = f"{of_all(one_sided, len(units), noun, 'have')} one belief above {_MAJORITY:.0%}"
        findings.append(Finding("note", "one_sided", text, count=one_sided))
    never = sum(0 in unit["counts"] for unit in units)
    if never:
        text = f"{of_all(never, len(units), noun, 'have')} a belief that no row accepts: there is no text to learn it from"
        findings.append(Finding("note", "belief_without_rows", text, count=never))
    return findings
