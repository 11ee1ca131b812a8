"""Where rows come from; every source is random access, and can say where a row stands."""

from __future__ import annotations

import abc
import gzip
import hashlib
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.errors import UserError

JSON_NAMES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


class Source(abc.ABC):
    """Rows by index.

    Attributes:
      path: the local file or folder, or None for a hub id.
    """

    path: str | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """The columns of a row; UserError, with its place, for a row that cannot be read."""

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """The place of a row, for messages: `train.jsonl line 12`."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A hash of the contents."""


class JsonLines(Source):
    """A JSONL file, read by byte offsets: only the offsets are in memory (and the text, if it is compressed)."""

    def __init__(self, path: Path):
        self.path = str(path)
        self._name = path.name
        self._lock = threading.Lock()
        self._text = _decompressed(path) if path.suffix == ".gz" else None
        self._file = None if self._text is not None else open(path, "rb")  # noqa: SIM115
        lines = self._text.splitlines(keepends=True) if self._text is not None else self._file
        offsets, numbers, digest, at = [], [], hashlib.sha256(), 0
        for number, line in enumerate(lines, start=1):
            digest.update(line)
            if line.strip():
                offsets.append((at, len(line)))
                numbers.append(number)
            at += len(line)
        self._offsets, self._numbers = np.array(offsets, np.int64).reshape(-1, 2), np.array(numbers, np.int64)
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        at, size = (int(n) for n in self._offsets[index])
        if self._text is not None:
            raw = self._text[at : at + size]
        else:
            with self._lock:
                self._file.seek(at)
                raw = self._file.read(size)
        return _object(raw, self.where(index))

    def where(self, index: int) -> str:
        return f"{self._name} line {self._numbers[index]}"

    def fingerprint(self) -> str:
        return self._digest


class JsonArray(Source):
    """A `.json` file that holds one list of objects; in memory."""

    def __init__(self, path: Path):
        self.path, self._name = str(path), path.name
        raw = _decompressed(path) if path.suffix == ".gz" else path.read_bytes()
        self._digest = hashlib.sha256(raw).hexdigest()
        try:
            self._rows = json.loads(raw)
        except ValueError as error:
            raise UserError(f"{path.name}: not valid JSON: {error}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        if not isinstance(row, dict):
            raise UserError(f"{self.where(index)}: expected an object with columns, got {_short(row)}")
        return row

    def where(self, index: int) -> str:
        return f"{self._name} element {index + 1}"

    def fingerprint(self) -> str:
        return self._digest


class Table(Source):
    """A `datasets.Dataset`: memory-mapped Arrow."""

    def __init__(self, dataset: Any, name: str, path: str | None, digest: str):
        self._dataset, self._name, self.path, self._digest = dataset, name, path, digest

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._dataset[int(index)]

    def where(self, index: int) -> str:
        return f"{self._name} row {index}"

    def fingerprint(self) -> str:
        return self._digest


class Joined(Source):
    """Several sources, one after the other."""

    def __init__(self, parts: list[Source], path: str):
        self._parts, self.path = parts, path
        self._ends = np.cumsum([len(part) for part in parts])

    def _find(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part], int(index - (self._ends[part - 1] if part else 0))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, at = self._find(index)
        return part[at]

    def where(self, index: int) -> str:
        part, at = self._find(index)
        return part.where(at)

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(part.fingerprint() for part in self._parts).encode()).hexdigest()


def open_source(
    name: str,
    *,
    key: str = "data.train",
    split: str = "train",
    streaming: bool = False,
    max_rows: int | None = None,
    spool_dir: Path | str | None = None,
) -> Source:
    """Opens data.

    Args:
      name: a `.jsonl` or `.json` file (`.gz` too), a `.parquet` file, a folder of either kind, a folder written by
        `datasets.save_to_disk`, or a hub id.
      key: the config key that gave the name, for messages.
      split: of a hub id or of a saved `DatasetDict`.
      streaming: read a hub id row by row; its rows (the first `max_rows`) are kept in `spool_dir`, so that a second
        start reads the same rows in the same order without the network.
      max_rows: rows to keep of a stream.
      spool_dir: where streamed rows and converted Parquet files are kept.

    Raises:
      UserError: a missing or empty file, an unknown extension, a hub id that cannot be loaded; names `key`.
    """
    path = Path(os.path.expanduser(name))
    spool = None if spool_dir is None else Path(spool_dir)
    if path.is_file():
        source = _open_file(path, key, spool)
    elif path.is_dir():
        source = _open_folder(path, key, split, spool)
    elif path.suffix in (".jsonl", ".json", ".parquet", ".gz") or name.startswith((".", "/", "~")):
        raise UserError(f"{key}: there is no file or folder {name}")
    elif streaming:
        source = _stream(name, key, split, max_rows, spool)
    else:
        source = _hub(name, key, split)
    if len(source) == 0:
        raise UserError(f"{key}: {name} has no rows")
    return source


def _open_file(path: Path, key: str, spool: Path | None) -> Source:
    name = path.name.lower()
    if name.endswith(JSON_NAMES):
        if ".jsonl" not in name and _opens_with_bracket(path):
            return JsonArray(path)
        return JsonLines(path)
    if name.endswith(".parquet"):
        return _parquet([path], path, key, spool)
    raise UserError(f"{key}: {path} is neither .jsonl, .json (.gz too) nor .parquet")


def _open_folder(path: Path, key: str, split: str, spool: Path | None) -> Source:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved(path, key, split)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith((*JSON_NAMES, ".parquet")))
    parquet = [p for p in files if p.name.lower().endswith(".parquet")]
    if parquet and len(parquet) == len(files):
        return _parquet(parquet, path, key, spool)
    if not files or parquet:
        found = "both JSON and Parquet files" if parquet else "no .jsonl, .json or .parquet file and no saved dataset"
        raise UserError(f"{key}: the folder {path} has {found}; name the file")
    return Joined([_open_file(file, key, spool) for file in files], str(path))


def _saved(path: Path, key: str, split: str) -> Source:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    folder = path
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            which = "data.eval_split" if key == "data.eval" else "data.split"
            raise UserError(f"{which}: {path} has no split {split!r}; it has {', '.join(loaded)}")
        loaded, folder = loaded[split], path / split
    return Table(loaded, path.name, str(path), _hash_files(sorted(folder.glob("*.arrow"))))


def _parquet(files: list[Path], path: Path, key: str, spool: Path | None) -> Source:
    import datasets

    try:
        # converted to Arrow once: random access to Parquet would decode a row group for every row
        cache = None if spool is None else str(spool / "parquet")
        loaded = datasets.Dataset.from_parquet([str(f) for f in files], cache_dir=cache)
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
        raise UserError(f"{key}: {path} cannot be read as Parquet: {_root(error)}") from error
    return Table(loaded, path.name, str(path), _hash_files(files))


def _hub(name: str, key: str, split: str) -> Source:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # network, authentication, missing id or split: each has its own class
        raise UserError(f"{key}: {name} is no file here, and the hub cannot give its split {split!r}: {_root(error)}") from error
    return Table(loaded, name, None, hashlib.sha256(f"{name}:{split}:{loaded._fingerprint}".encode()).hexdigest())


def _stream(name: str, key: str, split: str, max_rows: int | None, spool: Path | None) -> Source:
    if spool is None:
        raise UserError(f"{key}: streaming {name} needs a folder for its rows (run.dir)")
    tag = hashlib.sha256(f"{name}:{split}:{max_rows}".encode()).hexdigest()[:8]
    path = spool / f"{name.replace('/', '--')}-{split}-{tag}.jsonl"
    if not path.exists():
        import datasets

        spool.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=spool, suffix=".part", delete=False, encoding="utf-8") as file:
            try:
                rows = datasets.load_dataset(name, split=split, streaming=True)
                for row in rows if max_rows is None else rows.take(max_rows):
                    file.write(json.dumps(row, default=str) + "\n")
            except Exception as error:  # as in _hub
                os.unlink(file.name)
                raise UserError(f"{key}: cannot stream split {split!r} of {name}: {_root(error)}") from error
        os.replace(file.name, path)
    return JsonLines(path)


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except ValueError as error:  # UnicodeDecodeError too
        raise UserError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with columns, got {_short(row)}")
    return row


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _root(error: BaseException) -> str:
    """The first line of the error that caused the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _decompressed(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from error


def _opens_with_bracket(path: Path) -> bool:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return file.read(1024).lstrip()[:1] == b"["


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
