"""Format `unpaired`: single responses, each desirable or not."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import label, response, text
from align_jax.data.sources import RowError


class UnpairedRows(Format):
    """Columns: `prompt`, `completion`, `label` (true where it is desirable)."""

    name = "unpaired"
    columns = ("prompt", "completion", "label")
    evaluated_as = "kto"
    responses = 1

    def parse(self, row: Mapping) -> Example:
        desirable = label(row, "label")
        if desirable is None:
            raise RowError(f"field 'label': expected true or false, got {row['label']!r}")
        return Example(text(row, "prompt"), (response(row, "completion"),), desirable=desirable)
