"""Fields of a row, checked: each returns the value, or raises a `RowError` that names the field and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_jax.data.formats.example import Text
from align_jax.data.sources import RowError

_LARGEST = 3.4e38  # of float32, in which scores travel


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
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"field {name!r} is empty")
        return value
    if isinstance(value, list | tuple) and value:
        for message in value:
            if not (isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))):
                raise RowError(f"field {name!r}: a message needs text in 'role' and 'content', got {message!r}")
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise RowError(f"field {name!r}: expected text or a list of messages, got {short(value)}")


def short(value: Any) -> str:
    """A value for an error, cut to a line."""
    spelled = repr(value)
    return spelled if len(spelled) < 60 else spelled[:57] + "..."


def number(value: Any, name: str) -> float:
    """A finite number that float32 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise RowError(f"field {name!r}: expected a finite number, got {value!r}")
    return float(value)


def items(row: Mapping, name: str) -> list:
    """A field with a list that is not empty."""
    value = field(row, name)
    if not isinstance(value, list | tuple) or not value:
        raise RowError(f"field {name!r}: expected a list that is not empty, got {short(value)}")
    return list(value)
