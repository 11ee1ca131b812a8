"""Attention with sinks: one more logit of each head in the softmax, on every backend that has it."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.models.attention import attend, choose_backend, pallas, resolve_backend, runs, visibility
from align_jax.parallel import sequence
from align_jax.parallel.mesh import make_mesh
from tests.models import packed

MODEL = ModelConfig(29, 16, 24, 2, 4, 2, 64, sinks=True)
# Of the size of logits, and beyond: the last head looks at nothing but its sink.
SINKS = np.array([-2.0, 0.5, 2.0, 30.0], np.float32)


@pytest.fixture(autouse=True)
def small_kernels(monkeypatch):
    """Our kernels on any platform, with blocks of few tokens."""
    monkeypatch.setattr(pallas, "call", partial(pallas.call, interpret=True))
    monkeypatch.setattr(runs, "_BLOCK", 8)


def attended(made, backend, window, cap, dtype):
    """(output, gradients, those of the float64 reference in turn), 0 at padding."""
    rng = np.random.default_rng(1)
    rows, prompts = made.tokens.shape, made.prompt_tokens.shape
    shapes = [(*rows, 4), (*rows, 2), (*rows, 2), (*prompts, 2), (*prompts, 2)]
    arrays = [jnp.asarray(rng.normal(size=(*shape, 8)), dtype) for shape in shapes]
    real = (made.segments > 0)[..., None, None]
    d_out = jnp.asarray(rng.normal(size=arrays[0].shape) * real, dtype)

    def attention(q, k, v, pk, pv, sinks):
        seen = visibility(backend, packed.tokens(made)[0], window, packed.tokens(made)[1], made.prompt_row)
        q, k, v, pk, pv = (sequence.dealt(x, 2) for x in (q, k, v, pk, pv))
        return sequence.natural(attend(q, k, v, seen, pk, pv, cap=cap, sinks=sinks), 2)

    @jax.jit
    def both(arrays, d_out):
        out, back = jax.vjp(attention, *arrays)
        return out, back(d_out)

    out, grads = both((*arrays, jnp.asarray(SINKS)), d_out)
    expected, expected_grads = packed.Reference(*packed.visible(made, window), cap)(d_out, *arrays, SINKS)
    return np.where(real, out, 0), grads, np.where(real, expected, 0), expected_grads


@pytest.mark.parametrize("window, cap", [(None, None), (3, 2.0)])
@pytest.mark.parametrize("backend", ["xla", "pallas"])
def test_values_and_gradients_equal_the_reference(backend, window, cap):
    out, grads, expected, expected_grads = attended(packed.batch(shards=2), backend, window, cap, "float32")
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected_grads[-1][:3]).min() > 0.1
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "pallas"])
def test_heads_and_rows_that_a_mesh_cuts(backend):
    made = packed.batch(shards=2, prompt_length=16, length=32)
    with jax.set_mesh(make_mesh(1, 2, 2, sequence=2)):
        out, grads, expected, expected_grads = attended(made, backend, 5, None, "float32")
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "pallas"])
def test_their_gradient_is_not_rounded_with_the_activations(backend):
    _, grads, _, expected = attended(packed.batch(shards=2), backend, None, None, "bfloat16")
    assert grads[-1].dtype == jnp.float32
    np.testing.assert_allclose(grads[-1], expected[-1], rtol=0, atol=0.01 * np.abs(expected[-1]).max())


@pytest.mark.parametrize("is_packed", [False, True])
def test_auto_takes_what_computes_them(is_packed):
    choose = partial(choose_backend, "auto", "bfloat16", packed=is_packed)
    assert choose("tpu", MODEL) == ("pallas", None)
    assert choose("cuda", MODEL).backend == "xla"
    assert choose("cpu", MODEL) == ("xla", None)
    assert choose("tpu", dataclasses.replace(MODEL, sinks=False)).backend == ("pallas" if is_packed else "splash")


@pytest.mark.parametrize(("name", "platform"), [("splash", "tpu"), ("cudnn", "cuda"), ("triton", "cuda")])
def test_what_does_not_compute_them_is_refused(name, platform):
    with pytest.raises(UserError, match=f"'{name}' cannot be used: {name} computes no attention sinks"):
        resolve_backend(name, "bfloat16", platform, MODEL)
    made = packed.batch(shards=1)
    if name == "triton":
        return
    seen = visibility(name, packed.tokens(made)[0], None)
    with pytest.raises(UserError, match="only xla and pallas compute a model with attention sinks"):
        attend(jnp.ones((*made.tokens.shape, 4, 8)), *[jnp.ones((*made.tokens.shape, 2, 8))] * 2, seen, sinks=jnp.ones(4))
