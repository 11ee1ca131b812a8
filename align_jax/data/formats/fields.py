"""Fields of a row, checked: each returns the value, or raises a `RowError` that names the field and what it holds."""

from __future__ import annotations

import decimal
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from align_jax.data.formats.example import Text
from align_jax.data.formats.messages import conversation, listed, short
from align_jax.data.sources import RowError

_LARGEST = 3.4e38  # of float32, in which scores travel
_MOST = 1e12  # whose squares and sums float32 still holds
_WHOLE = 2**53  # beyond it floats leave whole numbers out
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_LABELS = {"true": True, "false": False}


def field(row: Mapping, name: str) -> Any:
    """A field that must be there."""
    if name not in row or row[name] is None:
        raise RowError(f"field {name!r} is missing; the row has {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def text(row: Mapping, name: str) -> Text:
    """A field with text or a conversation."""
    return as_text(field(row, name), name)


def as_text(value: Any, name: str) -> Text:
    """Plain text that is not blank, or a list of messages with `role` and `content`."""
    if isinstance(value, str) and not value.strip():
        raise RowError(f"field {name!r} is empty")
    return as_response(value, name)


def response(row: Mapping, name: str) -> Text:
    """A field with an answer."""
    return as_response(field(row, name), name)


def as_response(value: Any, name: str) -> Text:
    """Text or a list of messages; text may be blank, which is an empty answer: the end token alone."""
    if isinstance(value, str):
        return value if value.strip() else ""
    value = listed(value)
    if isinstance(value, list | tuple) and value:
        return conversation(value, name)
    raise RowError(f"field {name!r}: expected text or a list of messages, got {short(value)}")


def number(value: Any, name: str) -> float:
    """A finite number, with which float32 can be computed."""
    is_number = isinstance(value, numbers.Real | decimal.Decimal) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _LARGEST:
        raise RowError(f"field {name!r}: expected a finite number, got {short(value)}")
    if abs(value) > _MOST:
        raise RowError(f"field {name!r}: {value!r} is beyond {_MOST:g}: sums and squares of such numbers overflow")
    return float(value)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """The ids of a response that was sampled, at least one."""
    if not (isinstance(value, list | tuple) and value and all(type(n) is int and 0 <= n < 2**31 for n in value)):
        raise RowError(f"field {name!r}: expected token ids, at least one, got {short(value)}")
    return tuple(value)


def written_number(value: Any, name: str) -> float:
    """A finite number, or the text of one, which is all that a table such as CSV has."""
    return number(float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value, name)


def whole(value: Any) -> int | None:
    """The whole number that a value is or says (`0`, `0.0`, `"0"`, `"0.0"`), or None."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value) else None
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return int(value) if is_number and abs(value) <= _WHOLE and value == int(value) else None


def label(row: Mapping, name: str) -> bool | None:
    """A field with true or false, 1 or 0, or text of these; None where it is something else."""
    value = field(row, name)
    if isinstance(value, str) and value.strip().lower() in _LABELS:
        return _LABELS[value.strip().lower()]
    found = int(value) if isinstance(value, bool) else whole(value)
    return bool(found) if found in (0, 1) else None


def said(value: Any) -> str:
    """A value of a column such as `group` as text: 0 and false are values, None and blank text are none."""
    if isinstance(value, str):
        return value if value.strip() else ""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN where there is none
        return ""
    number = whole(value)  # 1 and 1.0 are one group
    return str(value if number is None else number)


def items(row: Mapping, name: str) -> list:
    """A field with a list that is not empty."""
    value = listed(field(row, name))
    if not isinstance(value, list | tuple) or not value:
        raise RowError(f"field {name!r}: expected a list that is not empty, got {short(value)}")
    return list(value)
