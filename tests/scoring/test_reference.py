"""Where reference log-probs are kept, and that only what is missing is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from align_jax.scoring.reference import Cache, cache_of, cached, known

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
    return np.where(known(table)[:, None], table, np.float32(9))


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
