"""Format `groups`: any number of responses to a prompt, with a score each."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format, completed
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import as_response, items, number, text
from align_jax.data.sources import RowError


class Groups(Format):
    """Columns: `prompt`, `responses` (list of texts or conversations), `scores` (as many numbers)."""

    name = "groups"
    columns = ("prompt", "responses", "scores")
    evaluated_as = "mpo"

    def parse(self, row: Mapping) -> Example:
        return scored(row, "responses", "scores")

    def read_responses(self, row: Mapping) -> Example:
        """Scores need not be there."""
        texts = tuple(as_response(t, f"responses[{i}]") for i, t in enumerate(items(row, "responses")))
        return completed(Example(text(row, "prompt"), texts), row)


class Generated(Format):
    """Columns of princeton-nlp's data sets (llama3-ultrafeedback-armorm): `prompt`, `all_generated_responses` and
    `all_rm_scores`. Rows have `chosen` and `rejected`, too, so `auto` takes them for pairs.
    """

    name = "generated"
    evaluated_as = "mpo"

    def parse(self, row: Mapping) -> Example:
        return scored(row, "all_generated_responses", "all_rm_scores")


def scored(row: Mapping, responses: str, scores: str) -> Example:
    """A prompt with two columns that hold its responses and their scores."""
    texts, values = items(row, responses), items(row, scores)
    if len(texts) != len(values):
        raise RowError(f"field {scores!r}: {len(values)} scores for {len(texts)} responses")
    found = tuple(as_response(value, f"{responses}[{i}]") for i, value in enumerate(texts))
    return Example(text(row, "prompt"), found, tuple(number(s, f"{scores}[{i}]") for i, s in enumerate(values)))
