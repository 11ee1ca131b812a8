"""Stopping in order: what SIGTERM or Ctrl-C asks for, remembered until the work can be left."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

STOPPED = 128 + signal.SIGTERM  # exit status of a command that SIGTERM ended before its work was done
INTERRUPTED = 128 + signal.SIGINT  # exit status of a command that Ctrl-C ended, also after it saved
GRACE_SECONDS = 2.0  # for what is on its way out at once


class StoppedPass(SystemExit):
    """A pass was left because a stop was asked for, and what it has is kept; where nobody catches this, the process ends.

    With status `STOPPED`; where it was Ctrl-C, leaving the `StopSignal` makes it a KeyboardInterrupt.

    Attributes:
      said: whether the user was told what is kept.
    """

    said = False

    def __init__(self):
        super().__init__(STOPPED)


class StopSignal:
    """Remembers SIGTERM and the first Ctrl-C; a context manager, so that the previous handlers come back.

    That a terminal is closed (SIGHUP) is a SIGTERM, unless it is ignored, as by nohup.

    Where nothing would be lost (before the first question, after `idle`) both stop at once, by KeyboardInterrupt and by
    SystemExit(STOPPED); so does Ctrl-C when it is pressed again. Where Ctrl-C was remembered, leaving the context raises
    KeyboardInterrupt, also in place of `StoppedPass`, so that what follows does not run.
    On one process outside the main thread, where Python lets nobody handle signals, it never fires.
    On several processes all must stop after the same question, which JAX's preemption service agrees on: all ask equally often;
    a first Ctrl-C is handed to it as a SIGTERM, and so always remembered.

    Args:
      after: what is finished before it stops, for the user.
      tell: what a line for the user is given to; None prints it to stderr.
    """

    def __init__(self, after: str = "what is in the making", tell: Callable[[str], Any] | None = None):
        self._after, self._tell = after, tell or tell_stderr
        self._context = contextvars.copy_context()  # another thread may tell it
        self._received, self._interrupted, self._previous = False, False, {}
        self._waits = self._told = False
        self._heard = threading.Event()

    def __enter__(self) -> StopSignal:
        global _active
        if threading.current_thread() is threading.main_thread():
            wanted = {signal.SIGINT: self._interrupt}
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup, again
                wanted[signal.SIGHUP] = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
            if jax.process_count() == 1:  # of several, JAX's preemption service has SIGTERM
                wanted[signal.SIGTERM] = self._remember
            for number, handler in wanted.items():
                if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._previous[number] = signal.signal(number, handler)
            _active = self
        self.idle()
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        global _active
        if self._interrupted and _listening:
            self._heard.wait(1.0)  # or the thread would take this Ctrl-C for one that nobody remembers
        _active = None if _active is self else _active
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._interrupted and (kind is None or issubclass(kind, StoppedPass)):
            raise KeyboardInterrupt(f"stopped after {self._after}") from None

    @property
    def cause(self) -> str:
        """What asked for the stop."""
        return "Ctrl-C" if self._interrupted else "SIGTERM"

    @property
    def heard(self) -> bool:
        """Whether a stop was asked for, also where the work was done by then; of several processes as far as all know."""
        return self._received

    def requested(self) -> bool:
        """Whether to stop now; from here on the first Ctrl-C waits for the next question."""
        self._waits = True
        if jax.process_count() > 1 and not self._received:
            self._received = multihost_utils.reached_preemption_sync_point(next(_questions))
        return self._received

    def leave(self) -> None:
        """StoppedPass where to stop now; unlike `requested` it lets the first Ctrl-C stop at once where it did before."""
        waits = self._waits
        if self.requested():
            raise StoppedPass
        self._waits = waits

    def idle(self) -> None:
        """Until the next question there is nothing to lose: the first Ctrl-C stops at once."""
        self._waits = jax.process_count() > 1

    @contextlib.contextmanager
    def during(self, after: str) -> Iterator[None]:
        """Within it, what is finished before it stops is `after`; behind it there is nothing to lose."""
        before, self._after = self._after, after
        try:
            yield
        finally:
            self._after = before
            self.idle()

    @property
    def waits(self) -> bool:
        """Whether a stop waits for the next question; otherwise there is nothing to lose, and it is at once."""
        return self._waits

    def hear(self) -> bool:
        """Takes a Ctrl-C from a thread that hears it, perhaps before the main thread does; False where it stops at once."""
        # Where the main thread was quicker, and is past what it waited for by now, this is the one that it remembers.
        if self._heard.is_set() or not (self._waits or self._interrupted):
            return False
        self._heard.set()
        self._announce()
        return True

    def _announce(self) -> None:
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # a handler that came while a line was being written
                self._context.run(self._tell, f"stopping after {self._after}; Ctrl-C again stops now")

    def _remember(self, *_: Any) -> None:
        if not self._waits:
            with contextlib.suppress(RuntimeError):
                self._context.run(self._tell, "stopped by SIGTERM; nothing is lost that was made")
            raise SystemExit(STOPPED)
        self._received = True
        self._announce()

    def _interrupt(self, *_: Any) -> None:
        if self._interrupted or not self._waits:
            raise KeyboardInterrupt
        self._interrupted = True
        self._announce()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._received = True


# Numbers that only grow, over all signals of the process: all stop at the number that JAX has them agree on, once.
_questions = itertools.count(1)
_active: StopSignal | None = None
_listening = False  # whether a thread hears of signals, see `interruptible`
_cleanups: list[Callable[[], Any]] = []


@contextlib.contextmanager
def listening() -> Iterator[StopSignal]:
    """The signal of the work around this block, or where there is none, one of the block's own."""
    if _active is not None and threading.current_thread() is threading.main_thread():
        yield _active
        return
    with StopSignal() as own:
        yield own


def leave_if_asked() -> None:
    """StoppedPass where the work around is to stop: asked between the batches of a pass that keeps nothing of its own."""
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.leave()


@contextlib.contextmanager
def cleaned_up(work: Callable[[], Any]) -> Iterator[None]:
    """Does `work` when the block ends, in whatever way; also where Ctrl-C ends the process, see `interruptible`."""
    _cleanups.append(work)
    try:
        yield
    finally:
        _cleanups.remove(work)
        work()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it Ctrl-C is heard at once, for programs that own their process, such as the command line.

    Python's handlers wait until the main thread is back in Python, and a compilation takes minutes: a thread hears the signal,
    tells the user, and where the work is to stop now but does not, ends the process with status `INTERRUPTED`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    deadlines: list[threading.Timer] = []
    thread = threading.Thread(target=_listen, args=(reader, deadlines), daemon=True)
    thread.start()
    global _listening
    _listening, interrupted, hook = True, False, sys.unraisablehook

    def unraisable(what: Any) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):  # raised where Python drops it: the deadline is kept all the same
            hook(what)

    sys.unraisablehook = unraisable
    try:
        yield
    except KeyboardInterrupt as error:
        interrupted = not error.args  # else it was remembered, and the work left in order
        raise
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()
        thread.join()
        _listening, sys.unraisablehook = False, hook
        if interrupted and deadlines:
            leave()  # threads that write would complain of the interpreter's end
        for deadline in deadlines:
            deadline.cancel()


def _listen(reader: socket.socket, deadlines: list[threading.Timer]) -> None:
    """Hears the numbers of signals until nobody writes them any more."""
    with reader:
        while number := reader.recv(1):
            if number[0] == signal.SIGINT and not (_active is not None and _active.hear()):
                deadlines.append(threading.Timer(GRACE_SECONDS, leave))
            elif number[0] == signal.SIGTERM and _active is not None and not (_active.waits or _active.heard):
                deadlines.append(threading.Timer(GRACE_SECONDS, leave, ("stopped by SIGTERM", STOPPED)))
            else:
                continue
            deadlines[-1].daemon = True
            deadlines[-1].start()


def leave(line: str = "interrupted", status: int = INTERRUPTED) -> None:
    """Ends the process, whatever its other threads do, after the work of `cleaned_up`; an empty line is not printed."""
    for work in reversed(_cleanups):
        with contextlib.suppress(Exception):
            work()
    if line:
        tell_stderr(line)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(status)


def tell_stderr(line: str, prefix: str = "align-jax: ") -> None:
    """A line for the user, where nobody else takes it; in one piece, between those of other processes and threads."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stderr.write(f"{prefix}{line}\n")
        sys.stderr.flush()
