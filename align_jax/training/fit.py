"""The training loop: iterate, log, evaluate, checkpoint. No maths."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.batch import GroupBatch, computed_positions, real_positions, useful_tokens
from align_jax.data import ahead
from align_jax.errors import UserError
from align_jax.parallel.stop import StopSignal
from align_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls; each takes host values.

    Attributes:
      put: host batch -> device batch.
      step: (state, device batch) -> (state, metrics).
      log: (step, metrics) -> None.
      evaluate: params -> metrics, or None for no evaluation.
      save: (step, state, iterator state, metrics) -> None.
      last_saved: () -> the newest complete checkpoint's step or None.
      where: number of a group -> the place of its data row.
    """

    put: Callable[[GroupBatch], GroupBatch]
    step: Callable[[TrainState, GroupBatch], tuple[TrainState, dict]]
    log: Callable[[int, dict[str, float]], None]
    evaluate: Callable[[dict], dict[str, float]] | None
    save: Callable[[int, TrainState, Any, dict[str, float]], None]
    last_saved: Callable[[], int | None]
    where: Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """When things happen, in steps; `eval_every` None evaluates at the end only."""

    steps: int
    checkpoint_every: int
    eval_every: int | None


def run(state: TrainState, loader: Any, plan: Plan, hooks: Hooks, stop: StopSignal) -> tuple[TrainState, bool]:
    """Trains from `state.step` to `plan.steps`.

    Args:
      state: where to start.
      loader: an iterator of host batches (microbatches on a leading axis) with `state()`.
      stop: asked after every step; when it says so, a checkpoint is written and the loop ends.

    Returns:
      The last state, and whether all steps were made.

    Raises:
      UserError: a loss that is not finite, with the step, the rows of the batch and the last good checkpoint.
    """
    start = int(state.step)
    if start == 0 and hooks.evaluate is not None:
        hooks.log(0, hooks.evaluate(state.weights))
    batches = ahead(loader, hooks.put)
    for step in range(start + 1, plan.steps + 1):
        began = time.perf_counter()
        batch, host, position = next(batches)
        waited = time.perf_counter() - began
        state, metrics = hooks.step(state, batch)
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        _check_finite(step, metrics, host, hooks)
        metrics |= _batch_metrics(host, time.perf_counter() - began, waited)
        if hooks.evaluate is not None and (step == plan.steps or (plan.eval_every and step % plan.eval_every == 0)):
            metrics |= hooks.evaluate(state.weights)
        stopping = stop.requested()
        hooks.log(step, metrics)
        if stopping or step == plan.steps or step % plan.checkpoint_every == 0:
            hooks.save(step, state, position, metrics)
        if stopping and step < plan.steps:
            return state, False
    return state, True


def _check_finite(step: int, metrics: dict[str, float], batch: GroupBatch, hooks: Hooks) -> None:
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
        return
    rows = np.asarray(batch.rows)
    last = hooks.last_saved()
    raise UserError(
        f"step {step}: loss is {metrics['loss']} and gradient norm {metrics['grad_norm']}. Rows of the batch: "
        f"{', '.join(map(hooks.where, sorted(rows[rows >= 0].tolist())))}. "
        + (f"Last good checkpoint: step {last}." if last is not None else "No checkpoint was written yet.")
        + " Look at those rows, or lower optimizer.learning_rate."
    )


def _batch_metrics(batch: GroupBatch, seconds: float, waited: float) -> dict[str, float]:
    counts = _counts(batch)
    memory = jax.local_devices()[0].memory_stats() or {}
    peak = {"memory/peak_bytes": float(memory["peak_bytes_in_use"])} if "peak_bytes_in_use" in memory else {}
    truncated = {f"tokens/{name}": counts[name] for name in counts if name.startswith("truncated")}
    return (
        truncated
        | peak
        | {
            "tokens/padding": 1 - counts["real"] / counts["computed"],
            "time/step_seconds": seconds,
            "time/data_fraction": waited / seconds,
            "time/tokens_per_second": counts["useful"] / seconds,
        }
    )


def _counts(batch: GroupBatch) -> dict[str, float]:
    """Positions and texts of the whole batch, of which every process holds its part."""
    counts = {"real": real_positions(batch), "computed": computed_positions(batch), "useful": useful_tokens(batch)}
    if "truncated" in batch.labels:
        prompts, responses = np.asarray(batch.labels["truncated"]).reshape(-1, 2).sum(0)
        counts |= {"truncated_prompts": prompts, "truncated_responses": responses}
    values = np.asarray(list(counts.values()), np.int32)
    if jax.process_count() > 1:
        values = multihost_utils.process_allgather(values).sum(axis=0)
    return dict(zip(counts, map(float, values), strict=True))
