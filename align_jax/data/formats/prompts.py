"""Format `prompts`: what on-policy rounds sample responses to."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import text


class Prompts(Format):
    """Column: `prompt`."""

    name = "prompts"
    columns = ("prompt",)
    responses = 0

    def parse(self, row: Mapping) -> Example:
        return Example(text(row, "prompt"), ())
