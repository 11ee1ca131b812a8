"""Locks: one holder at a time; one that is gone is never in the way, another machine is judged by its signs of life."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from align_jax import lock as locks
from align_jax.errors import UserError
from align_jax.lock import Holder, check_held, held


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def quick(monkeypatch):
    """Signs of life that come and go in less than a second."""
    for name, value in (("BEAT_SECONDS", 0.05), ("STALE_SECONDS", 0.6), ("_SETTLE_SECONDS", 0.01)):
        monkeypatch.setattr(locks, name, value)


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has none."""

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("align_jax.lock.fcntl.flock", none)


def _elsewhere(**changes):
    return dataclasses.replace(Holder.own(), host="other", machine="another boot/1", **changes)


def _refused(lock, message="it is in use by process"):
    with pytest.raises(UserError, match=message), held(lock, "it", "wait"):
        pass


def test_a_second_holder_is_refused_and_told_who_holds_it(lock):
    with held(lock, "it", "wait"):
        _refused(lock, rf"it is in use by process {os.getpid()} on .* since 20.*; wait")
    assert list(lock.parent.iterdir()) == []
    with held(lock, "it", "wait"):
        pass


def test_a_lock_that_was_removed_by_who_held_it_is_made_anew(lock, monkeypatch):
    """Another process opened the file before its holder removed it, and locks what nobody else can see."""
    opened, true = [], os.open

    def slow(path, *args, **more):
        found = true(path, *args, **more)
        if path == lock and not opened:
            lock.unlink()
        opened.append(path)
        return found

    monkeypatch.setattr(os, "open", slow)
    with held(lock, "it", "wait"):
        monkeypatch.undo()
        assert opened.count(lock) == 2 and lock.exists()
        _refused(lock)
    assert not lock.exists()


def test_without_the_systems_locks_a_live_process_of_this_machine_is_still_seen(lock, without_locks, quick):
    with held(lock, "it", "wait"):
        _refused(lock)
    assert not lock.exists()


@pytest.mark.parametrize("what", ["ended", "another process with its number", "of an earlier version"])
def test_a_process_of_this_machine_that_is_gone_is_never_in_the_way(lock, what, without_locks, capsys):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = {
        "ended": dataclasses.replace(Holder.own(), process=int(gone.stdout), started=1),
        "another process with its number": dataclasses.replace(Holder.own(), started=1),
    }
    lock.write_bytes(left[what].as_line() if what in left else b"process 7 on host")
    began = time.monotonic()
    with held(lock, "it", "wait"):
        assert Holder.read(lock.read_text()).process == os.getpid()
    assert time.monotonic() - began < 5
    assert ("which is gone: its lock is taken over" in capsys.readouterr().err) == (what in left)


def test_another_machine_is_judged_by_its_signs_of_life(lock, quick, without_locks, capsys, monkeypatch):
    there = _elsewhere()
    lock.write_bytes(there.as_line())
    with held(lock, "it", "wait"):  # no sign in STALE_SECONDS
        pass
    said = capsys.readouterr().err
    assert "is held by process" in said and "on other" in said and "waiting up to" in said and "is taken over" in said
    monkeypatch.setattr(locks, "STALE_SECONDS", 120.0)
    lock.write_bytes(there.as_line())
    os.utime(lock, (1, 1))  # by the file system's clock, whatever its own says
    began = time.monotonic()
    with held(lock, "it", "wait"):
        assert time.monotonic() - began < 60
    beating = """
import sys, time, dataclasses, json
values = json.loads(sys.argv[2])
with open(sys.argv[1], "r+b") as file:
    for i in range(2400):
        file.seek(0)
        file.write(json.dumps(values | {"beat": float(i)}).ljust(600).encode())
        file.flush()
        time.sleep(0.05)
"""
    lock.write_bytes(there.as_line())
    with subprocess.Popen([sys.executable, "-c", beating, str(lock), json.dumps(dataclasses.asdict(there))]) as alive:
        _refused(lock, r"it is in use by process \d+ on other")
        alive.kill()


def test_a_system_lock_of_a_machine_that_is_gone_is_taken_over(lock, quick):
    """A file server may keep it for minutes."""
    import fcntl

    with open(lock, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(_elsewhere().as_line())
        file.flush()
        with held(lock, "it", "wait"):
            _refused(lock)


def test_who_lost_its_lock_writes_nothing_more(lock, quick, capsys):
    check_held(lock)  # held by nobody
    with held(lock, "it", "wait") as mine:
        check_held(lock)
        lock.write_bytes(_elsewhere(token="theirs").as_line())
        with pytest.raises(UserError, match="it was taken over by process .* on other .*nothing more is written"):
            check_held(lock)
        assert mine.lost.token == "theirs"
    assert "it was taken over by" in capsys.readouterr().err and lock.exists()  # theirs stays


def test_signs_of_life_are_written(lock, quick):
    with held(lock, "it", "wait"):
        first = Holder.read(lock.read_text())
        for _ in range(5000):
            if (later := Holder.read(lock.read_text())).beat > first.beat:
                break
            time.sleep(0.02)
    assert later.beat > first.beat and dataclasses.replace(later, beat=0) == dataclasses.replace(first, beat=0)
