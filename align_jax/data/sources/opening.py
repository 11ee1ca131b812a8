"""From what a config names to a source."""

from __future__ import annotations

from pathlib import Path

from align_jax.data.sources.arrow import is_saved, open_saved
from align_jax.data.sources.base import Part, Source, at_most
from align_jax.data.sources.folders import JSON, RECORDS, TABLES, kind_of, open_files, open_folder
from align_jax.data.sources.given import GivenRows
from align_jax.data.sources.hub import open_hub
from align_jax.errors import UserError


def open_source(path: str, part: Part | None = None, *, spool_dir: Path | None = None, **of_part) -> Source:
    """Opens a file, a folder or a hub id.

    Args:
      path: `.jsonl`, `.json`, `.csv` or `.tsv` (also `.gz` of these), `.parquet`, `.arrow` or `.array_record`; a folder of such
        files, whose splits are told by their names or by its README.md; one that `datasets.save_to_disk` wrote; else a hub id.
      part: which part of it is read; or the fields of `Part` by name, such as `split` and `max_rows`.
      spool_dir: where the rows of a streamed hub data set are kept.

    Raises:
      UserError: what is wrong with it, and where.
    """
    part = part or Part(**of_part)
    if isinstance(path, GivenRows):
        return path.open(part)
    if path.startswith(GivenRows.PREFIX):
        raise UserError(f"{path}: these rows were given in Python, and only there they can be given again: Config.of(...)")
    file = Path(path).expanduser()
    if file.is_file():
        return _open_file(file, part)
    if file.is_dir():
        return open_saved(file, part) if is_saved(file) else open_folder(file, part)
    is_file = file.suffix in (*JSON, *TABLES, *RECORDS, ".gz") or path.startswith((".", "~")) or path.count("/") > 1
    # Below a folder that is here, a wrong letter is likelier than a data set of the hub.
    if file.is_absolute() or is_file or file.parts[1:] and Path(file.parts[0]).is_dir():
        raise UserError(f"{file}: no such file or folder")
    return open_hub(path, part, spool_dir)


def _open_file(file: Path, part: Part) -> Source:
    if kind_of(file.name) is None:
        expected = f"{', '.join((*JSON, *TABLES, *RECORDS))}, or .gz of those with text"
        raise UserError(f"{file}: {file.suffix or 'no'} extension; expected {expected}")
    notes = part.of_local(str(file)) + part.of_whole(f"{file}, a single file,")
    source = open_files([file], str(file))
    source.notes = (*source.notes, *notes)
    return at_most(source, part.max_rows)
