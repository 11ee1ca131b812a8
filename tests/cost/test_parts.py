"""Where a step's operations go: the formulas against what XLA compiles, to the last operation."""

import jax
import numpy as np
import pytest

from align_jax.cost.flops import batch_flops, least_flops
from align_jax.cost.hlo import count
from align_jax.cost.parts import parts_of
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.models import ModelConfig, init_weights
from align_jax.models.attention import xla
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.scorer import Scorer

MODEL = ModelConfig(vocab_size=40, width=16, mlp_width=24, layers=3, heads=4, kv_heads=2, head_size=8)


def a_batch():
    """Two groups of three responses of unequal lengths, a microbatch axis in front."""
    tokens = lambda n: np.ones(n, np.int32)  # noqa: E731
    lengths = [(5, (9, 140, 20)), (8, (60, 4, 33))]
    groups = [
        TokenGroup(g, tokens(m), tuple(Segment(tokens(n), k) for k, n in enumerate(each)), 3, {})
        for g, (m, each) in enumerate(lengths)
    ]
    batch = pack_groups(groups, shards=1, groups_per_shard=2, layout=RowLayout(pack=False))
    return jax.tree.map(lambda x: x[None], batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"remat": "full"}, {"remat": "dots", "head_chunk": 64}, {"rows_per_chunk": 4}], ids=lambda o: "-".join(o)
)
def test_every_operation_is_explained(options, monkeypatch):
    # In blocks, as where rows are long: of a single one XLA finds that a layer that is repeated makes the same logits twice.
    monkeypatch.setattr(xla, "_block_bytes", lambda: 1)
    scorer, batch = Scorer(MODEL, dtype="float32", attention="xla", **options), a_batch()
    inner = jax.tree.map(lambda x: x[0], batch)
    gradient = jax.jit(jax.grad(lambda params: jax.numpy.sum(scorer(params, inner) ** 2)))
    text = gradient.lower(init_weights(MODEL, jax.random.key(0))).compile().as_text()
    done = count(text).flops
    parts = parts_of(scorer, batch, batch_flops(MODEL, batch), done)
    assert parts.least == least_flops(batch_flops(MODEL, batch))
    assert sum(parts.values().values()) == done and parts.padding > 0 and parts.pairs > 0
    assert (parts.remat > 0) == (options.get("remat") == "full")
    assert (parts.row_chunks > 0) == ("rows_per_chunk" in options)
    assert (parts.logits_again > 0) == ("head_chunk" in options)
    assert abs(parts.other) < 0.002 * done  # products of other things than weights and attention: none


@pytest.mark.slow
def test_operations_over_rows_that_a_mesh_cuts_are_explained():
    """Each device has all keys for its part of the queries, and the backward pass makes each block again."""
    scorer, batch = Scorer(MODEL, dtype="float32", attention="xla", sequence=2), a_batch()
    inner = jax.tree.map(lambda x: x[0], batch)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:2], sequence=2)):
        gradient = jax.jit(jax.grad(lambda params: jax.numpy.sum(scorer(params, inner) ** 2)))
        text = gradient.lower(init_weights(MODEL, jax.random.key(0))).compile().as_text()
    done = 2 * count(text).flops
    parts = parts_of(scorer, batch, batch_flops(MODEL, batch), done)
    assert parts.pairs > parts_of(Scorer(MODEL, attention="xla"), batch, batch_flops(MODEL, batch), done).pairs
    assert abs(parts.other) < 0.002 * done, parts
