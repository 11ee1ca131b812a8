"""CSV and TSV files."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.csv

# What a column's values must all be like to be no text. Digits behind a zero are a name, not a number.
_TYPES = {
    r"^-?(0|[1-9][0-9]*)$": pyarrow.int64(),
    r"^-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][-+]?[0-9]+)?$": pyarrow.float64(),
    r"^([Tt]rue|[Ff]alse|TRUE|FALSE)$": pyarrow.bool_(),
}


def read_separated(file: Path, by: str) -> pyarrow.Table:
    """A table whose first line has the names of its columns.

    Texts stay as they are written (`null`, `NA`, `007` and dates too). A column all of whose values are numbers, or true and
    false, holds these, and None where nothing is written.

    Args:
      file: may be packed by gzip. by: what stands between two values.
    """
    parsing = pyarrow.csv.ParseOptions(delimiter=by, newlines_in_values=True)
    with pyarrow.csv.open_csv(file, parse_options=parsing) as beginning:
        names = beginning.schema.names
    texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False)
    table = pyarrow.csv.read_csv(file, parse_options=parsing, convert_options=texts)
    return pyarrow.table([_typed(column) for column in table.columns], names=names)


def _typed(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    there = pyarrow.compute.if_else(pyarrow.compute.equal(column, ""), None, column)
    if there.null_count == len(there):
        return column
    for pattern, kind in _TYPES.items():
        if pyarrow.compute.all(pyarrow.compute.match_substring_regex(there, pattern)).as_py():
            try:
                return there.cast(kind)
            except pyarrow.ArrowInvalid:  # more digits than a number has
                return column
    return column
