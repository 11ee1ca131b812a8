"""Where a training loop is, and the metrics of its steps: read one step late, so that the device never waits for them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from align_jax.errors import UserError
from align_jax.models.finite import not_finite, spelled
from align_jax.training.skipped import SkippedSteps


@dataclasses.dataclass
class _Step:
    """A step's metrics: on the device until they are read, then all of them as numbers."""

    number: int
    on_device: Mapping[str, Any] | None = None
    rows: Any = None
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    recorded: bool = False


class Loop:
    """What the callbacks of `fit` see of it.

    Attributes:
      step: the update that was dispatched last. steps: the last one of the run.
      state: after `step`; the next step takes its buffers.
      position: `batches.state()` after the batch of `step`; None where they have none.
      stop: set it to end the loop after `step`.
      history: `{"step": n, ...}` of every step that is complete.
    """

    def __init__(self, state: Any, steps: int, callbacks: Sequence[Any], where: Callable[[int], str], skips: SkippedSteps):
        self.state, self.steps, self.step = state, steps, int(state.step)
        self.position: Any = None
        self.stop = False
        self.history: list[dict[str, float]] = []
        self.callbacks, self._where, self._skips = callbacks, where, skips
        self._current = _Step(self.step)
        self._arrived, self._waited = time.perf_counter(), 0.0

    @property
    def last(self) -> bool:
        """Whether no step follows."""
        return self.stop or self.step >= self.steps

    def metrics(self) -> dict[str, float]:
        """Waits for the metrics of `step` and checks them; what is added to them becomes part of its record.

        Raises:
          UserError: loss or gradient norm is not finite, and the step was not skipped.
        """
        return self._read(self._current)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds to the record of `step`, and waits for nothing.

        Raises:
          ValueError: the step is recorded already.
        """
        if self._current.recorded:
            raise ValueError(f"step {self.step} is recorded already; add metrics in `begin`, `after_step` or `record`")
        self._current.values.update(metrics)

    @property
    def added(self) -> Mapping[str, float]:
        """What is known of the record of `step` without waiting for the device: what callbacks added."""
        return self._current.values

    def recorded(self) -> dict[str, float]:
        """Waits for the metrics of `step` as `metrics` does, records them, and returns them; called again it only returns."""
        return self._record(self._current)

    def take(self, batches: Iterator) -> Any:
        """The next of the batches, or None; the time it takes is time spent waiting for data."""
        began = time.perf_counter()
        if self._current.on_device is None:  # an evaluation or a save came between: not the next step's time
            self._arrived, self._waited = began, 0.0
        taken = next(batches, None)
        self._waited += time.perf_counter() - began
        return taken

    def advance(self, state: Any, metrics: Mapping[str, Any], position: Any, rows: Any) -> None:
        """Goes on to the step that was just dispatched, and completes the one before while the device works."""
        before = self._current
        self.step, self.state, self.position = self.step + 1, state, position
        self._current = _Step(self.step, metrics, rows)
        self._record(before)

    def _record(self, step: _Step) -> dict[str, float]:
        values = self._read(step)
        if values and not step.recorded:
            step.recorded = True
            for callback in self.callbacks:
                callback.record(step.number, values)
            self.history.append({"step": step.number, **values})
        return values

    def _read(self, step: _Step) -> dict[str, float]:
        if step.on_device is not None:
            read = {name: float(value) for name, value in jax.device_get(step.on_device).items()}
            self._check_finite(step, read)
            now = time.perf_counter()
            step.values = _named(read, now - self._arrived, self._waited) | step.values
            step.on_device, self._arrived, self._waited = None, now, 0.0
        return step.values

    def _check_finite(self, step: _Step, metrics: dict[str, float]) -> None:
        if self._skips.see(step.number, metrics, step.rows):
            return
        # A step that was left out has not touched them; one that was not has.
        bad = not_finite(self.state.weights) if self._skips.most and hasattr(self.state, "weights") else []
        others = f"The weights themselves ({spelled(bad)}) hold NaN or infinite values. " if bad else ""
        loss, norm = metrics.get("loss", 0.0), metrics.get("grad_norm", 0.0)
        rows = np.asarray([] if step.rows is None else step.rows)
        named = ", ".join(map(self._where, sorted(rows[rows >= 0].tolist())))
        saved = max((n for n in (callback.last_saved() for callback in self.callbacks) if n is not None), default=None)
        raise UserError(
            f"step {step.number}: loss is {loss} and gradient norm {norm}.{self._skips.why_ended} "
            + others
            + (f"Rows of the batch: {named}. " if named and not bad else "")
            + (f"Last good checkpoint: step {saved}." if saved is not None else "No checkpoint was written yet.")
            + (" Lower optimizer.learning_rate." if bad else " Look at those rows, or lower optimizer.learning_rate.")
        )


def _named(metrics: dict[str, float], seconds: float, waited: float) -> dict[str, float]:
    """The metrics as they are logged: rates instead of counts, besides time and memory."""
    real, computed, useful = (metrics.pop(f"tokens/{name}", None) for name in ("real", "computed", "useful"))
    memory = jax.local_devices()[0].memory_stats() or {}
    peak = {"memory/peak_bytes": float(memory["peak_bytes_in_use"])} if "peak_bytes_in_use" in memory else {}
    padding = {} if real is None or computed is None else {"tokens/padding": 1 - real / computed}
    rate = {} if useful is None else {"time/tokens_per_second": useful / seconds}
    times = {"time/step_seconds": seconds, "time/data_fraction": waited / seconds}
    return metrics | peak | padding | times | rate
