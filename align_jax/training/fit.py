"""The training loop: iterate, and let callbacks log, evaluate and save. No maths."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from align_jax.data import ahead
from align_jax.errors import UserError
from align_jax.parallel.stop import StoppedPass
from align_jax.training.callbacks import Callback
from align_jax.training.loop import Loop
from align_jax.training.skipped import SkippedSteps
from align_jax.training.state import TrainState


def fit(
    state: TrainState,
    batches: Iterable[Any],
    step: Callable[[TrainState, Any], tuple[TrainState, dict]],
    *,
    steps: int,
    callbacks: Sequence[Callback] = (),
    put: Callable[[Any], Any] | None = None,
    where: Callable[[int], str] | None = None,
    skips: SkippedSteps | None = None,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Trains from `state.step` to `steps`.

    The metrics of a step are read when the next one was dispatched, so the device never waits for the host, unless a callback
    asks for them before: an evaluation or a checkpoint is made of a step that is known to be good.

    Args:
      state: where to start; `step` may reuse its buffers.
      batches: host batches, microbatches on a leading axis; with a method `state()` (`BatchLoader`), the position in the data
        that belongs to each batch is kept for checkpoints.
      step: (state, device batch) -> (state, metrics as scalars), such as `train_step`, jitted.
      steps: the last step.
      callbacks: see `align_jax.training.callbacks`.
      put: host batch -> device batch, one batch ahead; None leaves it to `step`. An iterator has then handed out one batch more
        than steps were made, where a callback ended the loop early.
      where: number of a group (`batch.rows`) -> the place of its data row, for errors; None gives the number.
      skips: counts steps that `step` leaves out, as `train_step(skip=True)` does; None: it leaves none out.

    Returns:
      The last state, and the record `{"step": n, ...}` of every step (what callbacks added, evaluations too).

    Raises:
      UserError: a loss or gradient norm that is not finite, and not skipped, with the step, the rows of its batch and the last
        good checkpoint; or batches that end before the steps do.
    """
    loop = Loop(state, steps, callbacks, where or str, skips or SkippedSteps())
    for callback in callbacks:
        callback.begin(loop)
    loop.recorded()
    made = ahead(batches, put or (lambda batch: batch), steps - loop.step)
    try:
        _run(loop, made, step)
    except BaseException:
        # Ctrl-C may end the process now, and must not while the device computes.
        with contextlib.suppress(Exception):
            jax.block_until_ready(loop.state)
        raise
    loop.recorded()
    for callback in callbacks:
        callback.end(loop)
    return loop.state, loop.history


def _run(loop: Loop, made: Iterator, step: Callable) -> None:
    begun = loop.step
    while not loop.last:
        try:
            taken = loop.take(made)
        except UserError:  # a file of rows that changed, say: the steps so far are whole
            if loop.step > begun and jax.process_count() == 1:  # others may go on, and would not save with this one
                loop.stop = True
                _before_next(loop)
            raise
        if taken is None:
            loop.recorded()
            raise UserError(f"the batches ended after step {loop.step}, before step {loop.steps}; give more, or fewer steps")
        batch, host, position = taken
        loop.advance(*step(loop.state, batch), position, getattr(host, "rows", None))
        for callback in loop.callbacks:
            try:
                callback.after_step(loop)
            except StoppedPass:  # in an evaluation, say: the step is made, and is saved
                loop.stop = True
        _before_next(loop)


def _before_next(loop: Loop) -> None:
    for callback in loop.callbacks:
        callback.before_next(loop)
