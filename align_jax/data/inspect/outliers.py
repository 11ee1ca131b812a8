"""Scores that do not look like a judge's opinion of the answer: one that was fooled, or numbers off the scale."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from align_jax.data.inspect.duplicates import near_duplicates
from align_jax.data.inspect.findings import Finding, number
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.scores import standing
from align_jax.data.inspect.texts import shortened
from align_jax.parsing import json_of
from align_jax.terminal import plural

_PROMPTS = 5  # with one answer, at least
_SIGMAS = 3.0
_STANDING = 0.6  # the usual one is 1/2
_EDGE_STANDING = 0.75  # good models have habits: the same last words are no sin
_UNRELATED = 0.65  # how often an answer shares more words with its prompt than with others; chance is 1/2
_READ = 50  # answers
_LONG_TEXT = 200  # characters; the same ones to several prompts are about none of them
_ANSWERS = 10  # of a model, or unrelated ones, at least
_FAR = 2.0  # spans of the usual scores beyond them
_RARE = 0.01  # share of all scores that may be far off and still be outliers
_MOST, _SEVERAL = 0.5, 0.25  # shares of all prompts
_REFUSAL = re.compile(
    r"\b(sorry|cannot|can[\u2019']t|unable to|not able to|won[\u2019']t|as an ai|decline|apologi[sz]e|refuse|not comfortable|"
    r"don[\u2019']t feel comfortable|leider|kann ich nicht|tut mir leid|désolée?|ne (peux|puis) pas|lo siento|no puedo|"
    r"desculpe|lamento|não posso|mi dispiace|non posso|извините|не могу)\b|抱歉|无法|不能|無法|申し訳|できません|"
    r"죄송|수 없습니다"
)
_SHORT, _LONG = 0.1, 10.0  # of the median length of the others


def outlier_findings(gathered: Gathered) -> list[Finding]:
    """Answers and models whose scores are suspicious, by name; nothing where there are no scores."""
    if not gathered.has_scores:
        return []
    ranks, alike = standing(gathered), near_duplicates(gathered)
    return [
        *_same_answers(gathered, ranks, alike),
        *_same_edges(gathered, ranks, alike),
        *_unrelated_models(gathered, ranks),
        *_unrelated_answers(gathered, ranks, alike),
        *_extreme_lengths(gathered, ranks),
        *_far_scores(gathered),
    ]


def sigmas(gathered: Gathered, ranks: np.ndarray, members: np.ndarray) -> tuple[float, float, int]:
    """Mean standing of some responses, by how many standard errors it is above 1/2, and their prompts.

    Each prompt counts once. The variance of a mid-rank among K is (K^2 - 1) / (12 K^2).
    """
    members = members[np.isfinite(ranks[members])]
    if not len(members):
        return 0.5, 0.0, 0
    prompts, inverse = np.unique(gathered.prompt[gathered.of[members]], return_inverse=True)
    mean = np.bincount(inverse, ranks[members]) / np.bincount(inverse)
    size = gathered.size[gathered.of[members]].astype(float)
    size = np.where(size > 1, size, max(len(ranks), 2))
    variance = (np.bincount(inverse, (size**2 - 1) / (12 * size**2)) / np.bincount(inverse)).sum()
    value = float(mean.mean())
    return value, float((mean - 0.5).sum() / np.sqrt(variance)), len(prompts)


def _clusters(gathered: Gathered, labels: np.ndarray) -> list[np.ndarray]:
    """Responses with one label, where they answer several prompts."""
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [p for p in parts if len(p) >= _PROMPTS and len(set(gathered.prompt[gathered.of[p]].tolist())) >= _PROMPTS]


def _same_answers(gathered: Gathered, ranks: np.ndarray, alike: np.ndarray) -> list[Finding]:
    findings, clusters = [], _clusters(gathered, alike)
    for members in clusters:
        mean, above, prompts = sigmas(gathered, ranks, members)
        high = mean >= _STANDING and above >= _SIGMAS
        exact = len(set(gathered.exact[members].tolist())) == 1
        # What says nothing about its prompts should stand below the others.
        long = len(set(gathered.text[members].tolist())) == 1 and gathered.characters[members[0]] >= _LONG_TEXT
        nothing = mean >= 0.5 and (long or above >= 1 and _is_unrelated(gathered, members))
        if gathered.empty[members[0]] or not (high or nothing) or _is_label(gathered, clusters, members):
            continue
        text = f"{'the' if exact else 'nearly the'} same answer is given to {prompts} prompts, and "
        text += "scored far above what is usual" if high else "though it is not about them, scored like real answers"
        refuses = _refuses(gathered, members)
        text += f": {_scores(gathered, members, ranks)}"
        blatant = not refuses and _is_blatant(gathered, members, prompts)
        if refuses:
            text += "; right, if these prompts had to be refused"
        elif not blatant:
            text += "; right, if it is what these prompts call for, such as a refusal, a tool call or that nothing is known"
        severity = "problem" if blatant else "warning"
        findings.append(Finding(severity, "repeated_answer_scored_high", text, _named(gathered, members), **_about(members)))
    return findings


def _refuses(gathered: Gathered, members: np.ndarray) -> bool:
    """Whether most of some answers refuse; a sample of them is read."""
    drawn = members[:: max(1, len(members) // _READ)][:_READ]
    return sum(_REFUSAL.search(gathered.answer(int(i)).lower()) is not None for i in drawn) > len(drawn) / 2


def _is_blatant(gathered: Gathered, members: np.ndarray, prompts: int) -> bool:
    """Whether nothing right could be said so often: a long text, most prompts, or next to nothing where others say much.

    Short answers are what many prompts call for: refusals in any language, tool calls, that a text does not say it.
    """
    if _is_json(gathered.answer(int(members[0]))):
        return False
    share = prompts / max(1, len(np.unique(gathered.prompt)))
    if np.median(gathered.characters[members]) >= _LONG_TEXT or share > _MOST:
        return True
    beside = np.setdiff1d(np.flatnonzero(np.isin(gathered.of, gathered.of[members])), members)
    tiny = len(beside) > 0 and np.median(gathered.characters[members]) < _SHORT * np.median(gathered.characters[beside])
    return bool(tiny and share > _SEVERAL)


def _is_json(text: str) -> bool:
    """Whether a text is an object or a list in JSON, such as a tool call."""
    try:
        return isinstance(json_of(text), dict | list)
    except ValueError:
        return False


def _is_label(gathered: Gathered, clusters: list[np.ndarray], members: np.ndarray) -> bool:
    """Whether the answers beside some are as often repeated: rows whose answers come from a fixed set, such as yes and
    no, or whose prompts are variants of one.
    """
    beside = np.setdiff1d(np.flatnonzero(np.isin(gathered.of, gathered.of[members])), members)
    if not clusters or not len(beside):
        return False
    return bool(np.isin(beside, np.concatenate(clusters)).mean() > 0.5)


def _about(members: np.ndarray) -> dict[str, Any]:
    """Of a finding: how many responses, and which."""
    return {"count": len(members), "responses": tuple(members.tolist())}


def _is_unrelated(gathered: Gathered, members: np.ndarray) -> bool:
    """Whether some responses share no more words with their prompts than with others."""
    known = gathered.relevance[members][np.isfinite(gathered.relevance[members])]
    return len(known) >= _PROMPTS and bool(known.mean() + 1.96 * max(known.std(), 0.1) / np.sqrt(len(known)) < _UNRELATED)


def _same_edges(gathered: Gathered, ranks: np.ndarray, whole: np.ndarray) -> list[Finding]:
    """Answers with one long beginning or ending: a trick that is put in front of, or behind, what is said."""
    findings, repeated = [], _clusters(gathered, whole)
    for side, what in ((0, "begin"), (1, "end")):
        labels = gathered.edges[:, side]
        for members in _clusters(gathered, labels):
            mean, above, prompts = sigmas(gathered, ranks, members)
            known = labels[members[0]] == 0 or len(set(whole[members].tolist())) == 1
            if not known and not _is_label(gathered, repeated, members) and mean >= _EDGE_STANDING and above >= _SIGMAS:
                text = f"answers to {prompts} prompts {what} with the same 30 words, and are scored far above what is usual: "
                text += _scores(gathered, members, ranks)
                named = _named(gathered, members)
                findings.append(Finding("warning", f"same_{what}_scored_high", text, named, **_about(members)))
    return findings


def _scores(gathered: Gathered, members: np.ndarray, ranks: np.ndarray) -> str:
    others = np.setdiff1d(np.flatnonzero(np.isin(gathered.of, gathered.of[members])), members)
    text = f"{number(gathered.score[members].mean())} on average"
    if not len(others):
        return text
    size = gathered.size[gathered.of[members]]
    above = (ranks[members] * size - 0.5) / np.maximum(size - 1, 1)
    beside = number(gathered.score[others].mean())
    return f"{text} against {beside} of the answers beside it, and above {100 * above.mean():.0f}% of them"


def _named(gathered: Gathered, members: np.ndarray) -> tuple[str, ...]:
    """The text, who wrote it, and where it stands."""
    names = sorted({gathered.models[i] for i in gathered.model[members].tolist() if i >= 0})
    best = members[np.argsort(-gathered.score[members], kind="stable")]
    lines = [shortened(gathered.answer(int(best[0])), 100)]
    lines += [f"written by {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"] if names else []
    return (*lines, *(_place(gathered, int(i)) for i in best))


def _place(gathered: Gathered, response: int) -> str:
    position = int(gathered.of[response])
    return (
        f"{gathered.where(position)}: answer {gathered.which[response] + 1} of {gathered.size[position]}, "
        f"{plural(int(gathered.characters[response]), 'character')}, score {number(gathered.score[response])}"
    )


def _unrelated_models(gathered: Gathered, ranks: np.ndarray) -> list[Finding]:
    findings = []
    for i, name in enumerate(gathered.models):
        members = np.flatnonzero(gathered.model == i)
        mean, above, prompts = sigmas(gathered, ranks, members)
        high = prompts >= _ANSWERS and mean >= 0.5 and above >= 1
        if high and len(set(gathered.text[members].tolist())) > 1 and _is_unrelated(gathered, members):
            text = f"the answers of {name} are no more about their prompts than about others, and yet are scored like real "
            text += f"answers or better: {_scores(gathered, members, ranks)}"
            named = _named(gathered, members)
            findings.append(Finding("problem", "unrelated_model_scored_high", text, named, **_about(members)))
    return findings


def _unrelated_answers(gathered: Gathered, ranks: np.ndarray, alike: np.ndarray) -> list[Finding]:
    repeated = _clusters(gathered, alike)  # which are looked at by themselves
    members = np.setdiff1d(np.flatnonzero(gathered.relevance <= 0.5), np.concatenate([[], *repeated]).astype(int))
    mean, above, prompts = sigmas(gathered, ranks, members)
    if prompts < _ANSWERS or mean < _STANDING or above < _SIGMAS:
        return []
    text = f"{plural(len(members), 'answer')} share no more words with their prompts than with others, and are scored far "
    text += f"above what is usual: {_scores(gathered, members, ranks)}"
    short = np.median(gathered.characters[members]) < _LONG_TEXT
    severity = "warning" if short or _refuses(gathered, members) else "problem"
    return [Finding(severity, "unrelated_scored_high", text, _named(gathered, members), **_about(members))]


def _extreme_lengths(gathered: Gathered, ranks: np.ndarray) -> list[Finding]:
    findings = []
    ratio = np.ones(len(gathered.of))
    for members in np.split(np.arange(len(gathered.of)), np.cumsum(gathered.size)[:-1]):
        if len(members) > 2:
            ratio[members] = (gathered.characters[members] + 1) / (np.median(gathered.characters[members]) + 1)
    for what, members in (("short", np.flatnonzero(ratio < _SHORT)), ("long", np.flatnonzero(ratio > _LONG))):
        mean, above, prompts = sigmas(gathered, ranks, members)
        if prompts >= _PROMPTS and mean >= _STANDING and above >= _SIGMAS and what == "short":
            text = f"{len(members)} answers are less than a tenth as long as the others, and are scored far above "
            text += f"what is usual: {_scores(gathered, members, ranks)}"
            severity = "warning" if _refuses(gathered, members) else "problem"
            findings.append(Finding(severity, "short_scored_high", text, _named(gathered, members), **_about(members)))
        elif prompts >= _PROMPTS and mean >= 0.75 and above >= _SIGMAS:
            text = f"{len(members)} answers are more than ten times as long as the others, and stand above them: "
            text += _scores(gathered, members, ranks)
            findings.append(Finding("note", "long_scored_high", text, _named(gathered, members), shown=5, **_about(members)))
    return findings


def _far_scores(gathered: Gathered) -> list[Finding]:
    known = np.flatnonzero(np.isfinite(gathered.score))
    scores = gathered.score[known]
    if len(scores) < 20:
        return []
    cut = max(1, int(_RARE * len(scores)))
    low, high = np.sort(scores)[[cut, -cut - 1]]
    span = high - low
    if span <= 0:
        return []
    beyond = (scores < low - _FAR * span) | (scores > high + _FAR * span)
    if not beyond.any():
        return []
    # Of a distribution with a long tail, such as votes, others lie between; of mistakes none do.
    usual, far = np.sort(scores[~beyond]), known[beyond]
    gaps = [(usual[0] - found if found < usual[0] else found - usual[-1]) for found in scores[beyond]]
    if min(gaps) < span:
        return []
    text = f"{plural(len(far), 'score is', 'scores are')} far off the scale of the others, {low:.4g} to {high:.4g} for nearly "
    text += f"all: {'a typing error' if len(far) == 1 else 'typing errors'}?"
    return [Finding("problem", "score_off_scale", text, tuple(_place(gathered, int(i)) for i in far), **_about(far))]
