"""Stopping in order: what SIGTERM asks for, remembered until the work can be left."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

STOPPED = 128 + signal.SIGTERM  # exit status of a command that SIGTERM ended before its work was done


class StopSignal:
    """Remembers SIGTERM; a context manager, so that the previous handler comes back.

    On one process outside the main thread, where Python lets nobody handle signals, it never fires.
    On several processes all must stop after the same question, which JAX's preemption service agrees on: all ask equally often.
    """

    def __init__(self):
        self._received, self._asked, self._previous = False, 0, None

    def __enter__(self) -> StopSignal:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _remember(self, *_: Any) -> None:
        self._received = True

    def requested(self) -> bool:
        """Whether to stop now."""
        self._asked += 1
        if jax.process_count() > 1 and not self._received:
            self._received = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._received
