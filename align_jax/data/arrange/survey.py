"""What one look through all examples of a data set gives to the making of its groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Item:
    """One group: the row that it is made of, and which of its responses where a group takes one."""

    row: int
    response: int = 0


@dataclasses.dataclass(frozen=True)
class Survey:
    """The groups of a data set; what else an arrangement has to know of all rows is a field of a subclass.

    Attributes:
      items: the groups that there are. dropped: rows that cannot serve.
      slots: K, the most response slots of a group.
      level: how many groups have one score for all their responses, and so no contrast.
      notes: lines for the user.
    """

    items: Sequence[Item]
    dropped: int
    slots: int
    level: int = 0
    notes: tuple[str, ...] = ()
