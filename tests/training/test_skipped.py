"""Steps whose loss or gradient is not finite: left out on the device, counted, and an end after too many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.objectives import MPO
from align_jax.training.fit import fit
from align_jax.training.skipped import SkippedSteps
from align_jax.training.step import compile_step
from tests.training.test_state import OPTIMIZER, SCORER, Training, equal


@pytest.fixture(scope="module")
def training():
    return Training(objective=MPO(beta=0.1))


def _steps(training, step, batches):
    state = training.start()
    with jax.set_mesh(training.mesh):
        for batch in batches:
            state, metrics = step(state, batch)
    return jax.tree.map(np.asarray, state), metrics


def test_a_skipped_step_changes_neither_weights_nor_moments_nor_schedule(training):
    step = compile_step(training.mesh, training.where, SCORER, training.objective, OPTIMIZER, skip=True)
    good, later = training.batch(0), training.batch(1)
    bad = good.with_labels(ref_logps=jnp.full_like(good.labels["ref_logps"], jnp.nan))
    skipped, metrics = _steps(training, step, [good, bad])
    before, _ = _steps(training, step, [good])
    assert not np.isfinite(float(metrics["loss"])) and int(skipped.step) == 2
    equal((skipped.trainable, skipped.opt_state), (before.trainable, before.opt_state))
    after, _ = _steps(training, step, [good, bad, later])
    without, _ = _steps(training, step, [good, later])
    equal((after.trainable, after.opt_state), (without.trainable, without.opt_state))
    plain, _ = _steps(training, training.step, [good, later])  # the program that skips nothing rounds otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.trainable, plain.trainable)
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(after.trainable)])).all()


class _State:
    def __init__(self, step):
        self.step = step


def _fit(losses, most, **how):
    found = []
    skips = SkippedSteps(most, lambda *seen: found.append(seen), **how)
    step = lambda state, loss: (_State(state.step + 1), {"loss": np.float32(loss), "grad_norm": np.float32(1)})  # noqa: E731
    try:
        _, history = fit(_State(0), losses, step, steps=len(losses), skips=skips)
    except UserError as error:
        return str(error), found, skips
    return history, found, skips


def test_skipped_steps_are_counted_and_told():
    nan = float("nan")
    history, found, skips = _fit([1, nan, 2, nan, 3], most=2)
    assert [line.get("skipped") for line in history] == [None, 1, 1, 2, 2]
    assert [(step, np.isnan(metrics["loss"])) for step, metrics, _ in found] == [(2, True), (4, True)]
    assert [skips.updates_before(step) for step in range(1, 6)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("before, most, step", [(0, 0, 2), (0, 1, 4), (1, 1, 2)])
def test_after_too_many_the_run_ends(before, most, step):
    message, found, _ = _fit([1, float("nan"), 2, float("inf"), 3], most, before=before)
    assert f"step {step}: loss is {'nan' if step == 2 else 'inf'}" in message and "No checkpoint was written yet" in message
    assert found[-1][0] == step  # its rows are told, too
    assert ("more than train.max_skipped" in message) == (most > 0)
