"""Batches in the shape that all processes agree on, some of them ahead of time in a thread of their own."""

from __future__ import annotations

import dataclasses
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax

from align_jax.batch import GroupBatch, pad_to, sizes
from align_jax.data.spreading import Draft, Spreading

Agree = Callable[[tuple[int, ...]], tuple[int, ...] | None]


class AgreedAhead:
    """A loader's training batches in the shape that all processes agree on, with its state after each, a few made ahead.

    Args:
      loader: a `BatchLoader`: its `drawn()` gives what it made, its state, and what makes the batch of that and `agree`.
      agree: as the loader's, with a method `close()`, after which it returns None.
    """

    def __init__(self, loader: Any, agree: Any):
        self._agree, self._closed = agree, threading.Event()
        self._made: queue.Queue = queue.Queue(maxsize=2)
        # A loader that nobody holds any more must go, and its thread with it.
        self._thread = threading.Thread(target=self._run, args=(weakref.ref(loader),), daemon=True)
        weakref.finalize(loader, self.close)
        self._thread.start()

    def get(self) -> tuple[GroupBatch, Any]:
        """The next batch and state; raises what making it raised."""
        made = self._made.get()
        if isinstance(made, BaseException):
            self._made.put(made)  # for who asks again
            raise made
        return made

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._agree.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, source: weakref.ref) -> None:
        try:
            while not self._closed.is_set() and (loader := source()) is not None:
                drawn, state, agreeing = loader.drawn()
                del loader  # what follows waits for others
                batch = agreeing(drawn, self._agree)
                if batch is None:
                    return
                self._hand_out((batch, state))
        except BaseException as error:
            self._hand_out(error)

    def _hand_out(self, made: Any) -> None:
        while not self._closed.is_set():
            try:
                return self._made.put(made, timeout=0.2)
            except queue.Full:
                continue


def agreed(spreading: Spreading | None, batch: GroupBatch | Draft, agree: Agree) -> GroupBatch | None:
    """The batch in the shape of all processes; None when `agree` was closed."""
    if isinstance(batch, Draft):
        made = spreading.batch(batch, agree)
        return made if made is None or batch.microbatches == 0 else stacked(made, batch.microbatches)
    to = agree(sizes(batch))
    # Whether rows are uniform may differ between processes too, and is part of what is compiled.
    return None if to is None else dataclasses.replace(pad_to(batch, to), uniform=False)


def stacked(batch: GroupBatch, count: int) -> GroupBatch:
    """The batch with its microbatches on a leading axis."""
    return jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[1:]), batch)
