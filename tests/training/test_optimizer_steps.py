"""Muon and schedule-free in the training step: on meshes, with accumulation, in bfloat16, and from a checkpoint."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import init_weights, weight_shardings
from align_jax.objectives import SFT
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.scorer import Scorer
from align_jax.training import optim
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.saved import restore_state, restore_weights, save_state
from align_jax.training.state import create_state, state_shapes, state_shardings
from align_jax.training.step import compile_step
from tests.training.test_step import CONFIG, make_items, stacked

pytestmark = pytest.mark.slow
SPECS = {
    "muon": optim.Muon(learning_rate=1e-2, weight_decay=0.1, schedule="constant"),
    "schedule_free": optim.ScheduleFree(learning_rate=2e-2, weight_decay=0.1, warmup_steps=2),
}
SCORER = Scorer(CONFIG, dtype="float32")


class Steps:
    """A short training on a mesh."""

    def __init__(self, name: str, axes: tuple[int, int, int], dtype):
        self.mesh, self.dtype = make_mesh(*axes), dtype
        self.optimizer = optim.make_optimizer(SPECS[name], 10)
        self.where = state_shardings(CONFIG, self.optimizer, self.mesh, dtype)
        self.step = compile_step(self.mesh, self.where, SCORER, SFT(), self.optimizer)

    def start(self):
        make = functools.partial(init_weights, CONFIG, param_dtype=self.dtype)
        weights = jax.jit(make, out_shardings=weight_shardings(CONFIG, self.mesh))(jax.random.key(0))
        return create_state(CONFIG, weights, self.optimizer, self.mesh, self.dtype)

    def run(self, state, steps, accumulation):
        losses = []
        for n in steps:
            items = make_items(8, 1)
            shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
            batch = put_batch(stacked(items[n:] + items[:n], accumulation, shards), self.mesh, leading=1)
            with jax.set_mesh(self.mesh):
                state, metrics = self.step(state, batch)
            losses.append(float(metrics["loss"]))
        return state, losses


@pytest.mark.parametrize("name", SPECS)
def test_eight_devices_with_accumulation_give_what_one_gives(name):
    one, eight = Steps(name, (1, 1, 1), jnp.float32), Steps(name, (2, 2, 2), jnp.float32)
    (first, losses), (second, others) = one.run(one.start(), range(3), 1), eight.run(eight.start(), range(3), 2)
    np.testing.assert_allclose(others, losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=3e-4), first.weights, second.weights)
    assert losses[2] < losses[0]
    # Moments and iterates lie where their weights do.
    sharded = [x for x in jax.tree.leaves(second.opt_state) if x.shape == second.weights["layers"]["q"].shape]
    assert sharded and all(x.sharding == second.weights["layers"]["q"].sharding for x in sharded)


@pytest.mark.parametrize("name", SPECS)
def test_bfloat16_weights_resume_bit_for_bit(name, tmp_path):
    part = Steps(name, (2, 2, 2), jnp.bfloat16)
    whole, losses = part.run(part.start(), range(4), 2)
    half, _ = part.run(part.start(), range(2), 2)
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        save_state(checkpointer, 2, half, {})
    shapes = state_shapes(CONFIG, part.optimizer, part.dtype)
    abstract = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, part.where)
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        state, _ = restore_state(checkpointer, abstract)
        exported, _ = restore_weights(checkpointer, CONFIG, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, exported, half.weights)
    state, rest = part.run(state, range(2, 4), 2)
    assert rest == losses[2:]
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_the_gradient_of_schedule_free_is_taken_beside_the_average():
    part = Steps("schedule_free", (1, 1, 1), jnp.float32)
    state, _ = part.run(part.start(), range(3), 1)
    batch = stacked(make_items(8, 1), 1, 1)
    micro = jax.tree.map(lambda x: x[0], batch)

    def loss(weights):
        total, weight = SFT()(SCORER(weights, micro), micro.group_labels)["loss"]
        return float(jnp.sum(total) / jnp.sum(weight))

    average, y = loss(state.weights), loss(optim.gradient_point(state.weights, state.opt_state))
    assert abs(average - y) > 1e-3
    _, (reported,) = part.run(state, range(1), 1)
    assert reported == pytest.approx(y, rel=1e-5)
