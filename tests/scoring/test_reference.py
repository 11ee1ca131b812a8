"""Where reference log-probs are kept, that only what is missing is computed, and that nothing computed is lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.parallel.stop import StoppedPass
from align_jax.scoring import reference
from align_jax.scoring.reference import Cache, Growing, _read, cache_of, cached, compute_reference, known

SHAPE = (4, 2)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "align_jax" / "reference"


def filled(rows, value):
    table = np.full(SHAPE, np.nan, np.float32)
    table[list(rows)] = value
    return table


def save(file: Path, table):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, table)


def compute(table):
    """Fills in what is not known."""
    rows = np.flatnonzero(~known(table.values))
    table.fill(rows, np.full((len(rows), 2), 9, np.float32))


def test_nothing_appears_beside_the_data(tmp_path, home):
    data = tmp_path / "shared" / "rows.jsonl"
    data.parent.mkdir()
    data.write_text("{}\n")
    cache = cache_of("key", str(data), None, tmp_path / "run")
    assert (cache.file, cache.note) == (home / "key.npy", "")
    table, found = cached(cache, SHAPE, np.arange(4), compute)
    assert found is None and (table == 9).all()
    again, found = cached(cache, SHAPE, np.arange(4), lambda _: pytest.fail("computed again"))
    assert found == home / "key.npy" and (again == table).all()
    assert [file.name for file in data.parent.iterdir()] == ["rows.jsonl"] and not (tmp_path / "run").exists()


def test_the_folder_that_was_asked_for(tmp_path, home, monkeypatch):
    assert cache_of("key", None, str(tmp_path / "mine"), tmp_path / "run").file == tmp_path / "mine" / "key.npy"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_of("key", "a/hub-id", "~/mine", tmp_path / "run").file == tmp_path / "mine" / "key.npy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_of("key", None, None, tmp_path / "run").file == tmp_path / ".cache" / "align_jax" / "reference" / "key.npy"
    assert not home.exists()


def test_what_an_earlier_version_kept_beside_the_data_is_read_and_left_there(tmp_path, home):
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    old = tmp_path / ".align_jax" / "key.npy"
    save(old, filled([0, 1, 2, 3], 5))
    cache = cache_of("key", str(data), None, tmp_path / "run")
    table, found = cached(cache, SHAPE, np.arange(4), lambda _: pytest.fail("computed again"))
    assert found == old and (table == 5).all() and not cache.file.exists()
    save(old, filled([0, 1], 5))
    save(cache.file, filled([2], 6))
    table, found = cached(cache, SHAPE, np.arange(4), compute)
    assert found is None and table[:, 0].tolist() == [5, 5, 6, 9] and np.load(cache.file)[:, 0].tolist() == [5, 5, 6, 9]
    assert known(np.load(old)).tolist() == [True, True, False, False]
    assert cache_of("key", str(data), str(tmp_path / "mine"), tmp_path / "run").before is None


@pytest.mark.parametrize("content", [filled([0], 1)[:2], filled(range(4), 1).astype(np.float64), "cut"])
def test_a_file_that_does_not_fit_is_computed_again(tmp_path, content):
    file = tmp_path / "key.npy"
    if isinstance(content, str):
        file.write_bytes(b"\x93NUMPY\x01\x00")
    else:
        np.save(file, content)
    table, found = cached(Cache(file), SHAPE, np.arange(4), compute)
    assert found is None and (table == 9).all() and (np.load(file) == 9).all()


def test_a_table_with_a_changed_bit_is_computed_again_and_one_of_before_is_read(tmp_path):
    file, table = tmp_path / "key.npy", np.arange(8, dtype=np.float32).reshape(4, 2)
    growing = Growing(np.full((4, 2), np.nan, np.float32), file)
    growing.fill(np.arange(4), table)
    growing.save()
    np.testing.assert_array_equal(_read(file, (4, 2)), table)
    content = bytearray(file.read_bytes())
    content[-12] ^= 1
    file.write_bytes(content)
    assert not known(_read(file, (4, 2))).any()
    np.save(file, table)
    np.testing.assert_array_equal(_read(file, (4, 2)), table)


@pytest.mark.parametrize("asked", [True, False])
def test_a_folder_that_cannot_be_written_gives_way_to_the_runs(tmp_path, home, asked):
    (tmp_path / "file").write_text("")
    home.parent.mkdir(parents=True)
    home.write_text("")  # no folder can be made there
    cache = cache_of("key", None, str(tmp_path / "file") if asked else None, tmp_path / "run")
    assert cache.file == tmp_path / "run" / "reference" / "key.npy"
    assert "cannot be written (File exists): reference log-probs are kept in" in cache.note
    cached(cache, SHAPE, np.arange(4), compute)
    assert cache.file.exists()


# Three batches: rows 0 and 3, row 1 beside one that fills up, row 2; the second response of row 1 is padding.
BATCHES = [([0, 3], [[1, 1], [1, 1]]), ([1, -1], [[1, 0], [1, 1]]), ([2], [[1, 1]])]
WHOLE = np.asarray([[0, 0.5], [1, np.nan], [2, 2.5], [3, 3.5]], np.float32)


class Work:
    """The pass over `BATCHES`: what it scored, what the file held then, and after how many batches it is to stop."""

    def __init__(self, file, after=None, problem=None):
        self.file, self.after, self.problem = file, after, problem
        self.scored, self.found, self.told = [], [], 0

    def score(self, batch):
        if self.problem is not None and len(self.scored) == self.after:
            raise self.problem
        self.scored.append(batch.rows.tolist())
        self.found.append(known(np.load(self.file)).tolist() if self.file.exists() else None)
        return jnp.asarray(batch.rows[:, None] + np.asarray([0, 0.5]), jnp.float32)

    def requested(self):
        return self.problem is None and len(self.scored) == self.after

    def done(self, rows):
        self.told += rows

    def run(self, table):
        batches = (SimpleNamespace(rows=np.asarray(rows), mask=np.asarray(mask, bool)) for rows, mask in BATCHES)
        compute_reference(self.score, batches, table, self, self.done)


@pytest.mark.parametrize("problem, raised", [(None, StoppedPass), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_what_is_ended_in_the_middle_is_kept_and_only_the_rest_is_computed(tmp_path, problem, raised):
    file, every = tmp_path / "key.npy", np.arange(4)
    first, second = Work(file, 2, problem), Work(file)
    with pytest.raises(raised):
        cached(Cache(file), SHAPE, every, first.run)
    assert first.scored == [[0, 3], [1, -1]] and first.told == 3 and first.found == [None, None]
    assert known(np.load(file)).tolist() == [True, True, False, True]
    table, found = cached(Cache(file), SHAPE, every, second.run)
    assert second.scored == [[2]] and second.told == 1 and found is None
    np.testing.assert_array_equal(table, WHOLE)
    np.testing.assert_array_equal(np.load(file), WHOLE)
    assert [path.name for path in tmp_path.iterdir()] == ["key.npy"]


def test_a_stop_ends_the_process_as_sigterm_does():
    assert isinstance(StoppedPass(), SystemExit) and StoppedPass().code == 143


def test_a_killed_pass_has_what_was_computed_before_its_last_save(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SAVE_SECONDS", 0.0)
    work = Work(tmp_path / "key.npy")
    cached(Cache(work.file), SHAPE, np.arange(4), work.run)
    assert work.found == [None, [True, False, False, True], [True, True, False, True]]


def test_what_another_run_wrote_meanwhile_stays(tmp_path):
    work = Work(tmp_path / "key.npy", after=1)

    def meanwhile(table):
        save(work.file, filled([0, 2], 7))
        work.run(table)

    with pytest.raises(StoppedPass):
        cached(Cache(work.file), SHAPE, np.arange(4), meanwhile)
    assert np.load(work.file)[:, 0].tolist() == [0, pytest.approx(np.nan, nan_ok=True), 7, 3]
