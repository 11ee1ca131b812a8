"""Where rows come from: random access, a name for every row's place, and a hash of the content."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from align_jax.errors import UserError


class Source(Protocol):
    """Rows by number.

    `len(source)`, `source[i] -> dict`; `where(i)` says where row i stands, for errors; `digest` is a hash of the content.
    """

    digest: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def where(self, index: int) -> str: ...


def open_source(
    path: str, *, split: str, streaming: bool = False, max_rows: int | None = None, spool_dir: Path | None = None
) -> Source:
    """Opens a file, a folder or a hub id.

    Args:
      path: `.jsonl`, `.json` (one object per line) or `.parquet`, also `.gz` of the first two; a folder of Parquet files or
        one that `datasets.save_to_disk` wrote; else a hub id.
      split: of a hub data set, or of a saved dict of data sets.
      streaming: read a hub data set row by row into `spool_dir`, at most `max_rows` rows.

    Raises:
      UserError: what is wrong with it, and where.
    """
    if isinstance(path, GivenRows):
        return path.open(max_rows)
    file = Path(path).expanduser()
    if path.startswith(GivenRows.PREFIX):
        raise UserError(f"{path}: these rows were given in Python, and only there they can be given again: Config.of(...)")
    if file.is_file():
        return _open_file(file, max_rows)
    if file.is_dir():
        if (file / "state.json").exists() or (file / "dataset_dict.json").exists():
            return _open_saved(file, split, max_rows)
        parquet = sorted(file.glob("**/*.parquet"))
        if parquet:
            return _open_parquet(parquet, max_rows)
        raise UserError(f"{file}: a folder with neither Parquet files nor what datasets.save_to_disk writes")
    if file.is_absolute() or file.suffix in (".jsonl", ".json", ".parquet", ".gz") or path.startswith((".", "~")):
        raise UserError(f"{file}: no such file or folder")
    return _open_hub(path, split, streaming, max_rows, spool_dir)


def _open_file(file: Path, max_rows: int | None) -> Source:
    name = file.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return JsonLines(file, max_rows)
    if file.suffix == ".parquet":
        return _open_parquet([file], max_rows)
    if file.suffix == ".array_record":
        from align_jax.data.array_records import ArrayRecords

        return ArrayRecords(file, max_rows, RowError)
    raise UserError(f"{file}: {file.suffix or 'no'} extension; expected .jsonl, .json, .parquet or .array_record")


class JsonLines:
    """One JSON object per line; only the offsets of the lines are kept in memory."""

    def __init__(self, file: Path, max_rows: int | None = None):
        self.file = file
        self._data = _decompressed(file) if file.suffix == ".gz" else None
        digest, offset = hashlib.sha256(), 0
        self._lines: list[tuple[int, int]] = []  # (offset, number of the line)
        for number, line in enumerate(self._read_lines(), start=1):
            digest.update(line)
            if line.strip():
                if max_rows is not None and len(self._lines) == max_rows:
                    break
                self._lines.append((offset, number))
            offset += len(line)
        self.digest = digest.hexdigest()
        if not self._lines:
            raise UserError(f"{file} is empty; expected one JSON object per line")

    def _read_lines(self):
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
            with open(self.file, "rb") as stream:
                stream.seek(start)
                line = stream.readline()
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RowError(f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise RowError(f"expected a JSON object per line, got {type(row).__name__}")
        if (b"\\u" in line or b"\xed" in line) and (problem := broken_text(row)):
            raise RowError(problem)
        return row

    def where(self, index: int) -> str:
        return f"{self.file}:{self._lines[index][1]}"


def broken_text(row: Any) -> str | None:
    """What is wrong with text that no UTF-8 can hold (JSON can), or None."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        return f"half a character (\\u{ord(text[error.start]):04x}) after {before!r}; an emoji that was cut in two?"
    return None


def _decompressed(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{file}: not a whole gzip file: {error}") from error


class GivenRows(str):
    """Rows that were given in Python, by the name that stands for them in a config: a hash of their content.

    It is a text, so that configs compare, print and store it as they do a path; the rows travel with it.
    """

    PREFIX = "python-rows-"

    def __new__(cls, rows: Any, digest: str) -> GivenRows:
        made = super().__new__(cls, cls.PREFIX + digest[:16])
        made.rows, made.digest = rows, digest
        return made

    def __deepcopy__(self, memo: dict) -> GivenRows:
        return self

    def __getnewargs__(self) -> tuple[Any, str]:
        return self.rows, self.digest

    def open(self, max_rows: int | None) -> Source:
        """The rows as a source."""
        return IndexedRows(self.rows, str(self), self.digest, max_rows)


def given_rows(rows: Any, key: str) -> GivenRows:
    """A list of dicts or a `datasets.Dataset` as what a config can hold; `key` is its place there, for errors.

    Raises:
      UserError: neither of the two, or rows that are no JSON.
    """
    if isinstance(rows, GivenRows):
        return rows
    if type(rows).__module__.startswith("datasets."):
        if isinstance(rows, dict):
            raise UserError(f"{key}: a {type(rows).__name__}; give one split of it")
        if not hasattr(rows, "_fingerprint") or not hasattr(rows, "__len__"):
            raise UserError(f"{key}: a {type(rows).__name__} is read once; give its hub id, and data.streaming")
        rows = rows.with_format(None)
        return GivenRows(rows, hashlib.sha256(f"{rows._fingerprint} {len(rows)}".encode()).hexdigest())
    if not isinstance(rows, list | tuple) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{key}: expected a path, a list of dicts or a datasets.Dataset, got {type(rows).__name__}")
    try:
        content = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: the rows must be plain values (texts, numbers, lists, dicts): {error}") from error
    return GivenRows(_Listed(json.loads(content)), hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest())


class _Listed(list):
    """A list of rows with the one method of a `datasets.Dataset` that `IndexedRows` uses."""

    def select(self, indices: range) -> _Listed:
        return _Listed(self[i] for i in indices)


class Selected:
    """Some rows of a source, as a source.

    Args:
      source: all rows. rows: numbers of those that are here. digest: of content and choice.
    """

    def __init__(self, source: Source, rows: Sequence[int], digest: str):
        self._source, self._rows, self.digest = source, list(rows), digest

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._rows[index]]

    def where(self, index: int) -> str:
        return self._source.where(self._rows[index])


class RowError(ValueError):
    """A row that cannot be used; the place is added by whoever knows it."""


class IndexedRows:
    """Rows of a `datasets.Dataset` (Arrow on disk)."""

    def __init__(self, dataset: Any, name: str, digest: str, max_rows: int | None):
        self._dataset = dataset.select(range(min(max_rows, len(dataset)))) if max_rows is not None else dataset
        self._name, self.digest = name, digest
        if not len(self._dataset):
            raise UserError(f"{name} is empty")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = copy.deepcopy(self._dataset[index])  # whoever reads it may take it apart
        if isinstance(self._dataset, _Listed) and (problem := broken_text(row)):
            raise RowError(problem)
        return row

    def where(self, index: int) -> str:
        return f"{self._name} row {index}"


def _open_parquet(files: list[Path], max_rows: int | None) -> Source:
    import datasets
    import pyarrow
    import pyarrow.parquet

    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    try:
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(file, memory_map=True) for file in files])
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{files[0]}: cannot be read as Parquet: {error}") from error
    name = str(files[0] if len(files) == 1 else files[0].parent)
    return IndexedRows(datasets.Dataset(table), name, digest.hexdigest(), max_rows)


def _open_saved(folder: Path, split: str, max_rows: int | None) -> Source:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"{folder} has no split {split!r}; it has {', '.join(loaded)}")
        loaded = loaded[split]
    return IndexedRows(loaded, str(folder), loaded._fingerprint, max_rows)


def _open_hub(name: str, split: str, streaming: bool, max_rows: int | None, spool_dir: Path | None) -> Source:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split, streaming=streaming)
        if not streaming:
            return IndexedRows(loaded, f"{name} ({split})", loaded._fingerprint, max_rows)
        kept = f"{name.replace('/', '--')}-{split}-{max_rows or 'all'}.jsonl"
        return JsonLines(_spool(loaded, Path(spool_dir or ".") / kept, max_rows))
    except UserError:
        raise
    except Exception as error:  # the hub client raises whatever its transport does
        raise UserError(f"{name}: neither a file nor a data set that can be loaded from the hub: {error}") from error


def _spool(rows: Any, file: Path, max_rows: int | None) -> Path:
    """Streamed rows as a file, so that order, random access and exact resuming hold; kept from an earlier start."""
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        for count, row in enumerate(rows):
            if count == max_rows:
                break
            out.write(json.dumps(row) + "\n")
    os.replace(temporary, file)
    return file
