"""Rows that were given in Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from align_jax.data.sources.base import Part, RowError, Source, at_most
from align_jax.data.sources.plain import broken_text, plain, plain_row
from align_jax.data.sources.structs import row_without_filled, types_of
from align_jax.errors import UserError


class GivenRows(str):
    """Rows that were given in Python, by the name that stands for them in a config: a hash of their content.

    It is a text, so that configs compare, print and store it as they do a path; the rows travel with it.
    """

    PREFIX = "python-rows-"

    def __new__(cls, rows: Any, digest: str) -> GivenRows:
        made = super().__new__(cls, cls.PREFIX + digest[:16])
        made.rows, made.digest = rows, digest
        return made

    def __deepcopy__(self, memo: dict) -> GivenRows:
        return self

    def __getnewargs__(self) -> tuple[Any, str]:
        return self.rows, self.digest

    def open(self, part: Part | None = None) -> Source:
        """The rows as a source, or a part of them."""
        part = part or Part()
        notes = part.of_local(str(self)) + part.of_whole(str(self))
        return at_most(IndexedRows(self.rows, str(self), self.digest, notes), part.max_rows)


def given_rows(rows: Any, key: str) -> GivenRows:
    """A list of dicts or a `datasets.Dataset` as what a config can hold; `key` is its place there, for errors.

    Raises:
      UserError: neither of the two, or rows that are no JSON.
    """
    if isinstance(rows, GivenRows):
        return rows
    if isinstance(rows, Mapping):
        splits, first = ", ".join(map(str, rows)), next(iter(rows), "")
        raise UserError(f"{key}: a {type(rows).__name__} with {splits}; give one of these, as in rows[{first!r}]")
    if type(rows).__module__.startswith("datasets."):
        if not hasattr(rows, "_fingerprint") or not hasattr(rows, "__len__"):
            raise UserError(
                f"{key}: a {type(rows).__name__} is read once; give its hub id, and data.streaming, or a list of its rows"
            )
        rows = rows.with_format(None)
        return GivenRows(rows, hashlib.sha256(f"{rows._fingerprint} {len(rows)}".encode()).hexdigest())
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        near = "; a table's rows are its to_dict('records')" if hasattr(rows, "columns") else ""
        raise UserError(f"{key}: expected a path, a list of dicts or a datasets.Dataset, got {type(rows).__name__}{near}")
    try:
        content = json.dumps(plain(rows), ensure_ascii=False, sort_keys=True)
    except (RowError, TypeError, ValueError) as error:
        raise UserError(f"{key}: the rows must be plain values (texts, numbers, lists, dicts): {error}") from error
    return GivenRows(json.loads(content), hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest())


class IndexedRows:
    """Rows of a list, or of a `datasets.Dataset` (Arrow on disk).

    Args:
      rows: by number. name: of all of them, for places. digest: of the content. notes: see `Source`.
    """

    def __init__(self, rows: Any, name: str, digest: str, notes: list[str] | tuple[str, ...] = ()):
        self._rows, self._name, self.digest, self.notes = rows, name, digest, tuple(notes)
        self._types = None if isinstance(rows, list) else types_of(rows)
        if not len(rows):
            raise UserError(f"{name} is empty")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        if self._types is not None:
            return plain_row(row_without_filled(row, self._types))
        row = plain_row(row)
        if problem := broken_text(row):
            raise RowError(problem)
        return row

    def where(self, index: int) -> str:
        return f"{self._name} row {index}"
