"""Lines and the bar below them: neither writes over the other, and without a terminal there are plain lines only."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
import warnings

import pytest

from align_jax import terminal
from align_jax.terminal import Watch, bar_line, columns, plural, spell_seconds, status, write_line
from tests.terminals import Terminal


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 60 columns; a test redirects stderr to it itself, since pytest takes stderr back after a fixture."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.fixture
def quick(monkeypatch):
    """Looks at what is watched every hundredth of a second."""
    monkeypatch.setattr(terminal, "_TICK", 0.01)
    monkeypatch.setattr(terminal, "_DELAY", 0.01)
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.01)


def wait_for(condition):
    for _ in range(20_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come")


class Fixed:
    """A line that changes to what it is told."""

    def __init__(self, stream, text):
        self.stream, self.text = stream, text

    def render(self, width):
        return self.text[:width]


@pytest.mark.parametrize(
    "term, given, size, expected",
    [
        ("xterm", None, os.terminal_size((80, 24)), 79),
        ("xterm", "60", os.terminal_size((0, 0)), 59),
        ("xterm", None, os.terminal_size((0, 0)), 0),
        ("xterm", None, OSError(), 0),
        ("xterm", "60", OSError(), 59),
        ("xterm", "x", os.terminal_size((19, 24)), 0),
        ("dumb", "60", os.terminal_size((80, 24)), 0),
    ],
)
def test_what_can_have_a_bar(monkeypatch, term, given, size, expected):
    class Sized(Terminal):
        def fileno(self):
            return 7

    def get_terminal_size(number):
        assert number == 7
        if isinstance(size, OSError):
            raise size
        return size

    monkeypatch.setattr(os, "get_terminal_size", get_terminal_size)
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("COLUMNS", raising=False)
    if given is not None:
        monkeypatch.setenv("COLUMNS", given)
    assert columns(Sized()) == expected
    assert columns(io.StringIO()) == 0


def test_a_bar_keeps_its_room_and_drops_what_matters_least():
    tail = ["00:12 left", "loss 0.69", "chosen {0.01}", "12k tok/s"]
    wide = bar_line("step 5/10", 5, 10, tail, 100)
    assert len(wide) == 100 and wide.endswith("| 00:12 left loss 0.69 chosen {0.01} 12k tok/s")
    cells = wide.split("|")[1]
    assert abs(cells.count("█") - len(cells) / 2) <= 1
    narrow = bar_line("step 5/10", 5, 10, tail, 44)
    assert len(narrow) == 44 and narrow.endswith("| 00:12 left loss 0.69") and len(narrow.split("|")[1]) >= 5
    assert "#" in bar_line("step 5/10", 5, 10, [], 44, ascii_only=True)


def test_lines_warnings_and_logs_go_above_the_line_that_changes(screen):
    logger = logging.getLogger("tests.terminal")
    logger.propagate = False
    handler = logging.StreamHandler(screen)
    view, show, last = Fixed(screen, "a long line that changes, 10%"), warnings.showwarning, logging.lastResort
    with contextlib.redirect_stderr(screen):
        logger.addHandler(handler)
        status.open(view)
        try:
            write_line("said")
            warnings.showwarning("careful", UserWarning, "file.py", 3)
            logger.warning("logged")
            logging.lastResort.handle(logging.makeLogRecord({"msg": "of nobody", "levelno": logging.WARNING}))
            view.text = "shorter, 20%"
            status.draw(view)
            assert screen.screen == ["said", "file.py:3: UserWarning: careful", "logged", "of nobody", "shorter, 20%"]
        finally:
            status.close(view)
    assert (logger.handlers, warnings.showwarning, logging.lastResort) == ([handler], show, last)
    logger.removeHandler(handler)


def test_a_line_that_nobody_reads_any_more_ends_no_work(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1, closefd=False) as stream:
        write_line("unread", stream)  # a `tee` that took the same Ctrl-C
        write_line("unread, too", stream)
        monkeypatch.setattr("sys.stdout", stream)
    assert os.fstat(writer).st_rdev == os.stat(os.devnull).st_rdev
    os.close(writer)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as raw, io.TextIOWrapper(raw, write_through=True) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(BrokenPipeError):
            write_line("a result", stream)


def test_what_was_opened_last_is_seen(screen):
    below, above = Fixed(screen, "training"), Fixed(screen, "evaluating")
    status.open(below)
    status.open(above)
    status.draw(below)
    assert screen.screen[-1] == "evaluating"
    status.close(above)
    assert screen.screen[-1] == "training"
    status.close(below)
    assert screen.screen[-1] == ""
    status.draw(below)  # of nothing that is open
    assert screen.screen[-1] == ""


def test_a_watch_on_a_terminal(screen, quick):
    with Watch("scoring", 80, "rows", note=lambda: "compiling", stream=screen) as watch:
        wait_for(lambda: "0/80 rows 0 s compiling" in screen.getvalue())
        watch.add(20)
        watch.add(20)
        wait_for(lambda: "40/80 rows 00:00 left" in screen.getvalue())
        assert screen.screen[-1].startswith("scoring |") and "█" in screen.screen[-1]
    assert screen.screen == [""]


def test_a_watch_without_a_terminal_says_a_line_now_and_then(quick, monkeypatch):
    stream = io.StringIO()
    with Watch("scoring", 80, "rows", stream=stream) as watch:
        wait_for(lambda: "align-jax: scoring: 0 of 80 rows, 0 s\n" in stream.getvalue())
        watch.add(1)
        watch.add(39)
        watch.besides = "fast"
        wait_for(lambda: "40 of 80 rows, 00:00 left, fast\n" in stream.getvalue())
    assert "\r" not in stream.getvalue()
    with Watch("reading", stream=stream):
        wait_for(lambda: "align-jax: reading ... 0 s\n" in stream.getvalue())


def test_the_time_left_is_of_what_was_steady(monkeypatch):
    now, lost = [0.0], [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    watch = Watch("scoring", 100, "rows", show=False, lost=lambda: lost[0])
    with watch:
        now[0], lost[0] = 50.0, 40.0  # the first batch compiles
        watch.add(10)
        assert watch.text() == "scoring: 10 of 100 rows, 50 s"
        now[0], lost[0] = 70.0, 55.0  # five seconds for ten rows, and another program
        watch.add(10)
        assert watch.left() == "00:40 left"


def test_what_is_not_to_be_shown_is_silent(screen, quick):
    with Watch("reading", stream=screen, show=False):
        time.sleep(0.05)
    assert screen.getvalue() == ""


def test_what_is_short_is_silent(screen):
    for stream in (screen, io.StringIO()):
        with Watch("reading", stream=stream):
            pass
        assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (4.25, "4.2 s"), (9.96, "10 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_seconds(seconds, text):
    assert spell_seconds(seconds) == text


def test_plurals():
    assert [plural(n, "program") for n in (0, 1, 2)] == ["0 programs", "1 program", "2 programs"]
