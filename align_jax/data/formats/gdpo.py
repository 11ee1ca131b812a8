"""Format `gdpo`: a pair of texts that state different beliefs, with the distribution of beliefs; the GDPO authors' columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example, Opinion
from align_jax.data.formats.fields import as_text, field, items, number, response, said, short, text, token_ids, whole
from align_jax.data.sources import RowError

_RESPONSES = ("accept_response", "reject_response")
_TOKENS = ("accept_tokens", "reject_tokens")
_CHOICES = ("accept_choice_id", "reject_choice_id")
_SUM = 1e-2  # what sums are off by in files that do not round


class BeliefRows(Format):
    """Columns: `prompt`, `options` (the beliefs), `probabilities` (of each; may be missing), and of the accepted text
    `accept_response`, `accept_choice_id` (which belief, from 0) and `accept_choice` (its name; may be missing); of the
    rejected one `reject_...`; where the texts were sampled also their ids, `accept_tokens` and `reject_tokens`. A row without
    both choices, whose texts may be `chosen` and `rejected`, serves `latent_beliefs`. `answers`, a number that may be missing,
    says how many answers the probabilities were counted from.
    """

    name = "gdpo"
    columns = ("prompt", "options", "accept_response", "reject_response")
    evaluated_as = "gdpo"
    responses = 2
    has_beliefs = True

    def parse(self, row: Mapping) -> Example:
        options = tuple(_option(o, f"options[{i}]") for i, o in enumerate(items(row, "options")))
        if len(options) < 2 or len(set(options)) != len(options):
            raise RowError(f"field 'options': expected at least two different beliefs, got {short(list(options))}")
        unlabelled = all(row.get(name) is None for name in _CHOICES)
        accepted, rejected = (None if unlabelled else _choice(row, name, options) for name in _CHOICES)
        named = ("chosen", "rejected") if unlabelled and "accept_response" not in row else _RESPONSES
        return Example(
            text(row, "prompt"),
            (response(row, named[0]), response(row, named[1])),
            (1.0, 0.0),
            opinion=Opinion(options, _probabilities(row, options), accepted, rejected, _answers(row)),
            tokens=_tokens(row),
        )


def _option(value: object, name: str) -> str:
    """A belief as text; a number (a rating, also 0) is one."""
    return str(as_text(said(value) if isinstance(value, int | float) else value, name))


def _choice(row: Mapping, name: str, options: tuple[str, ...]) -> int:
    value = whole(field(row, name))
    if value is None or not 0 <= value < len(options):
        raise RowError(f"field {name!r}: {row[name]!r} is not the number of one of the {len(options)} options, from 0")
    written = row.get(name.removesuffix("_id"))
    if written is not None and _words(said(written)) != _words(options[value]):
        raise RowError(f"field {name.removesuffix('_id')!r}: {written!r} is not option {value}, {options[value]!r}")
    return value


def _tokens(row: Mapping) -> tuple[tuple[int, ...], ...] | None:
    if all(row.get(name) is None for name in _TOKENS):
        return None
    return tuple(token_ids(field(row, name), name) for name in _TOKENS)


def _words(text: str) -> str:
    """A belief without the marks and capitals that generated texts put around it; as it is where it has no words."""
    return re.sub(r"\W+", " ", text).strip().casefold() or text


def _probabilities(row: Mapping, options: tuple[str, ...]) -> tuple[float, ...] | None:
    if row.get("probabilities") is None:
        return None
    values = [number(p, f"probabilities[{i}]") for i, p in enumerate(items(row, "probabilities"))]
    total = sum(values)
    off = abs(total - 1)
    if len(values) != len(options) or min(values) < 0 or off >= _tolerance(values):
        near = f"; these sum to {total:.4g}" if len(values) == len(options) and off >= _tolerance(values) else ""
        if near and abs(total - 100) < 2:
            near += ": percentages? divide them by 100"
        elif near and total > 1 and _digits(values) == 0 and min(values) >= 0:
            near += f": answers that were counted? divide them by {total:.0f}, and put that in the column `answers`"
        raise RowError(f"field 'probabilities': expected {len(options)} numbers that sum to 1, got {short(values)}{near}")
    return tuple(p / total for p in values)


def _answers(row: Mapping) -> float | None:
    value = row.get("answers")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None  # a column of another meaning, as lists of texts have it
    if not 0 < value < math.inf:
        raise RowError(f"field 'answers': expected how many answers the probabilities were counted from, got {value!r}")
    return float(value)


def _tolerance(values: list[float]) -> float:
    """How far from 1 probabilities can sum that were rounded to the digits that these have: half a last digit each.

    Whole numbers were not rounded: nobody writes a probability without decimals but for 0 and 1.
    """
    digits = _digits(values)
    return max(_SUM + 1e-6, len(values) * 0.5 * 10.0**-digits - 1e-6 if digits else 0)


def _digits(values: list[float]) -> int:
    """How many digits the numbers have behind the point, at most 6."""
    return max(len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values)
