"""A mixture taken apart: each of its data sets by itself, and what an epoch has of them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from align_jax.data.arrange import Arrangement
from align_jax.data.config import DataConfig
from align_jax.data.look import Look, read_rows
from align_jax.data.members import members_of
from align_jax.data.mixture import Concatenated
from align_jax.data.named import find_named
from align_jax.data.opened import Opened
from align_jax.data.sources import Selected, Source
from align_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One data set of what was opened.

    Attributes:
      label: what it is called in a mixture; alone it has none.
      opened: its rows. format: a name to be said, None for that of all. notes: what is to say of its source.
    """

    label: str
    opened: Opened
    format: Any
    notes: tuple[str, ...]


def each_of(opened: Opened, value: Any, key: str) -> Iterator[OneOf]:
    """The data sets of a mixture, or what there is alone.

    Args:
      opened: by `open_data`. value: of the config, that was opened. key: its place, for errors.
    """
    labels, whole = opened.format.labels, opened.source
    if not labels:
        yield OneOf("", opened, None, tuple(whole.notes))
        return
    rows: list[list[int]] = [[] for _ in labels]
    for number in range(len(whole)):
        rows[whole.part_of(number)].append(number)
    all_rows = _concatenated(whole)
    rest = [note for note in whole.notes if note not in all_rows.notes]
    for i, (label, member) in enumerate(zip(labels, members_of(value, key), strict=True)):
        path = str(member.path if member.path is not None else find_named(member.name, key).hub)
        one = Selected(whole, rows[i], f"{whole.digest} {label}")
        notes = (*(rest if i == 0 else ()), *all_rows.notes_of(i))
        yield OneOf(label, Opened(one, opened.format, path), opened.format.parts[i], notes)


def _concatenated(source: Source) -> Concatenated:
    while not isinstance(source, Concatenated):
        source = source.source
    return source


def epoch_line(opened: Opened, config: DataConfig, arrangement: Arrangement) -> str:
    """How many groups of each data set there are, how often they occur in an epoch, and their share of it, as `train` says."""
    look, source = Look(), opened.source
    try:
        found = arrangement.survey(look.at(read_rows(source, opened.format.read, "skip", [], look.left_out)), config)
        return look.epoch(found.items, opened.format.shares)[1][0]
    except UserError as error:
        return f"groups of an epoch: not known: {error}"
