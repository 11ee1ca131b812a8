"""What a row's columns may have been meant for, where its format does not read them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from align_jax.data.formats.base import Format
from align_jax.data.sources import RowError

# Columns that a row may have beside those by which its format is known.
_OPTIONAL = (
    *("group", "context", "system", "tools", "documents", "probabilities", "answers", "belief"),
    *("accept_choice", "accept_choice_id", "reject_choice", "reject_choice_id", "accept_tokens", "reject_tokens"),
)
_OTHER_WORDS = {
    **dict.fromkeys(("question", "instruction", "query", "input"), "prompt"),
    **dict.fromkeys(("winner", "preferred", "accepted", "positive", "better"), "chosen"),
    **dict.fromkeys(("loser", "dispreferred", "negative", "worse"), "rejected"),
    **dict.fromkeys(("probs", "distribution"), "probabilities"),
    **dict.fromkeys(("candidates", "outputs"), "responses"),
    **dict.fromkeys(("output", "answer"), "completion"),
    **dict.fromkeys(("ratings", "rewards"), "scores"),
    **dict.fromkeys(("desirable", "labels"), "label"),
}


def meant(unread: Iterable[str], there: Iterable[str], formats: Iterable[Format]) -> str:
    """`did you mean X in place of Y?` for columns that nobody reads and that are nearly, or another word for, known ones.

    Args:
      there: all columns of the row; what it has already was not meant.
    """
    known = {*_OPTIONAL, *(column for each in formats for column in each.columns)} - set(there)
    pairs = []
    for name in unread:
        near = next(iter(difflib.get_close_matches(name.lower(), sorted(known), 1, 0.88)), _OTHER_WORDS.get(name.lower()))
        if near in known:
            pairs.append(f"{near} in place of {name}")
    return f"did you mean {', '.join(pairs)}?" if pairs else ""


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
