"""Rows that are not yet one group each: several of them joined, or one of them spread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_jax.data.sources import RowError, Source


class JoinedRows:
    """The rows of a source that agree in some columns as one row, in the order in which they first appear.

    A row that cannot be read stands alone, so that it is refused at its own place and the others of its group are not.

    Args:
      source: all rows. by: the columns, of which each row has the first. columns: those whose values become lists; of others,
        the first row's are kept.
      read: of the format; raises RowError for a row that cannot be used.
    """

    def __init__(self, source: Source, by: Sequence[str], columns: Sequence[str], read: Callable[[Mapping], Any]):
        self._source, self._columns = source, columns
        groups: dict[Any, list[int]] = {}
        told_apart = [by[0]]
        for number in range(len(source)):
            try:
                row = source[number]
                read(row | {name: [row.get(name)] for name in columns})
                values = [None if row.get(name) in ("", []) else row.get(name) for name in by]
                key = repr(values)
                told_apart += [n for n, value in zip(by, values, strict=True) if n not in told_apart and value is not None]
            except RowError:
                key = number  # said where it is read
                told_apart += [] if "malformed" in told_apart else ["malformed"]
            groups.setdefault(key, []).append(number)
        self._groups = list(groups.values())
        self.digest = hashlib.sha256(f"{source.digest} joined by {', '.join(told_apart)}".encode()).hexdigest()
        self.notes, self.rows_read = source.notes, len(source)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = [self._source[number] for number in self._groups[index]]
        return rows[0] | {name: [row.get(name) for row in rows] for name in self._columns}

    def where(self, index: int) -> str:
        return self._source.where(self._groups[index][0])


class SpreadRows:
    """Every row of a source as the rows that it stands for.

    Args:
      source: all rows. parts: row -> its rows, a RowError in place of one that cannot be used; it may raise RowError, which is
        said where the row is read.
      name: what is done, for the digest.
    """

    def __init__(self, source: Source, parts: Callable[[Mapping], Sequence[dict[str, Any] | RowError]], name: str):
        self._source, self._parts = source, parts
        self._at: list[tuple[int, int]] = []
        for number in range(len(source)):
            try:
                count = len(parts(source[number]))
            except RowError:
                count = 1
            self._at += [(number, k) for k in range(count)]
        self.digest = hashlib.sha256(f"{source.digest} spread by {name}".encode()).hexdigest()
        self.notes, self.rows_read = source.notes, len(source)

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, k = self._at[index]
        found = self._parts(self._source[number])[k]
        if isinstance(found, RowError):
            raise found
        return found

    def where(self, index: int) -> str:
        return self._source.where(self._at[index][0])
