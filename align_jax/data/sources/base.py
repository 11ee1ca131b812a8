"""What a source of rows is, and sources made of others."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

from align_jax.errors import UserError


class RowError(ValueError):
    """A row that cannot be used; the place is added by whoever knows it."""


class Source(Protocol):
    """Rows by number.

    `len(source)`, `source[i] -> dict` of plain values, which the caller may change; `where(i)` says where row i stands, for
    errors; `digest` is a hash of the content; `notes` are lines about what was read, for the user.
    """

    digest: str
    notes: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def where(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Part:
    """Which part of a data set is read.

    Attributes:
      which: what it is read for: `train`, `eval` or `score`.
      split: as it was asked for; None: `train`, or to evaluate `test`.
      subset: the configuration of a data set that has several. revision: of a hub data set.
      streaming: read a hub data set row by row. max_rows: at most so many rows.
      shared: subset and revision may have been meant for another data set.
    """

    which: str = "train"
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    streaming: bool = False
    max_rows: int | None = None
    shared: bool = False

    @property
    def wanted(self) -> str:
        """The name of the split."""
        return self.split or self._usual

    @property
    def key(self) -> str:
        """The key of a config that chooses the split."""
        return "data.eval_split" if self.which == "eval" else "data.split"

    @property
    def _usual(self) -> str:
        return "test" if self.which == "eval" else "train"

    def of_whole(self, name: str, own: str | None = "train") -> list[str]:
        """Notes, where `name` has no splits; its rows count as the split `own`, as on the hub.

        Raises:
          UserError: another split was asked for.
        """
        if self.split in (None, own, "train"):
            other = self.split == "train" and own not in (None, "train")
            return self._unused(self.key, "train", f"{name} is the split {own!r}", True) if other else []
        # Configs of before hold the usual one whether or not it was asked for.
        return self._unused(self.key, self.split, f"{name} has no splits", self.split == self._usual)

    def of_local(self, name: str, subset: bool = False) -> list[str]:
        """Notes about what has no effect where `name` is no hub data set; `subset`: it has configurations.

        Raises:
          UserError: what was asked for cannot be had.
        """
        notes = []
        if self.subset is not None and not subset:
            notes += self._unused("data.subset", self.subset, f"{name} has no configurations", self.shared)
        if self.revision is not None:
            notes += self._unused("data.revision", self.revision, f"{name} is no data set of the hub", self.shared)
        if self.streaming:
            notes += self._unused("data.streaming", True, f"{name} is read where it lies", True)
        return notes

    def _unused(self, key: str, value: Any, why: str, harmless: bool) -> list[str]:
        if harmless or self.which == "score":  # `data` is of what was trained on
            return [f"{key} {str(value).lower() if value is True else value} has no effect: {why}"]
        raise UserError(f"{key}: {value!r} was asked for, but {why}; remove the key, or name another data set")


class Selected:
    """Some rows of a source, as a source.

    Args:
      source: all rows. rows: numbers of those that are here. digest: of content and choice.
    """

    def __init__(self, source: Source, rows: Sequence[int], digest: str):
        self._source, self._rows, self.digest, self.notes = source, rows, digest, source.notes

    @property
    def source(self) -> Source:
        """All rows."""
        return self._source

    def part_of(self, index: int) -> int:
        """The data set of a mixture that a row is of."""
        return self._source.part_of(self._rows[index])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._rows[index]]

    def where(self, index: int) -> str:
        return self._source.where(self._rows[index])


def rows_read(source: Source) -> int:
    """How many rows of files a source is of: fewer than it has where one row is several, more where several are one."""
    if isinstance(source, Chained):
        return sum(map(rows_read, source.sources))
    return getattr(source, "rows_read", len(source))


class Chained:
    """The rows of several sources, one after the other; their columns may differ.

    Args:
      sources: at least one.
    """

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self._ends = list(itertools.accumulate(map(len, sources)))
        self.digest = hashlib.sha256(" ".join(source.digest for source in sources).encode()).hexdigest()
        self.notes = tuple(dict.fromkeys(note for source in sources for note in source.notes))

    def __len__(self) -> int:
        return self._ends[-1]

    def _at(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self._ends, index)
        return self.sources[which], index - (self._ends[which - 1] if which else 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = self._at(index)
        return source[row]

    def where(self, index: int) -> str:
        source, row = self._at(index)
        return source.where(row)


def at_most(source: Source, max_rows: int | None) -> Source:
    """The first rows of a source; all where `max_rows` is None."""
    if max_rows is None or len(source) <= max_rows:
        return source
    return Selected(source, range(max_rows), digest_of_first(source.digest, max_rows))


def digest_of_first(digest: str, rows: int) -> str:
    """The digest of the first rows of what has a digest: other rows, another digest."""
    return hashlib.sha256(f"{digest} first {rows}".encode()).hexdigest()
