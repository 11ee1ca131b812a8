"""What happens in a training loop besides its steps: evaluations, checkpoints, logs, an early end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from align_jax.training.loop import Loop


class Callback:
    """The hooks of `fit`, which do nothing; a callback overrides those it needs.

    Each hook is called for all callbacks in their order before the next hook is.
    """

    def begin(self, loop: Loop) -> None:
        """Before the first step; what is added to the metrics here is recorded as step `loop.step`."""

    def after_step(self, loop: Loop) -> None:
        """A step was dispatched; may set `loop.stop`, add to `loop.metrics()`, or `loop.add` without waiting for it."""

    def before_next(self, loop: Loop) -> None:
        """Every `after_step` is done, `loop.last` is decided; `loop.recorded()` waits for the step's complete record."""

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """The complete metrics of a step, once per step and in order; callbacks behind this one see what it adds."""

    def end(self, loop: Loop) -> None:
        """After the last step, when everything is recorded."""

    def last_saved(self) -> int | None:
        """The step of the newest complete checkpoint that this callback knows of, for errors."""
        return None


class Evaluate(Callback):
    """Measures the weights every so many steps, before the first step of a run and after its last one.

    Args:
      measure: weights -> metrics (`eval/...`), which become part of the step's record.
      every: steps between evaluations; None measures before the first and after the last step only.
      told: (step, metrics) -> None, called as soon as they are measured.
    """

    def __init__(
        self,
        measure: Callable[[Any], dict[str, float]],
        every: int | None = None,
        told: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    ):
        self._measure, self._every, self._told = measure, every, told

    def begin(self, loop: Loop) -> None:
        """Measures the weights that a run starts from; a resumed one was measured before."""
        if loop.step == 0:
            self._add(loop)

    def after_step(self, loop: Loop) -> None:
        """Measures where it is time to, once the step is known to be good."""
        if loop.step == loop.steps or (self._every and loop.step % self._every == 0):
            loop.metrics()
            self._add(loop)

    def _add(self, loop: Loop) -> None:
        found = self._measure(loop.state.weights)
        loop.add(found)
        self._told(loop.step, found)


class Save(Callback):
    """Writes a checkpoint every so many steps, at the last one and when the loop is stopped; only of steps known to be good.

    Args:
      save: (step, state, position of the data, metrics) -> None.
      every: steps between checkpoints; None saves at the end only.
      last_saved: () -> the step of the newest complete checkpoint, or None.
    """

    def __init__(
        self,
        save: Callable[[int, Any, Any, dict[str, float]], None],
        every: int | None = None,
        last_saved: Callable[[], int | None] = lambda: None,
    ):
        self._save, self._every, self._last_saved = save, every, last_saved

    def before_next(self, loop: Loop) -> None:
        """Saves where it is time to, after the step was recorded: a log never lacks a step that a checkpoint has."""
        if loop.last or (self._every and loop.step % self._every == 0):
            metrics = loop.recorded()
            self._save(loop.step, loop.state, loop.position, metrics)

    def last_saved(self) -> int | None:
        """Asks the folder of the checkpoints."""
        return self._last_saved()


class Log(Callback):
    """Hands every record to `write(step, metrics)`."""

    def __init__(self, write: Callable[[int, dict[str, float]], None]):
        self._write = write

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes it."""
        self._write(step, metrics)


class StopWhen(Callback):
    """Ends the loop after the step at which `requested()`, asked after every step, says so."""

    def __init__(self, requested: Callable[[], bool]):
        self._requested = requested

    def after_step(self, loop: Loop) -> None:
        """Asks."""
        if self._requested():
            loop.stop = True
