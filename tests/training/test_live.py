"""A live reference: its log-probs in the step, how it moves, and that it is kept."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import init_weights
from align_jax.objectives import DPO, KTO, SFT, Mixture
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.live import LiveReference
from align_jax.training.saved import restore_state, save_state
from align_jax.training.state import create_state, state_shapes, state_shardings
from align_jax.training.step import compile_step
from tests.training.test_state import CONFIG, OPTIMIZER, SCORER, equal
from tests.training.test_step import make_items, scores, stacked


class Run:
    """A small run whose reference is live, or with `live` None a table of log-probs under the starting weights."""

    def __init__(self, live, objective=None, axes=(1, 1, 1)):
        self.live, self.mesh, self.objective = live, make_mesh(*axes), objective or DPO(beta=0.5)
        self.where = state_shardings(CONFIG, OPTIMIZER, self.mesh, jnp.float32, live=live)
        self.step = compile_step(self.mesh, self.where, SCORER, self.objective, OPTIMIZER, live=live)
        self.weights = jax.device_put(init_weights(CONFIG, jax.random.key(0), jnp.float32), self.where.trainable)

    def start(self):
        weights = jax.tree.map(jnp.copy, self.weights)
        return create_state(CONFIG, weights, OPTIMIZER, self.mesh, jnp.float32, reference=weights if self.live else None)

    def batch(self, n, accumulation=1):
        labels = {"scores": scores} if self.objective.arrangement.name == "pair" else {}
        labels = labels or {"desirable": lambda rng, k: np.asarray(bool(rng.integers(2)))}
        items = make_items(8, 2, **labels)
        batch = stacked(items[n:] + items[:n], accumulation, self.mesh.devices.shape[0] * self.mesh.devices.shape[1])
        if self.live is None:
            micro = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(accumulation)]
            batch = batch.with_labels(ref_logps=np.stack([np.asarray(jax.jit(SCORER)(self.weights, m)) for m in micro]))
        return put_batch(batch, self.mesh, leading=1)

    def run(self, state, numbers, accumulation=1):
        found = []
        with jax.set_mesh(self.mesh):
            for n in numbers:
                state, metrics = self.step(state, self.batch(n, accumulation))
                found.append({name: float(value) for name, value in metrics.items()})
        return state, found


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, accumulation",
    [(DPO(beta=0.5), 2), (KTO(beta=0.5), 2), (Mixture((DPO(), SFT()), (1.0, 0.5)), 4)],
    ids=["dpo", "kto", "mixture"],
)
def test_a_live_reference_that_stays_is_the_table(objective, accumulation):
    fixed, table = Run(LiveReference(), objective), Run(None, objective)
    state, metrics = fixed.run(fixed.start(), [0, 1, 2], accumulation)
    other, wanted = table.run(table.start(), [0, 1, 2], accumulation)
    close(state.weights, other.weights)
    for one, two in zip(metrics, wanted, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5, nan_ok=True)
    equal(jax.device_get(state.reference), jax.device_get(fixed.weights))
    assert not other.reference


def test_a_mixture_is_the_same_however_the_step_is_cut():
    run = Run(LiveReference(), Mixture((DPO(beta=0.5), SFT()), (1.0, 0.5)))
    whole, (first,) = run.run(run.start(), [0])
    cut, (second,) = run.run(run.start(), [0], accumulation=4)
    assert {"dpo/loss", "sft/loss", "rewards/margins"} <= first.keys()
    assert first["loss"] == pytest.approx(first["dpo/loss"] + 0.5 * first["sft/loss"], rel=1e-6)
    assert first["dpo/loss"] == pytest.approx(np.log(2), abs=1e-6)
    keep = [name for name in first if not name.startswith(("tokens/", "gradients/"))]
    assert {name: second[name] for name in keep} == pytest.approx({name: first[name] for name in keep}, rel=1e-4, abs=1e-5)
    close(whole.weights, cut.weights)


@pytest.mark.slow
def test_the_sizes_of_a_mixture_cost_no_pass_of_the_model():
    def flops(objective):
        run = Run(None, objective)
        with jax.set_mesh(run.mesh):
            return run.step.lower(run.start(), run.batch(0, 4)).compile().cost_analysis()["flops"]

    assert flops(Mixture((DPO(), SFT()), (1.0, 0.5))) < 1.05 * flops(DPO())


@pytest.mark.parametrize("mix", [1.0, 0.6])
def test_the_reference_moves_when_it_is_due(mix):
    run = Run(LiveReference(2, mix))
    state, reference = run.start(), jax.device_get(run.weights)
    for number in (1, 2, 3, 4):
        state, _ = run.run(state, [number])
        if number % 2 == 0:
            policy = jax.device_get(state.weights)
            reference = jax.tree.map(lambda p, r: mix * np.float64(p) + (1 - mix) * np.float64(r), policy, reference)
        compare = equal if mix == 1 and number >= 2 else close
        held = jax.device_get(state.reference)
        compare(held, jax.tree.map(np.float32, reference)) if compare is equal else close(held, reference)


def test_a_reference_in_bfloat16_moves_by_less_than_its_digits():
    reference, policy = ({"w": jnp.full((20_000,), value, jnp.bfloat16)} for value in (1.0, 1.0078125))
    moved = LiveReference(1, 0.25).moved(reference, policy, jnp.int32(1), seed=3)["w"]
    assert moved.dtype == jnp.bfloat16 and float(jnp.mean(moved.astype(jnp.float32))) == pytest.approx(1.00195, abs=1e-4)


@pytest.mark.slow
def test_a_moving_reference_is_saved_and_goes_on_exactly(tmp_path):
    run = Run(LiveReference(2, 0.6), axes=(2, 2, 2))
    whole, _ = run.run(run.start(), [0, 1, 2, 3, 4])
    half, _ = run.run(run.start(), [0, 1, 2])
    assert half.reference["layers"]["q"].sharding == half.trainable["layers"]["q"].sharding
    shapes = state_shapes(CONFIG, OPTIMIZER, jnp.float32, live=LiveReference())
    abstract = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, run.where)
    with Checkpointer(tmp_path) as checkpoints:
        save_state(checkpoints, 3, half, {})
        restored, _ = restore_state(checkpoints, abstract)
    after, _ = run.run(restored, [3, 4])
    equal(jax.device_get(after), jax.device_get(whole))
    alone = Run(LiveReference(2, 0.6))
    one, _ = alone.run(alone.start(), [0, 1, 2, 3, 4])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-5), one.reference, whole.reference)


@pytest.mark.slow
def test_a_checkpoint_without_a_reference_is_read_as_before(tmp_path):
    table = Run(None)
    state, _ = table.run(table.start(), [0])
    shapes = state_shapes(CONFIG, OPTIMIZER, jnp.float32)
    abstract = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, table.where)
    with Checkpointer(tmp_path) as checkpoints:
        save_state(checkpoints, 1, state, {})
        checkpoints.wait()
        assert not [name for name in checkpoints.names(1) if name.startswith("reference")]
        equal(restore_state(checkpoints, abstract)[0], state)


def test_weights_that_are_shared_are_copied_since_both_are_donated():
    run = Run(LiveReference())
    state = run.start()
    ours, theirs = jax.tree.leaves(state.trainable), jax.tree.leaves(state.reference)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in zip(ours, theirs, strict=True))
    after, _ = run.run(state, [0])
    assert all(leaf.is_deleted() for leaf in theirs) and dataclasses.replace(after).reference
