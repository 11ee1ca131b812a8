"""Format `ultrafeedback`: the columns of openbmb/UltraFeedback."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import as_response, items, number, short, text
from align_jax.data.sources import RowError


class UltraFeedback(Format):
    """Columns: `instruction`, and `completions`: a list of objects with `response` and `overall_score`."""

    name = "ultrafeedback"
    columns = ("instruction", "completions")
    evaluated_as = "mpo"

    def parse(self, row: Mapping) -> Example:
        texts, scores = [], []
        for i, completion in enumerate(items(row, "completions")):
            if not isinstance(completion, Mapping):
                raise RowError(f"field 'completions[{i}]': expected an object, got {short(completion)}")
            for name, values, convert in (("response", texts, as_response), ("overall_score", scores, number)):
                if completion.get(name) is None:
                    there = ", ".join(repr(key) for key, value in completion.items() if value is not None) or "nothing"
                    raise RowError(f"field 'completions[{i}].{name}' is missing; the completion has {there}")
                values.append(convert(completion[name], f"completions[{i}].{name}"))
        return Example(text(row, "instruction"), tuple(texts), tuple(scores))
