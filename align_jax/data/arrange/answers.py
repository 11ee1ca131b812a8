"""The responses of an example as tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align_jax.data.encode import Encoder
from align_jax.data.formats.example import Example, Text
from align_jax.data.records import Segment, TokenGroup


def encode_answer(encoder: Encoder, example: Example, which: int) -> tuple[np.ndarray, bool]:
    """Token ids of one response, after the belief that it states where it has one, and whether it was cut."""
    if example.tokens is not None:
        return encoder.cut_sample(example.tokens[which])
    before, opinion = None, example.opinion
    if opinion is not None:
        number = opinion.accepted if which == 0 else opinion.rejected
        before = encoder.encode_belief(number, opinion.options[number])
    return encoder.encode_response(example.prompt, example.responses[which], before)


def encode_group(
    encoder: Encoder, example: Example, row: int = 0, *, ends: bool = False
) -> tuple[TokenGroup, bool, list[bool]]:
    """All responses of an example as a group, whether the prompt was cut, and which responses were."""
    prompt, cut = encoder.encode_prompt(example.prompt, example.group, example.context)
    answers = [encode_answer(encoder, example, k) for k in range(len(example.responses))]
    segments = tuple(Segment(tokens, k) for k, (tokens, _) in enumerate(answers))
    return TokenGroup(row, prompt, segments, len(segments), ends=ends), cut, [was_cut for _, was_cut in answers]


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
    return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)
