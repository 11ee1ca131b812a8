"""What several processes agree on ahead of time: the same on each, without a device, and nothing is left behind."""

from __future__ import annotations

import types

import jax
import pytest
from jax._src import distributed

from align_jax.errors import UserError
from align_jax.parallel import processes
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
    waiting.join(5)
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
    class Store:
        key_value_set = key_value_delete = None

        def blocking_key_value_get(self, key, timeout_in_ms):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: the first process is gone")

    monkeypatch.setattr(distributed, "global_state", types.SimpleNamespace(client=Store()))
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
        processes.LargestAhead()((1, 2))
