"""Where rows come from: random access, a name for every row's place, and a hash of the content."""

from align_jax.data.sources.base import Chained, Part, RowError, Selected, Source, rows_read
from align_jax.data.sources.given import GivenRows, given_rows
from align_jax.data.sources.json_files import JsonLines
from align_jax.data.sources.opening import open_source
from align_jax.data.sources.plain import broken_text

__all__ = [
    "GivenRows",
    "Chained",
    "JsonLines",
    "Part",
    "RowError",
    "Selected",
    "Source",
    "broken_text",
    "given_rows",
    "open_source",
    "rows_read",
]
