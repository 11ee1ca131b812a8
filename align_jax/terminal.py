"""What a user sees on stderr: lines, and below them at most one line that changes. Neither writes over the other.

    with Watch("reference log-probs", 560, "rows") as watch:    # a bar on a terminal; elsewhere a line every ten seconds
        watch.add(4)
    write_line("a line of its own")                             # above the bar, where there is one

Warnings and logged messages go above the bar, too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

PREFIX = "align-jax: "  # of lines that could be from anybody
PLAIN_SECONDS = 10.0  # between lines of progress where there is no terminal
_PLAIN_FIRST, _PLAIN_LATER = 6, 3  # so many lines; those after them come so many times more rarely
_NARROW = 20  # columns; no bar has room in fewer
_BAR = 5  # cells of a bar, at least
_TICK = 0.5  # seconds between two looks of the line that changes
_DELAY = 1.0  # what is done by then needs no bar


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Writes a line to a stream (None: stderr), above the bar if one is shown."""
    stream = sys.stderr if stream is None else stream
    with unread(stream), tqdm.external_write_mode(file=stream):
        print(line, file=stream, flush=True)


@contextlib.contextmanager
def unread(stream: TextIO | None) -> Iterator[None]:
    """Within it, that nobody reads stderr any more (a closed terminal, a `tee` that took the same Ctrl-C) is no error: what
    is said goes nowhere, and the work goes on; of stdout, which results go to, it is one."""
    try:
        yield
    except OSError as error:
        if stream is sys.stdout:
            raise
        if error.errno in (errno.EPIPE, errno.EIO):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # what is no file, or closed
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def columns(stream: TextIO) -> int:
    """How many columns a line that changes may have; 0 where there can be none: a pipe, a terminal without a width."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return 0
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        width = 0
    given = os.environ.get("COLUMNS", "")
    width = width or (int(given) if given.isdigit() else 0)
    return width - 1 if width >= _NARROW else 0  # in the last column some terminals begin a new line


def bar_line(head: str, done: float, total: float, tail: list[str], width: int, ascii_only: bool = False) -> str:
    """`head |###   | tail` in `width` columns; parts of the tail that leave the bar no room are left out, the last first."""
    room, parts = width - len(head) - _BAR - 4, list(tail)
    while parts and len(" ".join(parts)) > room:
        parts.pop()
    text = " ".join(parts)
    pattern = f"{head} |{{bar}}| {text}".replace("{", "{{").replace("}", "}}").replace("{{bar}}", "{bar}")
    return tqdm.format_meter(min(done, total), max(total, 1), 0, ncols=width, bar_format=pattern, ascii=ascii_only or None)


class View(Protocol):
    """What draws itself in the line that changes."""

    stream: TextIO

    def render(self, width: int) -> str: ...


class _Status:
    """The line that changes. Several may have something to show: what was opened last is seen."""

    def __init__(self):
        self._lock = threading.RLock()
        self._views: list[View] = []
        self._line: tqdm | None = None
        self._above = contextlib.ExitStack()

    def open(self, view: View) -> None:
        with self._lock:
            self._views.append(view)
            if self._line is None:
                self._above.enter_context(_others_above())
                self._line = tqdm(file=view.stream, bar_format="{desc}", leave=False, mininterval=0, nrows=2)
            self.draw(view)

    def draw(self, view: View) -> None:
        with self._lock, unread(view.stream):
            if self._line is not None and self._views and self._views[-1] is view:
                self._line.set_description_str(view.render(columns(view.stream)), refresh=True)

    def close(self, view: View) -> None:
        with self._lock:
            if view not in self._views:
                return
            self._views.remove(view)
            if self._views:
                self.draw(self._views[-1])
            elif self._line is not None:
                self._line.close()
                self._line = None
                self._above.close()


status = _Status()


@contextlib.contextmanager
def _others_above() -> Iterator[None]:
    """Within it, warnings and logged messages go above the line that changes."""
    show, last = warnings.showwarning, logging.lastResort

    def showwarning(message, category, filename, lineno, file=None, line=None) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        write_line(text.rstrip("\n"), file)

    class Above(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            write_line(self.format(record))

    warnings.showwarning, logging.lastResort = showwarning, Above(logging.WARNING)
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    console = [found for found in loggers if any(_on_console(handler) for handler in getattr(found, "handlers", ()))]
    try:
        with logging_redirect_tqdm(console) if console else contextlib.nullcontext():
            yield
    finally:
        if warnings.showwarning is showwarning:
            warnings.showwarning = show
        logging.lastResort = last


def _on_console(handler: Any) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)


class Watch:
    """Something that takes time: a line that changes on a terminal, elsewhere one every `PLAIN_SECONDS`; silent if short.

    After the first minute there are fewer lines, one every thirty seconds.

    Args:
      what: that is waited for. total, unit: how much there is to do of it, where that is known.
      show: False shows nothing. note: () -> what is going on besides, or an empty text.
      lost: () -> seconds, so far, that say nothing of what is left to do.
      at_once: on a terminal, do not wait to see whether it is short.
      stream: None is stderr.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        *,
        show: bool = True,
        note: Callable[[], str] = lambda: "",
        lost: Callable[[], float] = lambda: 0.0,
        at_once: bool = False,
        stream: TextIO | None = None,
    ):
        self.stream = sys.stderr if stream is None else stream
        self._what, self._total, self._unit = what, total, unit
        self._show, self._note, self._lost, self._at_once = show, note, lost, at_once
        self._done, self._over = 0, threading.Event()
        self._began = self._first = time.monotonic()
        self.besides = ""  # what else there is to say, set as it goes
        self._before, self._lost_before = 0, 0.0  # when the first was done, which may have compiled

    def add(self, count: int = 1) -> None:
        """So much more is done."""
        if not self._done:
            self._first, self._before, self._lost_before = time.monotonic(), count, self._lost()
        self._done += count

    @property
    def seconds(self) -> float:
        """How long it takes so far."""
        return time.monotonic() - self._began

    def __enter__(self) -> Watch:
        self._began = self._first = time.monotonic()
        if self._show:
            self._thread = threading.Thread(target=self._run, args=(bool(columns(self.stream)),), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._show:
            self._thread.join()
        status.close(self)

    def _run(self, terminal: bool) -> None:
        pause = (0.0 if self._at_once else _DELAY) if terminal else PLAIN_SECONDS
        opened, lines = False, 0
        while not self._over.wait(pause):
            if not terminal:
                write_line(PREFIX + self.text(), self.stream)
                lines += 1
                pause = PLAIN_SECONDS * (1 if lines < _PLAIN_FIRST else _PLAIN_LATER)
                continue
            (status.draw if opened else status.open)(self)
            opened, pause = True, _TICK

    def left(self) -> str:
        """The time left, by what was done since the first was; empty where that says nothing yet."""
        if not self._total or self._done <= self._before:
            return ""
        seconds = time.monotonic() - self._first - (self._lost() - self._lost_before)
        left = max(seconds, 0.0) / (self._done - self._before) * max(self._total - self._done, 0)
        return f"{tqdm.format_interval(left)} left"

    def text(self) -> str:
        """The whole of it in words."""
        note = "".join(f", {text}" for text in (self.besides, self._note()) if text)
        if not self._total:
            return f"{self._what} ... {self.seconds:.0f} s{note}"
        return f"{self._what}: {self._done} of {self._total} {self._unit}, {self.left() or f'{self.seconds:.0f} s'}{note}"

    def render(self, width: int) -> str:
        """The line on a terminal."""
        if not self._total:
            return self.text()[:width]
        tail = [f"{self._done}/{self._total} {self._unit}", self.left() or f"{self.seconds:.0f} s", self._note(), self.besides]
        return bar_line(self._what, self._done, self._total, tail, width, not has_blocks(self.stream))


def has_blocks(stream: TextIO) -> bool:
    """Whether a stream can show the parts of a smooth bar."""
    return (getattr(stream, "encoding", None) or "utf").lower().startswith("utf")


def plural(count: int, one: str, several: str | None = None) -> str:
    """`1 program`, `2 programs`."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def spell_seconds(seconds: float) -> str:
    """`4.2 s`, `35 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
