"""Weights of few bits: their codes beside a slow reference, products and gradients, and a model that has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import Decoder, ModelConfig, init_weights, weight_shardings
from align_jax.models.ops import gated_linear, linear
from align_jax.models.quantized import KINDS, NF4, block_of, quantize, structs
from align_jax.parallel.mesh import make_mesh

CONFIG = ModelConfig(vocab_size=32, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)
ERROR = {"int8": 0.01, "int4": 0.13, "nf4": 0.12}


def slow(weight, kind, size):
    """Every block of inputs of every output by itself."""
    table = {"int8": np.arange(-127, 128), "int4": np.arange(-7, 8), "nf4": np.asarray(NF4)}[kind]
    result = np.zeros_like(weight)
    for start in range(0, weight.shape[0], size):
        for out in range(weight.shape[1]):
            block = weight[start : start + size, out]
            scale = np.abs(block).max() / np.abs(table).max()
            nearest = np.abs(block[:, None] / scale - table).argmin(-1)
            result[start : start + size, out] = table[nearest] * scale
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_the_nearest_and_products_and_gradients_those_of_the_numbers(kind):
    rng = np.random.default_rng(0)
    weight, x, d = rng.normal(size=(96, 6)), rng.normal(size=(3, 96)), rng.normal(size=(3, 6))
    found = quantize(jnp.asarray(weight, jnp.float32), kind, 1)
    assert block_of(96) == 48 and found.shape == (96, 6)
    want = slow(weight, kind, 48)
    np.testing.assert_allclose(found.astype(jnp.float32), want, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(want - weight) / np.linalg.norm(weight) < ERROR[kind]
    x, d = jnp.asarray(x, jnp.float32), jnp.asarray(d, jnp.float32)
    np.testing.assert_allclose(linear(x, found), x @ want, rtol=1e-4, atol=1e-4)
    grad = jax.grad(lambda x: jnp.vdot(linear(x, found), d))(x)
    np.testing.assert_allclose(grad, d @ want.T, rtol=1e-4, atol=1e-4)
    plain = jnp.asarray(want, jnp.float32)
    for argument in (0, 1):
        both = [jax.grad(lambda g, u, w=w: jnp.vdot(gated_linear(g, u, w), d), argument)(x, x + 1) for w in (found, plain)]
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-4)


def test_zeros_and_several_axes():
    weight = jnp.zeros((2, 4, 8, 6))  # two layers, and inputs of two axes
    found = quantize(weight, "nf4", 1)
    assert found.values.shape == (2, 4, 4, 6) and found.shape == weight.shape
    assert jax.tree.map(lambda x: x.shape, structs(weight.shape, "nf4", 1)) == jax.tree.map(lambda x: x.shape, found)
    np.testing.assert_array_equal(found.astype(jnp.float32), weight)
    np.testing.assert_array_equal(found[1].astype(jnp.float32), weight[1])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_model_of_few_bits_is_that_of_its_numbers_on_eight_devices_too(kind):
    few = dataclasses.replace(CONFIG, quantize=kind)
    tokens = np.random.default_rng(0).integers(0, 32, (2, 8))
    weights = init_weights(few, jax.random.key(0))
    numbers = {name: value.astype(jnp.float32) for name, value in weights["layers"].items()}
    plain = Decoder(CONFIG, {**weights, "layers": numbers}, dtype="float32")(tokens)
    np.testing.assert_allclose(Decoder(few, weights, dtype="float32")(tokens), plain, atol=1e-5)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(weights, weight_shardings(few, mesh))
        found = jax.jit(lambda w: Decoder(few, w, dtype="float32")(tokens))(placed)
    np.testing.assert_allclose(found, plain, atol=1e-5)
