"""Rows cut over the mesh axis `sequence`: eight devices equal one, in values, gradients and whole steps."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import Decoder, ModelConfig, init_weights, weight_shardings
from align_jax.models.attention import pallas, runs
from align_jax.parallel import sequence
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.logps import response_logps
from tests.models import packed

MODEL = ModelConfig(vocab_size=29, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=8)


@pytest.fixture
def small_kernels(monkeypatch):
    """Our kernels on any platform, with blocks of few tokens."""
    monkeypatch.setattr(pallas, "call", partial(pallas.call, interpret=True))
    monkeypatch.setattr(runs, "_BLOCK", 8)


def mesh_of(data=1, fsdp=1, tensor=1, sequence=1):
    return make_mesh(data, fsdp, tensor, sequence=sequence)


def test_positions_are_dealt_so_that_devices_have_as_much_to_do():
    with jax.set_mesh(mesh_of(sequence=4)):
        dealt = jax.jit(partial(sequence.dealt, axis=1))(jnp.arange(16)[None])
        np.testing.assert_array_equal(dealt[0].reshape(4, 4), [[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]])
        np.testing.assert_array_equal(jax.jit(partial(sequence.natural, axis=1))(dealt)[0], np.arange(16))
        assert [sequence.padded(n) for n in (1, 8, 9)] == [8, 8, 16]
    assert sequence.padded(9) == 9 and sequence.pieces() == 1


def scored(config, weights, batch, attention="xla", **chunks):
    signs = np.cos(1.0 + np.arange(batch.mask.size)).reshape(batch.mask.shape)

    def loss(w):
        logps = response_logps(Decoder(config, w, dtype="float32", attention=attention), batch, **chunks)
        return jnp.sum(logps * signs), logps

    return jax.jit(jax.grad(loss, has_aux=True))(weights)


# Several prompts, responses and beliefs in a row; one of each, over rows of two lengths; heads that fewer devices share.
CASES = {
    "packed": ({"sequence": 4, "data": 2}, {}, {}),
    "chunks": ({"sequence": 2, "fsdp": 2, "tensor": 2}, {"window": 5}, {"rows_per_chunk": 2, "head_chunk": 7}),
    "kernels": ({"sequence": 4, "fsdp": 2}, {"window": 5}, {"attention": "pallas"}),
    "kernels, one head of keys": ({"sequence": 2, "data": 2, "tensor": 2}, {"kv_heads": 1}, {"attention": "pallas"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("small_kernels")
def test_log_probs_and_gradients_equal_those_of_one_device(name):
    sizes, changed, how = CASES[name]
    config = dataclasses.replace(MODEL, sliding_window=changed.get("window"), **{k: v for k, v in changed.items() if k != "window"})
    made = packed.batch(shards=2, prompt_length=15, length=21)  # which the pieces do not divide
    assert made.parents.any() and (made.segments > 2).any() and (made.prompt_segments > 1).any()
    weights = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, init_weights(config, jax.random.key(0)))
    expected, mesh = scored(config, weights, made), mesh_of(**sizes)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, weights, weight_shardings(config, mesh))
        found = scored(config, placed, put_batch(made, mesh), **how)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)
