"""Reference log-probs: computed once by a sharded pass, kept on disk as it goes, joined to batches by row.

They are kept by a key, a hash of all that decides them: the reference's weights (their content, wherever they lie) and its
shape, what the rows hold and how they become tokens (templates, lengths, arrangement, seed), the types of activations and of
weights, the version of JAX and the kind of device. Any of these that changes makes another file; where the data lies, how the
run is called and how many devices there are do not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.batch import GroupBatch
from align_jax.files import naming
from align_jax.parallel.processes import largest_anywhere, on_first
from align_jax.parallel.stop import StoppedPass, StopSignal

SAVE_SECONDS = 30.0  # of work, at most, that a kill costs


class Growing:
    """A table of log-probs that is filled batch by batch, and kept in a file as it grows.

    Of several processes each has what it computed itself, and saving joins that; the first one writes.

    Args:
      table: float32 `[rows, K]`, NaN where nothing is known. file: `.npy`, always whole; what another process wrote there
        meanwhile stays.

    Attributes:
      values: the table as it stands.
    """

    def __init__(self, table: np.ndarray, file: Path):
        self.values, self._file = table.copy(), file
        self._saved, self._changed = time.monotonic(), False

    def fill(self, rows: np.ndarray, logps: np.ndarray) -> None:
        """Enters log-probs `[n, K']` of rows `[n]`."""
        width = min(self.values.shape[1], logps.shape[1])
        self.values[rows, :width] = logps[:, :width]
        self._changed = True

    @property
    def due(self) -> bool:
        """Whether what is new has waited for `SAVE_SECONDS`."""
        return self._changed and time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self) -> None:
        """Brings what is known into the file; all processes must call."""
        if jax.process_count() > 1:
            # A row may have been read by two processes around the end of an epoch: either will do.
            self.values = np.fmax.reduce(multihost_utils.process_allgather(self.values), axis=0)
        on_first(self._write, str(self._file))
        self._saved, self._changed = time.monotonic(), False

    def save_alone(self) -> None:
        """As `save`, where this process cannot wait for others: of several, it does nothing."""
        if self._changed and jax.process_count() == 1:
            self.save()

    def _write(self) -> None:
        there = _read(self._file, self.values.shape)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}.tmp")
        try:
            with naming(self._file):
                with open(temporary, "wb") as file:
                    table = np.where(known(self.values)[:, None], self.values, there)
                    np.save(file, table)
                    file.write(_checksum(table))  # behind the array, where `np.load` does not look
                os.replace(temporary, self._file)
        finally:
            temporary.unlink(missing_ok=True)


def compute_reference(
    score: Callable[[GroupBatch], jax.Array],
    batches: Iterable[GroupBatch],
    table: Growing,
    stop: StopSignal,
    done: Callable[[int], object] = lambda rows: None,
) -> None:
    """Fills a table with the log-probs of the batches' groups, and saves it on the way.

    Args:
      score: host batch -> `[G, K]`; the scorer that training uses, so that at step one the two agree exactly.
      batches: host batches, in the order and the shapes of training, so that rounding is the same too. A batch whose
        rows are all known at the start is not computed, so one that is comes out to the same bits whenever it is.
      stop: asked after every batch that is computed.
      done: told how many more rows this process knows.

    Raises:
      StoppedPass: `stop` says so; what was computed is saved.
    """
    there = known(table.values)
    for batch in batches:
        real = np.asarray(batch.rows) >= 0
        rows = batch.rows[real]
        # Every process takes part in scoring and in saving, so all decide as one.
        computes, saves = _anywhere(not there[rows].all(), table.due)
        if saves:
            table.save()
        if not computes:
            continue
        table.fill(rows, np.where(batch.mask, local_rows(score(batch)), np.nan)[real])
        done(int((~there[rows]).sum()))
        if stop.requested():
            table.save()
            raise StoppedPass


def _anywhere(*flags: bool) -> tuple[bool, ...]:
    """Which of the flags are set on any process; all must call."""
    return flags if jax.process_count() == 1 else tuple(map(bool, largest_anywhere(tuple(map(int, flags)))))


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


@dataclasses.dataclass(frozen=True)
class Cache:
    """Where the log-probs of a key are kept.

    Attributes:
      file: that is read and written. before: another one that is read, where an earlier version kept them; or None.
      note: why it is not the folder that it should be, or empty.
    """

    file: Path
    before: Path | None = None
    note: str = ""


def cache_of(key: str, data: str | None, cache_dir: str | None, run_dir: Path) -> Cache:
    """Where the log-probs with this key are kept: `KEY.npy` in `cache_dir`, by default in the user's cache folder.

    That is `$XDG_CACHE_HOME/align_jax/reference`, or `~/.cache/align_jax/reference`. Where it cannot be written, the run's own
    folder `reference` takes its place. Earlier versions kept them beside local data, in `.align_jax`.

    Args:
      key: of `cache_key`. data: what is read, a path or a hub id. cache_dir: as it was asked for. run_dir: the run's folder.
    """
    name = f"{key}.npy"
    folder = Path(cache_dir).expanduser() if cache_dir is not None else user_cache()
    before = None
    if cache_dir is None and data is not None and os.path.exists(os.path.expanduser(data)):
        before = Path(data).expanduser().resolve().parent / ".align_jax" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Cache(folder / name, before)
    except OSError as error:
        own = run_dir / "reference"
        why = f"{folder} cannot be written ({error.strerror}): reference log-probs are kept in {own}"
        return Cache(own / name, folder / name if (folder / name).is_file() else before, why)


def user_cache() -> Path:
    """The folder of log-probs where none is given."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "align_jax" / "reference"


def cached(
    cache: Cache, shape: tuple[int, int], needed: np.ndarray, compute: Callable[[Growing], object]
) -> tuple[np.ndarray, Path | None]:
    """The table of a cache with at least the needed rows; what is missing is computed and written there.

    Args:
      cache: where it is kept. shape: `(rows, K)`.
      needed: int row numbers.
      compute: fills in the needed rows; where it fails or is stopped, what it has done is kept.

    Returns:
      The table, and the file that all that is needed came from; None where some was computed.
    """
    table, source = _read(cache.file, shape), cache.file
    if cache.before is not None and not known(table)[needed].all():
        older = _read(cache.before, shape)
        if known(older)[needed].all():
            table, source = older, cache.before
        else:
            table = np.where(known(table)[:, None], table, older)
    if jax.process_count() > 1:
        # The disks may differ, and all processes must take the same branch.
        table = np.asarray(multihost_utils.broadcast_one_to_all(table))
    if known(table)[needed].all():
        return table, source
    growing = Growing(table, cache.file)
    try:
        compute(growing)
    except BaseException:
        growing.save_alone()
        raise
    growing.save()
    return growing.values, None


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            stored, behind = np.load(file, allow_pickle=False), file.read()
        if stored.shape == shape and stored.dtype == np.float32 and behind in (b"", _checksum(stored)):  # earlier: without
            return stored
    except (OSError, ValueError, EOFError):
        pass  # absent or cut short: nothing is known, and the file is replaced
    return np.full(shape, np.nan, np.float32)


def _checksum(table: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(table), digest_size=8).digest()
