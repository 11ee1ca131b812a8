"""Chat templates come from strangers: what one may compute is bounded, in time and memory.

jinja's sandbox (which transformers renders in) lets a template reach no Python object, file or network, and no `range` beyond
100,000; it lets loops stand in one another, texts grow, and numbers be raised to any power.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from align_jax.errors import UserError

SECONDS = 10.0  # of a processor, for one conversation; real templates take milliseconds
GROWTH = 1 << 30  # bytes that the process may grow by while one conversation is rendered
_HASTY = 0.2  # seconds within which nothing can grow so far
_FACTOR = 100  # of a product
_POLL = 0.1
_STATM = Path("/proc/self/statm")


class TooMuch(Exception):
    """A template took too long, or too much memory."""


def check_template(text: str) -> None:
    """UserError for a template with a power, or a product with no small number in it: one such step may never end.

    Args:
      text: of Jinja; one that cannot be parsed is not looked at.
    """
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain_jinja(text))
    except (jinja2.TemplateError, RecursionError, ValueError):
        return  # who renders it says so
    for node in tree.find_all((nodes.Pow, nodes.Mul)):
        small = [side for side in (node.left, node.right) if isinstance(side, nodes.Const) and _is_small(side.value)]
        if isinstance(node, nodes.Pow) or not small or isinstance(node.left, nodes.Mul) or isinstance(node.right, nodes.Mul):
            power = isinstance(node, nodes.Pow)
            what = "a power (**)" if power else f"a product (*) without a number of at most {_FACTOR}"
            raise UserError(
                f"the chat template has {what} in line {node.lineno}: such a step may take any time and memory; give another "
                "template (model.chat_template)"
            )


def plain_jinja(text: str) -> str:
    """A template without the tags that transformers alone knows."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)


def _is_small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= _FACTOR


@dataclasses.dataclass(eq=False)
class _Rendering:
    """A thread at work: the clock of its processor time, what that said first, and what the process held then."""

    thread: int
    clock: int
    began: float
    seconds: float
    held: int = 0
    stopped: bool = False


_lock = threading.Lock()
_running: set[_Rendering] = set()
_wake = threading.Event()
_watcher: list[threading.Thread] = []


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Ends the block where it takes more processor time than this, or lets the process grow by `GROWTH` bytes.

    Another thread looks every tenth of a second. It can end Python code (a template is compiled to such), and not one single
    call of C in it, see `check_template`.

    Raises:
      TooMuch: it did.
    """
    if not hasattr(time, "pthread_getcpuclockid"):  # nowhere but on Linux
        yield
        return
    thread = threading.get_ident()
    clock = time.pthread_getcpuclockid(thread)
    mine = _Rendering(thread, clock, time.clock_gettime(clock), seconds)
    with _lock:
        _running.add(mine)
        if not _watcher or not _watcher[0].is_alive():  # the first time, or in a process that was forked
            _watcher[:] = [threading.Thread(target=_watch, name="templates", daemon=True)]
            _watcher[0].start()
    _wake.set()
    try:
        yield
    finally:
        with _lock:
            _running.discard(mine)
            if mine.stopped:  # and came to an end at that moment
                _raise_in(mine.thread, None)


def _watch() -> None:
    while True:
        _wake.wait()
        time.sleep(_POLL)
        with _lock:
            if not _running:
                _wake.clear()
            for one in _running:
                took = time.clock_gettime(one.clock) - one.began
                one.held = one.held or _memory()  # at the first look
                if one.stopped or took < _HASTY:
                    continue
                if took > one.seconds or _memory() - one.held > GROWTH:
                    one.stopped = True
                    _raise_in(one.thread, TooMuch)


def _raise_in(thread: int, what: type[BaseException] | None) -> None:
    """Has an exception raised in another thread at its next step of Python, or takes back what was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if what is None else ctypes.py_object(what))


def _memory() -> int:
    """Bytes of memory that the process has."""
    try:
        return int(_STATM.read_text().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 1
