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


def compute_reference(
    score: Callable[[GroupBatch], jax.Array], batches: Iterable[GroupBatch], table: np.ndarray
) -> np.ndarray:
    """Fills a table of log-probs, float32 `[rows, K]`, with those of the batches' groups; NaN is what is not known.

    Args:
      score: host batch -> `[G, K]`; the scorer that training uses, so that at step one the two agree exactly.
      batches: host batches, in the order and the shapes of training, so that rounding is the same too. A batch whose
        rows are all known is not computed.
      table: what is known already.

    Returns:
      A new table, the same on every process.
    """
    result = table.copy()
    for batch in batches:
        real = np.asarray(batch.rows) >= 0
        rows = batch.rows[real]
        # Every process has to take part in scoring, so only one alone may leave a batch out.
        if jax.process_count() == 1 and known(table)[rows].all():
            continue
        logps = np.where(batch.mask, local_rows(score(batch)), np.nan)[real]
        width = min(table.shape[1], logps.shape[1])
        result[rows, :width] = logps[:, :width]
    if jax.process_count() > 1:
        # A row may have been read by two processes around the end of an epoch: either will do.
        result = np.fmax.reduce(multihost_utils.process_allgather(result), axis=0)
    return result


def known(table: np.ndarray) -> np.ndarray:
    """Which rows of a table have been computed: bool `[rows]`; every group has at least one response."""
    return ~np.isnan(table).all(axis=1)


def local_rows(logps: jax.Array) -> np.ndarray:
    """The groups that this process holds, in order."""
    if logps.is_fully_addressable:
        return np.asarray(logps)
    shards = {shard.index[0].start or 0: shard.data for shard in logps.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def cache_key(**parts) -> str:
    """A short name for everything that the log-probs depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


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


def cached(
    path: Path, shape: tuple[int, int], needed: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, bool]:
    """The table at `path` with at least the needed rows; what is missing is computed and written there.

    Args:
      path: where it is kept. shape: `(rows, K)`.
      needed: int row numbers.
      compute: table -> table with the needed rows known.

    Returns:
      The table, and whether all that is needed came from the disk.
    """
    table = _read(path, shape)
    if jax.process_count() > 1:
        # The disks may differ, and all processes must take the same branch.
        table = np.asarray(multihost_utils.broadcast_one_to_all(table))
    if known(table)[needed].all():
        return table, True
    result = compute(table)
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
            np.save(file, result)
        os.replace(file.name, path)
    return result, False


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        stored = np.load(path, allow_pickle=False)
        if stored.shape == shape and stored.dtype == np.float32:
            return stored
    except (OSError, ValueError, EOFError):
        pass  # absent or cut short: nothing is known, and the file is replaced
    return np.full(shape, np.nan, np.float32)
