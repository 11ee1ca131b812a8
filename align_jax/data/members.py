"""What `data.train` and `data.eval` name: a path, a data set by name, or a mixture of several."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from align_jax.data.named import find_named
from align_jax.data.sources import GivenRows
from align_jax.errors import UserError

_KINDS = {"streaming": (bool, "true or false"), "limit": (int, "a whole number"), "weight": ((int, float), "a number")}


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the data sets that are read, as keys of `data.train` or `data.eval`; a list of them is a mixture."""

    name: str | None = None  # a data set that is known by name, such as ultrafeedback; docs/data.md has all
    path: str | None = None  # file, folder or hub id; beside `name`: a copy of that data set
    split: str | None = None  # of a folder or a hub data set; else that of `name`, or data.split and data.eval_split
    subset: str | None = None  # configuration of a hub data set; else that of `name`, or data.subset
    revision: str | None = None  # branch, tag or commit of a hub data set; else data.revision
    streaming: bool | None = None  # else data.streaming
    format: str | None = None  # else that of `name`, or data.format
    limit: int | None = None  # read no more rows than this
    # share of a training epoch, relative to the other weights: rows are repeated until the shares hold and every row occurs;
    # without any, each row occurs once
    weight: float | None = None
    label: str | None = None  # what its metrics are called in a mixture; else `name`, or the end of the path

    def check(self, key: str) -> None:
        """UserError for values that cannot hold; `key` is the place of this one."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind, phrase = _KINDS.get(field.name, (str, "text"))
            wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
            if value is not None and wrong:
                raise UserError(f"{key}.{field.name}: {value!r} is not {phrase}")
            if isinstance(value, str) and not value.strip():
                raise UserError(f"{key}.{field.name}: {value!r} is blank; an environment variable that is not set?")
        if self.name is None and self.path is None:
            raise UserError(f"{key}: a data set needs `name`, of one that is known by name, or `path`")
        if self.name is not None:
            find_named(self.name, f"{key}.name")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"{key}.limit: {self.limit} is not at least 1")
        if self.weight is not None and not (self.weight > 0 and math.isfinite(self.weight)):
            raise UserError(f"{key}.weight: {self.weight} is not above 0; leave the data set out, or give it a weight")

    @property
    def called(self) -> str:
        """What it is called in messages and metrics."""
        end = PurePath(str(self.path)).name
        plain = self.label or self.name or re.sub(r"(\.(jsonl?|ndjson|parquet|csv|tsv|arrow|gz))+$", "", end) or end
        return re.sub(r"[/\s]+", "-", plain)


KEYS = tuple(field.name for field in dataclasses.fields(Member))


def is_members(value: Any) -> bool:
    """Whether a list is one of data sets, and not of rows."""

    def names_one(item: Any) -> bool:
        return isinstance(item, str) or (
            isinstance(item, Mapping) and set(item) <= set(KEYS) and {"name", "path"} & set(item) != set()
        )

    return isinstance(value, list | tuple) and len(value) > 0 and all(map(names_one, value))


def members_of(value: Any, key: str) -> list[Member]:
    """The data sets that `data.train` or `data.eval` names.

    Args:
      value: a path (or rows that stand for one), the keys of a `Member`, or a list of both. key: its place, for errors.

    Raises:
      UserError: anything else, keys that are unknown, weights of some but not of all.
    """
    if isinstance(value, list | tuple):
        if not value:
            raise UserError(f"{key}: an empty list; give a path, or data sets with `name` or `path`")
        found = [_member(item, f"{key}.{i}") for i, item in enumerate(value)]
    else:
        found = [_member(value, key)]
    _check_together(found, key)
    return found


def _member(value: Any, key: str) -> Member:
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: {value!r} is neither a path nor the keys of a data set ({', '.join(KEYS)})")
    unknown = [name for name in value if name not in KEYS]
    if unknown:
        raise UserError(f"{key} has no key {unknown[0]!r}; it accepts {', '.join(KEYS)}")
    member = Member(**value)
    member.check(key)
    return member


def _check_together(members: list[Member], key: str) -> None:
    weighed = [member.weight is not None for member in members]
    if any(weighed) and not all(weighed):
        raise UserError(f"{key}.{weighed.index(False)}.weight: is required, since others have a weight; without any, each row "
                        "occurs once")  # fmt: skip
    if weighed == [True]:
        raise UserError(f"{key}.weight: {members[0].weight} is the weight of the only data set; it has no effect")
    called = [member.called for member in members]
    for i, label in enumerate(called):
        if label in called[:i]:
            raise UserError(f"{key}.{i}: {label!r} is also what {key}.{called.index(label)} is called; give it a `label`")


def named_sets(value: Any) -> dict[str, Any] | None:
    """The evaluation sets that `data.eval` has by name, each as it would name one alone; None where it is one set."""
    if not isinstance(value, Mapping) or not value or set(value) & set(KEYS):
        return None
    return dict(value)


def holds_rows(value: Any) -> bool:
    """Whether what `data.train` or `data.eval` names are, or has among it, rows that were given in Python."""
    if (sets := named_sets(value)) is not None:
        return any(map(holds_rows, sets.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_rows, value))
    return isinstance(value.get("path") if isinstance(value, Mapping) else value, GivenRows)
