"""Rows of JSON files: an object per line, or one document with a list of them."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align_jax.data.sources.base import RowError, Source, digest_of_first
from align_jax.data.sources.plain import broken_text, once, row_of
from align_jax.errors import UserError
from align_jax.parsing import json_of

_PACKED, _PACKED_LEAST = 200, 1 << 26  # what is unpacked is at most so many times the file, and so many bytes
_LISTS = ("data", "rows")  # keys of a document below which its rows stand
_WIDE = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def open_json(file: Path, max_rows: int | None = None) -> Source:
    """A JSON file, also one that gzip has packed, whatever its ending says: lines of objects, a list, or `{"data": [...]}`.

    Raises:
      UserError: it is empty, not text in UTF-8, or not a whole gzip file.
    """
    data = _decompressed(file) if file.suffix == ".gz" else None
    start = (data or b"")[:65536] if data is not None else _head(file)
    encoding = _WIDE.get(start[:2]) or ("UTF-16" if b"\x00" in start[:4] else None)
    if encoding:
        name = file.name.removesuffix(".gz")
        raise UserError(f"{file}: text in {encoding}; write it as UTF-8: iconv -f {encoding} -t UTF-8 {name} > utf8-{name}")
    document = _document(file, data, start)
    if document is not None:
        return JsonRows(file, *document, max_rows)
    return JsonLines(file, max_rows, data)


def _head(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(65536)


def _decompressed(file: Path) -> bytes:
    """The content of a gzip file; UserError where it is none, or grows beyond all that text does."""
    most = _PACKED_LEAST + _PACKED * file.stat().st_size
    try:
        with gzip.open(file) as stream:
            content = stream.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: not a whole gzip file: {error}") from error
    if len(content) > most:
        raise UserError(f"{file}: it holds more than {_PACKED} times its size, which no rows do; unpack it if it is meant")
    return content


def _document(file: Path, data: bytes | None, start: bytes) -> tuple[list, str] | None:
    """The rows and the digest of a file that is one JSON document, or objects over several lines; None: a row per line."""
    first = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if first[:1] not in (b"[", b"{"):
        return None
    if first[:1] == b"{" and _is_row(first, whole=len(start) < 65536):
        return None
    content = data if data is not None else file.read_bytes()
    try:
        values = list(_values(content.decode("utf-8-sig")))
    except RowError as error:
        raise UserError(f"{file}: {error}") from error
    except (ValueError, RecursionError):
        return None  # read by lines, where mistakes have a place
    one = values[0] if len(values) == 1 else None
    below = next((one[key] for key in _LISTS if isinstance(one.get(key), list)), None) if isinstance(one, dict) else None
    rows = below if below is not None else one if isinstance(one, list) else values
    if not all(isinstance(row, dict) for row in rows):
        return None
    return rows, hashlib.sha256(content).hexdigest()


def _is_row(first: bytes, whole: bool) -> bool:
    """Whether the first line is a row; one that is longer than what was read of it counts as one."""
    line, newline, _ = first.partition(b"\n")
    if not newline and not whole:
        return not line.startswith(tuple(f'{{"{key}": [{{'.encode() for key in _LISTS))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not any(isinstance(row.get(key), list) and all(isinstance(v, dict) for v in row[key]) for key in _LISTS)


def _values(text: str) -> Iterator[Any]:
    """JSON values one after the other."""
    decoder, at = json.JSONDecoder(object_pairs_hook=once), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        yield value


class JsonRows:
    """Rows of a JSON document, in memory."""

    notes: tuple[str, ...] = ()

    def __init__(self, file: Path, rows: list[dict], digest: str, max_rows: int | None = None):
        self.file, self.digest = file, digest
        if max_rows is not None and max_rows < len(rows):
            self.digest = digest_of_first(digest, max_rows)
        try:
            self._rows = [json.dumps(row) for row in rows[:max_rows]]  # every reader gets rows of its own
        except RecursionError as error:
            raise UserError(f"{file}: lists or objects too deep in one another") from error
        if not rows:
            raise UserError(f"{file} is empty; expected a list of JSON objects")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            row = json_of(self._rows[index])
        except ValueError as error:
            raise RowError(f"not JSON: {error}") from error
        if problem := broken_text(row):
            raise RowError(problem)
        return row

    def where(self, index: int) -> str:
        return f"{self.file} row {index}"


class JsonLines:
    """One JSON object per line; only the offsets of the lines are kept in memory.

    Args:
      file: where the lines stand. max_rows: at most so many are read.
      data: the content, where the file is packed.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, file: Path, max_rows: int | None = None, data: bytes | None = None):
        self.file, self._data, self._max_rows = file, data, max_rows
        self._stamp = _stamp(file) if data is None else None
        digest, offset = hashlib.sha256(), 0
        self._lines: list[tuple[int, int]] = []  # (offset, number of the line)
        for number, line in enumerate(self._read_lines(), start=1):
            if line.strip():
                if max_rows is not None and len(self._lines) == max_rows:
                    break  # before its digest: that is of the rows which are here
                self._lines.append((offset, number))
            digest.update(line)
            offset += len(line)
        self.digest = digest.hexdigest()
        if not self._lines:
            raise UserError(f"{file} is empty; expected one JSON object per line")

    def _read_lines(self) -> Iterator[bytes]:
        if self._data is not None:
            yield from self._data.splitlines(keepends=True)
        else:
            with open(self.file, "rb") as stream:
                yield from stream

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = self._lines[index][0]
        if self._data is not None:
            end = self._data.find(b"\n", start)
            line = self._data[start : end if end >= 0 else None]
        else:
            # A handle of its own: several threads read at once.
            self._check_unchanged()
            with open(self.file, "rb") as stream:
                stream.seek(start)
                line = stream.readline()
        return row_of(line, "line")

    def _check_unchanged(self) -> None:
        """UserError where the file is not the one whose lines were counted: it would be read at the wrong places."""
        now, before = _stamp(self.file), self._stamp
        if now == before:
            return
        if now[0] == before[0] and JsonLines(self.file, self._max_rows).digest == self.digest:
            self._stamp = now  # it was touched, or put in place again
            return
        raise UserError(
            f"{self.file} was changed while it was in use: it had {before[0]} bytes, and has {now[0]} now, or others; put it "
            "back and start the same command again"
        )

    def where(self, index: int) -> str:
        return f"{self.file}:{self._lines[index][1]}"


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file, which is there."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        raise UserError(f"{file} is gone, and was in use; put it back and start the same command again") from None
    return found.st_size, found.st_mtime_ns
