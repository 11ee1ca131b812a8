"""What a job tells its user: a line on stderr, from the first process, unless it was asked to be quiet."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator

import jax

_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("quiet", default=False)
_said: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("said", default=None)


def say(line: str) -> None:
    """One line for the user, from the first process only; nothing within `speaking(quiet=True)`."""
    if jax.process_index() == 0 and not _quiet.get():
        print(f"align-jax: {line}", file=sys.stderr, flush=True)


def say_once(line: str) -> None:
    """`say`, unless the job (the outermost `speaking`) has said this line already."""
    said = _said.get()
    if said is None or line not in said:
        say(line)
    if said is not None:
        said.add(line)


@contextlib.contextmanager
def speaking(quiet: bool) -> Iterator[None]:
    """Within it `say` is silent where `quiet` (or a job around it) asks for that: the key `log.quiet` of a config."""
    token, said = _quiet.set(quiet or _quiet.get()), _said.set(set() if _said.get() is None else _said.get())
    try:
        yield
    finally:
        _quiet.reset(token)
        _said.reset(said)
