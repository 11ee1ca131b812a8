"""Format `samples`: groups with the tokens that were sampled."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import items, number, short, text, token_ids
from align_jax.data.sources import RowError


class Samples(Format):
    """Columns: `prompt`, `responses`, `scores`, and `tokens`: the ids of every response, end token included, of the same
    tokenizer. A model may say nothing: its tokens then are the end token alone, and the text is blank.
    """

    name = "samples"
    columns = ("prompt", "responses", "scores", "tokens")
    evaluated_as = "mpo"

    def parse(self, row: Mapping) -> Example:
        texts, scores, tokens = (items(row, name) for name in ("responses", "scores", "tokens"))
        if not len(texts) == len(scores) == len(tokens):
            raise RowError(f"field 'tokens': {len(tokens)} lists for {len(texts)} responses and {len(scores)} scores")
        for i, (response, ids) in enumerate(zip(texts, tokens, strict=True)):
            if not isinstance(response, str):
                raise RowError(f"field 'responses[{i}]': expected text, got {short(response)}")
            token_ids(ids, f"tokens[{i}]")
        numbers = tuple(number(s, f"scores[{i}]") for i, s in enumerate(scores))
        return Example(text(row, "prompt"), tuple(texts), numbers, tokens=tuple(map(tuple, tokens)))
