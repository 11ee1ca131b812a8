"""What occurs more than once: prompts, answers to many prompts, one answer within a group; and answers that are empty."""

from __future__ import annotations

import numpy as np

from align_jax.data.inspect.findings import Finding, percent
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import plain, shortened
from align_jax.terminal import plural

_PROMPTS = 5  # prompts with the same answer from which it is said
_SHARE = 0.01  # of all answers from which it is a warning


def repeat_findings(gathered: Gathered) -> list[Finding]:
    """Duplicated prompts, repeated answers, identical answers within groups, empty ones."""
    return [*_prompts(gathered), *_constant(gathered), *_within(gathered), *_empty(gathered)]


def overlap_finding(train: Gathered, held_out: Gathered) -> Finding | None:
    """Prompts that stand in both of two data sets."""
    both = train.prompt_texts.keys() & held_out.prompt_texts.keys()
    if not both:
        return None
    numbers = {held_out.prompt_texts[key] for key in both}
    at = [i for i, prompt in enumerate(held_out.prompt.tolist()) if prompt in numbers]
    surveys = held_out.has_beliefs
    why = (
        " (of questions that many people answer this may be meant)"
        if surveys
        else ": an evaluation on what was trained on says little"
    )
    text = f"{len(both)} of {len(held_out.prompt_texts)} prompts of the evaluation are in the training data too{why}"
    return Finding("note" if surveys else "warning", "overlap", text, tuple(held_out.where(i) for i in at[:3]), len(both))


def _prompts(gathered: Gathered) -> list[Finding]:
    _, first, counts = np.unique(gathered.prompt, return_index=True, return_counts=True)
    again = int((counts > 1).sum())
    if not again or gathered.has_beliefs:  # of which many people answer one question
        return []
    most = int(np.argmax(counts))
    question = shortened(_prompt(gathered, int(first[most])))
    text = f"{again} of {len(counts)} prompts stand in several rows, one in {counts[most]}: {question}"
    joined = "; `align-jax data convert --join` makes one group of those with the same prompt"
    pairs = len(gathered.size) > 0 and (gathered.size == 2).all()
    return [Finding("note", "duplicated_prompts", text + (joined if pairs else ""), count=again)]


def _prompt(gathered: Gathered, position: int) -> str:
    return plain(gathered.example(position).prompt)


def prompts_of_texts(gathered: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every different answer: its first response, how often it occurs, and to how many prompts."""
    _, first, inverse, counts = np.unique(gathered.text, return_index=True, return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([inverse, gathered.prompt[gathered.of]], -1), axis=0) if len(inverse) else np.empty((0, 2), int)
    return first, counts, np.bincount(pairs[:, 0], minlength=len(first))


def _constant(gathered: Gathered) -> list[Finding]:
    if not len(gathered.of):
        return []
    first, counts, prompts = prompts_of_texts(gathered)
    order = [int(i) for i in np.argsort(-prompts, kind="stable") if prompts[i] >= _PROMPTS]
    order = [i for i in order if not gathered.empty[first[i]]]
    if not order:
        return []
    rows = counts[order].sum()
    lines = tuple(f"{shortened(gathered.answer(int(first[i])))}: {counts[i]} times, to {prompts[i]} prompts" for i in order[:5])
    share = rows / len(gathered.of)
    text = f"{plural(len(order), 'answer is', 'answers are')} given to {_PROMPTS} prompts or more ({percent(share)} of all)"
    # From a fixed set, such as yes and no, they are what is meant.
    return [Finding("warning" if _SHARE <= share < 0.5 else "note", "repeated_answers", text, lines, len(order))]


def _within(gathered: Gathered) -> list[Finding]:
    same, all_same, differ = [], [], []
    ends = np.cumsum(gathered.size)[:-1]
    parts = zip(np.split(gathered.text, ends), np.split(gathered.score, ends), strict=True)
    for i, (words, scores) in enumerate(parts):
        if len(words) < 2 or len(set(words.tolist())) == len(words):
            continue
        (all_same if len(set(words.tolist())) == 1 else same).append(i)
        if len(set(zip(words.tolist(), scores.tolist(), strict=True))) > len(set(words.tolist())):
            differ.append(i)
    findings, count = [], len(gathered.size)
    pairs = count > 0 and bool((gathered.size == 2).all())
    if all_same:
        what = "rows have chosen == rejected" if pairs else "groups have one answer only, several times"
        text = f"{len(all_same)} of {count} {what}: nothing can be learned from them"
        findings.append(Finding("warning", "same_answers", text, tuple(map(gathered.where, all_same[:3])), len(all_same)))
    differ = [i for i in differ if i not in set(all_same)]
    if same:
        text = f"{len(same)} of {count} groups have the same answer more than once"
        text += f", {len(differ)} of them with different scores" if differ else ""
        findings.append(Finding("note", "repeated_within", text, tuple(map(gathered.where, (differ or same)[:3])), len(same)))
    return findings


def _empty(gathered: Gathered) -> list[Finding]:
    at = np.flatnonzero(gathered.empty)
    if not len(at):
        return []
    text = f"{len(at)} of {len(gathered.of)} answers are empty: the end token alone is trained on; data.on_empty: drop "
    text += "leaves them out"
    places = tuple(dict.fromkeys(gathered.where(int(gathered.of[i])) for i in at[:3]))
    return [Finding("warning", "empty_answers", text, places, len(at))]
