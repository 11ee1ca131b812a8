"""The responses of an example as tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align_jax.data.encode import Answer, Encoder, Prompt
from align_jax.data.formats.example import Example, Text
from align_jax.data.records import Segment, TokenGroup


def encode_answer(encoder: Encoder, prompt: Prompt, example: Example, which: int) -> Answer:
    """One response as tokens, after the belief that it states where it has one."""
    if example.tokens is not None:
        return encoder.sample(example.tokens[which])
    belief, opinion = None, example.opinion
    if opinion is not None and opinion.accepted is not None:
        number = opinion.accepted if which == 0 else opinion.rejected
        belief = number, opinion.options[number]
    return encoder.answer(prompt, example.responses[which], belief)


def encode_group(
    encoder: Encoder, example: Example, row: int = 0, *, ends: bool = False
) -> tuple[TokenGroup, Prompt, list[Answer]]:
    """All responses of an example as a group; the prompt and the responses say what was cut of them."""
    prompt = encoder.prompt(example)
    answers = [encode_answer(encoder, prompt, example, k) for k in range(len(example.responses))]
    segments = tuple(segment_of(answer, k) for k, answer in enumerate(answers))
    return TokenGroup(row, prompt.ids, segments, len(segments), ends=ends), prompt, answers


def segment_of(answer: Answer, slot: int, parent: int = -1) -> Segment:
    """A response in a slot."""
    return Segment(answer.tokens, slot, parent, answer.scored)


def one_score(example: Example) -> bool:
    """Whether all responses have the same score, so that there is nothing to contrast."""
    return example.scores is not None and len(set(example.scores)) < 2


def subset(scores: Sequence[float], most: int | None, seed: tuple[int, int]) -> list[int]:
    """Which responses to keep: all, or `most` drawn at random with the best and the worst among them, in order."""
    if most is None or len(scores) <= most:
        return list(range(len(scores)))
    extremes = [int(np.argmax(scores)), int(np.argmin(scores))]
    extremes = extremes if extremes[0] != extremes[1] else [0, 1]
    others = [i for i in range(len(scores)) if i not in extremes]
    drawn = np.random.default_rng(seed).choice(others, most - 2, replace=False)
    return sorted([*extremes, *drawn.tolist()])


def characters(text: Text) -> int:
    """Length of a text before anything is cut."""
    return len(text) if isinstance(text, str) else sum(len(message.get("content") or "") for message in text)
