"""Several processes as one: what the first one's disk holds, and what it decides, is so for all."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.errors import UserError
from align_jax.private import changed, private


def on_first(work: Callable[[], object], what: str) -> None:
    """Does `work` on the first process, and lets the others go on when it is done; all must call.

    Args:
      work: such as writing a file. what: its name in the error of the other processes.

    Raises:
      UserError: on the other processes, where the work failed; the first one raises what `work` raised.
    """
    failure = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as caught:
            failure = caught
    failed = of_first(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise UserError(f"{what}: the first process failed; its own message says why")


def of_first(value: int) -> int:
    """The first process's value (a bool, or a number below 2^31), on every process; all must call."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def largest_anywhere(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The largest of each size over all processes, asked for on the devices: they wait; all must call."""
    return tuple(int(n) for n in multihost_utils.process_allgather(np.asarray(sizes)).max(axis=0))


class LargestAhead:
    """`largest_anywhere` for a thread of its own: the processes ask one another over the network, no device takes part.

    All processes make these objects, and call each of them, equally often and in the same order. The first process reads what
    all others wrote, and writes what is largest.
    """

    def __init__(self):
        self._store, self._name, self._round = _key_value_store(), f"align_jax/largest/{next(_NUMBERS)}", 0
        self._closed = threading.Event()

    def __call__(self, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
        """The largest of each size, when all processes have asked; None when it was closed meanwhile."""
        folder, self._round = f"{self._name}/{self._round}", self._round + 1
        if jax.process_index() > 0:
            self._store.key_value_set(key=f"{folder}/{jax.process_index()}", value=json.dumps(sizes))
            return self._read(f"{folder}/largest")
        for other in range(1, jax.process_count()):
            theirs = self._read(f"{folder}/{other}")
            if theirs is None:
                return None
            sizes = tuple(map(max, sizes, theirs))
        self._store.key_value_set(key=f"{folder}/largest", value=json.dumps(sizes))
        if self._round > 1:  # all have asked again, so all have read what was answered before
            self._store.key_value_delete(key=f"{self._name}/{self._round - 2}/")
        return sizes

    def close(self) -> None:
        """Ends a call that waits, and all later ones."""
        self._closed.set()

    def _read(self, key: str) -> tuple[int, ...] | None:
        while not self._closed.is_set():
            try:
                return tuple(json.loads(self._store.blocking_key_value_get(key=key, timeout_in_ms=_PATIENCE_MS)))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        return None


_NUMBERS = itertools.count()  # of the `LargestAhead` of this process, the same in every process
_PATIENCE_MS = 200  # how long a closed one may still wait


def _key_value_store() -> Any:
    """The strings that all processes of `jax.distributed` share, which JAX has no public name for."""
    client = private("processes").client
    methods = ("key_value_set", "blocking_key_value_get", "key_value_delete")
    if missing := [name for name in methods if not hasattr(client, name)]:
        raise changed("processes", f"its client has no {', '.join(missing)}")
    return client
