"""What Orbax logs, without what its caller says better."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

_absl = logging.getLogger("absl")


@contextlib.contextmanager
def _without(unwanted: Callable[[logging.LogRecord], object]) -> Iterator[None]:
    wanted = lambda record: not unwanted(record)  # noqa: E731
    _absl.addFilter(wanted)
    try:
        yield
    finally:
        _absl.removeFilter(wanted)


def warnings_of_reading_left_out() -> contextlib.AbstractContextManager[None]:
    """Within it Orbax does not warn of what was asked for: a folder that is opened for reading only."""
    return _without(lambda record: re.search("read.only=", record.getMessage()))


def tracebacks_left_out() -> contextlib.AbstractContextManager[None]:
    """Within it Orbax does not log the tracebacks of its threads, whose errors it raises as well."""
    return _without(lambda record: record.levelno >= logging.ERROR and "orbax" in record.pathname)
