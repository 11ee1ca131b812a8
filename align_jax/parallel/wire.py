"""One connection between two processes: JSON, a line a message; the kernel sees when the other end is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import weakref
from typing import Any

LONGEST = 2**24  # bytes of a message; more is no process of ours
_SEND_SECONDS = 5.0
_KEEP_ALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 9000}  # nine seconds of silence


class Wire:
    """A connected socket, and what was half received.

    A host that vanished is noticed after nine seconds, by the kernel: a process that is only busy, or stopped, stays.
    """

    def __init__(self, connected: socket.socket):
        self.socket, self._rest = connected, b""
        connected.setblocking(True)
        connected.settimeout(_SEND_SECONDS)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                with contextlib.suppress(OSError):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        _open.add(self)

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def other(self) -> str:
        """The other end's address; empty where it is gone."""
        with contextlib.suppress(OSError):
            return str(self.socket.getpeername()[0]).removeprefix("::ffff:")
        return ""

    def send(self, message: dict[str, Any]) -> bool:
        """Sends; False where the other end is gone, or takes nothing for seconds."""
        try:
            self.socket.sendall(json.dumps(message, default=str).encode() + b"\n")
            return True
        except OSError:
            return False

    def receive(self) -> list[dict[str, Any]] | None:
        """What has arrived, at least a part of a message; None where the other end is gone.

        Raises:
          ValueError: what arrived is no message, so nothing of ours.
          TimeoutError: nothing arrives.
        """
        try:
            piece = self.socket.recv(2**16)
        except TimeoutError:
            raise
        except OSError:
            return None
        if not piece:
            return None
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST or (self._rest and not self._rest.startswith(b"{")):
            raise ValueError("no message")
        try:
            found = [json.loads(line) for line in lines]
        except RecursionError as error:
            raise ValueError("no message") from error
        if not all(isinstance(message, dict) for message in found):
            raise ValueError("no message")
        return found

    def close(self) -> None:
        _open.discard(self)
        with contextlib.suppress(OSError):
            self.socket.close()


_open: weakref.WeakSet[Wire] = weakref.WeakSet()


def _forget() -> None:
    for wire in list(_open):
        wire.close()


os.register_at_fork(after_in_child=_forget)  # or a child would hold the connection of a parent that was killed
