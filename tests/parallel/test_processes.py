"""What several processes agree on ahead of time: the same on each, without a device, and nothing is left behind."""

from __future__ import annotations

import itertools
import threading
import types

import jax
import pytest
from jax._src import distributed

from align_jax.errors import UserError
from align_jax.parallel import processes
from align_jax.parallel.roll_call import MissingProcess
from tests.processes import finish, start_two_programs

_PROGRAM = """
import threading, time
import jax
rank = int(__import__("os").environ["JAX_PROCESS_ID"])
jax.distributed.initialize(num_processes=2, process_id=rank)
from jax._src import distributed
from align_jax.parallel.processes import LargestAhead, largest_anywhere

asked = [(n + rank, 7 - rank, n * 3) for n in range(20)]
expected = [(n + 1, 7, n * 3) for n in range(20)]
first, second = LargestAhead(), LargestAhead()
found = {}
threads = [threading.Thread(target=lambda a=a: found.__setitem__(a, [a(sizes) for sizes in asked])) for a in (first, second)]
[thread.start() for thread in threads]
# the devices agree meanwhile, on something else
assert [largest_anywhere((n * (rank + 1),)) for n in range(20)] == [(n * 2,) for n in range(20)]
[thread.join() for thread in threads]
assert found == {first: expected, second: expected}, found

largest_anywhere((0,))  # both are done
left = distributed.global_state.client.key_value_dir_get("align_jax/")
assert {key.split("/")[3] for key, _ in left} == {"19"}, left  # only the last round of each

alone = LargestAhead()
if rank == 0:  # the other never asks
    waiting = threading.Thread(target=lambda: found.update(alone=alone((1,))))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive()
    alone.close()
    waiting.join(60)
    assert not waiting.is_alive() and found["alone"] is None
largest_anywhere((0,))
"""


def test_two_processes_agree_in_threads_of_their_own():
    finish(start_two_programs(_PROGRAM, []))


def test_a_jax_without_the_store_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "global_state", types.SimpleNamespace(client=object()))
    with pytest.raises(
        UserError, match=rf"jax {jax.__version__}: jax\._src\.distributed\.global_state: its client has no key_value_set"
    ):
        processes.LargestAhead()


def test_another_error_than_patience_is_raised(monkeypatch):
    jax.devices()  # before its client is replaced

    class Store:
        key_value_set = key_value_delete = None

        def blocking_key_value_get(self, key, timeout_in_ms):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: the first process is gone")

    monkeypatch.setattr(distributed, "global_state", types.SimpleNamespace(client=Store()))
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
        processes.LargestAhead()((1, 2))


class _Store:
    """The key-value store of several processes that are threads here."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            assert key not in self.values, key
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def key_value_delete(self, key):
        with self.changed:
            self.values = {name: value for name, value in self.values.items() if not name.startswith(key)}


@pytest.fixture
def three(monkeypatch):
    """Runs something as three processes: `three(work)` with `work(index)` gives each one's result or error."""
    here, store = threading.local(), _Store()
    counts = [itertools.count(1) for _ in range(3)]
    fake = types.SimpleNamespace(process_count=lambda: 3, process_index=lambda: here.index, errors=jax.errors)
    monkeypatch.setattr(processes, "jax", fake)
    monkeypatch.setattr(processes, "_key_value_store", lambda: store)
    monkeypatch.setattr(processes, "_LOOK_MS", 20)

    class Counter:
        def __next__(self):
            return next(counts[here.index])

    monkeypatch.setattr(processes, "_DECISIONS", Counter())

    def run(work):
        found = {}

        def one(index):
            here.index = index
            try:
                found[index] = work(index)
            except UserError as error:
                found[index] = error

        threads = [threading.Thread(target=one, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return [found[i] for i in range(3)]

    run.store = store
    return run


def test_what_is_decided_is_so_for_all_and_little_is_left(three):
    def work(index):
        numbers = [processes.decided("the largest", index * n, max) for n in range(5)]
        return numbers, processes.from_first("the first", lambda: f"of {index}")

    assert three(work) == [([0, 2, 4, 6, 8], "of 0")] * 3
    assert {key.split("/")[2] for key in three.store.values} == {"6"}


def test_what_differs_is_named_on_all(three):
    facts = {"train.steps": 4, "data": [1]}
    errors = three(lambda index: processes.agree("the config", facts | ({"train.steps": 6} if index == 1 else {})))
    assert {str(error) for error in errors} == {
        "the processes were told different things; start all alike: train.steps: 4 on processes 0, 2, 6 on process 1"
    }
    assert three(lambda index: processes.agree("the config", facts)) == [None] * 3


def test_what_one_finds_wrong_holds_for_all(three):
    def part(index, error):
        if index == 2:
            raise error
        return index

    spell = lambda error: f"{type(error).__name__}: {error}"  # noqa: E731
    assert three(lambda i: processes.tried("reading", lambda: i, spell)) == [(0, ""), (1, ""), (2, "")]
    wrong = three(lambda i: processes.tried("reading", lambda: part(i, OSError("cut short")), spell))
    assert wrong == [(None, "OSError: cut short (on process 2 of 3)")] * 3
    errors = three(lambda i: processes.tried("reading", lambda: part(i, UserError("another model")), spell))
    assert {str(error) for error in errors} == {"another model (on process 2 of 3)"}


def test_one_that_does_not_answer_is_named_and_then_not_waited_for(three, monkeypatch, capsys):
    monkeypatch.setattr(processes, "_limit", [2.0])
    monkeypatch.setattr("align_jax.parallel.roll_call._TIMES", (0.1, 9.0))
    zero, absent, two = three(lambda i: None if i == 1 else processes.decided("the rows", i, max))
    assert absent is None and isinstance(zero, MissingProcess) and isinstance(two, MissingProcess)
    assert str(zero).startswith("nothing came in time (run.wait_s) from process 1 of 3: the rows")
    assert "align-jax: waiting for process 1 of 3: the rows, for 0." in capsys.readouterr().err
