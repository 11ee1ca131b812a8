"""Rows of an ArrayRecord file, the format of grain: a JSON object per record."""

from __future__ import annotations

import hashlib
import importlib
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from align_jax.data.sources.plain import row_of
from align_jax.errors import UserError


def array_record() -> ModuleType:
    """The module that reads and writes such files.

    Raises:
      UserError: it is not there; grain brings it where there is one for the system.
    """
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise UserError(f".array_record files need the package array_record: pip install array-record ({error})") from error


class ArrayRecords:
    """Records by number; none is kept in memory.

    Args:
      file: whose records are UTF-8 text, a JSON object each.

    Raises:
      UserError: no records, or no such file.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, file: Path):
        module = array_record()
        self.file, self._lock = file, threading.Lock()
        with open(file, "rb") as stream:
            self.digest = hashlib.file_digest(stream, "sha256").hexdigest()
        try:
            self._reader = module.ArrayRecordReader(str(file))
            self._count = self._reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file}: cannot be read as ArrayRecord: {error}") from error
        if not self._count:
            raise UserError(f"{file} has no records; an ArrayRecord file with a JSON object per record is expected")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        with self._lock:
            (record,) = self._reader.read([index])
        return row_of(record, "record")

    def where(self, index: int) -> str:
        return f"{self.file} record {index}"
