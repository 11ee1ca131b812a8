"""Rows as a file: JSONL, Parquet or ArrayRecord, by the ending; whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align_jax.data.sources.array_records import array_record
from align_jax.errors import UserError
from align_jax.parallel.stop import cleaned_up

Row = dict[str, Any]
_AS_TEXT = ("tools", "documents")  # in Parquet, whose columns have one type: JSON as text


def ending_of(path: Path) -> str:
    """The ending that says how a file is written.

    Raises:
      UserError: another one.
    """
    for ending in WRITERS:
        if path.name.endswith(ending) and path.name != ending:
            return ending
    raise UserError(f"{path}: the ending says what is written; expected {', '.join(WRITERS)}")


def write_rows(rows: Sequence[Row], path: Path, check: Callable[[Path], None] = lambda file: None) -> None:
    """Writes rows by way of another file beside it, so that there is a whole file or none.

    Args:
      check: looks at the file before it takes its place; what it raises leaves things as they were.

    Raises:
      UserError: another ending, no rows, rows that such a file cannot hold.
    """
    ending = ending_of(path)
    if not rows:
        raise UserError(f"{path}: no row is left to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name.removesuffix(ending)}.{os.getpid()}{ending}")
    with cleaned_up(lambda: temporary.unlink(missing_ok=True)):
        WRITERS[ending](rows, temporary)
        check(temporary)
        os.replace(temporary, path)


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _jsonl(rows: Sequence[Row], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(_line(row) + "\n" for row in rows)


def _packed(rows: Sequence[Row], path: Path) -> None:
    with open(path, "wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        for row in rows:
            file.write((_line(row) + "\n").encode("utf-8"))


def _parquet(rows: Sequence[Row], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    as_text = [{k: json.dumps(v, ensure_ascii=False) if k in _AS_TEXT else v for k, v in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        table = pyarrow.table({name: pyarrow.array([row.get(name) for row in as_text]) for name in names})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise UserError(
            f"{path.suffix}: a column of Parquet has one type, and here is none for all rows: {error}; "
            "write .jsonl or .array_record"
        ) from error
    pyarrow.parquet.write_table(table, path)


def _array_record(rows: Sequence[Row], path: Path) -> None:
    writer = array_record().ArrayRecordWriter(str(path), "group_size:1")  # each record by itself: they are read in any order
    for row in rows:
        writer.write(_line(row).encode("utf-8"))
    writer.close()


WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _packed,
    ".parquet": _parquet,
    ".array_record": _array_record,
}
