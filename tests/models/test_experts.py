"""The sparse layer: on meshes of all kinds, in few bits, and the load of its experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from align_jax.models import ModelConfig, weight_shardings
from align_jax.models.experts import balance_loss
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.scorer import Scorer
from tests.models.test_decoder import big_weights
from tests.training.test_step import make_items, stacked

MIXTURE = ModelConfig(32, 16, 8, 2, 4, 2, 4, experts=4, active_experts=2)


def _batch(shards):
    return jax.tree.map(lambda x: x[0], stacked(make_items(8, 2), 1, shards))


def _loss_and_gradients(scorer, weights, batch):
    def loss(weights):
        values, load = scorer.with_load(weights, batch)
        signs = (batch.rows[:, None] + jnp.arange(2)) % 3 - 1.0
        return jnp.sum(values * signs) + 5 * balance_loss(load), (values, load)

    (_, (values, load)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    return (np.asarray(values)[np.argsort(batch.rows)], load), grads


# data, fsdp, tensor, expert, sequence; what the scorer does
MESHES = {
    "expert and tensor": ((1, 2, 2, 2, 1), {"remat": "dots"}),
    "expert alone": ((2, 1, 1, 4, 1), {"rows_per_chunk": 1}),
    "expert and sequence": ((1, 2, 1, 2, 2), {"remat": "full"}),
    "more devices than experts": ((1, 1, 1, 8, 1), {}),
    "no experts": ((2, 2, 2, 1, 1), {}),
}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_changes_no_value_and_no_gradient(name):
    (data, fsdp, tensor, expert, sequence), options = MESHES[name]
    weights = big_weights(MIXTURE)
    expected, grads = _loss_and_gradients(Scorer(MIXTURE, "float32", attention="xla"), weights, _batch(1))
    mesh = make_mesh(data, fsdp, tensor, sequence=sequence, expert=expert)
    places = weight_shardings(MIXTURE, mesh)
    if name == "expert and tensor":
        assert places["layers"]["expert_gate"].spec == jax.P(None, "expert", "fsdp", "tensor")
        assert places["layers"]["q"].spec == jax.P(None, ("fsdp", "expert"), "tensor", None)
    with jax.set_mesh(mesh):
        scorer = Scorer(MIXTURE, "float32", attention="xla", **options)
        batch = put_batch(_batch(data * fsdp * expert), mesh)
        found, cut = _loss_and_gradients(scorer, jax.device_put(weights, places), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())
