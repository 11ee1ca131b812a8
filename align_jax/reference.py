"""Reference log-probs: computed once by a sharded pass, kept on disk beside the data, joined to batches by row."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.batch import GroupBatch

_STRIPES, _STRIPE_BYTES = 16, 1 << 16


def compute_reference(
    score: Callable[[GroupBatch], jax.Array], batches: Iterable[GroupBatch], rows: int, slots: int
) -> np.ndarray:
    """Log-probs of every row's responses: float32 `[rows, slots]`, NaN for a response that does not exist.

    Args:
      score: host batch -> `[G, K]`; the scorer that training uses, so that at step one the two agree exactly.
      batches: host batches that together hold every row at least once; reading stops when all are seen. In the order
        and the shapes of training, so that rounding is the same too.
      rows, slots: the size of the data set, and the most responses of a row.
    """
    result = np.full((rows, slots), np.nan, np.float32)
    seen = np.zeros(rows, bool)
    here = np.arange(jax.process_index(), rows, jax.process_count()) if jax.process_count() > 1 else np.arange(rows)
    for batch in batches:
        logps = _local_rows(score(batch))
        real = batch.rows >= 0
        fresh = real & ~np.where(real, seen[batch.rows], True)
        width = min(slots, logps.shape[1])
        result[batch.rows[fresh], :width] = np.where(batch.mask, logps, np.nan)[fresh, :width]
        seen[batch.rows[real]] = True
        if jax.process_count() == 1 and seen[here].all():
            break
    if jax.process_count() > 1:
        everywhere = multihost_utils.process_allgather(result)
        # A row may have been read by two processes around the end of an epoch: any of them will do.
        result = np.fmax.reduce(everywhere, axis=0)
    return result


def _local_rows(logps: jax.Array) -> np.ndarray:
    """The groups that this process holds, in order."""
    if logps.is_fully_addressable:
        return np.asarray(logps)
    shards = {shard.index[0].start or 0: shard.data for shard in logps.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def cache_key(**parts) -> str:
    """A short name for everything that the log-probs depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """A hash of weight files: their names, sizes and stripes of their contents, so that 16 GB take milliseconds."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with open(path, "rb") as file:
            for i in range(_STRIPES):
                file.seek(i * max(size - _STRIPE_BYTES, 0) // (_STRIPES - 1))
                digest.update(file.read(_STRIPE_BYTES))
    return digest.hexdigest()


def cache_file(key: str, data: str | None, cache_dir: str | None) -> Path:
    """Where the log-probs with this key are kept.

    `cache_dir` where it is set; else a folder `.align_jax` beside the data; else, where the data is not a local file or
    its folder is read-only, `~/.cache/align_jax/reference`.
    """
    if cache_dir is not None:
        return Path(cache_dir) / f"{key}.npy"
    if data is not None and Path(data).exists():
        beside = Path(data).resolve().parent
        if os.access(beside, os.W_OK):
            return beside / ".align_jax" / f"{key}.npy"
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "align_jax" / "reference" / f"{key}.npy"


def cached(path: Path, shape: tuple[int, int], compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, bool]:
    """The array at `path`, or, where it is missing or damaged, computed and written there.

    Returns:
      The array, and whether it came from the disk.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if stored.shape == shape and stored.dtype == np.float32:
            return stored, True
    except (OSError, ValueError, EOFError):
        pass  # absent or cut short: computed again and replaced below
    result = compute()
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
            np.save(file, result)
        os.replace(file.name, path)
    return result, False
