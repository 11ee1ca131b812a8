"""Locks: a folder or a file that one process uses, by a file that says who holds it and shows that the holder lives.

On one machine the operating system's file locks decide, which end with their process. File systems of several machines often
have none, or none that another machine sees: there the holder writes the time into the file every `BEAT_SECONDS`, and a lock
without such a sign for `STALE_SECONDS` is taken over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.parallel.stop import cleaned_up, tell_stderr

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
_SETTLE_SECONDS = 0.2  # after which two that took a lock without the system's help see who was last
_WIDTH = 600  # of the file: a holder writes over what it wrote


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
      host, process: for the user. machine: its boot and its space of process numbers. started: of the process, by its machine.
      since, beat: seconds of its clock: when it took the lock, and its last sign of life. token: of this lock alone.
    """

    host: str
    process: int
    machine: str
    started: int
    since: float
    beat: float
    token: str

    @classmethod
    def own(cls) -> Holder:
        """This process, now."""
        now, process = time.time(), os.getpid()
        return cls(socket.gethostname(), process, _machine(), _started(process), now, now, secrets.token_hex(8))

    @classmethod
    def read(cls, text: str) -> Holder | None:
        """What a lock file says; None where it is empty or of an earlier version."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.process} on {self.host} since {since}"

    @property
    def here(self) -> bool:
        """Whether its process number means something on this machine."""
        return self.machine == _machine()

    @property
    def runs(self) -> bool:
        """Whether that process of this machine still is; another one may have its number by now."""
        return self.started == _started(self.process)

    def as_line(self) -> bytes:
        """The content of the file, always of the same length."""
        return json.dumps(dataclasses.asdict(self)).ljust(_WIDTH).encode() + b"\n"


class Held:
    """A lock that this process holds; `lost` becomes the holder that took it over, where one did."""

    def __init__(self, path: Path, what: str, holder: Holder, tell: Callable[[str], Any]):
        self.lost: Holder | None = None
        self._path, self._what, self._holder, self._tell = path, what, holder, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def start(self) -> None:
        """Shows signs of life from here on."""
        self._thread.start()

    def check(self) -> None:
        """UserError where another process took the lock over, so that nothing may be written any more."""
        self.look()
        if self.lost is not None:
            raise UserError(
                f"{self._what} was taken over by {self.lost}: this process gave no sign of life for {STALE_SECONDS:.0f} s, or "
                f"its lock {self._path} was removed; nothing more is written here"
            )

    def look(self) -> None:
        """Looks whether another process has the lock; a file that is gone is nobody's."""
        found = _read(self._path)
        if found is not None and found.token != self._holder.token and self.lost is None:
            self.lost = found
            self._tell(f"{self._what} was taken over by {found}")

    def end(self) -> None:
        """Frees it; the file goes unless it is another's by now."""
        self._ended.set()
        with contextlib.suppress(OSError):
            found = _read(self._path)
            if found is None or found.token == self._holder.token:
                self._path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS) and self.lost is None:
            with contextlib.suppress(OSError):  # a file system that is away for a while
                self.look()
                if self.lost is None and self._path.exists() and not self._ended.is_set():
                    with open(self._path, "r+b") as file:
                        file.write(dataclasses.replace(self._holder, beat=time.time()).as_line())


@contextlib.contextmanager
def held(lock: Path, what: str, remedy: str, tell: Callable[[str], Any] | None = None) -> Iterator[Held]:
    """Holds a lock file while the block runs; it is free again when the process ends, however it ends.

    Args:
      lock: the file, which is there only while it is held. what, remedy: begin and end of the error.
      tell: what a line for the user is given to, where a lock is taken over or waited for; None prints it to stderr.

    Raises:
      UserError: another process holds it; names that process and its machine.
    """
    tell = tell or tell_stderr
    holder = Holder.own()
    descriptor = _take(lock, what, remedy, holder, tell)
    mine = Held(lock, what, holder, tell)
    _mine[lock] = mine
    try:
        with cleaned_up(mine.end):
            mine.start()
            yield mine
    finally:
        _mine.pop(lock, None)
        os.close(descriptor)


def check_held(lock: Path) -> None:
    """UserError where this process held the lock and another one took it over."""
    if lock in _mine:
        _mine[lock].check()


def _take(lock: Path, what: str, remedy: str, holder: Holder, tell: Callable[[str], Any]) -> int:
    """The descriptor of the lock file, which is ours."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            locked = _lock(descriptor)
            if not _is_at(descriptor, lock):
                os.close(descriptor)  # who held it before has removed it meanwhile
                continue
            there = Holder.read(_content(descriptor))
            if _taken(lock, there, locked, tell):
                raise UserError(f"{what} is in use by {there or 'another process'}; {remedy}")
            if there is not None:
                tell(f"{what} was in use by {there}, which is gone: its lock is taken over")
            if locked is False:  # by a machine that is gone, and its file server does not know yet
                old, descriptor = descriptor, _put_in_place(lock, holder)
                os.close(old)
            else:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, holder.as_line(), 0)
            if not locked:
                time.sleep(_SETTLE_SECONDS)
                if (last := _read(lock)) is not None and last.token != holder.token:
                    raise UserError(f"{what} is in use by {last}; {remedy}")
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _lock(descriptor: int) -> bool | None:
    """Whether the system's lock is ours now; None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _taken(lock: Path, there: Holder | None, locked: bool | None, tell: Callable[[str], Any]) -> bool:
    """Whether somebody alive holds it: by the system's lock and the process on this machine, elsewhere by signs of life."""
    if there is None or there.here:
        return locked is False or (locked is None and there is not None and there.runs)
    if (age := _age(lock)) >= STALE_SECONDS:
        return False
    tell(f"{lock} is held by {there}, another machine: waiting up to {STALE_SECONDS - age:.0f} s for a sign that it lives")
    until = time.monotonic() + STALE_SECONDS - age
    while time.monotonic() < until:
        time.sleep(min(1.0, BEAT_SECONDS))
        now = _read(lock)
        if now is None and not lock.exists():
            return False
        if now is not None and (now.beat, now.token) != (there.beat, there.token):
            return True
    return False


def _age(lock: Path) -> float:
    """Seconds since the file was written, by the clock of its file system: those of two machines may differ."""
    probe = lock.with_name(f"{lock.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        probe.write_bytes(b"now")
        return max(0.0, probe.stat().st_mtime - lock.stat().st_mtime)
    finally:
        probe.unlink(missing_ok=True)


def _put_in_place(lock: Path, holder: Holder) -> int:
    """A new file in the place of one that the system holds locked for somebody else."""
    new = lock.with_name(f"{lock.name}.{os.getpid()}.tmp")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    os.pwrite(descriptor, holder.as_line(), 0)
    _lock(descriptor)
    os.replace(new, lock)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _content(descriptor: int) -> str:
    return os.pread(descriptor, 4096, 0).decode(errors="replace")


def _read(lock: Path) -> Holder | None:
    try:
        return Holder.read(lock.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


@functools.cache
def _machine() -> str:
    """This machine since it was started, and its space of process numbers: containers of one host have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> int:
    """When a process of this machine began, in its clock's ticks; -1 where there is none, 0 where that is not known."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return -1
    except OSError:
        pass  # another user's
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = stat.rpartition(")")[2].split()
        return -1 if state in "ZX" else int(fields[18])
    except (OSError, IndexError, ValueError):
        return 0


_mine: dict[Path, Held] = {}
