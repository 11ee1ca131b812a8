"""What occurs more than once: prompts, answers to many prompts, one answer within a group; and answers that are empty."""

from __future__ import annotations

import numpy as np

from align_jax.data.inspect.contradictions import contradiction_findings
from align_jax.data.inspect.findings import Finding, of_all, percent
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import plain, shortened
from align_jax.terminal import plural

_PROMPTS = 5  # prompts with the same answer from which it is said
_SHARE = 0.01  # of all answers from which it is a warning


def repeat_findings(gathered: Gathered) -> list[Finding]:
    """Duplicated prompts, rows that contradict each other, repeated answers, identical answers within groups, empty ones."""
    return [*_prompts(gathered), *contradiction_findings(gathered), *_constant(gathered), *_within(gathered), *_empty(gathered)]


def shared_finding(first: tuple[str, Gathered], second: Gathered) -> Finding | None:
    """Prompts of one data set of a mixture that are in another, by its name, too."""
    both = first[1].prompt_texts.keys() & second.prompt_texts.keys()
    if not both:
        return None
    numbers = {second.prompt_texts[key] for key in both}
    at = [i for i, prompt in enumerate(second.prompt.tolist()) if prompt in numbers]
    text = f"{of_all(len(both), len(second.prompt_texts), 'prompt', 'are')} in {first[0]} too"
    return Finding("note", "shared_prompts", text, tuple(map(second.where, at)), len(both), 3)


def overlap_finding(train: Gathered, held_out: Gathered, name: str = "the training data") -> Finding | None:
    """Prompts that stand in both of two data sets; `name`: of the first."""
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
    text = of_all(len(both), len(held_out.prompt_texts), "prompt of the evaluation", "are") + f" in {name} too{why}"
    return Finding("note" if surveys else "warning", "overlap", text, tuple(map(held_out.where, at)), len(both), 3)


def _prompts(gathered: Gathered) -> list[Finding]:
    _, first, counts = np.unique(gathered.prompt, return_index=True, return_counts=True)
    again = int((counts > 1).sum())
    if not again or gathered.has_beliefs:  # of which many people answer one question
        return []
    most = int(np.argmax(counts))
    question = shortened(_prompt(gathered, int(first[most])))
    text = f"{of_all(again, len(counts), 'prompt', 'stand')} in several rows, up to {counts[most]}: {question}"
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
    lines = tuple(
        f"{shortened(gathered.answer(int(first[i])))}: {_times(gathered, int(first[i]))}, to {prompts[i]} prompts"
        for i in order
    )
    share = rows / len(gathered.of)
    text = f"{plural(len(order), 'answer is', 'answers are')} given to {_PROMPTS} prompts or more ({percent(share)} of all)"
    # From a fixed set, such as yes and no, they are what is meant.
    return [Finding("warning" if _SHARE <= share < 0.5 else "note", "repeated_answers", text, lines, len(order), 5)]


def _times(gathered: Gathered, response: int) -> str:
    """How often an answer occurs, and how often of these word for word; others differ in case or spaces."""
    alike = gathered.exact[gathered.text == gathered.text[response]]
    most = int(np.unique(alike, return_counts=True)[1].max())
    return f"{len(alike)} times" + ("" if most == len(alike) else f" nearly the same, {most} of them sign for sign")


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
        what = ("row", "have") if pairs else ("group", "have")
        said = "chosen == rejected" if pairs else "one answer only, several times"
        them = "it" if len(all_same) == 1 else "them"
        text = f"{of_all(len(all_same), count, *what)} {said}: nothing can be learned from {them}"
        findings.append(Finding("warning", "same_answers", text, tuple(map(gathered.where, all_same)), len(all_same), 3))
    differ = [i for i in differ if i not in set(all_same)]
    if same:
        text = f"{of_all(len(same), count, 'group', 'have')} the same answer more than once"
        text += f", {len(differ)} of them with different scores" if differ else ""
        places = tuple(map(gathered.where, [*differ, *sorted(set(same) - set(differ))]))
        findings.append(Finding("note", "repeated_within", text, places, len(same), min(3, len(differ) or 3)))
    return findings


def _empty(gathered: Gathered) -> list[Finding]:
    at = np.flatnonzero(gathered.empty)
    if not len(at):
        return []
    text = (
        f"{of_all(len(at), len(gathered.of), 'answer', 'are')} empty: the end token alone is trained on; data.on_empty: drop "
    )
    text += f"leaves {'it' if len(at) == 1 else 'them'} out"
    places = tuple(dict.fromkeys(gathered.where(int(gathered.of[i])) for i in at))
    return [Finding("warning", "empty_answers", text, places, len(at), 3)]
