"""Response log-probs against scoring every prompt + response alone: sharing a prompt changes no value, no gradient."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.data import RowLayout, Segment, TokenGroup, make_groups, pack_groups
from align_jax.models import Decoder, ModelConfig, RopeScaling
from align_jax.scoring.logps import response_logps, target_logps
from tests.models import reference
from tests.models.test_decoder import FAMILIES, big_weights
from tests.scoring.devices import on_eight_devices

BASE = ModelConfig(vocab_size=29, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)
VARIANTS = {
    "grouped-query": BASE,
    "window": dataclasses.replace(BASE, sliding_window=4),
    "llama3-tied": dataclasses.replace(
        BASE, head_size=8, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_length=16), tied_embeddings=True
    ),
    "gemma": FAMILIES["gemma"],
    "granite": FAMILIES["granite"],
}
RNG = np.random.default_rng(0)


def tokens(n):
    return RNG.integers(0, BASE.vocab_size, n).astype(np.int32)


def group(row, prompt, responses):
    segments = tuple(Segment(tokens(n), k, -1) for k, n in enumerate(responses))
    return TokenGroup(row, tokens(prompt), segments, len(responses), {})


def belief_group(row, prompt, beliefs, texts, accepted):
    """N beliefs, and texts that continue the accepted one."""
    segments = [Segment(tokens(n), k, -1) for k, n in enumerate(beliefs)]
    segments += [Segment(tokens(n), len(beliefs) + k, accepted) for k, n in enumerate(texts)]
    return TokenGroup(row, tokens(prompt), tuple(segments), len(segments), {})


GROUPS = [group(0, 5, [3, 1, 6]), group(1, 1, [4]), group(2, 7, [2, 5, 1, 3]), group(3, 2, [6, 6])]
BELIEFS = [belief_group(0, 4, [2, 3], [5, 4], 1), belief_group(1, 6, [1, 2], [3, 2], 0)]


def layout(pack, align="left"):
    return RowLayout(pack=pack, align=align)


def alone(config, weights, groups, slots):
    """float64 `[G, K]` by the slow decoder, one response at a time."""
    out = np.zeros((len(groups), slots))
    for g, item in enumerate(groups):
        for segment in item.segments:
            context = list(item.prompt) + (list(item.segments[segment.parent].tokens) if segment.parent >= 0 else [])
            out[g, segment.slot] = reference.response_logp(config, weights, context, list(segment.tokens))
    return out


def by_row(batch, values):
    """Values `[G, K]` of a batch in the order of the groups' rows."""
    rows = np.asarray(batch.rows)
    return np.asarray(values)[[int(np.flatnonzero(rows == r)[0]) for r in sorted(rows[rows >= 0])]]


def score(config, weights, batch, **chunks):
    return response_logps(Decoder(config, weights, dtype="float32"), batch, **chunks)


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_scoring_each_response_alone(config, pack):
    weights = big_weights(config)
    for groups in (GROUPS, BELIEFS):
        batch = pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=layout(pack))
        slots = batch.mask.shape[1]
        ours = by_row(batch, jax.jit(partial(score, config))(weights, batch))
        np.testing.assert_allclose(ours, alone(config, weights, groups, slots), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_right_aligned_prompts_change_nothing():
    weights = big_weights(BASE)
    a, b = (pack_groups(GROUPS, shards=1, groups_per_shard=4, layout=layout(False, side)) for side in ("left", "right"))
    assert not np.array_equal(a.prompt_segments, b.prompt_segments)
    np.testing.assert_allclose(score(BASE, weights, a), score(BASE, weights, b), rtol=1e-5, atol=1e-5)


def _loss(config, groups, weights):
    """The slow way in JAX: one forward of the plain model a response, weighted so that every slot matters."""
    model, total = Decoder(config, weights, dtype="float32"), 0.0
    for g, item in enumerate(groups):
        for segment in item.segments:
            context = list(item.prompt) + (list(item.segments[segment.parent].tokens) if segment.parent >= 0 else [])
            whole = np.asarray([*context, *segment.tokens])
            logp = jax.nn.log_softmax(model(whole[None, :-1])[0])
            picked = logp[np.arange(len(context) - 1, len(whole) - 1), whole[len(context) :]]
            total += jnp.sin(g + 2.0 * segment.slot) * picked.sum()
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, groups",
    [(BASE, GROUPS), (BASE, BELIEFS), (FAMILIES["gemma"], BELIEFS), (FAMILIES["granite"], GROUPS)],
    ids=["responses", "beliefs", "gemma", "granite"],
)
def test_gradients_equal_those_of_scoring_alone(config, groups):
    weights = big_weights(config)
    expected = jax.jit(jax.grad(partial(_loss, config, groups)))(weights)
    for pack in (True, False):
        batch = pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=layout(pack))
        signs = np.sin(batch.rows[:, None] + 2.0 * np.arange(batch.mask.shape[1])) * batch.mask

        def ours(w, batch=batch, signs=signs):
            return jnp.sum(score(config, w, batch, head_chunk=7) * signs)

        grads = jax.jit(jax.grad(ours))(weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), grads, expected)


@pytest.mark.slow
def test_chunks_of_rows_change_no_value_and_no_gradient():
    weights = big_weights(BASE)
    batch = make_groups([tokens(4), tokens(6)], [[tokens(3)] * 4, [tokens(5)] * 4])
    signs = np.cos(np.arange(8.0)).reshape(2, 4)
    run = [
        jax.jit(jax.value_and_grad(lambda w, c=c: jnp.sum(score(BASE, w, batch, rows_per_chunk=c) * signs)))(weights)
        for c in (None, 2, 3)  # 3 does not divide the 8 rows
    ]
    for other in run[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run[0], other)


def test_a_response_does_not_see_its_neighbours():
    """Changing one response leaves the others' log-probs as they are, to the bit."""
    weights, (one, two) = big_weights(BASE), tokens((2, 6))
    f = jax.jit(partial(score, BASE))
    a = f(weights, make_groups([tokens(1) * 0 + 3], [[one, two]]))
    b = f(weights, make_groups([tokens(1) * 0 + 3], [[one, one]]))
    assert a[0, 0] == b[0, 0]
    assert a[0, 1] != b[0, 1]


@pytest.mark.parametrize("config", [BASE, FAMILIES["gemma"]], ids=["llama", "gemma"])
def test_the_same_under_jit_pmap_shard_map_and_a_mesh(config):
    weights = big_weights(config)
    groups = [group(i, 3 + i % 3, [2, 4]) for i in range(8)]
    batch = pack_groups(groups, shards=8, groups_per_shard=1, layout=layout(True))
    f = partial(score, config)
    expected = jax.jit(f)(weights, batch)
    for out in on_eight_devices(f, config, weights, batch):
        np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_no_array_of_all_logits_exists():
    config = dataclasses.replace(BASE, vocab_size=1009)
    weights = big_weights(config)
    hidden, targets = jnp.ones((1, 8, 16, config.width)), jnp.zeros((1, 8, 16), jnp.int32)
    program = jax.make_jaxpr(
        jax.grad(lambda h: target_logps(Decoder(config, weights, dtype="float32"), h, targets, head_chunk=16).sum())
    )(hidden)
    assert "1,16,1009]" in str(program)  # a chunk
    assert "128,1009]" not in str(program)  # all positions


def test_head_gradients_are_added_up_in_float32():
    """What JAX makes of the same chunks adds bfloat16 gradients up in bfloat16, the type of the weight that they share."""
    rng = np.random.default_rng(0)
    config = dataclasses.replace(BASE, vocab_size=13, width=8)
    weights = big_weights(config)
    hidden = jnp.asarray(1 + rng.normal(size=(1, 1, 2048, 8)), jnp.bfloat16)
    targets = rng.choice(13, size=hidden.shape[:3], p=[0.4] + [0.05] * 12)

    def head_gradient(chunked):
        def total(head):
            return chunked(Decoder(config, weights | {"lm_head": head}, dtype="bfloat16")).sum()

        return np.asarray(jax.jit(jax.grad(total))(weights["lm_head"]), np.float64)

    def plain(model):
        weight = model.head_weight()

        def one(chunk):
            logits = (chunk[0] @ weight).astype(jnp.float32)
            return jnp.take_along_axis(jax.nn.log_softmax(logits), chunk[1][:, None], axis=-1)

        return jax.lax.map(one, (hidden.reshape(128, 16, 8), targets.reshape(128, 16)))

    x = np.asarray(hidden, np.float64)[0, 0]
    logits = x @ np.asarray(weights["lm_head"].astype(jnp.bfloat16), np.float64)
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    exact = x.T @ (np.eye(13)[targets[0, 0]] - softmax / softmax.sum(-1, keepdims=True))
    ours, theirs = (
        np.abs(head_gradient(f) - exact).max() / np.abs(exact).max()
        for f in (lambda model: target_logps(model, hidden, targets, head_chunk=16), plain)
    )
    assert ours < 0.004 < 0.01 < theirs


def test_chunk_sizes_are_checked():
    batch = make_groups([tokens(3)], [[tokens(2)] * 3])
    with pytest.raises(ValueError, match="rows_per_chunk=0"):
        score(BASE, big_weights(BASE), batch, rows_per_chunk=0)
    with pytest.raises(ValueError, match="head_chunk=0"):
        score(BASE, big_weights(BASE), batch, head_chunk=0)
