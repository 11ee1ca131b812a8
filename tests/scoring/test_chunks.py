"""`rows_per_chunk` and `head_chunk: auto`: the estimate of memory against what the compiler plans, and what is done with it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.batch import GroupBatch
from align_jax.cost.hlo import count
from align_jax.models.config import ModelConfig
from align_jax.models.weights import init_weights, weight_shapes
from align_jax.scoring.chunks import LOGITS, UNKNOWN, head_that_fits, position_bytes, rows_that_fit, state_bytes
from align_jax.scoring.scorer import Scorer

CONFIG = ModelConfig(vocab_size=64, width=96, mlp_width=256, layers=4, heads=4, kv_heads=2, head_size=24)
PROMPT, RESPONSE = 16, 64


def batch(rows: int, arrays=jax.ShapeDtypeStruct) -> GroupBatch:
    """One prompt and its responses, one a row; of shapes alone by default."""
    prompt = [arrays((1, 1, PROMPT), jnp.int32) for _ in range(3)]
    row = [arrays((1, rows, RESPONSE), jnp.int32) for _ in range(7)]
    rest = arrays((1, rows), jnp.int32), arrays((1, rows), jnp.bool_), arrays((1, rows), jnp.int32), arrays((1,), jnp.int32)
    return GroupBatch(*prompt, *row, *rest, {}, uniform=True, packed=False, ends=False)


def planned(rows: int, remat: str, **options) -> int:
    """Bytes of temporary values that the compiler plans for a gradient."""
    return gradient(rows, remat, **options)[0]


@functools.cache
def gradient(rows: int, remat: str, **options) -> tuple[int, float]:
    """... and the operations of its products."""
    scorer = Scorer(CONFIG, dtype="float32", remat=remat, attention="xla", **options)
    leaf = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    params = jax.tree.map(leaf, weight_shapes(CONFIG), is_leaf=lambda x: isinstance(x, tuple))
    compiled = jax.jit(jax.grad(lambda params, batch: jnp.sum(scorer(params, batch)))).lower(params, batch(rows)).compile()
    return compiled.memory_analysis().temp_size_in_bytes, count(compiled.as_text()).flops


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_position_takes_about_what_the_compiler_plans(remat):
    grown = (planned(24, remat) - planned(8, remat)) / (16 * RESPONSE)
    assert 0.7 < position_bytes(CONFIG, "float32", remat) / grown < 1.6


def test_as_many_rows_as_fit_in_equal_chunks():
    fit = lambda rows, memory: rows_that_fit((rows, 10), (1, 10), 100, memory, (0, 64))  # noqa: E731
    assert fit(8, 9000) is None  # 8 rows of 1000 bytes, and the prompt
    assert fit(8, 8999) == 4  # 7 fit: two equal chunks
    assert fit(9, 5000) == 3  # 4 fit: three chunks of 3, not 4, 4 and 1
    assert fit(8, 0) == 1 and fit(8, -(10**9)) == 1
    # Logits of a chunk of positions: 10 bytes each, of no more positions than there are.
    assert rows_that_fit((4, 10), (1, 10), 100, 5000 + 40 * 64 * 10, (1024, 64)) is None
    assert rows_that_fit((4, 10), (1, 10), 100, 4999 + 40 * 64 * 10, (1024, 64)) == 2


def test_the_head_takes_all_positions_where_their_logits_fit():
    fit = lambda positions, memory: head_that_fits(positions, 64, memory, 16)  # noqa: E731
    assert fit(48, 48 * 64 * LOGITS) == 48
    assert fit(48, 48 * 64 * LOGITS - 1) == 24  # 47 fit: two equal chunks
    assert fit(48, -1) == 16 and fit(8, -1) == 8
    most = UNKNOWN // 4 // 64  # of a device whose memory is not known
    assert fit(most, None) == most and fit(most + 1, None) == 16


def test_logits_that_are_kept_are_made_once():
    """With equal values, and no more memory at the peak than chunks with nothing but their logits take."""
    rows, positions = 4, 4 * RESPONSE
    kept, again = ({"head_chunk": chunk} for chunk in ("auto", positions // 2))
    assert not Scorer(CONFIG, **kept).head_twice(batch(rows)) and Scorer(CONFIG, **again).head_twice(batch(rows))
    logits = 2 * CONFIG.width * CONFIG.vocab_size * positions
    assert gradient(rows, "none", **again)[1] - gradient(rows, "none", **kept)[1] == logits
    assert planned(rows, "none", **kept) < planned(rows, "none", **again) + 2 * 4 * CONFIG.vocab_size * positions


def test_the_state_counts_gradients_and_two_moments():
    count = sum(x.size for x in jax.tree.leaves(init_weights(CONFIG, jax.random.key(0))))
    assert state_bytes(CONFIG, "float32", 4) == count * 16 // 4
    assert state_bytes(CONFIG, "bfloat16", 1) == count * 12
    assert state_bytes(CONFIG, "bfloat16", 1, microbatches=2) == count * 16  # and their float32 sum


def test_a_vocabulary_that_devices_do_not_divide_is_whole_on_each():
    rows, memory = (
        64,
        64 * RESPONSE * 65 * LOGITS // 2 + (PROMPT + 64 * RESPONSE) * position_bytes(CONFIG, "float32", "none", 2),
    )
    even, odd = (
        Scorer(dataclasses.replace(CONFIG, vocab_size=v), "float32", rows_per_chunk=None, memory=memory, tensor=2)
        for v in (64, 65)
    )
    assert not even.head_twice(batch(rows)) and odd.head_twice(batch(rows))


def test_512_responses_take_little_more_than_the_memory_that_there_is():
    memory = 24 * 2**20
    assert planned(512, "none") > 5 * memory
    assert planned(512, "none", memory=memory) < 1.3 * memory
    assert Scorer(CONFIG, memory=memory).chunk(batch(4)) is None  # nothing is chunked that fits


def test_values_and_gradients_are_those_of_all_rows_at_once():
    rng = np.random.default_rng(0)
    whole = batch(6, lambda shape, kind: np.ones(shape, kind))
    at = np.broadcast_to(np.arange(RESPONSE), (1, 6, RESPONSE)).astype(np.int32)
    whole = dataclasses.replace(
        whole,
        prompt_tokens=rng.integers(1, 64, whole.prompt_tokens.shape, np.int32),
        prompt_positions=np.arange(PROMPT, dtype=np.int32)[None, None],
        tokens=rng.integers(1, 64, at.shape, np.int32),
        targets=rng.integers(1, 64, at.shape, np.int32),
        positions=at + PROMPT,
        slots=np.broadcast_to(np.arange(6, dtype=np.int32)[None, :, None], at.shape).copy(),
        prompt_row=np.zeros((1, 6), np.int32),
        rows=np.zeros((1,), np.int32),
    )
    params = init_weights(CONFIG, jax.random.key(1))
    each = position_bytes(CONFIG, "float32", "none")
    memory = (PROMPT + 2 * RESPONSE) * each + 6 * RESPONSE * CONFIG.vocab_size * LOGITS  # two rows and all logits
    found = {}
    for name, options in {"whole": {}, "auto": {"memory": memory}}.items():
        scorer = Scorer(CONFIG, dtype="float32", attention="xla", **options)
        assert scorer.chunk(whole) == {"whole": None, "auto": 2}[name]
        found[name] = jax.jit(jax.value_and_grad(lambda p, scorer=scorer: jnp.sum(scorer(p, whole) ** 2)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), found["auto"], found["whole"])
