"""Rows that were given in Python among the values of a config, and the names that stand for them there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from align_jax.config.source import ConfigValues
from align_jax.data.config import DataConfig
from align_jax.data.members import is_members, named_sets
from align_jax.data.sources import GivenRows, given_rows


def rows_in(source: ConfigValues) -> dict[str, GivenRows]:
    """The data that stands among the values as rows, by the name that takes their place in the values.

    Raises:
      UserError: rows that cannot be read.
    """
    rows: dict[str, GivenRows] = {}
    data = source.values.get("data")
    for name in ("train", "eval", "eval_text") if isinstance(data, dict) else ():
        data[name] = _without_rows(data.get(name), f"data.{name}", rows)
    return rows


def _without_rows(value: Any, key: str, rows: dict[str, GivenRows]) -> Any:
    """A value of `data.train` or `data.eval` with names in place of rows, which are added to `rows`."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if key == "data.eval" and not _is_dataset(value) and (sets := named_sets(value)) is not None:
        return {name: _without_rows(item, f"{key}.{name}", rows) for name, item in sets.items()}
    if isinstance(value, Mapping) and not _is_dataset(value) and not _has_splits(value):
        path = _without_rows(value.get("path"), f"{key}.path", rows)
        return {**value, "path": path} if path is not None else dict(value)
    if isinstance(value, list | tuple) and (is_members(value) or any(_is_dataset(item) for item in value)):
        return [_without_rows(item, f"{key}.{i}", rows) for i, item in enumerate(value)]
    found = given_rows(value, key)
    rows[str(found)] = found
    return str(found)


def _has_splits(value: Mapping) -> bool:
    """Whether a dict holds rows of splits, and not the keys of a data set."""
    return any(_is_dataset(item) or isinstance(item, list | tuple) for key, item in value.items() if key != "path")


def _is_dataset(value: Any) -> bool:
    return type(value).__module__.startswith("datasets.")


def with_rows(data: DataConfig, rows: Mapping[str, GivenRows]) -> DataConfig:
    """The data section with rows from Python in place of the names that stand for them."""

    def given(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: given(item) for key, item in value.items()}
        if isinstance(value, list):
            return [given(item) for item in value]
        return rows.get(value, value) if isinstance(value, str) else value

    return dataclasses.replace(data, train=given(data.train), eval=given(data.eval), eval_text=given(data.eval_text))
