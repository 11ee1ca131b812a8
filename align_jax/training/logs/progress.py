"""The progress line."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import ClassVar, TextIO

from tqdm import tqdm

from align_jax.training.logs.sink import Context, Sink

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


class Progress(Sink):
    """Step, loss, rewards, tokens/s, memory and time left: tqdm's bar on a terminal, plain lines elsewhere.

    Args:
      stream: where it goes; None is stderr.
    """

    name: ClassVar[str] = "progress"

    every_step = True

    def __init__(self, context: Context, stream: TextIO | None = None):
        super().__init__(context)
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._total, self._start = context.total_steps, context.resume_step or 0
        self._began, self._shown = time.monotonic(), -math.inf
        self._bar = tqdm(
            total=self._total,
            initial=self._start,
            file=self._stream,
            disable=not self._terminal,
            unit="step",
            dynamic_ncols=True,
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a step, or nothing where a line was shown a moment ago."""
        text = summary(metrics)
        if self._terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < PLAIN_SECONDS and step < self._total:
            return
        self._shown = now
        done = step - self._start
        left = tqdm.format_interval((now - self._began) / done * (self._total - step)) if done > 0 else "?"
        print(f"step {step}/{self._total}, {text}, {left} left", file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def summary(metrics: Mapping[str, float]) -> str:
    """The metrics of one step in one line; what is missing is left out."""
    parts = [f"loss {metrics['loss']:.4g}"] if "loss" in metrics else []
    rewards = [f"{metrics[key]:.4g}" for key in ("rewards/chosen", "rewards/rejected") if key in metrics]
    if rewards:
        parts.append(f"rewards {'/'.join(rewards)}")
    if "rewards/accuracies" in metrics:
        parts.append(f"accuracy {metrics['rewards/accuracies']:.3f}")
    if "beliefs/js_distance" in metrics:
        parts.append(f"js {metrics['beliefs/js_distance']:.3f}")
    if "time/tokens_per_second" in metrics:
        parts.append(f"{tqdm.format_sizeof(metrics['time/tokens_per_second'])} tokens/s")
    parts.append(f"{tqdm.format_sizeof(_memory_bytes(metrics), 'B', 1024)}")
    return ", ".join(parts)


def _memory_bytes(metrics: Mapping[str, float]) -> float:
    """Peak device memory where the metrics have it, else this process's peak."""
    # ru_maxrss is kilobytes on Linux, bytes on macOS
    scale = 1 if sys.platform == "darwin" else 1024
    return metrics.get("memory/peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
