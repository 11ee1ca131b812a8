"""A step whose groups are spread over shards equals that of one device: losses, gradients, metrics, counts."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from align_jax.batch import computed_positions, real_positions, useful_tokens
from align_jax.cost.flops import batch_flops
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.data.packing.plan import Shape
from align_jax.models import Decoder, init_weights
from align_jax.objectives import DPO, KTO, MPO
from align_jax.parallel.mesh import batch_sharding, make_mesh, put_batch
from align_jax.scoring.logps import response_logps
from align_jax.scoring.scorer import Scorer
from align_jax.training.tokens import token_counts
from tests.training.test_step import CONFIG, one_step

SCORER = Scorer(CONFIG, dtype="float32")


def items(count=16, responses=3, **labels):
    """Groups of which some hold most of the tokens, so that they must be split."""
    rng = np.random.default_rng(3)
    draw = lambda n: rng.integers(0, CONFIG.vocab_size, n).astype(np.int32)  # noqa: E731
    made = []
    for row in range(count):
        longest = 40 if row % 8 == 0 else int(rng.integers(1, 5))
        segments = tuple(Segment(draw(longest), i) for i in range(responses))
        own = {name: value(rng, responses) for name, value in labels.items()}
        made.append(TokenGroup(row, draw(rng.integers(1, 6)), segments, responses, own, per_response=tuple(own)))
    return made


def scores(rng, k):
    return rng.permutation(k).astype(np.float32)


def packed(groups, shards, accumulation, spread):
    parts, total = shards * accumulation, sum(len(s.tokens) for group in groups for s in group.segments)
    layout = RowLayout(spread=shards, shapes=(Shape(1, 24, 1, max(40, 6 * total // (5 * parts))),)) if spread else RowLayout()
    batch = pack_groups(groups, shards=parts, groups_per_shard=len(groups) // parts, layout=layout)
    return jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)


def with_table(batch, responses):
    """The batch with fixed reference log-probs by row."""
    table = np.random.default_rng(1).normal(-12, 2, (64, responses)).astype(np.float32)
    return batch.with_labels(ref_logps=np.where(batch.rows[..., None] >= 0, table[batch.rows], 0))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accumulation"), [("mpo", 2), ("dpo", 1), ("kto", 2)])
def test_eight_devices_equal_one(name, accumulation):
    responses = 3 if name == "mpo" else 2
    groups = items(responses=responses, scores=scores)
    if name == "kto":
        rng = np.random.default_rng(2)
        desirable = lambda: {"desirable": np.asarray(bool(rng.integers(2)))}  # noqa: E731
        groups = [dataclasses.replace(g, labels=desirable(), per_response=()) for g in groups]
    objective = {"mpo": MPO(beta=0.5, alpha=0.3), "dpo": DPO(beta=0.5), "kto": KTO(beta=0.3)}[name]
    one, first = one_step(with_table(packed(groups, 1, 1, False), responses), objective)
    batch = packed(groups, 4, accumulation, True)
    assert batch.repeated.any()  # a group is split
    many, second = one_step(with_table(batch, responses), objective, make_mesh(2, 2, 2))
    assert second == pytest.approx(first, rel=2e-5, abs=1e-6, nan_ok=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one.weights, many.weights)


def test_log_probs_of_split_groups_chunks_and_tokens():
    """Values `[G, K]`, in chunks of rows, token by token, and what is sent between devices for them."""
    groups, mesh = items(), make_mesh(8)
    weights = init_weights(CONFIG, jax.random.key(0))
    whole = jax.tree.map(lambda x: x[0], packed(groups, 1, 1, False))
    batch = jax.tree.map(lambda x: x[0], packed(groups, 8, 1, True))
    values = dict(zip(whole.rows.tolist(), np.asarray(jax.jit(SCORER)(weights, whole)), strict=True))
    expected = np.stack([values[row] for row in batch.rows.tolist()])
    with jax.set_mesh(mesh):
        here = put_batch(batch, mesh)
        for chunk in (None, 1):
            scorer = jax.jit(dataclasses.replace(SCORER, rows_per_chunk=chunk), out_shardings=batch_sharding(mesh))
            np.testing.assert_allclose(scorer(weights, here), expected, rtol=1e-5, atol=1e-5)
        tokens = jax.jit(partial(_each, weights))(here)
    np.testing.assert_allclose(np.asarray(tokens).sum(-1), expected, rtol=1e-5, atol=1e-5)


def _each(weights, batch):
    return response_logps(Decoder(CONFIG, weights, dtype="float32"), batch, per_token=True)


def test_spread_batches_are_refused_in_parts():
    """Under shard_map a device sees its own shard alone, and could not give the other shards what is theirs."""
    mesh = make_mesh(8)
    batch = jax.tree.map(lambda x: x[0], packed(items(), 8, 1, True))
    weights = init_weights(CONFIG, jax.random.key(0))
    mapped = jax.shard_map(partial(SCORER, weights), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    with pytest.raises(ValueError, match="spread over 8 shards, and here are 1"):
        mapped(batch)


@pytest.mark.parametrize(("shards", "accumulation"), [(4, 1), (2, 2)])
def test_counts_are_those_of_the_host_and_repeat_no_prompt(shards, accumulation):
    groups = items()
    batch = packed(groups, shards, accumulation, True)
    assert batch.repeated.any()
    mesh = make_mesh(shards, 1, 2)
    counts = {k: v.item() for k, v in jax.jit(token_counts)(put_batch(batch, mesh, leading=1)).items()}
    assert counts == {
        "tokens/computed": computed_positions(batch),
        "tokens/real": real_positions(batch),
        "tokens/useful": useful_tokens(batch),
    }
    whole = packed(groups, 1, 1, False)
    assert counts["tokens/real"] == real_positions(whole) and counts["tokens/useful"] == useful_tokens(whole)
    assert batch_flops(CONFIG, batch) == batch_flops(CONFIG, whole)


@pytest.mark.slow
def test_gradients_of_a_split_group_are_those_of_a_whole_one():
    groups = items(8)
    weights = init_weights(CONFIG, jax.random.key(1))
    grads = []
    for shards, spread in ((1, False), (4, True)):
        batch = jax.tree.map(lambda x: x[0], packed(groups, shards, 1, spread))
        signs = np.cos(batch.rows[:, None] * 3.0 + np.arange(3))
        grads.append(jax.jit(jax.grad(lambda w, b=batch, s=signs: jnp.sum(SCORER(w, b) * s)))(weights))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *grads)
