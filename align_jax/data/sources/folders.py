"""Folders of data files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath

from align_jax.data.sources.array_records import ArrayRecords
from align_jax.data.sources.arrow import open_tables
from align_jax.data.sources.base import Chained, Part, Source, at_most
from align_jax.data.sources.json_files import open_json
from align_jax.data.sources.splits import chosen_configuration, matching, splits_of
from align_jax.errors import UserError
from align_jax.terminal import plural

TABLES = (".parquet", ".arrow", ".csv", ".tsv")
JSON = (".jsonl", ".json", ".ndjson")
RECORDS = (".array_record",)
_KINDS = {".ndjson": ".jsonl", ".json": ".jsonl"}  # which are read as one
_ABOUT = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # no rows


def kind_of(name: str) -> str | None:
    """What kind of file a name tells of, by its ending; None for one that is not read."""
    path = PurePath(name.removesuffix(".gz"))
    ending = path.suffix.lower()
    packed = name.endswith(".gz")
    known = (*JSON, ".csv", ".tsv") if packed else (*JSON, *TABLES, *RECORDS)
    return _KINDS.get(ending, ending) if ending in known else None


def open_files(files: list[Path], name: str) -> Source:
    """Files of one kind as one source.

    Args:
      files: at least one. name: what they are together.
    """
    kind = kind_of(files[0].name)
    if kind in TABLES:
        return open_tables(files, name)
    if kind in RECORDS:
        return ArrayRecords(files[0]) if len(files) == 1 else Chained([ArrayRecords(file) for file in files])
    full = [file for file in files if file.stat().st_size] or files[:1]  # a shard may be without rows
    return open_json(full[0]) if len(full) == 1 else Chained([open_json(file) for file in full])


def open_folder(folder: Path, part: Part) -> Source:
    """The files of a folder that belong to a split.

    Raises:
      UserError: no files of rows, or no such split.
    """
    configuration = chosen_configuration(folder, part)
    notes = part.of_local(str(folder), subset=configuration is not None)
    root = folder / configuration.data_dir if configuration else folder
    files = _rows_in(root)
    if not files:
        raise UserError(
            f"{root}: a folder with neither Parquet, JSONL, JSON, CSV, TSV or Arrow files nor what datasets.save_to_disk writes"
        )
    if configuration and configuration.patterns is not None:
        splits = {split: matching(root, patterns) for split, patterns in configuration.patterns.items()}
    else:
        splits = splits_of(files) or splits_of(files, capitals=True)
    if splits:
        chosen = _chosen(folder, splits, part, notes)
        files, left = splits[chosen], sorted(set(files) - {file for named in splits.values() for file in named})
        if left and configuration is None:
            notes.append(f"{folder}: {_named(left)} of no split by {'its name' if len(left) == 1 else 'their names'}: not read")
    else:
        notes += part.of_whole(str(folder))
        if part.split == "train" and len(files) > 1:
            notes.append(f"{folder}: no name of its {len(files)} files tells of a split; {part.key} {part.split}: all are read")
    source = open_files([root / file for file in _of_one_kind(folder, files, notes)], str(folder))
    source.notes = (*source.notes, *notes)
    return at_most(source, part.max_rows)


def _rows_in(root: Path) -> list[str]:
    """Files of rows below a folder, relative to it; hidden ones and those of `__pycache__` and the like are none."""
    found = []
    for path in sorted(root.glob("**/*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith((".", "__")) for part in relative.parts)
        if not hidden and path.name not in _ABOUT and kind_of(path.name) and path.is_file():
            found.append(relative.as_posix())
    return found


def _chosen(folder: Path, splits: dict[str, list[str]], part: Part, notes: list[str]) -> str:
    """The split that is read.

    Raises:
      UserError: it is not there, or has no files.
    """
    if part.split is None and len(splits) == 1 and part.wanted not in splits:
        only = next(iter(splits))
        notes.append(f"{folder} has no split {part.wanted!r}, only {only!r}: that is read")
        return only
    if part.wanted not in splits:
        raise UserError(f"{folder} has no split {part.wanted!r}; it has {', '.join(splits)}; set {part.key} to one of them")
    if not splits[part.wanted]:
        raise UserError(f"{folder}: no file matches what its README.md says of the split {part.wanted!r}")
    return part.wanted


def _of_one_kind(folder: Path, files: list[str], notes: list[str]) -> list[str]:
    """The Parquet files, where there are any; else those of the kind of which there are most. Others are noted."""
    kinds = {file: kind_of(file) for file in files}
    unknown = [file for file, kind in kinds.items() if kind is None]
    if unknown and len(unknown) == len(files):
        raise UserError(f"{folder}: {unknown[0]}: expected {', '.join((*JSON, *TABLES, *RECORDS))}")
    counts = Counter(kind for kind in kinds.values() if kind)
    best = ".parquet" if ".parquet" in counts else max(sorted(counts), key=counts.__getitem__)
    others = [file for file in files if kinds[file] != best]
    if others:
        notes.append(f"{folder}: only its {best} files are read, and not {_named(others)}")
    return sorted((file for file in files if kinds[file] == best), key=lambda file: PurePath(file).parts)


def _named(files: Iterable[str]) -> str:
    files = list(files)
    return files[0] if len(files) == 1 else f"{plural(len(files), 'file')} ({files[0]}, ...)"
