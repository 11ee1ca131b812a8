"""Structs of Arrow: each has all keys of its column, and None where a row has none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow
import pyarrow.types as kinds


def without_filled(value: Any, kind: pyarrow.DataType | None) -> Any:
    """The value without keys of structs that are None, at any depth; what is kept as JSON, and maps, have the keys they were
    written with.

    Args:
      value: of a column. kind: its type; None where it is not known, which takes every dict for a struct.
    """
    if isinstance(value, Mapping) and (kind is None or kinds.is_struct(kind)):
        inner_of = {} if kind is None else {field.name: field.type for field in kind}
        return {key: without_filled(inner, inner_of.get(key)) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple) and (kind is None or hasattr(kind, "value_type")):
        return [without_filled(inner, None if kind is None else kind.value_type) for inner in value]
    return value


def types_of(rows: Any) -> dict[str, pyarrow.DataType]:
    """The types of the columns of what `datasets` has loaded; `{}` where they are not known."""
    features = getattr(rows, "features", None)
    return {} if features is None else {field.name: field.type for field in features.arrow_schema}


def row_without_filled(row: Mapping[str, Any], types: Mapping[str, pyarrow.DataType]) -> dict[str, Any]:
    """A row of `datasets`; `types` are those of its columns."""
    return {name: without_filled(value, types.get(name)) for name, value in row.items()}
