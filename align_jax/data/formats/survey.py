"""Format `survey`: questions with the answers of several groups of people, Anthropic/llm_global_opinions."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from align_jax.data.formats.fields import field, number, short
from align_jax.data.formats.gdpo import BeliefRows
from align_jax.data.formats.join import SpreadRows
from align_jax.data.sources import RowError, Source


class GlobalOpinions(BeliefRows):
    """Columns of Anthropic/llm_global_opinions: `question`, `options` (a list, or Python's text of one), and `selections`:
    country -> share of each option. A row becomes one per country, its `group`: the options are the beliefs, the shares
    (brought to sum 1) their probabilities; the accepted text is the option that most chose, the rejected one that fewest did.
    """

    name = "survey"
    columns = ("question", "options", "selections")

    def arranged(self, source: Source) -> Source:
        return SpreadRows(source, countries, self.name)

    def parse(self, row: Mapping) -> Any:
        if "accept_response" in row:
            return super().parse(row)
        first = countries(row)[0]
        if isinstance(first, RowError):
            raise first
        return super().parse(first)


def countries(row: Mapping) -> list[dict[str, Any] | RowError]:
    """The rows of format gdpo that a row stands for; a RowError in place of a country whose shares are malformed.

    Raises:
      RowError: columns that cannot be read.
    """
    options = [str(option).strip() for option in _literal(row, "options", list)]
    found = []
    for country, shares in _literal(row, "selections", dict).items():
        try:
            values = _shares(shares, country, len(options))
        except RowError as error:
            found.append(error)
            continue
        order = sorted(range(len(options)), key=values.__getitem__)
        most, fewest = order[-1], order[0]
        found.append(
            {
                "prompt": field(row, "question"),
                "options": options,
                "probabilities": [value / sum(values) for value in values],
                "accept_choice_id": most,
                "accept_response": options[most],
                "reject_choice_id": fewest,
                "reject_response": options[fewest],
                "group": country,
            }
        )
    if not found:
        raise RowError("field 'selections': no country has answered")
    return found


def _shares(shares: Any, country: Any, options: int) -> list[float]:
    values = [number(share, f"selections[{country}]") for share in shares] if isinstance(shares, list | tuple) else []
    if len(values) != options or min(values, default=0) < 0 or not sum(values) > 0:
        raise RowError(f"field 'selections': {country} has shares {short(shares)} for {options} options")
    return values


def _literal(row: Mapping, name: str, kind: type) -> Any:
    """A value that may be written as Python's text of it, such as `defaultdict(<class 'list'>, {'Egypt': [0.1, 0.9]})`."""
    value = field(row, name)
    if isinstance(value, str):
        begin, end = ("{", "}") if kind is dict else ("[", "]")
        text = value[value.find(begin) : value.rfind(end) + 1]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise RowError(f"field {name!r}: expected Python's text of a {kind.__name__}, got {short(value)}") from error
    if not isinstance(value, kind):
        raise RowError(f"field {name!r}: expected a {kind.__name__}, got {short(value)}")
    return {key: shares for key, shares in value.items() if shares is not None} if kind is dict else value
