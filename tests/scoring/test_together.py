"""Prompts and rows in one scan, where weights are cut over devices: the same numbers, each weight used once."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import Decoder, ModelConfig, init_weights, weight_shardings
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.logps import response_logps
from tests.models import packed

MODEL = ModelConfig(vocab_size=29, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=8)


def loss(weights, batch, config=MODEL, **how):
    signs = np.cos(1.0 + np.arange(batch.mask.size)).reshape(batch.mask.shape)
    logps = response_logps(Decoder(config, weights, dtype="float32", **how), batch)
    return jnp.sum(logps * signs), logps


@pytest.mark.slow
def test_values_and_gradients_equal_those_of_one_device():
    config = dataclasses.replace(MODEL, sliding_window=5)
    made, weights = packed.batch(shards=2, prompt_length=15, length=21), init_weights(config, jax.random.key(0))
    both = jax.jit(jax.grad(partial(loss, config=config, attention="xla", remat="full"), has_aux=True))
    expected_grads, expected = both(weights, made)
    mesh = make_mesh(1, 2, 2)
    with jax.set_mesh(mesh):
        grads, logps = both(jax.device_put(weights, weight_shardings(config, mesh)), put_batch(made, mesh))
    np.testing.assert_allclose(logps, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads)


@pytest.mark.parametrize("fsdp, scans", [(1, 2), (2, 1)])
def test_one_scan_over_the_layers_where_weights_are_gathered(fsdp, scans):
    made, weights = packed.batch(shards=2), jax.eval_shape(partial(init_weights, MODEL), jax.random.key(0))
    with jax.set_mesh(make_mesh(2 // fsdp, fsdp, 2)):
        program = jax.make_jaxpr(partial(loss, attention="xla"))(weights, made)
    of_layers = [e for e in program.eqns if e.primitive.name == "scan" and e.params["length"] == MODEL.layers]
    assert len(of_layers) == scans
