"""What a row means: one file per format, found by the name in `data.format`, or `package.module:Class` from outside."""

from __future__ import annotations

from align_jax import registry
from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example, Opinion, Text
from align_jax.data.formats.fields import as_text

FORMATS: dict[str, Format] = {name: cls() for name, cls in registry.table(__name__, Format).items()}

__all__ = ["FORMATS", "Example", "Format", "Opinion", "Text", "as_text", "find_format"]


def find_format(name: str) -> Format:
    """The format of `data.format`; UserError where there is none of this name."""
    found = registry.find(name, __name__, Format, "format", "data.format")
    return found() if isinstance(found, type) else found


def spelled(data_format: Format) -> str:
    """The name under which `find_format` finds it."""
    return registry.spelled(data_format, __name__)
