"""The kernels for packed rows, interpreted, against attention over what `align_jax.batch` calls visible, in float64."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.models import Decoder, ModelConfig, init_weights
from align_jax.models.attention import attend, pallas, runs, visibility
from align_jax.models.attention.pairs import computed_pairs
from align_jax.scoring.logps import response_logps
from tests.models import packed


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(pallas, "call", partial(pallas.call, interpret=True))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(runs, "_BLOCK", 8)


def seen_in(made, window=None):
    see = jax.jit(lambda rows, prompts, where: visibility("pallas", rows, window, prompts, where))
    return see(*packed.tokens(made), made.prompt_row)


def arrays_for(made, heads=4, kv_heads=2, size=6, dtype=np.float32, seed=1):
    """q, k, v, prompt k, prompt v, and a gradient of the output."""
    rng = np.random.default_rng(seed)
    shapes = [(made.tokens.shape, heads), *[(made.tokens.shape, kv_heads)] * 2, *[(made.prompt_tokens.shape, kv_heads)] * 2]
    made_arrays = [jnp.asarray(rng.normal(size=(*shape, h, size)), dtype) for shape, h in [*shapes, shapes[0]]]
    return made_arrays[:-1], made_arrays[-1]


@partial(jax.jit, static_argnames="cap")
def both(arrays, d_out, seen, cap=None):
    """Output and gradients."""
    out, back = jax.vjp(lambda q, k, v, pk, pv: attend(q, k, v, seen, pk, pv, cap=cap), *arrays)
    return out, list(back(d_out))


def spans_as_masks(seen):
    """What `runs` say is visible: bool `[D, tokens, keys]`."""
    index, spans = np.arange(seen.blocks.prompts + seen.blocks.rows), np.asarray(seen.spans)[..., None]
    return sum((spans[:, i] <= index) & (index <= spans[:, i + 1]) for i in (0, 2, 4)) > 0


def expected_masks(made, seen, window=None):
    own, prompt = packed.visible(made, window)
    result = np.zeros((own.shape[0], seen.blocks.rows, seen.blocks.prompts + seen.blocks.rows), bool)
    count = own.shape[1] * own.shape[2]
    result[:, :count, : prompt.shape[-1]] = prompt.reshape(own.shape[0], count, -1)
    result[:, :count, seen.blocks.prompts :][..., :count] = own.reshape(own.shape[0], count, -1)
    return result


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("small_blocks")
def test_runs_say_what_is_visible_and_work_is_where_anything_is(seed, window):
    made = packed.batch(shards=2, count=8, seed=seed)
    assert made.parents.any() and (made.segments > 2).any() and (made.prompt_segments > 1).any()
    seen = seen_in(made, window)
    masks = expected_masks(made, seen, window)
    np.testing.assert_array_equal(spans_as_masks(seen), masks)
    blocks, size = seen.blocks, seen.blocks.size
    for d, mask in enumerate(masks):
        split = mask.reshape(blocks.of_tokens, size, blocks.of_keys, size)
        any_, all_ = split.any(axis=(1, 3)), split.all(axis=(1, 3))
        for by_key, work in enumerate((seen.by_token, seen.by_key)):
            items = np.asarray(work[d])[: int(seen.counts[d, by_key])]
            pairs = [(int(runs.block_of(i)), int(runs.other_block_of(i))) for i in items]
            real = [p for p, i in zip(pairs, items, strict=True) if runs.kind_of(i)]
            assert sorted(real) == list(zip(*np.nonzero(any_.T if by_key else any_), strict=True))
            assert [i for i, _ in pairs] == sorted(i for i, _ in pairs)
            assert {i for i, _ in pairs} == set(range(blocks.of_keys if by_key else blocks.of_tokens))
            whole = [p for p, i in zip(pairs, items, strict=True) if runs.kind_of(i) == runs.ALL]
            assert whole == list(zip(*np.nonzero(all_.T if by_key else all_), strict=True))


@pytest.mark.usefixtures("small_blocks")
def test_pairs_are_counted_by_whole_blocks():
    made = packed.batch(shards=2, count=8)
    prompt, rows = computed_pairs(made)
    mask = expected_masks(made, seen_in(made))
    blocks = mask.reshape(2, mask.shape[1] // 8, 8, -1, 8).any(axis=(2, 4))
    assert rows == 64 * blocks.sum()
    full = computed_pairs(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made))
    (_, m, p), (_, n, r) = made.prompt_tokens.shape, made.tokens.shape
    triangle = lambda length: length // 8 * (length // 8 + 1) // 2  # noqa: E731
    assert full == (64 * 2 * m * triangle(p), 64 * 2 * n * (triangle(r) + r // 8 * p // 8))
    assert prompt < full[0]


@pytest.mark.usefixtures("small_blocks")
def test_pairs_of_rows_that_a_mesh_cuts():
    """Each of two devices has an early and a late quarter of a row, and all keys up to its own."""
    made = packed.batch(shards=1, prompt_length=32, length=32, count=2)
    full = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made)
    (_, m, p), (_, n, r) = made.prompt_tokens.shape, made.tokens.shape
    assert (p, r) == (32, 32) and r // 4 == 8  # a piece is a block of 8
    triangle = 4 * 5 // 2
    assert computed_pairs(full, parts=2) == (64 * m * triangle, 64 * n * (triangle + 4 * 4)) == computed_pairs(full)


CASES = {
    "beliefs": ({"shards": 2}, {}, None),
    "window": ({"shards": 2}, {}, 3),
    "programs that share keys": ({"count": 3}, {"heads": 4, "kv_heads": 1}, 4),
    "soft cap": ({"count": 3}, {}, 4, 1.5),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("small_blocks")
def test_values_and_gradients_equal_the_reference(name):
    of_batch, of_arrays, window, *cap = CASES[name]
    made = packed.batch(**of_batch)
    arrays, d_out = arrays_for(made, **of_arrays)
    out, grads = both(arrays, d_out, seen_in(made, window), *cap)
    expected, expected_grads = packed.Reference(*packed.visible(made, window), *cap)(d_out, *arrays)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "size, block, dtype, tolerance", [(64, 256, "float32", 1e-5), (128, 128, "bfloat16", 0.02), (256, 128, "bfloat16", 0.02)]
)
def test_blocks_heads_and_types_of_real_models(size, block, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(runs, "_BLOCK", block)
    made = packed.batch(prompt_length=72, length=96, count=6, longest=(60, 50))
    arrays, d_out = arrays_for(made, heads=2, kv_heads=1, size=size, dtype=dtype)
    seen = seen_in(made)
    assert seen.blocks.size == block and seen.blocks.of_tokens > 1
    out, grads = both(arrays, d_out, seen)
    assert [x.dtype for x in (out, *grads)] == [dtype] * 6
    expected, expected_grads = packed.Reference(*packed.visible(made))(d_out, *arrays)
    for result, exact in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = np.abs(np.asarray(result, np.float64) - exact).max() / np.abs(exact).max()
        assert error < tolerance


@pytest.mark.usefixtures("small_blocks")
def test_padding_gets_zeros_and_gives_no_gradient():
    made = packed.batch(shards=2)
    arrays, d_out = arrays_for(made)
    padding, unused = made.segments == 0, made.prompt_segments == 0
    assert padding.all(axis=-1).any() and unused.any()
    # What stands at padding must not matter, nor what comes back from it.
    q, k, v, pk, pv = (jnp.where(jnp.asarray(m)[..., None, None], 1e4, x) for m, x in zip(
        (padding, padding, padding, unused, unused), arrays, strict=True))  # fmt: skip
    out, grads = both([q, k, v, pk, pv], d_out, seen_in(made))
    for result in (out, *grads[:3]):
        assert np.isfinite(result).all() and not np.asarray(result)[padding].any()
    for grad in grads[3:]:
        assert np.isfinite(grad).all() and not np.asarray(grad)[unused].any()
    plain, _ = both(arrays, d_out, seen_in(made))
    np.testing.assert_allclose(out, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_large_logits_stay_finite():
    made = packed.batch(shards=2)
    arrays, d_out = arrays_for(made)
    arrays = [arrays[0] * 300, *arrays[1:]]
    out, grads = both(arrays, d_out, seen_in(made))
    assert all(np.isfinite(x).all() for x in (out, *grads))


def test_no_array_has_queries_by_keys():
    made = packed.batch(prompt_length=128, length=256, count=8, longest=(100, 80))
    arrays, d_out = arrays_for(made)
    rows, prompts = packed.tokens(made)

    def loss(arrays):
        seen = visibility("pallas", rows, None, prompts, made.prompt_row)
        return jnp.sum(attend(*arrays[:3], seen, *arrays[3:]) * d_out)

    tokens = made.tokens[0].size
    assert tokens > 2 * runs.Blocks.of(tokens, 256, 0).size
    shapes = re.findall(r"\[(\d+(?:,\d+)*)\]", str(jax.make_jaxpr(jax.grad(loss))(arrays)))
    assert len(shapes) > 100
    assert not [s for s in shapes if sum(int(n) >= tokens for n in s.split(",")) > 1]


MODEL = ModelConfig(vocab_size=29, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=8)
# A window in one layer of two, and a soft cap: what differs between layers goes through a switch.
KINDS = {"sliding_window": 5, "layer_windows": (True, False), "attention_softcap": 2.0}


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_log_probs_equal_those_of_xla():
    config, made = dataclasses.replace(MODEL, **KINDS), packed.batch(shards=2)
    weights = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, init_weights(config, jax.random.key(0)))
    signs = np.cos(1.0 + np.arange(made.mask.size)).reshape(made.mask.shape)

    def scored(backend):
        def loss(w):
            logps = response_logps(Decoder(config, w, dtype="float32", attention=backend), made, rows_per_chunk=2)
            return jnp.sum(logps * signs), logps

        return jax.jit(jax.grad(loss, has_aux=True))(weights)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), scored("pallas"), scored("xla"))


def test_more_blocks_than_work_can_name_are_refused():
    assert runs.Blocks.of(2**20, 1024, 2**19).of_keys == 3 * 2**11
    with pytest.raises(UserError, match="'pallas' takes fewer than 4194304 tokens of a shard at a time, got 4194304; set"):
        runs.Blocks.of(2**22, 1024, 0)


@pytest.mark.parametrize(
    "shards, heads, kv_heads, size, block, expected",
    [
        (1, 32, 8, 128, 256, (8, 2, 4, 1)),  # two key heads with their four queries
        (1, 32, 8, 256, 512, (4, 1, 8, 1)),  # one, of larger blocks
        (1, 8, 2, 128, 256, (4, 1, 2, 1)),  # two programs, for two cores
        (1, 4, 1, 128, 256, (2, 1, 2, 2)),  # which share a key head
        (2, 4, 1, 128, 256, (4, 1, 1, 1)),
        (1, 9, 3, 64, 256, (3, 1, 3, 1)),
        (1, 1, 1, 64, 256, (1, 1, 1, 1)),
        (1, 64, 2, 128, 256, (8, 1, 8, 4)),
    ],
)
def test_heads_of_a_program(shards, heads, kv_heads, size, block, expected):
    q, k = (jax.ShapeDtypeStruct((shards, 3, 100, h, size), "bfloat16") for h in (heads, kv_heads))
    assert dataclasses.astuple(pallas._Heads.of(q, k, block)) == expected
