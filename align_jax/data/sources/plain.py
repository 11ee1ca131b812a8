"""Values of rows as plain ones, which JSON can hold: what Arrow, numpy and pandas have besides becomes text or numbers."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.data.sources.base import RowError
from align_jax.parsing import json_of


def plain(value: Any) -> Any:
    """A copy made of dicts, lists, texts, numbers, true, false and None.

    Dates and times become ISO text, durations seconds, bytes the text that they are in UTF-8 (else base64), arrays lists.

    Raises:
      RowError: a value that has no such form.
    """
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if type(value).__name__ == "NaTType":  # of pandas, no time
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, bytes | bytearray):
        return _text(bytes(value))
    if isinstance(value, uuid.UUID):
        return str(value)
    for base in (str, int, float):
        if isinstance(value, base):  # an enum, a numpy float
            return base(value)
    return _of_array(value)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _of_array(value: Any) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "dtype", None) is not None and value.dtype.kind in "mM":
        return str(value) if value.ndim == 0 else [plain(inner) for inner in value]
    if callable(getattr(value, "tolist", None)):  # numpy, torch, jax
        return plain(value.tolist())
    raise RowError(f"a value of type {type(value).__module__}.{type(value).__name__}; expected text, numbers, lists or dicts")


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of plain values; RowError names the column that has none."""
    result = {}
    for column, value in row.items():
        try:
            result[str(column)] = plain(value)
        except RowError as error:
            raise RowError(f"column {column!r}: {error}") from error
    return result


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON (`object_pairs_hook`); RowError for a key that stands there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RowError(f"key {twice!r} stands twice in one object; give each a name of its own")
    return found


def parsed(text: str | bytes) -> Any:
    """A JSON value; ValueError for text that is none, and of these RowError for a key that stands twice in an object."""
    return json_of(text, once)


def row_of(text: bytes, unit: str) -> dict[str, Any]:
    """The object that a line or a record holds; RowError where it holds none, or half a character.

    Args:
      text: JSON. unit: what holds it, for errors.
    """
    try:
        row = parsed(text)
    except RowError:
        raise
    except ValueError as error:
        raise RowError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object per {unit}, got {type(row).__name__}")
    if (b"\\u" in text or b"\xed" in text) and (problem := broken_text(row)):
        raise RowError(problem)
    return row


def broken_text(row: Any) -> str | None:
    """What is wrong with text that no UTF-8 can hold (JSON can), or None."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        return f"half a character (\\u{ord(text[error.start]):04x}) after {before!r}; an emoji that was cut in two?"
    return None
