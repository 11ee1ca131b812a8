"""A first check of what a user wrote, before anything heavy is imported: a typo is answered at once."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable
from pathlib import Path

from align_jax.config import check
from align_jax.config.check import Choice, Schema
from align_jax.config.keys import REQUIRED, choice_files, known, stand_in
from align_jax.config.source import ConfigValues, Override

_DATA = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".array_record", ".gz", ".txt")


def check_early(
    source: ConfigValues, overrides: Iterable[Override], requires: Iterable[str] = (), files: Iterable[str] = ()
) -> None:
    """Checks values that were read from a file as `load_config` will, but for what needs the code of the sections.

    Args:
      source: what was read; it stays as it is. overrides: of the command line.
      requires: sections and keys that must be given. files: keys whose files and folders must be there.

    Raises:
      UserError: unknown keys, sections and names, wrong types, what is required, files that are not there.
    """
    source = copy.deepcopy(source)
    source.override(overrides)
    source.resolve()
    check.check(source, _schema())
    check.require(source, source.values, [key for key in requires if key != "run.dir" or not _names_its_folder(source)])
    missing = [place for key in files for place in _paths(source, key) if _is_missing(key, source.get(place))]
    check.refuse([source.error(place, f"{source.get(place)}: no such file or folder") for place in missing])


def _paths(source: ConfigValues, key: str) -> list[str]:
    """Where the paths of a key stand: at it, or at the data sets that it has as keys, as a list or by name."""
    cls = _schema().nested.get(key)
    places = [key] if cls is None else check.places(source, key, cls)
    return [f"{place}.path" if isinstance(source.get(place), dict) else place for place in places]


def _names_its_folder(source: ConfigValues) -> bool:
    """Whether `run.dir` gets a value of its own, see `config.load`."""
    return source.get("objective") is not None and source.get("data.train") is not None


@functools.cache
def _schema() -> Schema:
    sections = {section.name: stand_in(section.name) for section in known().sections if not section.choices}
    choices = {section.name: _choice(section.name) for section in known().sections if section.choices}
    data = stand_in("data.train")
    nested = {"model.config": stand_in("model.config"), "data.train": data, "data.eval": data, "data.eval_text": data}
    return Schema(sections, choices, nested)


def _choice(section: str) -> Choice:
    names = tuple(known().section(section).choices)
    (name,) = (key for key in known().keys if key.name == f"{section}.name")
    extended = choice_files(section) != known().section(section).files

    def find(given: str) -> type | None:
        return stand_in(section, given) if given in names else None

    default = None if name.default == REQUIRED else name.default
    return Choice(AnyName(names) if extended else names, find, default, own=section == "objective", many=section == "objective")


class AnyName(tuple):
    """The names that are known, where there are others that only the code knows: a file was added."""

    def __contains__(self, name: object) -> bool:
        return True


def _is_missing(key: str, value: object) -> bool:
    """Whether a value that can only be a file or folder of this machine is not there."""
    if not isinstance(value, str):
        return False
    text = os.path.expandvars(os.path.expanduser(value))
    if not key.startswith("data.") and not Path(text).exists():
        text = text.partition("@")[0]  # the revision of a hub id may have slashes
    local = text.startswith((".", "/")) or text.count("/") > 1 or (key != "model.path" and text.endswith(_DATA))
    return local and not Path(text).exists()
