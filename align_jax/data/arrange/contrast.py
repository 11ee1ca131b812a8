"""Whether the responses of a row differ in what is said of them, and in what they say."""

from __future__ import annotations

from align_jax.data.arrange.answers import one_score
from align_jax.data.formats.example import Example


def no_contrast(example: Example) -> bool:
    """Whether there is nothing to contrast: fewer than two responses, one score for all, or one text."""
    return one_score(example) or (example.scores is not None and _same(example.responses))


def _same(responses: tuple) -> bool:
    return all(response == responses[0] for response in responses[1:])
