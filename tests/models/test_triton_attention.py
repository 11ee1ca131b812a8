"""The GPU kernels for packed rows, interpreted, against attention over what is visible, in float64; and lowered for CUDA."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.models import Decoder, init_weights
from align_jax.models.attention import attend, resolve_backend, runs, triton, visibility
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.logps import response_logps
from tests.models import packed
from tests.models.test_packed_attention import CASES, KINDS, MODEL, arrays_for


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(triton, "call", partial(triton.call, interpret=True))


def seen_in(made, window=None):
    see = jax.jit(lambda rows, prompts, where: visibility("triton", rows, window, prompts, where))
    return see(*packed.tokens(made), made.prompt_row)


@partial(jax.jit, static_argnames="cap")
def both(arrays, d_out, seen, cap=None):
    """Output and gradients."""
    out, back = jax.vjp(lambda q, k, v, pk, pv: attend(q, k, v, seen, pk, pv, cap=cap), *arrays)
    return out, list(back(d_out))


def test_a_jax_without_triton_is_refused(monkeypatch):
    assert resolve_backend("triton", "bfloat16", "cuda") == "triton"
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'triton' cannot be used: this version of JAX has no Pallas through Triton any more"):
        resolve_backend("triton", "bfloat16", "cuda")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("interpreted")
def test_values_and_gradients_equal_the_reference(name, monkeypatch):
    monkeypatch.setattr(runs, "_BLOCK", 8)
    monkeypatch.setattr(triton, "_TILE", 4)  # several tiles of a block
    of_batch, of_arrays, window, *cap = CASES[name]
    made = packed.batch(**of_batch)
    arrays, d_out = arrays_for(made, **of_arrays)
    out, grads = both(arrays, d_out, seen_in(made, window), *cap)
    expected, expected_grads = packed.Reference(*packed.visible(made, window), *cap)(d_out, *arrays)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)
    padding = made.segments == 0
    assert padding.any() and not np.asarray(out)[padding].any() and not np.asarray(grads[0])[padding].any()


@pytest.mark.slow
@pytest.mark.parametrize("size, dtype, tolerance", [(64, "float32", 1e-5), (128, "bfloat16", 0.02), (256, "bfloat16", 0.02)])
@pytest.mark.usefixtures("interpreted")
def test_heads_and_types_of_real_models(size, dtype, tolerance):
    made = packed.batch(prompt_length=72, length=96, count=3, longest=(60, 50))
    arrays, d_out = arrays_for(made, heads=2, kv_heads=1, size=size, dtype=dtype)
    out, grads = both(arrays, d_out, seen_in(made))
    assert [x.dtype for x in (out, *grads)] == [dtype] * 6
    expected, expected_grads = packed.Reference(*packed.visible(made))(d_out, *arrays)
    for result, exact in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = np.abs(np.asarray(result, np.float64) - exact).max() / np.abs(exact).max()
        assert error < tolerance


@pytest.mark.parametrize("size, dtype", [(96, "bfloat16"), (256, "float16")])
def test_kernels_lower_for_cuda(size, dtype, monkeypatch):
    with contextlib.suppress(ImportError):  # since JAX 0.11 Triton's lowering asks for the card
        from jax._src.pallas.triton import gpu_info

        monkeypatch.setattr(gpu_info, "get_device_kind", lambda: "NVIDIA H100 80GB HBM3")
    made = packed.batch()
    arrays, d_out = arrays_for(made, size=size, dtype=dtype)
    text = both.trace(arrays, d_out, seen_in(made)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton(") == 3


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_log_probs_and_gradients_equal_those_of_xla_on_a_mesh(monkeypatch):
    """Two shards, heads over two devices; beliefs with their texts in packed rows, in chunks of rows."""
    monkeypatch.setattr(runs, "_BLOCK", 8)
    config, made = dataclasses.replace(MODEL, **KINDS), packed.batch(shards=2)
    weights = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, init_weights(config, jax.random.key(0)))

    def scored(backend):
        def loss(w):
            logps = response_logps(Decoder(config, w, dtype="float32", attention=backend), made, rows_per_chunk=2)
            return jnp.sum(logps * jnp.cos(1.0 + jnp.arange(logps.size)).reshape(logps.shape)), logps

        return jax.jit(jax.grad(loss, has_aux=True))(weights)

    with jax.set_mesh(make_mesh(2, 1, 2, devices=jax.devices()[:4])):
        found = scored("triton")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, scored("xla"))
