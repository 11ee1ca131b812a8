"""How rows are read: their format (or formats, in a mixture), empty answers, and columns that nobody reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.data.formats import Format, unlike
from align_jax.data.formats.example import Example
from align_jax.data.formats.messages import is_empty
from align_jax.data.mixture import Shares
from align_jax.data.sources import RowError
from align_jax.errors import UserError

_NAMED_COLUMNS = 12  # as many are named, the others counted


class LeftOut(RowError):
    """A row that is left out because it was asked for (`data.on_empty: drop`), and not for being malformed; its text is why."""


class Noted(dict):
    """A row that notes which of its columns are read."""

    def __init__(self, row: Mapping):
        super().__init__(row)
        self.read: set[Any] = set()
        self.part = getattr(row, "part", 0)

    def __getitem__(self, key: Any) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default

    def __iter__(self) -> Iterator[Any]:  # of its own, so that copies go through __getitem__
        return super().__iter__()

    def __or__(self, other: Mapping) -> dict[Any, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping) -> dict[Any, Any]:
        return {**other, **self}

    def copy(self) -> dict[Any, Any]:
        return {**self}

    def keys(self) -> list[Any]:
        return list(self)

    def items(self) -> list[tuple[Any, Any]]:
        return [(key, self[key]) for key in self]

    def values(self) -> list[Any]:
        return [self[key] for key in self]


class Reading(Format):
    """The format of what `data.train` or `data.eval` names, with all that the data section says of single rows.

    Args:
      parts: the format of each data set. labels: what each is called; one alone has none.
      on_empty: `keep`, `drop` or `error`.

    Attributes:
      shares: of the data sets of a mixture, else None. by_columns: whether the format is known by the columns of the rows.
    """

    shares: Shares | None = None
    by_columns = False

    def __init__(self, parts: Sequence[Format], labels: Sequence[str] = (), on_empty: str = "keep"):
        self._parts, self.labels, self._on_empty = tuple(parts), tuple(labels), on_empty
        self._unread: list[tuple[str, ...] | None] = [None] * len(parts)
        self._others: list[str] = [""] * len(parts)
        main = self.representative
        self.name, self.columns, self.evaluated_as = getattr(main, "name", ""), main.columns, main.evaluated_as
        counts = {part.responses for part in parts}
        self.responses = counts.pop() if len(counts) == 1 else next((n for n in (0, 1) if n in counts), None)
        self.has_beliefs, self.judged = all(p.has_beliefs for p in parts), all(p.judged for p in parts)

    @property
    def parts(self) -> tuple[Format, ...]:
        return self._parts

    @property
    def representative(self) -> Format:
        """The format whose name stands for all: what every part can serve as."""
        beliefs = all(part.has_beliefs for part in self._parts)
        order = (
            lambda part: part.responses == 0,
            lambda part: not part.judged,
            lambda part: part.responses == 1,
            lambda part: part.responses is None,
            lambda part: part.has_beliefs == beliefs,
        )
        return next(part for serves in order for part in self._parts if serves(part))

    def read(self, row: Mapping) -> Example:
        """As `Format.read`; `LeftOut` where nothing is left of a row without its empty answers."""
        part = getattr(row, "part", 0)
        noted = None
        if self._unread[part] is None:
            row = noted = Noted(row)
        example = self._parts[part].read(row)
        if noted is not None:
            self._unread[part] = tuple(str(name) for name in noted if name not in noted.read)
            self._others[part] = unlike(dict(row), self._parts[part]) if self.by_columns else ""
        example = self._without_empty(example)
        return dataclasses.replace(example, source=self.labels[part]) if self.labels else example

    def read_responses(self, row: Mapping) -> Example:
        return self._parts[getattr(row, "part", 0)].read_responses(row)

    def _without_empty(self, example: Example) -> Example:
        empty = [is_empty(response) for response in example.responses]
        if self._on_empty == "keep" or not any(empty):
            return example
        if self._on_empty == "error":
            raise RowError(
                f"response {empty.index(True)} is empty (data.on_empty: keep takes it as the end token alone, drop leaves it "
                "out)"
            )
        kept = [i for i, is_so in enumerate(empty) if not is_so]
        if why := _useless_without(example, kept):
            raise LeftOut(why)

        def of_kept(values: tuple | None) -> tuple | None:
            return None if values is None else tuple(values[i] for i in kept)

        return dataclasses.replace(
            example,
            responses=of_kept(example.responses),
            scores=of_kept(example.scores),
            tokens=of_kept(example.tokens),
            left_out=len(empty) - len(kept),
        )

    def notes(self) -> list[str]:
        """A line about the columns of the first row that were not read, for each data set that has such."""
        lines = []
        for label, unread, other in zip(self.labels or [""], self._unread, self._others, strict=True):
            if unread:
                named = ", ".join(name if name.strip() else repr(name) for name in unread[:_NAMED_COLUMNS])
                more = f" and {len(unread) - _NAMED_COLUMNS} more" if len(unread) > _NAMED_COLUMNS else ""
                lines.append(f"{label + ': ' if label else ''}columns not read: {named}{more}{'; ' + other if other else ''}")
        return lines


def _useless_without(example: Example, kept: Sequence[int]) -> str | None:
    """Why a row is of no use without its empty answers; None where it is."""
    if not kept:
        return "no answer is left"
    if example.opinion is not None and len(kept) < 2:
        counted = (
            "" if example.opinion.probabilities is not None else ", and what it accepts is not counted in its distribution"
        )
        return f"a text of its beliefs is empty{counted}"
    best = int(np.argmax(example.scores)) if example.scores is not None else 0
    return "the better answer is empty" if len(example.responses) == 2 and best not in kept else None


def check_parts(key: str, parts: Sequence[Format], labels: Sequence[str]) -> None:
    """UserError for data sets that cannot stand in one mixture; `key` is `data.train` or `data.eval`."""
    alone = [label for label, part in zip(labels, parts, strict=True) if part.responses == 0]
    if alone and len(alone) < len(parts):
        raise UserError(f"{key}: {alone[0]} has prompts alone, and others of the mixture have responses")
