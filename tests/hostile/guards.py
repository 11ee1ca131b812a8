"""What no input may do to a process: hang, take memory, write elsewhere, run code; and how many inputs were tried."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from align_jax.errors import UserError

EXAMPLES = int(os.environ.get("ALIGN_JAX_FUZZ", 0))  # of each property; 0: the short form, the same every time
SECONDS = 20.0  # of processors
WAITING = 120.0  # of the clock, which other processes of the machine slow
CONSTANT = 400 << 20  # bytes beside twice the file: imports, compiled programs, other tests' garbage
_RUNS_CODE = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "socket.connect")
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
tried: Counter[str] = Counter()
_refused: Counter[str] = Counter()
_allowed: list[Path] = []  # while an input is tried
_seen: list[str] = []


class Hang(BaseException):
    """An input took too long."""


def few(short: int = 30) -> Callable[[Any], Any]:
    """The settings of a property: as many examples as were asked for, or a few that are the same every time."""
    phases = [Phase.explicit, Phase.generate, Phase.shrink]
    return settings(
        max_examples=EXAMPLES or short,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=phases if EXAMPLES else phases[:2],
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def harmless(name: str, size: int, *folders: Path) -> Iterator[None]:
    """The block may succeed or raise a UserError, and nothing else.

    Args:
      name: of the property. size: bytes of the input. folders: where it may write.
    """
    tried[name] += 1
    _allowed[:] = [*folders, Path("/dev"), Path(os.environ.get("XDG_CACHE_HOME", "/nowhere")), Path(sys.prefix)]
    _seen.clear()
    before = _memory_now()
    before_us = {one: signal.signal(one, _hang) for one in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    except UserError as error:
        _refused[name] += 1
        _check_line(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for one, handler in before_us.items():
            signal.signal(one, handler)
        _allowed.clear()
    assert not _seen, _seen
    grown = _memory_peak() - before
    assert grown < 2 * size + CONSTANT, f"{grown >> 20} MiB for an input of {size} bytes"


def _check_line(said: str) -> None:
    assert said.strip() and "Traceback" not in said, said
    assert len(said) < 20_000, f"an error of {len(said)} characters"


def _hang(*_: Any) -> None:
    raise Hang(f"more than {SECONDS:g} s of work, or {WAITING:g} s of waiting")


def _memory_now() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    return _memory_peak()


def _memory_peak() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def _audit(event: str, arguments: tuple) -> None:
    if not _allowed:
        return
    if event in _RUNS_CODE:
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes) and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _note(event, path)
    elif event in _CHANGES and isinstance(arguments[0], str | bytes | os.PathLike):
        _note(event, arguments[0])


def _note(event: str, path: Any) -> None:
    allowed, _allowed[:] = list(_allowed), []  # resolving is no event of the input's
    place = Path(os.path.abspath(os.fsdecode(path)))
    fine = any(place == folder or folder in place.parents for folder in allowed)
    if not fine and "__pycache__" not in place.parts and not str(place).startswith("/proc/self"):
        _seen.append(f"{event} {place}")
    _allowed[:] = allowed


sys.addaudithook(_audit)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder, which is the current one, for one example."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def report() -> str:
    """How many inputs were tried and how many of them were refused, of each property, as JSON."""
    return json.dumps({name: [count, _refused[name]] for name, count in sorted(tried.items())})
