"""What happens in a training loop besides its steps: evaluations, checkpoints, logs, an early end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax

from align_jax.parallel.processes import largest_anywhere
from align_jax.parallel.stop import StoppedPass
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
    """Measures the weights every so many steps, after the last step of a run and, unless told otherwise, before the first one.

    Args:
      measure: weights -> metrics (`eval/...`), which become part of the step's record.
      every: steps between evaluations; None: steps do not count.
      told: (step, metrics) -> None, called as soon as they are measured.
      first: whether the weights before the first step are measured.
      moving: `measure` takes the weights of the state's own reference, too.
      missed: an earlier start was stopped in the evaluation of the step that this one goes on from: it is made before the next.
      left_out: told of a step whose evaluation was left for a stop, and None when one was made.
    """

    def __init__(
        self,
        measure: Callable[..., dict[str, float]],
        every: int | None = None,
        told: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
        first: bool = True,
        moving: bool = False,
        missed: bool = False,
        left_out: Callable[[int | None], None] = lambda step: None,
    ):
        self._measure, self._every, self._told, self._first, self._moving = measure, every, told, first, moving
        self._missed, self._left_out = missed, left_out

    def begin(self, loop: Loop) -> None:
        """Measures the weights that a run starts from; a resumed one was measured before."""
        if (loop.step == 0 and self._first) or (loop.step and self._missed):
            self._add(loop)

    def after_step(self, loop: Loop) -> None:
        """Measures where it is time to, once the step is known to be good."""
        if loop.step == loop.steps or (self._every and loop.step % self._every == 0):
            loop.metrics()
            self._add(loop)

    def _add(self, loop: Loop) -> None:
        try:
            found = self._measure(loop.state.weights, *([loop.state.reference_weights] if self._moving else []))
        except StoppedPass:
            self._left_out(loop.step)
            raise
        self._left_out(None)
        loop.add(found)
        self._told(loop.step, found)


class Save(Callback):
    """Writes a checkpoint every so many steps or minutes, at the last step and when the loop is stopped; only of good steps.

    Args:
      save: (step, state, position of the data, metrics) -> None.
      every: steps between checkpoints, None: steps do not count.
      last_saved: () -> the step of the newest complete checkpoint, or None.
      timer: also saves when it says so; None: time does not count.
      also: saves at steps that are multiples of it, too.
    """

    def __init__(
        self,
        save: Callable[[int, Any, Any, dict[str, float]], None],
        every: int | None = None,
        last_saved: Callable[[], int | None] = lambda: None,
        timer: SaveTimer | None = None,
        also: int | None = None,
    ):
        self._save, self._last_saved, self._timer = save, last_saved, timer
        self._saved: int | None = None
        self._every = [number for number in (every, also) if number]

    def before_next(self, loop: Loop) -> None:
        """Saves where it is time to, after the step was recorded: a log never lacks a step that a checkpoint has."""
        by_step = loop.last or any(loop.step % every == 0 for every in self._every)
        if loop.step == self._saved:
            return
        if by_step or (self._timer is not None and self._timer.due(loop.step)):
            metrics = loop.recorded()
            self._saved = loop.step
            self._save(loop.step, loop.state, loop.position, metrics)
            if self._timer is not None:
                self._timer.restart(loop.step)

    def last_saved(self) -> int | None:
        """Asks the folder of the checkpoints."""
        return self._last_saved()


class SaveTimer:
    """Whether so many seconds of training have passed; several processes get one answer, that of the first one's clock.

    To ask the first process is to wait for it, so all processes agree on the step at which they do it next: about when it will
    be time, judging by the steps so far. What passes before the first step is done is compilation, and does not count.

    Args:
      seconds: between checkpoints. clock: () -> seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._seconds, self._clock = seconds, clock
        self._since: float | None = None
        self._from = self._next = 0

    def restart(self, step: int) -> None:
        """A checkpoint of this step was written."""
        self._since, self._from, self._next = self._clock(), step, step + 1

    def due(self, step: int) -> bool:
        """Whether to write one now; all processes must ask after every step."""
        if self._since is None:
            self.restart(step)
        if step < self._next:
            return False
        passed, left = self._clock() - self._since, 0
        if passed < self._seconds:
            done = step - self._from
            # Never further than as many steps again: the first ones may have been quick.
            left = max(1, min(done, int(done * (self._seconds - passed) / max(passed, 1e-3))))
        if jax.process_count() > 1:
            (left,) = largest_anywhere((left if jax.process_index() == 0 else 0,))
            self._next = step + left
        return left == 0


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


class StopEarly(Callback):
    """Ends the loop after some evaluations in a row that were no better than the best one before them.

    Stands behind the callback that measures. The weights before the first step do not count: no checkpoint holds them.

    Args:
      metric: its name, such as `eval/loss`. patience: how many evaluations.
      mode: whether a small or a large value is the better one.
      history: records of earlier starts, `{"step": n, ...}`, which count too.

    Attributes:
      best: step and value of the best evaluation so far, or None. waited: evaluations since.
    """

    def __init__(
        self, metric: str, patience: int, mode: Literal["min", "max"] = "min", history: Iterable[Mapping[str, Any]] = ()
    ):
        self._metric, self._patience, self._sign = metric, patience, 1 if mode == "max" else -1
        self.best: tuple[int, float] | None = None
        self.waited = 0
        for record in history:
            self._see(record["step"], record)

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.waited >= self._patience

    def begin(self, loop: Loop) -> None:
        """A run that has ended makes no further step."""
        self._see(loop.step, loop.added)
        loop.stop = loop.stop or self.ended

    def after_step(self, loop: Loop) -> None:
        """Counts the step's evaluation, if there was one."""
        self._see(loop.step, loop.added)
        loop.stop = loop.stop or self.ended

    def _see(self, step: int, metrics: Mapping[str, Any]) -> None:
        if self._metric not in metrics or not step:
            return
        value = metrics[self._metric]
        value = math.nan if value is None else value  # as metrics.jsonl has it
        if self.best is None or self._sign * value > self._sign * self.best[1]:
            if math.isfinite(value):
                self.best, self.waited = (step, value), 0
                return
        self.waited += 1
