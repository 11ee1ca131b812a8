"""The other processes of a job while it runs: one that fails tells all, one that is lost is noticed, and none waits for it."""

from __future__ import annotations

import contextlib
import functools
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from align_jax.errors import UserError
from align_jax.parallel.launched import Launch
from align_jax.parallel.roll_call import LOST, spelled
from align_jax.parallel.stop import INTERRUPTED, cleaned_up, leave, tell_stderr
from align_jax.parallel.wire import Wire

_USAGE_ERROR = 2
_GRACE = 1.0  # seconds in which this process may fail by itself, of the same cause, and say so
_FIRST = 0.3  # seconds in which an error may turn out to be the consequence of another process's
_BROKEN = 8.0  # the same for an error of what runs on the devices, or between them
_DEPART = 3.0  # seconds that one who knows why all end waits for the others to know it
_advice: list[Callable[[], str]] = []


@contextlib.contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """While the block runs, what a lost process is followed by: what is kept, in a few words."""
    _advice.append(advice)
    try:
        yield
    finally:
        _advice.remove(advice)


class Company:
    """The connections to the other processes, watched by a thread: the first one's to all, and each other's to the first.

    Args:
      launch: of this process. own: who this process is. wires: to the others, with who they are. again: the command to start
        again.
    """

    def __init__(self, launch: Launch, own: dict[str, Any], wires: dict[int, tuple[Wire, dict[str, Any]]], again: str = ""):
        self._launch, self._own, self._wires, self._again = launch, own, dict(wires), again
        self._reason: dict[str, Any] | None = None  # why all end before the work is done
        self._lock, self._known, self._shown = threading.Lock(), threading.Event(), threading.Event()
        self._line = ""  # of this process's own error
        self._ended = False
        self._left: set[int] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether all have done their work."""
        return self._ended

    @contextlib.contextmanager
    def guarding(self, command: str, wait_for_all: Callable[[], Any]) -> Iterator[None]:
        """Around the work: however it ends here, the others know, and this process ends without waiting for one that failed.

        Args:
          command: begins the line of an error. wait_for_all: returns when all have done their work.
        """
        try:
            with cleaned_up(self._interrupted):
                yield
                self._end(wait_for_all)
        except (UserError, OSError) as error:
            show = functools.partial(tell_stderr, str(error), f"align-jax {command}: ")
            patience = _BROKEN if _follows(str(error)) else _FIRST
            self.fail(str(error), getattr(error, "status", _USAGE_ERROR), show, patience)
        except KeyboardInterrupt as error:
            if not error.args:  # pressed twice; else all of them stop
                show = functools.partial(tell_stderr, "interrupted", f"align-jax {command}: ")
                self.fail("interrupted", INTERRUPTED, show)
            self._end(wait_for_all)
            raise
        except SystemExit:  # that all agreed on
            self._end(wait_for_all)
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0][:300]
            self.fail(f"{type(error).__name__}: {first}", 1, traceback.print_exc, _BROKEN)

    def fail(self, line: str, status: int, show: Callable[[], Any], patience: float = _FIRST) -> NoReturn:
        """Tells all others that this process failed, and ends it; where another one was first, that is what is said.

        Args:
          line: its error. status: its exit status, and that of all. show: prints it. patience: seconds in which another one's
            failure may turn out to be its cause.
        """
        if self._known.wait(patience):
            if self._reason["kind"] == "failed" and patience < _BROKEN:
                show()  # the same error as the other's is its own, too, and is said once
            self._line = line
            self._shown.set()
            while True:  # the thread ends the process
                time.sleep(1.0)
        show()
        self._line = line
        self._conclude({"kind": "failed", "who": self._own, "line": line, "status": status})
        self._depart(status)

    def gave_up(self) -> None:
        """For JAX's own notice that processes are lost, in one of its threads: ends this process, if nobody else does."""
        if not self._known.wait(_DEPART):
            self._conclude({"kind": "silent", "who": self._own, "line": "", "status": LOST})
        time.sleep(_BROKEN)
        leave(self._words(self._reason), LOST)

    def _interrupted(self) -> None:
        if not self._ended and not self._known.is_set() and sys.exc_info()[0] is None:
            self._conclude({"kind": "failed", "who": self._own, "line": "interrupted", "status": INTERRUPTED})

    def _end(self, wait_for_all: Callable[[], Any]) -> None:
        try:
            wait_for_all()
        except Exception:  # the thread says why
            self._known.wait(_BROKEN)
            if self._known.is_set():
                time.sleep(10 * _BROKEN)
            raise
        with self._lock:
            self._ended = True
        for wire, _ in self._wires.values():
            wire.send({"bye": True})

    def _conclude(self, reason: dict[str, Any]) -> bool:
        """Tells all why they end; False where another reason was first."""
        with self._lock:
            if self._reason is not None or self._ended:
                return False
            self._reason = reason
        for wire, _ in list(self._wires.values()):
            wire.send({"over": reason})
        self._known.set()
        return True

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for i, (wire, _) in self._wires.items():
                selector.register(wire, selectors.EVENT_READ, i)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                        self._left.add(key.data)
                if self._reason is not None and self._reason["who"] != self._own:
                    break
        if self._reason is not None and self._reason["who"] != self._own:
            if self._reason["kind"] == "failed":
                self._shown.wait(_GRACE)
            said = self._words(self._reason)
            if self._reason["line"] and self._line == self._reason["line"]:
                said = ""
            self._depart(self._reason["status"], said)

    def _hear(self, i: int) -> bool:
        """What another process says; False where it is gone, or done."""
        wire, who = self._wires[i]
        try:
            messages = wire.receive()
        except TimeoutError:
            return True
        except ValueError:
            messages = None
        if messages is None:
            self._conclude({"kind": "lost", "who": who, "line": "", "status": LOST})
            return False
        for message in messages:
            if "bye" in message:
                return False
            if isinstance(reason := message.get("over"), dict):
                self._conclude(reason)
        return True

    def _words(self, reason: dict[str, Any]) -> str:
        if reason["kind"] == "failed":
            return f"{spelled(reason['who'])} failed: {reason['line']}"
        if reason["kind"] == "lost":
            what = f"{spelled(reason['who'])} is lost"
        else:
            seen = f"(seen by process {self._launch.index})"
            what = f"the {self._launch.number} processes do not reach one another any more {seen}"
        with contextlib.suppress(Exception):  # a disk that is gone, too
            what += "".join(f"; {text}" for advice in _advice[-1:] if (text := advice()))
        return f"{what}; start all {self._launch.number} processes again" + (f": {self._again}" if self._again else "")

    def _depart(self, status: int, said: str = "") -> NoReturn:
        """Ends the process when the others know why, the first one as the last: JAX's service ends with it."""
        until = time.monotonic() + _DEPART
        if said:
            tell_stderr(said)
        if self._launch.index == 0:
            while len(self._gone()) < len(self._wires) and time.monotonic() < until:
                time.sleep(0.02)
        leave("", status)

    def _gone(self) -> set[int]:
        """Which others have closed their connection."""
        for i, (wire, _) in self._wires.items():
            if i not in self._left:
                with contextlib.suppress(TimeoutError, ValueError, OSError):
                    wire.socket.settimeout(0.01)
                    if wire.receive() is None:
                        self._left.add(i)
        return self._left


def _follows(line: str) -> bool:
    """Whether an error speaks of the connections between processes, and so may follow from what another one did."""
    return any(word in line for word in ("Gloo", "NCCL", "JaxRuntimeError", "XlaRuntimeError", "BarrierError"))
