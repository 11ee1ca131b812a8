"""Rows of Arrow tables: Parquet, Arrow and CSV files, and folders that `datasets.save_to_disk` wrote."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pyarrow.types as kinds

from align_jax.data.sources.base import Part, RowError, Source, at_most
from align_jax.data.sources.plain import plain_row
from align_jax.data.sources.separated import read_separated
from align_jax.errors import UserError
from align_jax.parsing import broken, json_of


class ArrowRows:
    """Rows of tables, each with the columns of its own.

    Args:
      tables: by the file or folder that they are of, for places; they may differ in columns and types.
      name: what they are together. digest: of the content. notes: see `Source`.
    """

    def __init__(self, tables: Mapping[Path, pyarrow.Table], name: str, digest: str, notes: Sequence[str] = ()):
        self._batches: list[pyarrow.RecordBatch] = []
        self._places: list[tuple[Path, int]] = []  # of each batch: its file, and the number of its first row there
        for file, table in tables.items():
            first = 0
            for batch in table.to_batches():
                if batch.num_rows:
                    self._batches.append(batch), self._places.append((file, first))
                    first += batch.num_rows
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))
        self.digest, self.notes = digest, tuple(notes)
        if not self._batches:
            raise UserError(f"{name} is empty; it has no rows")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        which, row = self._at(index)
        try:
            one = self._batches[which].slice(row, 1)
            values = {name: one.column(i)[0].as_py() for i, name in enumerate(one.schema.names)}
            meant = {field.name: _meant(field.type, values[field.name]) for field in one.schema}
        except (ValueError, NotImplementedError) as error:  # text that is no UTF-8, a date that Python does not have
            raise RowError(f"cannot be read: {error}") from error
        return plain_row(meant)

    def _at(self, index: int) -> tuple[int, int]:
        """The batch of a row, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self._ends, index)
        return which, index - (self._ends[which - 1] if which else 0)

    def where(self, index: int) -> str:
        which, row = self._at(index)
        file, first = self._places[which]
        return f"{file} row {first + row}"


def _meant(kind: pyarrow.DataType, value: Any) -> Any:
    """A value with its maps as dicts, its structs without what Arrow filled in, and what is kept as JSON taken apart."""
    if value is None or not (kinds.is_nested(kind) or _is_json(kind)):
        return value
    if _is_json(kind):
        return json_of(value)
    if kinds.is_map(kind):
        return {key: _meant(kind.item_type, inner) for key, inner in value}
    if kinds.is_struct(kind):
        return {field.name: _meant(field.type, value[field.name]) for field in kind if value[field.name] is not None}
    if hasattr(kind, "value_type"):
        return [_meant(kind.value_type, inner) for inner in value]
    return value


def _is_json(kind: pyarrow.DataType) -> bool:
    return isinstance(kind, pyarrow.BaseExtensionType) and getattr(kind, "extension_name", "") == "arrow.json"


def open_tables(files: Sequence[Path], name: str) -> Source:
    """Parquet, Arrow, CSV or TSV files, one after the other.

    Args:
      files: at least one. name: what they are together.

    Raises:
      UserError: one that cannot be read, by its name.
    """
    digest, tables, notes = hashlib.sha256(), {}, []
    for file in files:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
        try:
            tables[file] = _READERS[_ending(file)](file)
        except Exception as error:  # bytes that are no such file may raise whatever comes
            raise UserError(f"{file}: cannot be read as {_NAMES[_ending(file)]}: {error}") from error
        _check_names(tables[file], file)
        notes += _foreign(tables[file].schema, file)
    return ArrowRows(tables, name, digest.hexdigest(), notes[:1])


def _check_names(table: pyarrow.Table, file: Path) -> None:
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise UserError(f"{file}: several columns are called {twice[0]!r}; give each a name of its own")


def _ending(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _parquet(file: Path) -> pyarrow.Table:
    return pyarrow.parquet.read_table(file, memory_map=True)


def _arrow(file: Path) -> pyarrow.Table:
    mapped = pyarrow.memory_map(str(file))
    try:
        table = pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_file(mapped).read_all()
    try:
        table.validate(full=True)  # offsets that point outside are else read as they are
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):  # of which each row says so itself
            raise
    return table


_READERS = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".csv": partial(read_separated, by=","),
    ".tsv": partial(read_separated, by="\t"),
}
_NAMES = {".parquet": "Parquet", ".arrow": "Arrow", ".csv": "CSV", ".tsv": "TSV"}


def _foreign(schema: pyarrow.Schema, file: Path) -> Iterator[str]:
    """A note, where `datasets` of another version wrote the table."""
    if b"huggingface" not in (schema.metadata or {}):
        return
    import datasets

    try:
        datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield (
            f"{file}: what another version of datasets says of its columns is not known here ({reason}); they are read as they "
            "are stored"
        )


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def open_saved(folder: Path, part: Part) -> Source:
    """A data set, or a split of a dict of them, that `datasets.save_to_disk` wrote.

    Raises:
      UserError: no such split, or files that are missing or broken.
    """
    notes = part.of_local(str(folder))
    if (folder / "dataset_dict.json").exists():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if not isinstance(splits, list) or not all(isinstance(name, str) and Path(name).name == name for name in splits):
            raise UserError(f"{folder / 'dataset_dict.json'}: its splits are {splits!r:.80}; expected names of folders there")
        if part.wanted not in splits:
            raise UserError(f"{folder} has no split {part.wanted!r}; it has {', '.join(splits)}; set {part.key}")
        folder = folder / part.wanted
        if not (folder / "state.json").exists():
            raise UserError(f"{folder}: state.json is missing; copy the whole folder again")
        state = _json(folder / "state.json")
    else:
        state = _json(folder / "state.json")
        notes += part.of_whole(str(folder), state.get("_split"))
    return at_most(_saved(folder, state, notes), part.max_rows)


def _saved(folder: Path, state: dict, notes: list[str]) -> Source:
    """Read without `datasets`, which refuses columns and formats (of numpy, torch) of which it does not know the library."""
    listed = state.get("_data_files") or []
    entries = listed if isinstance(listed, list) else [None]
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or broken(name):
            raise UserError(f"{folder / 'state.json'}: _data_files names {name!r:.80}; expected files beside it")
    if not isinstance(state.get("_fingerprint"), str):
        raise UserError(f"{folder / 'state.json'}: its _fingerprint is {state.get('_fingerprint')!r:.80}; expected text")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: {missing[0]}{more} of {len(names)} files is missing, which state.json names; copy the folder again"
        )
    tables = {}
    for name in names:
        try:
            tables[folder / name] = _arrow(folder / name)
        except Exception as error:
            raise UserError(f"{folder / name}: cannot be read as Arrow: {error}; copy the whole folder again") from error
        _check_names(tables[folder / name], folder / name)
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: written by datasets before 1.3; load it with datasets and save it again")
    return ArrowRows(tables, str(folder), state["_fingerprint"], notes)


def _json(file: Path) -> dict:
    try:
        found = json_of(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not what datasets.save_to_disk writes: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: not what datasets.save_to_disk writes")
    return found
