"""The training step: what the first loss must be, accumulation, meshes, and where the state lives."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax.batch import pad_to, sizes
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.models import ModelConfig, init_weights, weight_shardings
from align_jax.objectives import DPO, KTO, MPO, SFT
from align_jax.parallel.mesh import make_mesh, put_batch, replicated
from align_jax.scoring.scorer import Scorer
from align_jax.training.state import create_state, state_shapes, state_shardings
from align_jax.training.step import compile_step

CONFIG = ModelConfig(vocab_size=32, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)
LAYOUT = RowLayout(pack=True)


def make_items(count, responses, seed=0, **labels):
    """Groups of uneven prompts and responses, so that microbatches have unequal masks."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(0, CONFIG.vocab_size, n).astype(np.int32)  # noqa: E731
    items = []
    for row in range(count):
        k = responses if row % 3 or responses <= 2 else responses - 1
        segments = tuple(Segment(draw(rng.integers(1, 7)), i, -1) for i in range(k))
        own = {name: value(rng, k) for name, value in labels.items()}
        items.append(TokenGroup(row, draw(rng.integers(1, 6)), segments, k, own))
    return items


def scores(rng, k):
    return rng.permutation(k).astype(np.float32)


def stacked(items, accumulation, shards, layout=LAYOUT):
    """Microbatches on a leading axis, padded to one shape."""
    size = len(items) // accumulation
    parts = [items[i * size : (i + 1) * size] for i in range(accumulation)]
    batches = [pack_groups(p, shards=shards, groups_per_shard=size // shards, layout=layout) for p in parts]
    common = tuple(max(column) for column in zip(*map(sizes, batches), strict=True))
    return jax.tree.map(lambda *xs: np.stack(xs), *(pad_to(batch, common) for batch in batches))


def with_reference(scorer, weights, batch):
    """The reference's log-probs under the same weights, by a pass of its own."""
    micro = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(batch.tokens.shape[0])]
    return batch.with_labels(ref_logps=np.stack([np.asarray(jax.jit(scorer)(weights, m)) for m in micro]))


def one_step(batch, objective, mesh=None, scorer=None, optimizer=None, param_dtype=jnp.float32):
    mesh = mesh or make_mesh()
    scorer, optimizer = scorer or Scorer(CONFIG, dtype="float32"), optimizer or optax.adamw(1e-2)
    with jax.set_mesh(mesh):
        make = jax.jit(partial(init_weights, CONFIG, param_dtype=param_dtype), out_shardings=weight_shardings(CONFIG, mesh))
        weights = make(jax.random.key(0))
        if objective.needs_reference and "ref_logps" not in batch.labels:
            batch = with_reference(scorer, jax.tree.map(np.asarray, weights), batch)
        state = create_state(CONFIG, weights, optimizer, mesh, param_dtype)
        where = state_shardings(CONFIG, optimizer, mesh, param_dtype)
        step = compile_step(mesh, where, scorer, objective, optimizer)
        state, metrics = step(state, put_batch(batch, mesh, leading=1))
    # What is computed for padding depends on how the batch is cut; `test_tokens.py` counts it.
    return jax.tree.map(np.asarray, state), {k: float(v) for k, v in metrics.items() if not k.startswith("tokens/")}


@pytest.mark.slow
def test_first_dpo_loss_is_ln_2_in_bfloat16():
    batch = stacked(make_items(6, 2, scores=scores), 1, 1)
    _, metrics = one_step(batch, DPO(beta=0.7), scorer=Scorer(CONFIG, dtype="bfloat16"))
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics["rewards/margins"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_first_mpo_loss_is_the_log_ratio_of_the_set_sizes(dtype):
    fixed = [5.0, 1.0, 1.0, 4.0, 1.0]  # mean 2.4: two accepted of five
    items = [dataclasses.replace(g, labels={"scores": np.float32(fixed)}) for g in make_items(8, 5) if g.slots == 5][:4]
    _, metrics = one_step(stacked(items, 1, 1), MPO(beta=0.7), scorer=Scorer(CONFIG, dtype=dtype))
    assert metrics["loss"] == pytest.approx(np.log(5 / 2), abs=1e-6)


@pytest.mark.slow
def test_accumulation_gives_the_same_update():
    items = make_items(8, 4, scores=scores)
    whole, first = one_step(stacked(items, 1, 1), MPO(beta=0.5, alpha=0.3))
    for accumulation in (2, 4):
        cut, second = one_step(stacked(items, accumulation, 1), MPO(beta=0.5, alpha=0.3))
        assert second == pytest.approx(first, rel=2e-5, abs=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), whole.weights, cut.weights)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_update_is_by_the_gradient_of_the_mean_loss(accumulation):
    items, scorer, objective = make_items(6, 4, scores=scores), Scorer(CONFIG, dtype="float32"), MPO(beta=0.5)
    before = jax.tree.map(np.asarray, jax.jit(partial(init_weights, CONFIG, param_dtype=jnp.float32))(jax.random.key(0)))
    whole = with_reference(scorer, before, stacked(items, 1, 1))
    micro = jax.tree.map(lambda x: x[0], whole)

    def mean_loss(weights):
        total, weight = objective(scorer(weights, micro), micro.group_labels)["loss"]
        return jnp.sum(total) / jnp.sum(weight)

    expected = jax.jit(jax.grad(mean_loss))(before)
    after, metrics = one_step(stacked(items, accumulation, 1), objective, optimizer=optax.sgd(1.0))
    moved = jax.tree.map(lambda a, b: a - b, before, after.weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), moved, expected)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(expected)), rel=1e-4) and metrics["grad_norm"] > 1e-3


@pytest.mark.slow
def test_accumulation_of_kto_uses_the_kl_of_the_whole_batch():
    items = make_items(8, 2, desirable=lambda rng, k: np.asarray(bool(rng.integers(2))))
    rng = np.random.default_rng(1)
    batches = {a: stacked(items, a, 1) for a in (1, 4)}
    table = rng.normal(-12, 2, (8, 2)).astype(np.float32)
    metrics = []
    for batch in batches.values():
        ref = np.where(batch.rows[..., None] >= 0, table[batch.rows], 0)
        metrics.append(one_step(batch.with_labels(ref_logps=ref), KTO(beta=0.3))[1])
    assert metrics[0]["kl"] != 0
    assert metrics[1] == pytest.approx(metrics[0], rel=2e-5, abs=1e-6)


@pytest.mark.slow
def test_sft_accumulates_over_tokens_not_groups():
    items = make_items(8, 1)
    _, whole = one_step(stacked(items, 1, 1), SFT())
    _, cut = one_step(stacked(items, 4, 1), SFT())
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_mesh_gives_the_same_update_and_keeps_the_state_sharded():
    items = make_items(8, 4, scores=scores)
    one, first = one_step(stacked(items, 2, 1), MPO(beta=0.5))
    for axes in ((2, 2, 2), (1, 4, 2), (4, 1, 1)):
        mesh = make_mesh(*axes)
        many, second = one_step(stacked(items, 2, axes[0] * axes[1]), MPO(beta=0.5), mesh)
        assert second == pytest.approx(first, rel=2e-5, abs=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one.weights, many.weights)


@pytest.mark.slow
def test_chunks_and_rematerialization_change_nothing():
    items = make_items(8, 4, scores=scores)
    batch = stacked(items, 1, 1)
    _, plain = one_step(batch, MPO(beta=0.5))
    _, other = one_step(batch, MPO(beta=0.5), scorer=Scorer(CONFIG, "float32", remat="full", rows_per_chunk=2, head_chunk=8))
    assert other == pytest.approx(plain, rel=2e-5, abs=1e-6)


def test_moments_live_with_their_weights_and_adafactor_statistics_are_whole():
    mesh = make_mesh(2, 2, 2)
    where = state_shardings(CONFIG, optax.adamw(1e-3), mesh, jnp.float32)
    assert where.opt_state[0].mu["layers"]["q"] == where.trainable["layers"]["q"]
    wide = dataclasses.replace(CONFIG, width=128, mlp_width=256)  # optax factors dimensions from 128 up
    shapes = state_shapes(wide, optax.adafactor(1e-3), jnp.float32)
    factored = state_shardings(wide, optax.adafactor(1e-3), mesh, jnp.float32)
    rows, placed = (s.opt_state[0].v_row["layers"]["gate"] for s in (shapes, factored))
    assert rows.shape != shapes.trainable["layers"]["gate"].shape and placed == replicated(mesh)
    assert factored.opt_state[0].v["layers"]["attn_norm"] == factored.trainable["layers"]["attn_norm"]


@pytest.mark.slow
def test_bfloat16_weights_accumulate_gradients_in_float32():
    items = make_items(16, 1)
    norms = []
    for accumulation in (1, 16):
        norms.append(one_step(stacked(items, accumulation, 1), SFT(), param_dtype=jnp.bfloat16)[1]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=2e-3)


@pytest.mark.slow
def test_a_batch_without_any_contrast_changes_nothing_but_the_step():
    items = [dataclasses.replace(g, labels={"scores": np.ones(g.slots, np.float32)}) for g in make_items(4, 2)]
    state, metrics = one_step(stacked(items, 1, 1), MPO(beta=0.5), optimizer=optax.sgd(1.0))
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and metrics["groups/no_contrast"] == 1
    fresh = init_weights(CONFIG, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.weights, fresh)
    assert state.step == 1
