"""What a row means: one file per format, found by the name in `data.format`, or `package.module:Class` from outside."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax import registry
from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example, Opinion, Text
from align_jax.data.formats.fields import as_text
from align_jax.data.formats.nearby import meant, not_read_as
from align_jax.data.sources import RowError
from align_jax.errors import UserError

FORMATS: dict[str, Format] = {name: cls() for name, cls in registry.table(__name__, Format).items()}

AUTO = "auto"  # the value of `data.format` that means: by the columns

__all__ = ["AUTO", "FORMATS", "Example", "Format", "Opinion", "Text", "as_text", "find_format", "recognized", "unlike"]


def find_format(name: str) -> Format:
    """The format of `data.format`; UserError where there is none of this name."""
    found = registry.find(name, __name__, Format, "format", "data.format")
    return found() if isinstance(found, type) else found


def recognized(row: Mapping, where: str) -> Format:
    """The format whose columns a row has: of several that one with the most which can read it; those that judge responses come
    first, prompts alone are the last.

    Args:
      row: the first one. where: its place, for errors.

    Raises:
      UserError: the columns are those of no format.
    """
    there = {name for name, value in row.items() if value is not None}
    fitting = [f for f in FORMATS.values() if f.columns and there.issuperset(f.columns)]
    if not fitting:
        hint = meant(row, None, FORMATS.values())
        raise UserError(f"{where}: data.format is auto, but the columns with a value, {_no_format(there, hint)}")
    fitting.sort(key=lambda f: (f.responses == 0, not f.judged, -len(f.columns)))
    # A malformed row is that of the format with the most columns, and not a prompt with columns that mean nothing.
    return next((f for f in fitting if f.responses != 0 and _reads(f, row)), fitting[0])


def _no_format(there: set[str], hint: str) -> str:
    named = f"{', '.join(sorted(map(str, there))) or '(none)'}, are those of no format{'; ' + hint if hint else ''}"
    if "text" in there:
        return f"{named}: plain text (`text`) says nowhere where a prompt ends; give `prompt` and `completion`, or `messages`"
    known = "; ".join(f"{name}: {', '.join(f.columns)}" for name, f in FORMATS.items() if f.columns)
    return f"{named}; the formats and their columns are: {known}"


def unlike(row: Mapping, chosen: Format) -> str:
    """What a row may have been meant as, beside the format that was chosen by its columns; empty where nothing."""
    return not_read_as(row, chosen, FORMATS.values()) or meant(row, chosen, FORMATS.values())


def _reads(data_format: Format, row: Mapping) -> bool:
    try:
        data_format.read(row)
    except RowError:
        return False
    return True


def spelled(data_format: Format) -> str:
    """The name under which `find_format` finds it."""
    return registry.spelled(data_format.representative, __name__)
