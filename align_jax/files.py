"""Files: written whole, told apart by a hash, and results as JSONL that an interrupted run goes on with."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.errors import UserError
from align_jax.lock import held
from align_jax.parallel.processes import on_first

INDEX = "_index"  # of an unfinished file's rows: which prompt; taken out when the file is complete


_PIECES, _PIECE = 16, 2**16


def write_whole(path: Path, text: str) -> None:
    """Writes a file by way of another, so that a kill leaves the old or the new one.

    Raises:
      OSError: it cannot be written; names it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several processes may write the same
    with naming(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within it names the file: the system does not, where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot write: {os.strerror(error.errno)}", str(path)) from error


def fingerprint_files(paths: Iterable[Path]) -> str:
    """A hash of weight files: of their names and of all that is in them."""
    paths = sorted(paths)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(_hash_file, paths))
    return hashlib.sha256(repr([(path.name, value) for path, value in zip(paths, found, strict=True)]).encode()).hexdigest()


def glimpse_files(paths: Iterable[Path]) -> str:
    """A hash of weight files' names and sizes, and of pieces of them: tells one training from another, not one bit."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(repr((path.name, size)).encode())
        with open(path, "rb") as file:
            for i in range(_PIECES):
                file.seek(size * i // _PIECES)
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    known = path.stat()
    return _hash_of(path.resolve(), known.st_size, known.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _hash_of(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def check_apart(paths: dict[str, str | None]) -> None:
    """UserError where two of the files (key of the config -> path) are one: the later would overwrite the earlier."""
    seen: dict[Path, str] = {}
    for key, path in paths.items():
        if path is not None and (other := seen.setdefault(Path(path).resolve(), key)) != key:
            raise UserError(f"{key}: {path} is {other}, too, and would be overwritten; give another file")


class ResultsFile:
    """Results as JSONL at `path`, and what made them at `path + ".settings.json"`.

    While incomplete, rows stand in the order in which they finished, each with its prompt's index under `_index`; `close`
    after the last one brings them into the order of the prompts and takes the index out. Opened again with the same
    settings, it goes on where it was; with other settings, the old file is kept as `path.1`, `path.2`, ...
    Of several processes, the first one reads and writes. A second job that writes to the same file meanwhile is refused.

    Args:
      path: the output. settings: everything that decides the results, JSON values. count: how many prompts there are.
      key: the config's name of the output, for errors.

    Attributes:
      done: indices of the prompts that have results. kept_as: where a file of other settings, or one that was
        changed since, went; or None.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any], count: int, key: str = "generate.output"):
        self.path, self.count = Path(path), count
        self.done: set[int] = set()
        self.kept_as: Path | None = None
        self._file, self._held = None, contextlib.ExitStack()
        failure = None
        if jax.process_index() == 0:
            try:
                self._open(json.loads(json.dumps(settings)), key)
            except (OSError, UserError) as error:
                self._held.close()
                failure = error
        if jax.process_count() > 1:
            self._agree(failure is not None)
        if isinstance(failure, UserError):
            raise failure
        if failure is not None:
            raise UserError(f"{key}: cannot write {path}: {failure.strerror}") from failure

    def _open(self, settings: dict[str, Any], key: str) -> None:
        side = self.path.with_name(self.path.name + ".settings.json")
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(self.path.name + ".lock")
        self._held.enter_context(held(lock, f"{key}: {self.path}", "wait for it, or give another file"))
        if self.path.exists() and not (side.exists() and _read_json(side) == settings and self._resumes()):
            self.kept_as = next(p for n in range(1, 10**6) if not (p := Path(f"{self.path}.{n}")).exists())
            os.replace(self.path, self.kept_as)
        if not self.path.exists():
            side.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self._file = open(self.path, "ab")

    def _agree(self, failed: bool) -> None:
        """Tells all processes what the first one found in the file."""
        found = np.zeros(self.count + 1, np.int32)
        found[list(self.done)] = 1
        found[-1] = failed
        found = multihost_utils.broadcast_one_to_all(found)
        self.done = set(np.flatnonzero(found[:-1]).tolist())
        if found[-1] and jax.process_index() != 0:
            raise UserError(f"{self.path}: the first process cannot write it")

    def _resumes(self) -> bool:
        """Finds what is done; False where the file was changed since: rows are no JSON, or a complete one has not all."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            complete = bool(rows) and not any(INDEX in row for row in rows)
            if complete and (len(rows) < self.count or whole != content):
                return False
            self.done = set(range(self.count)) if complete else {range(self.count)[row[INDEX]] for row in rows}
        except (ValueError, TypeError, LookupError):
            return False
        if len(whole) < len(content):  # the line that was being written when the process was killed
            os.truncate(self.path, len(whole))
        return True

    def write(self, index: int, row: dict[str, Any]) -> None:
        """Appends the result of a prompt; it is in the file when this returns."""
        self.done.add(index)
        if self._file is None:  # another process writes
            return
        line = json.dumps({INDEX: index, **row}, ensure_ascii=False) + "\n"
        with naming(self.path):
            self._file.write(line.encode("utf-8"))
            self._file.flush()

    def close(self) -> None:
        """Closes the file, and orders it where it is complete; again, it does nothing."""
        if self._file is None:
            return
        with self._held:
            self._order()

    def _order(self) -> None:
        self._file.close()
        self._file = None
        rows = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        if len(rows) < self.count or INDEX not in rows[0]:
            return
        rows.sort(key=lambda row: row[INDEX])
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "wb") as file:
            for row in rows:
                row.pop(INDEX)
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
        os.replace(temporary, self.path)

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            on_first(self.close, str(self.path))
        else:  # of this process alone, perhaps: no other is waited for
            self.close()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
