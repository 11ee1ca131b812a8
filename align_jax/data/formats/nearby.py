"""What a row's columns may have been meant for, where its format does not read them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from align_jax.data.formats.base import Format
from align_jax.data.sources import RowError

_OTHER_WORDS = {
    **dict.fromkeys(("question", "instruction", "query", "input"), "prompt"),
    **dict.fromkeys(("winner", "preferred", "accepted", "positive", "better"), "chosen"),
    **dict.fromkeys(("loser", "dispreferred", "negative", "worse"), "rejected"),
    **dict.fromkeys(("output", "answer", "response"), "completion"),
    **dict.fromkeys(("probs", "probability", "distribution"), "probabilities"),
}
# Columns that a format reads beside those by which it is known, and that other words stand for.
_BESIDE = {"pairs": ("prompt",), "gdpo": ("probabilities",)}


def meant(row: Mapping, chosen: Format | None, formats: Iterable[Format]) -> str:
    """`did you mean X in place of Y? (format Z)` where a row, its columns so renamed, can be read as a fuller format.

    Args:
      chosen: the format by whose columns the row is known; None: there is none. What it reads beside them is asked for, too.
    """
    there = {str(name): value for name, value in row.items() if value is not None}
    found = {}
    for each in formats:
        fuller = chosen is None or chosen.responses == 0 or set(each.columns) > set(chosen.columns)
        own = each is chosen and each.name in _BESIDE
        if own or (fuller and each is not chosen and each.columns and each.responses != 0):
            found[each] = _renamed(there, each)
    best = max((each for each, names in found.items() if names), key=lambda f: (f.judged, len(f.columns)), default=None)
    if best is None:
        return ""
    named = ", ".join(f"{column} in place of {name}" for name, column in found[best].items())
    return f"did you mean {named}? (format {best.name})"


def _renamed(row: Mapping, data_format: Format) -> dict[str, str]:
    """Other names that make the row one of this format, `{its name: the column}`; empty where none do, or none are needed."""
    beside = [column for column in _BESIDE.get(data_format.name, ()) if column not in row]
    missing = [column for column in data_format.columns if column not in row]
    names, found = [name for name in row if name not in data_format.columns], {}
    for column in (*missing, *beside):
        name = next((name for name in names if name not in found and _is_near(name, column)), None)
        if name is not None:
            found[name] = column
    if not found or not set(missing) <= set(found.values()):
        return {}
    try:
        data_format.read({found.get(name, name): value for name, value in row.items()})
    except RowError:
        return {}
    return found


def _is_near(name: str, column: str) -> bool:
    word = name.lower()
    alike = difflib.SequenceMatcher(None, word, column).ratio() >= 0.88 and word.count("_") == column.count("_")
    return _OTHER_WORDS.get(word) == column or alike


def not_read_as(row: Mapping, chosen: Format, formats: Iterable[Format]) -> str:
    """Why a row with the columns of a fuller format is not read as that; empty where it has no such columns."""
    there = {name for name, value in row.items() if value is not None}
    for each in formats:
        if there.issuperset(each.columns) and set(each.columns) > set(chosen.columns):
            try:
                each.read(row)
            except RowError as error:
                return f"its first row has the columns of {each.name}, but {error}"
    return ""
