"""The parts of a layer against their plain forms, differentiated by JAX; in float64 where the plain form allows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.ops import Norm, gated_linear, linear, lookup, rms_norm


def plain_norm(x, weight):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weight


def plain_gated(gate, up, weight):
    return jnp.einsum("...f,fw->...w", gate / (1 + jnp.exp(-gate)) * up, weight)


CASES = {
    "linear": (linear, lambda x, w: jnp.einsum("...w,wab->...ab", x, w), [(2, 3, 5, 7), (7, 4, 2)]),
    "linear over two axes": (
        lambda x, w: linear(x, w, 2),
        lambda x, w: jnp.einsum("...he,hew->...w", x, w),
        [(2, 3, 5, 4, 2), (4, 2, 7)],
    ),
    "gated": (gated_linear, plain_gated, [(2, 3, 5, 6), (2, 3, 5, 6), (6, 7)]),
    "gated by gelu": (
        lambda gate, up, w: gated_linear(gate, up, w, "gelu_tanh"),
        lambda gate, up, w: jnp.einsum("...f,fw->...w", jax.nn.gelu(gate, approximate=True) * up, w),
        [(2, 3, 5, 6), (2, 3, 5, 6), (6, 7)],
    ),
    "norm": (lambda x, w: rms_norm(x, w, 1e-5), plain_norm, [(2, 3, 5, 7), (7,)]),
    "norm with an offset": (
        lambda x, w: rms_norm(x, w, Norm(1e-5, 1.0, late=True)),
        lambda x, w: plain_norm(x, 1 + w),
        [(2, 3, 5, 7), (7,)],
    ),
    "norm over two axes": (
        lambda x, w: rms_norm(x, w, Norm(1e-5, axes=2)),
        lambda x, w: plain_norm(x.reshape(2, 3, 15), w.reshape(15)).reshape(x.shape),
        [(2, 3, 5, 3), (5, 3)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_plain_form(name):
    ours, plain, shapes = CASES[name]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) * 3 for shape in shapes]
    expected, pull = jax.vjp(plain, *arrays)
    cotangent = rng.normal(size=expected.shape).astype(np.float32)
    out, ours_pull = jax.vjp(jax.jit(ours), *arrays)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
    # By float32's tanh alone: the plain form rounds it elsewhere.
    near = 1e-3 if "gelu" in name else 2e-4
    for grad, wanted in zip(ours_pull(cotangent), pull(cotangent), strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=2e-4, atol=near)


def test_large_gates_have_finite_gradients():
    gate = jnp.asarray([-1e4, -100.0, 0.0, 100.0, 1e4])
    grads = jax.grad(lambda g: gated_linear(g, jnp.ones(5), jnp.ones((5, 1)))[0])(gate)
    np.testing.assert_allclose(grads, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_types_are_kept():
    x, w = jnp.ones((2, 4), jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16)
    grads = jax.grad(lambda x, w: linear(rms_norm(x, jnp.ones(4), 1e-5), w).astype(jnp.float32).sum(), argnums=(0, 1))(x, w)
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_frequent_tokens_are_added_in_float32(dtype):
    rng = np.random.default_rng(0)
    table, tokens = rng.normal(size=(7, 4)).astype(np.float32), rng.choice(7, size=(3, 1000), p=[0.7, *[0.05] * 6])
    cotangent = jnp.asarray(1 + rng.normal(size=(3, 1000, 4)), dtype)
    out, pull = jax.vjp(jax.jit(lambda t: lookup(t, tokens, dtype)), table)
    np.testing.assert_array_equal(out, jnp.asarray(table, dtype)[tokens])
    expected = np.zeros((7, 4))
    np.add.at(expected, tokens, np.asarray(cotangent, np.float64))
    (grad,) = pull(cotangent)
    assert grad.dtype == jnp.float32
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def test_gradients_of_frequent_tokens_in_a_bfloat16_table():
    """The sum is rounded to bfloat16, its terms are not added up in it: that loses half of them."""
    rng = np.random.default_rng(0)
    table, tokens = jnp.ones((7, 4), jnp.bfloat16), rng.choice(7, size=3000, p=[0.7, *[0.05] * 6])
    cotangent = jnp.asarray(1 + rng.normal(size=(3000, 4)), jnp.bfloat16)
    expected = np.zeros((7, 4))
    np.add.at(expected, tokens, np.asarray(cotangent, np.float64))

    def error(function):
        (grad,) = jax.jit(lambda t, d: jax.vjp(function, t)[1](d))(table, cotangent)
        assert grad.dtype == jnp.bfloat16
        return np.abs(np.asarray(grad, np.float64) / expected - 1).max()

    assert error(lambda t: lookup(t, tokens, jnp.bfloat16)) < 0.004
    assert error(lambda t: t[tokens]) > 0.3


def test_the_norms_weight_gradient_is_added_up_in_float32():
    rng = np.random.default_rng(0)
    x, d = (jnp.asarray(rng.normal(size=(4096, 8)) + 0.5, jnp.bfloat16) for _ in range(2))
    weight = jnp.ones(8, jnp.bfloat16)
    ours = np.asarray(jax.jit(lambda w: jax.vjp(lambda v: rms_norm(x, v, 1e-5), w)[1](d)[0])(weight), np.float64)
    x64, d64 = np.asarray(x, np.float64), np.asarray(d, np.float64)
    exact = (x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * d64).sum(0)
    assert np.abs(ours / exact - 1).max() < 0.005  # the rounding of the result alone


def test_where_a_norm_rounds():
    """A Gemma multiplies by 1 + w before it rounds, a LLaMA by w after: as transformers' do, to the bit."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((64, 32), (32,)))
    x32, w32 = x.astype(jnp.float32), w.astype(jnp.float32)
    s = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-6)
    np.testing.assert_array_equal(rms_norm(x, w, Norm(1e-6, 1.0, late=True)), (s * (1 + w32)).astype(jnp.bfloat16))
    np.testing.assert_array_equal(rms_norm(x, w, 1e-6), s.astype(jnp.bfloat16) * w)
