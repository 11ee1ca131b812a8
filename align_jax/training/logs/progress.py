"""How far a run is."""

from __future__ import annotations

import collections
import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import ClassVar, TextIO

from tqdm import tqdm

from align_jax.terminal import PLAIN_SECONDS, bar_line, columns, has_blocks, status, write_line
from align_jax.training.logs.sink import Context, Sink

_STEPS = 32  # whose mean time is that of a step to come
_SHOWN = {
    "loss": "loss",
    "beliefs/js_distance": "js-dist",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/accuracies": "acc",
}


class Progress(Sink):
    """Step, loss, rewards, tokens/s, memory and time left: a bar on a terminal, plain lines elsewhere.

    Args:
      stream: where it goes; None is stderr.
    """

    name: ClassVar[str] = "progress"

    every_step = True

    def __init__(self, context: Context, stream: TextIO | None = None):
        super().__init__(context)
        self.stream = sys.stderr if stream is None else stream
        self._total, self._step = context.total_steps, context.resume_step or 0
        self._pace = Pace(context.total_steps, (context.config.get("train") or {}).get("eval_every"))
        self._metrics: Mapping[str, float] = {}
        self._shown = -math.inf
        self._terminal = columns(self.stream) > 0
        if self._terminal:
            status.open(self)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a step, or nothing where a line was shown a moment ago."""
        self._pace.add(metrics)
        if "loss" not in metrics and step < self._total:  # what was measured before the first step
            return
        self._step, self._metrics = step, metrics
        if self._terminal:
            status.draw(self)
            return
        now = time.monotonic()
        if now - self._shown < PLAIN_SECONDS and step < self._total:
            return
        self._shown = now
        write_line(self._plain(), self.stream)

    def close(self) -> None:
        """Ends the bar; where it ended stays on the terminal."""
        if self._terminal:
            status.close(self)
            if self._metrics:
                write_line(self.render(columns(self.stream)).rstrip(), self.stream)

    def render(self, width: int) -> str:
        """The bar with what fits beside it."""
        left = self._pace.left(self._step)
        shown = numbers(self._metrics, self._pace.tokens_per_second) if self._metrics else []
        tail = [*([f"{left} left"] if left and self._step < self._total else []), *shown]
        head, ascii_only = f"step {self._step}/{self._total}", not has_blocks(self.stream)
        return bar_line(head, self._step, self._total, tail, width, ascii_only)

    def _plain(self) -> str:
        left = self._pace.left(self._step)
        text = " ".join(numbers(self._metrics, self._pace.tokens_per_second))
        return f"step {self._step}/{self._total}: {text}" + (f", {left} left" if left and self._step < self._total else "")


class Pace:
    """How long steps take: those of this start, but for the first one and those during which something was compiled.

    Args:
      total: the last step. eval_every: steps between evaluations, whose time is still to come, too.
    """

    def __init__(self, total: int, eval_every: int | None = None):
        self._total, self._every = total, eval_every
        self._steps: collections.deque[tuple[float, float]] = collections.deque(maxlen=_STEPS)  # seconds, tokens per second
        self._compiled: float | None = None
        self._evaluation = math.inf

    def add(self, metrics: Mapping[str, float]) -> None:
        """The metrics of a step."""
        seconds, compiled = metrics.get("time/step_seconds"), metrics.get("time/compile_seconds", 0.0)
        if seconds is not None:
            if compiled == self._compiled:
                self._steps.append((seconds, metrics.get("time/tokens_per_second", 0.0)))
            self._compiled = compiled
        self._evaluation = min(self._evaluation, metrics.get("time/eval_seconds", math.inf))

    @property
    def tokens_per_second(self) -> float:
        """Of the steps that count; 0 where none does yet."""
        return sum(seconds * rate for seconds, rate in self._steps) / max(sum(seconds for seconds, _ in self._steps), 1e-9)

    def left(self, step: int) -> str:
        """The time left after a step, with its evaluations; empty where no step counts yet."""
        if not self._steps:
            return ""
        seconds = sum(seconds for seconds, _ in self._steps) / len(self._steps) * (self._total - step)
        if math.isfinite(self._evaluation) and step < self._total:
            every = self._every or self._total
            seconds += self._evaluation * (self._total // every - step // every + bool(self._total % every))
        return tqdm.format_interval(seconds)


def numbers(metrics: Mapping[str, float], tokens_per_second: float = 0.0) -> list[str]:
    """The metrics of one step, each with its name, the most important first; what is missing is left out."""
    # a reward that is nothing but rounding is 0.00, as beside it
    shown = {name: metrics[name] for name in _SHOWN if name in metrics}
    near_zero = {name: 0.0 for name, value in shown.items() if name != "loss" and abs(value) < 0.005}
    parts = [f"{_SHOWN[name]} {short(value)}" for name, value in (shown | near_zero).items()]
    if tokens_per_second:
        parts.append(f"{tqdm.format_sizeof(tokens_per_second)} tok/s")
    return [*parts, f"{tqdm.format_sizeof(_memory_bytes(metrics), divisor=1024)}iB"]


def short(value: float) -> str:
    """A number in about four characters: `0.69`, `-12.3`, `1.2e-05`."""
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 0.005:
        return f"{value:.0e}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.3g}"


def _memory_bytes(metrics: Mapping[str, float]) -> float:
    """Peak device memory where the metrics have it, else this process's peak."""
    # ru_maxrss is kilobytes on Linux, bytes on macOS
    scale = 1 if sys.platform == "darwin" else 1024
    return metrics.get("memory/peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
