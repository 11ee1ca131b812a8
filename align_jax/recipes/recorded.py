"""What a training run adds to the metrics of its steps, counts of them, and checks in them."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from align_jax.config import Config
from align_jax.cost.compilations import so_far
from align_jax.data import GroupDataset
from align_jax.errors import UserError
from align_jax.recipes.say import say
from align_jax.registry import suggest
from align_jax.terminal import plural
from align_jax.training.callbacks import Callback
from align_jax.training.skipped import SkippedSteps

SKIPPED = "skipped_rows.jsonl"


class AddCosts(Callback):
    """Adds the learning rate of a step, and what was compiled so far, to its metrics."""

    def __init__(self, schedule: optax.Schedule, before: Any, skips: SkippedSteps | None = None):
        self._schedule, self._before, self._skips = schedule, before, skips or SkippedSteps()

    def record(self, step: int, metrics: dict[str, float]) -> None:
        spent = so_far() - self._before
        metrics |= {"time/compile_seconds": spent.seconds, "time/compilations": float(spent.compiled)}
        if step:
            metrics["learning_rate"] = float(self._schedule(self._skips.updates_before(step)))


@dataclasses.dataclass(frozen=True)
class KeepSkipped:
    """Keeps the rows of steps whose loss or gradient was not finite, for a look; each process those that it read.

    Attributes:
      folder: of the run. dataset: `data.train`. most: `train.max_skipped`.
    """

    folder: Path
    dataset: GroupDataset
    most: int

    def __call__(self, step: int, metrics: Mapping[str, float], rows: Any) -> None:
        number = jax.process_index()
        file = self.folder / (f"skipped_rows.{number}.jsonl" if number else SKIPPED)
        found = {name: str(metrics[name]) for name in ("loss", "grad_norm") if name in metrics}
        numbers = np.unique(np.asarray([] if rows is None else rows))
        with open(file, "a", encoding="utf-8") as out:
            for row in numbers[numbers >= 0].tolist():
                line = {"step": step, **found, "where": self.dataset.where(row), "row": _fields(self.dataset.example_of(row))}
                out.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        if self.most:
            say(
                f"step {step}: loss is {found.get('loss')} and gradient norm {found.get('grad_norm')}: the step is skipped, "
                f"its rows are in {file}"
            )


def _fields(example: Any) -> dict[str, Any]:
    """What an example says, without what it does not."""
    values = dataclasses.asdict(example)
    return {name: value for name, value in values.items() if value is not None}


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
