"""What a job says, and how: quiet, without bars, as a part of another; and that it says when it compiles."""

from __future__ import annotations

import contextlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import terminal
from align_jax.parallel.mesh import make_mesh
from align_jax.recipes import say as saying
from align_jax.recipes.announced import AnnouncedStep
from align_jax.recipes.say import (
    compiling,
    is_part,
    part_of_a_job,
    say,
    say_plainly,
    shows_progress,
    speaking,
    watched,
    watching,
)
from tests.terminals import Terminal


def test_who_is_quiet_says_nothing(capsys):
    say("a")
    say_plainly("b")
    with speaking(True), speaking(False):
        say("c")
        say_plainly("d")
        assert not shows_progress()
    with speaking(False, bars=False), speaking(False):
        say("e")
        assert not shows_progress()
    assert capsys.readouterr().err == "align-jax: a\nb\nalign-jax: e\n" and shows_progress()


def test_parts_of_a_job():
    with part_of_a_job(), speaking(True):
        assert is_part()
    assert not is_part()


class Batch:
    def __init__(self, rows):
        self.rows = np.asarray(rows)


@pytest.mark.parametrize("parts, said", [(1, "2 of 3 rows"), (2, "4 of 3 rows")])
def test_batches_are_counted_when_they_are_done(parts, said, capsys, monkeypatch):
    """As often as processes read other parts of them: two that hold the same shards count their rows once."""
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.01)
    monkeypatch.setattr(saying, "readers", lambda mesh, processes: parts)
    batches = watched("scoring", iter([Batch([0, 1, -1]), Batch([2, -1, -1])]), 3, make_mesh())
    next(batches)
    next(batches)
    text, deadline = "", time.monotonic() + 120
    while f"align-jax: scoring: {said}" not in text and time.monotonic() < deadline:
        time.sleep(0.01)
        text += capsys.readouterr().err
    assert list(batches) == []
    text += capsys.readouterr().err  # a line may have come since
    assert f"align-jax: scoring: {said}" in text
    with speaking(False, bars=False), watching("scoring"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_step_says_when_it_compiles_a_shape(capsys):
    step = jax.jit(lambda state, batch: (state + batch["a"].sum(), {}))
    announced = AnnouncedStep(step, 2)
    state = jnp.float32(0)
    for size in (3, 3, 4, 3, 5):
        state, _ = announced(state, {"a": np.ones(size, np.float32)})
    lines = capsys.readouterr().err.splitlines()
    shapes = ["(shape 1 of 2)", "(shape 2 of 2)", "(shape 3)"]
    assert lines[::2] == [f"align-jax: compiling the training step {shape} ..." for shape in shapes]
    done = [line.replace("compiled", "read from the compilation cache:").split(" in ")[0] for line in lines[1::2]]
    assert done == [f"align-jax: read from the compilation cache: the training step {shape}" for shape in shapes]
    assert all(line.endswith(" s") for line in lines[1::2]) and float(state) == 18
    AnnouncedStep(step, 1)(state, {"a": np.ones(3, np.float32)})
    assert capsys.readouterr().err.splitlines()[0] == "align-jax: compiling the training step ..."


def test_compilation_on_a_terminal_is_a_line_that_changes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with contextlib.redirect_stderr(screen), compiling("the step"):
        for _ in range(20_000):
            if screen.screen[-1] == "compiling the step ... 0 s":
                break
            time.sleep(0.005)
        else:
            raise AssertionError("nothing was shown")
    assert screen.screen == ["align-jax: compiled the step in " + screen.screen[0].split(" in ")[1], ""]
