"""Processes that are started as one meet before JAX starts: who is missing is said, and who was told other things.

The first one listens at the coordinator's address, which JAX's own service takes when all are there; the connections stay, and
tell later of a process that fails or is lost, see `align_jax.parallel.company`. Knows no JAX.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from align_jax.errors import UserError
from align_jax.parallel.facts import differences, named
from align_jax.parallel.launched import ADDRESS, INDEX, NUMBER, Launch
from align_jax.parallel.wire import Wire
from align_jax.terminal import PREFIX, spell_seconds, write_line

LOST = 75  # exit status where another process is gone, or never came: start all of them again
WAIT_SECONDS = 300.0  # as `run.wait_s` is where no config is read
LINGER_SECONDS = 15.0  # that one which failed before all were there waits for others to tell
_TIMES = (5.0, 15.0, 30.0, 60.0)  # when a line says what is waited for; then every so many seconds as the last
_LOOK, _PAUSE, _CONNECT = 0.2, 0.25, 3.0
_TAKEN_SECONDS = 10.0  # of an earlier run that is just ending


class MissingProcess(UserError):
    """A process did not come in time, or is gone; another start may help."""

    status = LOST


class FailedElsewhere(UserError):
    """Another process failed, whose line this is."""


class Announcements:
    """Lines that say what is waited for, ever more rarely."""

    def __init__(self, limit: float, tell: Callable[[str], Any] | None = None):
        self._began, self._limit, self._tell = time.monotonic(), limit, tell or tell_user
        self._next = 0

    @property
    def over(self) -> bool:
        return time.monotonic() - self._began >= self._limit

    @property
    def due(self) -> bool:
        """Whether it is time for a line."""
        last = len(_TIMES) - 1
        at = _TIMES[self._next] if self._next <= last else _TIMES[last] * (self._next - last + 1)
        return time.monotonic() - self._began >= at < self._limit

    def say(self, what: str) -> None:
        """Says it, with how long it took, and may take."""
        self._next += 1
        waited = spell_seconds(time.monotonic() - self._began)
        self._tell(f"{what}, for {waited} of at most {spell_seconds(self._limit)} (run.wait_s)")


def tell_user(line: str) -> None:
    """A line on stderr."""
    write_line(PREFIX + line)


def hello_of(launch: Launch, facts: dict[str, Any], failed: str | None = None) -> dict[str, Any]:
    """How a process says who it is, and what it was told, or why it cannot take part."""
    who = {"process": launch.index, "of": launch.number, "host": socket.gethostname(), "pid": os.getpid()}
    return {"align_jax": 1, **who, "facts": facts, "failed": failed}


def spelled(hello: dict[str, Any]) -> str:
    """`process 1 of 4 (host, pid 12)`."""
    return f"process {hello['process']} of {hello['of']} ({hello['host']}, pid {hello['pid']})"


def receive_first(launch: Launch, hello: dict[str, Any], limit: float, tell=None) -> dict[int, tuple[Wire, dict[str, Any]]]:
    """The first process's part: waits for all others; their wires and who they are.

    Args:
      hello: of `hello_of`; where it says that this process failed, the others are told, and nothing is returned.
      limit: seconds. tell: takes lines for the user.

    Raises:
      MissingProcess: some did not come, who are named.
      FailedElsewhere: one of them failed.
      UserError: two are the same one, or they were told different things, key by key.
    """
    hall = _Hall(launch, hello, Announcements(limit, tell), tell or tell_user)
    try:
        return hall.fill()
    finally:
        hall.close()


class _Hall:
    """Where the first process waits for the others."""

    def __init__(self, launch: Launch, hello: dict[str, Any], waiting: Announcements, tell: Callable[[str], Any]):
        self._launch, self._hello, self._waiting, self._tell = launch, hello, waiting, tell
        self._present: dict[int, tuple[Wire, dict[str, Any]]] = {}
        self._reason: str | None = None  # why the job does not begin
        self._told = 0  # how many know it
        self._odd: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._listener = _listening(launch, hello)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        if hello["failed"] is not None:
            self._refuse(f"{spelled(hello)} failed: {hello['failed']}")

    def fill(self) -> dict[int, tuple[Wire, dict[str, Any]]]:
        number = self._launch.number
        while self._reason is None and len(self._present) < number - 1:
            self._look()
            if self._reason is None and self._waiting.over:
                late = f"{self._missing()} did not come to {self._launch.address} {_remedy(self._launch)}"
                self._refuse(late, MissingProcess)
            elif self._reason is None and self._waiting.due:
                self._waiting.say(f"waiting at {self._launch.address} for {self._missing()}")
                self._send_all({"missing": self._missing()})
        if self._reason is None:
            facts = {i: who["facts"] for i, (_, who) in self._present.items()} | {0: self._hello["facts"]}
            if lines := differences(facts):
                self._refuse(told_apart(lines))
        if self._reason is not None:
            self._linger()
        self._leave()
        self._send_all({"go": {key: self._hello[key] for key in ("process", "of", "host", "pid")}})
        return self._present

    def close(self) -> None:
        self._leave()
        self._selector.close()

    def _leave(self) -> None:
        """Frees the port."""
        with contextlib.suppress(KeyError, ValueError, RuntimeError):
            self._selector.unregister(self._listener)
        self._listener.close()

    def _missing(self) -> str:
        return f"{named([i for i in range(1, self._launch.number) if i not in self._present])} of {self._launch.number}"

    def _look(self) -> None:
        for key, _ in self._selector.select(_LOOK):
            if key.data is None:
                with contextlib.suppress(OSError):
                    wire = Wire(self._listener.accept()[0])
                    self._selector.register(wire, selectors.EVENT_READ, wire)
                continue
            wire = key.data
            try:
                messages = wire.receive()
            except TimeoutError:
                continue
            except ValueError:
                self._not_ours(wire)
                messages = None
            if messages is None:
                self._drop(wire)
            for message in messages or []:
                self._enter(wire, message)

    def _not_ours(self, wire: Wire) -> None:
        if wire.other not in self._odd:
            self._odd.add(wire.other)
            self._tell(
                f"{wire.other} calls {self._launch.address}, but is no process of this version of align-jax: an older one, or "
                "another program"
            )

    def _drop(self, wire: Wire) -> None:
        self._selector.unregister(wire)
        wire.close()
        for i in [i for i, (held, _) in self._present.items() if held is wire]:
            _, who = self._present.pop(i)
            if self._reason is None:
                self._tell(f"{spelled(who)} was here, and is gone again")

    def _enter(self, wire: Wire, hello: dict[str, Any]) -> None:
        keys = {"process": int, "of": int, "host": str, "pid": int, "facts": dict}
        if not all(isinstance(hello.get(key), kind) for key, kind in keys.items()):
            self._not_ours(wire)
            self._drop(wire)
            return
        i, number = hello["process"], self._launch.number
        problem, kind = None, UserError
        if hello.get("failed") is not None:
            problem, kind = f"{spelled(hello)} failed: {hello['failed']}", FailedElsewhere
        elif hello["of"] != number:
            problem = f"{NUMBER}: {number} on {spelled(self._hello)}, {hello['of']} on {spelled(hello)}; give all the same"
        elif i == 0 or i in self._present:
            other = self._hello if i == 0 else self._present[i][1]
            problem = f"{INDEX}: {i} is taken twice, by {spelled(other)} and {spelled(hello)}; give each its own"
        if problem is None or i not in self._present:
            self._present[i] = (wire, hello)
        if self._reason is not None:
            self._answer(wire)
        elif problem is not None:
            self._refuse(problem, kind)
            self._answer(wire)

    def _refuse(self, reason: str, kind: type[UserError] = UserError) -> None:
        self._reason, self._kind = reason, kind
        for wire, _ in self._present.values():
            self._answer(wire)

    def _answer(self, wire: Wire) -> None:
        self._told += 1
        wire.send({"error": self._reason, "status": getattr(self._kind, "status", 2)})

    def _linger(self) -> None:
        """Tells those that are still on their way, too, and ends."""
        until = time.monotonic() + (0 if self._kind is MissingProcess else LINGER_SECONDS)
        while self._told < self._launch.number - 1 and time.monotonic() < until:
            self._look()
        raise self._kind(self._reason)

    def _send_all(self, message: dict[str, Any]) -> None:
        for wire, _ in self._present.values():
            wire.send(message)


def report(launch: Launch, hello: dict[str, Any], limit: float, tell=None) -> tuple[Wire, dict[str, Any]]:
    """Another process's part: tells the first one that it is there, and waits for its word; the wire, and who the first one is.

    Raises:
      MissingProcess: the first one did not answer, or others did not come.
      UserError: what the first one found, see `receive_first`.
    """
    waiting, why = Announcements(limit, tell), "nothing was tried"
    while not waiting.over:
        wire, why = _connected(launch, why)
        if wire is not None:
            try:
                wire.send(hello)
                if (first := _word(wire, launch, waiting)) is not None:
                    return wire, first
                why = "it answers, but not as one that waits for processes: another program's port, or a run that began already"
            except BaseException:
                wire.close()
                raise
            wire.close()
        if waiting.due:
            waiting.say(f"waiting for process 0 of {launch.number} at {launch.address}: {why}")
        time.sleep(_PAUSE)
    raise MissingProcess(f"process 0 of {launch.number} did not answer at {launch.address} {_remedy(launch)} ({why})")


def _connected(launch: Launch, why: str) -> tuple[Wire | None, str]:
    try:
        return Wire(socket.create_connection((launch.host, launch.port), _CONNECT)), why
    except OSError as error:
        return None, error.strerror or str(error) or type(error).__name__


def _word(wire: Wire, launch: Launch, waiting: Announcements) -> dict[str, Any] | None:
    """Who the first process is, when all are there; None where what answers is not it."""
    wire.socket.settimeout(_LOOK)
    missing = ""
    while not waiting.over:
        if waiting.due:
            waiting.say(f"waiting with process 0 at {launch.address} for {missing or 'the other processes'}")
        try:
            messages = wire.receive()
        except TimeoutError:
            continue
        except ValueError:
            return None
        if messages is None:
            return None
        for message in messages:
            missing = message.get("missing", missing)
            if "error" in message:
                kind = MissingProcess if message.get("status") == LOST else FailedElsewhere
                raise kind(str(message["error"]))
            if "go" in message:
                wire.socket.settimeout(5.0)
                return message["go"]
    raise MissingProcess(f"{missing or 'other processes'} did not come to {launch.address} {_remedy(launch)}")


def _listening(launch: Launch, hello: dict[str, Any]) -> socket.socket:
    """The socket of the coordinator's address.

    Raises:
      UserError: another program has the port, or another process that is the first one, too.
    """
    began = time.monotonic()
    while True:
        try:
            if socket.has_dualstack_ipv6():
                with contextlib.suppress(OSError):
                    options = {"family": socket.AF_INET6, "dualstack_ipv6": True, "backlog": 4096}
                    return socket.create_server(("", launch.port), **options)
            return socket.create_server(("", launch.port), backlog=4096)
        except OSError as error:
            _ask_twin(launch, hello)
            if time.monotonic() - began > _TAKEN_SECONDS:
                raise UserError(
                    f"{ADDRESS}: port {launch.port} of {socket.gethostname()}, where process 0 runs, cannot be listened at "
                    f"({error.strerror or error}): another program has it, or an earlier run is not over; end it, or choose "
                    "another port"
                ) from error
            time.sleep(_PAUSE)


def _ask_twin(launch: Launch, hello: dict[str, Any]) -> None:
    """Raises what another first process says to this one, where it is that which listens."""
    wire, _ = _connected(launch, "")
    if wire is not None:
        with contextlib.closing(wire):
            wire.send(hello)
            with contextlib.suppress(MissingProcess):
                _word(wire, launch, Announcements(1.0))


def told_apart(lines: list[str]) -> str:
    """The error for processes that were told different things."""
    return f"the processes were told different things; start all alike: {'; '.join(lines)}"


def _remedy(launch: Launch) -> str:
    return (
        f"in time (run.wait_s); check that all {launch.number} were started, that {ADDRESS}={launch.address} is the host of "
        "process 0 and can be reached, and start all again"
    )
