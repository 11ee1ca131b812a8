"""CSV and TSV files."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.csv

_BLOCK = 2**26  # bytes; a line may not be longer


def read_separated(file: Path, by: str) -> pyarrow.Table:
    """A table whose first line has the names of its columns.

    All values are text as it is written (`null`, `NA`, `007`, `4.50`, dates): an answer may be a number, and a format that
    needs numbers reads them from text.

    Args:
      file: may be packed by gzip. by: what stands between two values.
    """
    parsing = pyarrow.csv.ParseOptions(delimiter=by, newlines_in_values=True)
    reading = pyarrow.csv.ReadOptions(block_size=_BLOCK)
    with pyarrow.csv.open_csv(file, reading, parsing) as beginning:
        names = beginning.schema.names
    texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False)
    return pyarrow.csv.read_csv(file, reading, parsing, texts)
