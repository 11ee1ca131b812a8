"""Rows cut over the mesh axis `sequence`: eight devices equal one, in values, gradients and whole steps."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.data import RowLayout
from align_jax.errors import UserError
from align_jax.models import Decoder, ModelConfig, init_weights, weight_shardings
from align_jax.models.attention import attend, blockwise, pallas, runs, visibility
from align_jax.objectives import DPO, MPO
from align_jax.parallel import sequence
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.logps import response_logps
from align_jax.scoring.scorer import Scorer
from tests.models import packed
from tests.training.test_step import CONFIG, make_items, one_step, scores, stacked

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


def attended(backend, made, window, arrays, d_out):
    """Output and gradients of attention, of arrays by natural position."""

    def attention(*arrays):
        rows, prompts = packed.tokens(made)
        seen = visibility(backend, rows, window, prompts, made.prompt_row)
        q, k, v, *prompt = (sequence.dealt(x, 2) for x in arrays)
        return sequence.natural(attend(q, k, v, seen, *prompt), 2)

    @jax.jit
    def both(arrays, d_out):
        out, back = jax.vjp(attention, *arrays)
        return out, list(back(d_out))

    return both(arrays, d_out)


@pytest.mark.parametrize("backend, sizes, window", [("xla", {"data": 2, "sequence": 4}, None), ("pallas", {"sequence": 8}, 5)])
@pytest.mark.usefixtures("small_kernels")
def test_attention_over_cut_rows_equals_the_reference(backend, sizes, window):
    made = packed.batch(shards=2, prompt_length=16, length=32)
    rng = np.random.default_rng(1)
    rows, prompts = made.tokens.shape, made.prompt_tokens.shape
    shapes = [(*rows, 4), (*rows, 2), (*rows, 2), (*prompts, 2), (*prompts, 2)]
    arrays = [rng.normal(size=(*shape, 6)).astype(np.float32) for shape in shapes]
    real = (made.segments > 0)[..., None, None]
    d_out = rng.normal(size=arrays[0].shape).astype(np.float32) * real
    expected, expected_grads = packed.Reference(*packed.visible(made, window))(d_out, *arrays)
    with jax.set_mesh(mesh_of(**sizes)):
        out, grads = attended(backend, made, window, arrays, d_out)
    np.testing.assert_allclose(np.where(real, out, 0), np.where(real, expected, 0), rtol=1e-4, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "pallas"])
@pytest.mark.usefixtures("small_kernels")
def test_no_array_has_queries_by_keys(backend, monkeypatch):
    monkeypatch.setattr(blockwise, "_BLOCK_BYTES", 4 * 2 * 512 * 16)  # 16 queries of 2 heads over 512 keys
    made = packed.batch(prompt_length=128, length=512, count=4, longest=(100, 400))
    length, rows = made.tokens.shape[-1], made.tokens.shape
    q, k = (jax.ShapeDtypeStruct((*rows, heads, 8), "float32") for heads in (2, 1))

    def loss(q, k, v):
        seen = visibility(backend, packed.tokens(made)[0], None)
        return jnp.sum(attend(q, k, v, seen))

    with jax.set_mesh(mesh_of(sequence=4)):
        program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, k, k))
    # A device has a quarter of the queries and all keys of a row.
    shapes = [[int(n) for n in shape.split(",")] for shape in re.findall(r"\[(\d+(?:,\d+)*)\]", program)]
    assert [length, 1, 8] in [shape[-3:] for shape in shapes]
    assert not [shape for shape in shapes if sum(n >= length // 4 for n in shape) > 1]


def test_kernels_that_take_whole_rows_are_refused():
    made = packed.batch(shards=1)
    model = Decoder(MODEL, init_weights(MODEL, jax.random.key(0)), dtype="bfloat16", attention="splash")
    with jax.set_mesh(mesh_of(sequence=2)), pytest.raises(UserError, match="'splash' takes whole rows, and mesh.sequence: 2"):
        response_logps(model, dataclasses.replace(made, packed=False))


def scored(config, weights, batch, attention="xla", **chunks):
    signs = np.cos(1.0 + np.arange(batch.mask.size)).reshape(batch.mask.shape)

    def loss(w):
        logps = response_logps(Decoder(config, w, dtype="float32", attention=attention), batch, **chunks)
        return jnp.sum(logps * signs), logps

    return jax.jit(jax.grad(loss, has_aux=True))(weights)


# Several prompts, responses and beliefs in a row; one of each, over rows of two lengths; heads that fewer devices share.
CASES = {
    "packed": ({"sequence": 4, "data": 2}, {}, {}),
    "chunks": ({"sequence": 2, "fsdp": 2, "tensor": 2}, {"sliding_window": 5}, {"rows_per_chunk": 2, "head_chunk": 7}),
    "kernels": ({"sequence": 2, "data": 2, "tensor": 2}, {"kv_heads": 1, "sliding_window": 5}, {"attention": "pallas"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("small_kernels")
def test_log_probs_and_gradients_equal_those_of_one_device(name):
    sizes, changed, how = CASES[name]
    config = dataclasses.replace(MODEL, **changed)
    made = packed.batch(shards=2, prompt_length=15, length=21)  # which the pieces do not divide
    assert made.parents.any() and (made.segments > 2).any() and (made.prompt_segments > 1).any()
    weights = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, init_weights(config, jax.random.key(0)))
    expected, mesh = scored(config, weights, made), mesh_of(**sizes)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, weights, weight_shardings(config, mesh))
        found = scored(config, placed, put_batch(made, mesh), **how)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [MPO(beta=0.5, alpha=0.3), DPO(beta=0.5)], ids=["mpo", "dpo"])
def test_a_step_gives_the_same_update(objective):
    """Packed rows for MPO, one response a row for DPO."""
    pairs = isinstance(objective, DPO)
    items, layout = make_items(4, 2 if pairs else 3, scores=scores), RowLayout(pack=not pairs)
    one, first = one_step(stacked(items, 1, 1, layout), objective)
    mesh, batch = mesh_of(fsdp=2, tensor=2, sequence=2), stacked(items, 1, 2, layout)
    many, second = one_step(batch, objective, mesh, Scorer(CONFIG, "float32", remat="full", sequence=2))
    assert second == pytest.approx(first, rel=2e-5, abs=1e-6, nan_ok=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one.weights, many.weights)
