"""What a training run adds to the metrics of its steps, counts of them, and checks in them."""

from __future__ import annotations

import collections
from typing import Any

import optax

from align_jax.config import Config
from align_jax.cost.compilations import so_far
from align_jax.errors import UserError
from align_jax.registry import suggest
from align_jax.terminal import plural
from align_jax.training.callbacks import Callback


class AddCosts(Callback):
    """Adds the learning rate of a step, and what was compiled so far, to its metrics."""

    def __init__(self, schedule: optax.Schedule, before: Any):
        self._schedule, self._before = schedule, before

    def record(self, step: int, metrics: dict[str, float]) -> None:
        spent = so_far() - self._before
        metrics |= {"time/compile_seconds": spent.seconds, "time/compilations": float(spent.compiled)}
        if step:
            metrics["learning_rate"] = float(self._schedule(step - 1))


class CheckMetric(Callback):
    """Refuses, at the first metrics that should hold it, a `checkpoint.best_metric` that does not exist."""

    def __init__(self, best_metric: str | None):
        self._best = best_metric

    def record(self, step: int, metrics: dict[str, float]) -> None:
        check_known(self._best, metrics, step)


class CountCut(Callback):
    """Counts the prompts and responses that were cut to the `data` section's lengths."""

    def __init__(self):
        self._cut: collections.Counter = collections.Counter()

    def record(self, step: int, metrics: dict[str, float]) -> None:
        self._cut.update({kind: metrics.get(f"tokens/truncated_{kind}", 0) for kind in ("prompts", "responses")})

    def notes(self, config: Config) -> list[str]:
        """A line about them, if there were any."""
        limits = {"prompt": config.data.max_prompt_tokens, "response": config.data.max_response_tokens}
        counts = {kind: round(self._cut[f"{kind}s"]) for kind in limits}
        cut = [f"{plural(counts[kind], kind)} to {limits[kind]} tokens" for kind in limits if counts[kind]]
        return [f"cut      {' and '.join(cut)}, in this start's batches"] if cut else []


def check_known(best_metric: str | None, metrics: dict[str, float], step: int) -> None:
    """UserError at the first metrics that should hold `checkpoint.best_metric` and do not."""
    if best_metric is None or best_metric in metrics:
        return
    kind = [name for name in metrics if name.startswith("eval/") == best_metric.startswith("eval/")]
    if kind and (step or best_metric.startswith("eval/")):
        near = suggest(best_metric, kind)
        there = ", ".join(sorted(kind))
        raise UserError(f"checkpoint.best_metric: there is no metric {best_metric!r}; {near}there are {there}")
