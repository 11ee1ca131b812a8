"""What a job tells its user: lines on stderr, and how far it is; from the first process, unless it was asked to be quiet."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax.batch import GroupBatch
from align_jax.cost.compilations import compiling_now, so_far
from align_jax.parallel.mesh import readers
from align_jax.parallel.stop import leave_if_asked
from align_jax.terminal import PREFIX, Watch, columns, spell_seconds, write_line

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Manner:
    """How a job speaks: not at all, without bars, or as a part of another job, whose summary is enough; what it said once."""

    quiet: bool = False
    bars: bool = True
    part: bool = False
    said: set[str] | None = None  # by `say_once`


_USUAL = _Manner()
_manner: contextvars.ContextVar[_Manner] = contextvars.ContextVar("manner", default=_USUAL)


def say(line: str) -> None:
    """One line for the user, from the first process only; nothing within `speaking(quiet=True)`."""
    if _speaks():
        write_line(f"{PREFIX}{line}")


def say_plainly(text: str) -> None:
    """As `say`, of lines that need no name before them: of steps, and tables."""
    if _speaks():
        write_line(text)


def _speaks() -> bool:
    return jax.process_index() == 0 and not _manner.get().quiet


def say_once(line: str) -> None:
    """`say`, unless the job (the outermost `speaking`) has said this line already."""
    said = _manner.get().said
    if said is None or line not in said:
        say(line)
    if said is not None:
        said.add(line)


@contextlib.contextmanager
def speaking(quiet: bool, bars: bool = True) -> Iterator[None]:
    """Within it `say` is silent where `quiet` (or a job around it) asks for that, and there are bars only where `bars` does.

    Args:
      quiet: the key `log.quiet` of a config. bars: its key `log.progress`.
    """
    now = _manner.get()
    said = set() if now.said is None else now.said
    with _speaking_as(dataclasses.replace(now, quiet=quiet or now.quiet, bars=bars and now.bars, said=said)):
        yield


@contextlib.contextmanager
def part_of_a_job() -> Iterator[None]:
    """Within it jobs leave their summary out: the job around them has its own."""
    with _speaking_as(dataclasses.replace(_manner.get(), part=True)):
        yield


@contextlib.contextmanager
def _speaking_as(manner: _Manner) -> Iterator[None]:
    token = _manner.set(manner)
    try:
        yield
    finally:
        _manner.reset(token)


def is_part() -> bool:
    """Whether the job is a part of another one."""
    return _manner.get().part


def shows_progress() -> bool:
    """Whether this process shows how far it is."""
    return _speaks() and _manner.get().bars


def watching(what: str, total: int | None = None, unit: str = "") -> Watch:
    """Says how far something is that may take longer than ten seconds: `with watching("scoring", 80, "rows") as watch`.

    Args:
      what: a few words. total, unit: how much there is of it, where that is known; `watch.add(n)` then says what is done.
    """
    so_far()  # from here on it is known whether something compiles
    note = lambda: "compiling" if compiling_now() else ""  # noqa: E731
    return Watch(what, total, unit, show=shows_progress(), note=note, lost=lambda: so_far().seconds)


def watched(what: str, batches: Iterable[GroupBatch], rows: int, mesh: Mesh) -> Iterator[GroupBatch]:
    """The batches, each counted when the next one is asked for.

    Args:
      rows: how many they have, over all processes. mesh: whose processes read them, some of them the same ones.

    Raises:
      StoppedPass: after a batch, where the work around is to stop.
    """
    parts = readers(mesh, jax.process_count())
    with watching(what, rows, "rows") as watch:
        for batch in batches:
            yield batch
            watch.add(int(np.sum(np.asarray(batch.rows) >= 0)) * parts)
            leave_if_asked()


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
    """Says that a program is compiled, which may take minutes, and how long it took.

    Args:
      what: the program in a few words, such as `the training step`.
    """
    before, on_terminal = so_far(), shows_progress() and columns(sys.stderr) > 0
    if not on_terminal:
        say(f"compiling {what} ...")
    watch = Watch(f"compiling {what}", show=shows_progress(), at_once=True)
    with watch:
        yield
    spent = so_far() - before
    how = "compiled" if spent.compiled or not spent.programs else "read from the compilation cache:"
    say(f"{how} {what} in {spell_seconds(watch.seconds)}")
