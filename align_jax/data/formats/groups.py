"""Format `groups`: any number of responses to a prompt, with a score each."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format, completed
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import as_text, items, number, text
from align_jax.data.sources import RowError


class Groups(Format):
    """Columns: `prompt`, `responses` (list of texts or conversations), `scores` (as many numbers)."""

    name = "groups"
    columns = ("prompt", "responses", "scores")
    evaluated_as = "mpo"

    def parse(self, row: Mapping) -> Example:
        responses, scores = items(row, "responses"), items(row, "scores")
        if len(responses) != len(scores):
            raise RowError(f"field 'scores': {len(scores)} scores for {len(responses)} responses")
        texts = tuple(as_text(r, f"responses[{i}]") for i, r in enumerate(responses))
        return Example(text(row, "prompt"), texts, tuple(number(s, f"scores[{i}]") for i, s in enumerate(scores)))

    def read_responses(self, row: Mapping) -> Example:
        """Scores need not be there, and responses that a model generated may be empty: the end token alone."""
        responses = enumerate(items(row, "responses"))
        texts = tuple(t if isinstance(t, str) else as_text(t, f"responses[{i}]") for i, t in responses)
        return completed(Example(text(row, "prompt"), texts), row)
