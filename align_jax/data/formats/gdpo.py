"""Format `gdpo`: a pair of texts that state different beliefs, with the distribution of beliefs; the GDPO authors' columns."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example, Opinion
from align_jax.data.formats.fields import as_text, field, items, number, short, text
from align_jax.data.sources import RowError


class BeliefRows(Format):
    """Columns: `prompt`, `options` (the beliefs), `probabilities` (of each; may be missing), and of the accepted text
    `accept_response`, `accept_choice_id` (which belief, from 0) and `accept_choice` (its name; may be missing); of the rejected
    one `reject_...`.
    """

    name = "gdpo"
    columns = ("prompt", "options", "accept_response", "reject_response")
    evaluated_as = "gdpo"
    responses = 2
    has_beliefs = True

    def parse(self, row: Mapping) -> Example:
        options = tuple(str(as_text(o, f"options[{i}]")) for i, o in enumerate(items(row, "options")))
        if len(options) < 2 or len(set(options)) != len(options):
            raise RowError(f"field 'options': expected at least two different beliefs, got {short(list(options))}")
        chosen = {name: _choice(row, name, options) for name in ("accept_choice_id", "reject_choice_id")}
        return Example(
            text(row, "prompt"),
            (text(row, "accept_response"), text(row, "reject_response")),
            (1.0, 0.0),
            opinion=Opinion(options, _probabilities(row, options), chosen["accept_choice_id"], chosen["reject_choice_id"]),
        )


def _choice(row: Mapping, name: str, options: tuple[str, ...]) -> int:
    value = field(row, name)
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(options):
        raise RowError(f"field {name!r}: {value!r} is not the number of one of the {len(options)} options, from 0")
    written = row.get(name.removesuffix("_id"))
    if written is not None and written != options[value]:
        raise RowError(f"field {name.removesuffix('_id')!r}: {written!r} is not option {value}, {options[value]!r}")
    return value


def _probabilities(row: Mapping, options: tuple[str, ...]) -> tuple[float, ...] | None:
    if row.get("probabilities") is None:
        return None
    values = [number(p, f"probabilities[{i}]") for i, p in enumerate(items(row, "probabilities"))]
    if len(values) != len(options) or min(values) < 0 or abs(sum(values) - 1) > 1e-2:
        raise RowError(f"field 'probabilities': expected {len(options)} numbers that sum to 1, got {short(values)}")
    return tuple(p / sum(values) for p in values)
