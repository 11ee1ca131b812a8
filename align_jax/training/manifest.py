"""What a checkpoint's files are: a list with sizes and hashes, written last and read first. Knows no JAX.

`manifest.json` in the folder of a checkpoint is written after its other files and before the folder gets its name. A file that
is missing, cut short or has a flipped bit is found by it, and named. Tensors have checksums of their own beside it, see
`align_jax.training.checkpoint`: those hold for what arrives on the devices, and for files that one process cannot hash for all.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
HASH = "xxh3_64"  # detects damage, at the speed of memory; nobody's signature
MOST_OF_OTHERS = 8 * 2**30  # bytes that other processes wrote: beyond it only their sizes are listed
_OF_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")  # written with the folder's name; nothing needs them
_PIECE = 16 * 2**20
_THREADS = 8


class DamagedFileError(ValueError):
    """A file of a checkpoint is not what was written; names it."""


def write_manifest(folder: Path, process: int = 0) -> None:
    """Lists the files of a checkpoint that are there; the last file that is written before it counts as a checkpoint.

    Args:
      folder: of one step. process: whose files (`ocdbt.process_N`) are hashed in any case.
    """
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    others = sum(size for name, size in sizes.items() if _of_other(name, process))
    hashed = [name for name in sizes if others <= MOST_OF_OTHERS or not _of_other(name, process)]
    found = _hashes(folder, hashed)
    document = {"version": 1, "hash": HASH, "files": {name: [size, found.get(name)] for name, size in sorted(sizes.items())}}
    temporary = folder / f"{MANIFEST}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(document))
        file.flush()
        os.fsync(file.fileno())  # or a power cut leaves the checkpoint's name and an empty list
    os.replace(temporary, folder / MANIFEST)


def check_files(folder: Path, part: int = 0, parts: int = 1) -> bool:
    """Whether a checkpoint has a manifest, all of whose files are as they were written; earlier versions wrote none.

    Args:
      folder: of one step. part, parts: hashes only its share of the files, where several processes check them together.

    Raises:
      DamagedFileError: a file is missing, or has another size or content; or the manifest itself is unreadable.
    """
    listed = _read(folder)
    if listed is None:
        return False
    _check_sizes(folder, listed)
    wanted = {name: value for name, (_, value) in sorted(listed.items())[part::parts] if value is not None}
    for name, value in _hashes(folder, list(wanted)).items():
        if value != wanted[name]:
            raise DamagedFileError(f"its file {name} is not what was written (its checksum differs)")
    return True


def is_listed(folder: Path) -> bool:
    """Whether a checkpoint has a manifest, and all of its files with their sizes: quick, however large it is."""
    try:
        listed = _read(folder)
        _check_sizes(folder, listed or {})
    except DamagedFileError:
        return False
    return listed is not None


def hash_of_checkpoint(folder: Path) -> str:
    """What tells a checkpoint from others, wherever it lies: a hash of its list, or, without one, when it was written.

    Raises:
      FileNotFoundError: there is no such checkpoint.
    """
    listed = folder / MANIFEST
    return _hash(listed) if listed.exists() else str(folder.stat().st_mtime_ns)


def size_of(folder: Path) -> int:
    """Bytes of all files of a checkpoint."""
    return sum(path.stat().st_size for path in _files(folder))


def _read(folder: Path) -> dict[str, tuple[int, str | None]] | None:
    try:
        document: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = document["hash"] == HASH  # that of a later version may be another one: sizes are checked
        return {name: (int(size), value if known else None) for name, (size, value) in document["files"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"its file {MANIFEST} cannot be read ({type(error).__name__})") from error


def _check_sizes(folder: Path, listed: dict[str, tuple[int, str | None]]) -> None:
    for name, (size, _) in listed.items():
        try:
            there = (folder / name).stat().st_size
        except OSError:
            raise DamagedFileError(f"its file {name} is missing") from None
        if there != size:
            raise DamagedFileError(f"its file {name} has {there} bytes, {size} were written")


def _files(folder: Path) -> Iterator[Path]:
    left_out = {folder / name for name in (MANIFEST, f"{MANIFEST}.tmp", *_OF_COMMIT)}
    return (path for path in folder.rglob("*") if path.is_file() and path not in left_out)


def _of_other(name: str, process: int) -> bool:
    return any(part.startswith("ocdbt.process_") and part != f"ocdbt.process_{process}" for part in name.split("/"))


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _hash(folder / name), names), strict=True))


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
