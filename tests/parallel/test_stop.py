"""SIGTERM is remembered in the main thread, and asked for nowhere else."""

from __future__ import annotations

import os
import signal
import threading

from align_jax.parallel.stop import StopSignal


def test_sigterm_is_remembered_and_the_handler_before_comes_back():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("before"))
    try:
        with StopSignal() as stop:
            assert not stop.requested()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested() and stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["before"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_it_never_fires():
    seen, handler = [], signal.getsignal(signal.SIGTERM)

    def work():
        with StopSignal() as stop:
            seen.append((stop.requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, handler)]
