"""What is trained and what is frozen: how weights are divided, trained, written and brought back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from align_jax.cost.hlo import count
from align_jax.errors import UserError
from align_jax.models import init_weights, weight_shapes
from align_jax.objectives import MPO, SFT
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.scorer import Scorer
from align_jax.training import optim
from align_jax.training.checkpoint import Checkpointer, flatten_names
from align_jax.training.saved import frozen_reference, restore_state, restore_weights, save_state
from align_jax.training.state import create_state, merge, split, state_shapes, state_shardings
from align_jax.training.step import compile_step
from tests.training.test_step import CONFIG, make_items, scores, stacked

SOME = {("layers", "q"), ("layers", "v")}
SCORER = Scorer(CONFIG, dtype="float32")
OPTIMIZER = optim.make_optimizer(optim.AdamW(learning_rate=1e-2, weight_decay=0.1, warmup_steps=2), 10)


class Training:
    """A small run: its mesh, its step and batches, with some weights trainable."""

    def __init__(self, trainable=None, objective=None, axes=(1, 1, 1), param_dtype=jnp.float32):
        self.mesh, self.trainable, self.dtype = make_mesh(*axes), trainable, param_dtype
        self.where = state_shardings(CONFIG, OPTIMIZER, self.mesh, param_dtype, trainable)
        self.objective = objective or SFT()
        self.step = compile_step(self.mesh, self.where, SCORER, self.objective, OPTIMIZER)

    def weights(self):
        where = merge(self.where.trainable, self.where.frozen)
        return jax.device_put(init_weights(CONFIG, jax.random.key(0), self.dtype), where)

    def start(self):
        return create_state(CONFIG, self.weights(), OPTIMIZER, self.mesh, self.dtype, self.trainable)

    def batch(self, n, accumulation=1):
        shards = self.mesh.devices.shape[0] * self.mesh.devices.shape[1]
        responses, labels = (1, {}) if isinstance(self.objective, SFT) else (4, {"scores": scores})
        items = make_items(8, responses, **labels)
        items = items[n:] + items[:n]  # one shape for all n: one compilation
        batch = stacked(items, accumulation, shards)
        if labels:
            batch = batch.with_labels(ref_logps=np.full(batch.labels["scores"].shape, -12, np.float32))
        return put_batch(batch, self.mesh, leading=1)

    def run(self, state, numbers, accumulation=1):
        losses = []
        with jax.set_mesh(self.mesh):
            for n in numbers:
                state, metrics = self.step(state, self.batch(n, accumulation))
                losses.append(float(metrics["loss"]))
        return state, losses

    def abstract(self):
        shapes = state_shapes(CONFIG, OPTIMIZER, self.dtype, self.trainable)
        return jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, self.where)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_split_and_its_merge_are_inverse():
    weights = init_weights(CONFIG, jax.random.key(0))
    for trainable in (SOME, lambda path: path[0] != "layers", lambda path: path == ("layers", "q")):
        trained, frozen = split(weights, trainable)
        assert flatten_dict(trained).keys() | flatten_dict(frozen).keys() == flatten_dict(weights).keys()
        equal(merge(trained, frozen), weights)
        equal(merge(frozen, trained), weights)
    assert flatten_dict(split(weights, SOME)[0]).keys() == SOME
    assert split(weights) == (weights, {}) and split(weights, lambda path: True)[1] == {}


def test_what_cannot_be_divided_or_merged_is_named():
    weights = init_weights(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match="no weight 'layers.lora'; it has embed, layers.attn_norm"):
        split(weights, {("layers", "lora"), ("layers", "q")})
    for nothing in (set(), lambda path: False):
        with pytest.raises(ValueError, match="nothing is left to train"):
            split(weights, nothing)
    for a, b in ((weights, {"layers": {"q": 1}}), ({"embed": 1}, {"embed": {"a": 1}}), ({"embed": {"a": 1}}, {"embed": 1})):
        with pytest.raises(ValueError, match="'(q|embed)' is in both"):
            merge(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("axes, param_dtype", [((1, 1, 1), jnp.float32), ((2, 2, 2), jnp.bfloat16)])
def test_only_what_is_trainable_changes_and_has_moments(axes, param_dtype):
    part = Training(SOME, MPO(beta=0.5), axes, param_dtype)
    state = part.start()
    frozen = state.frozen
    moments = {name for name in flatten_names(state.opt_state)[0] if ".mu." in name or ".nu." in name}
    assert {name.partition("u.")[2] for name in moments} == {"layers.q", "layers.v"} and len(moments) == 4
    state, _ = part.run(state, range(3), accumulation=2)
    before, after = (flatten_dict(x) for x in (init_weights(CONFIG, jax.random.key(0), param_dtype), state.weights))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == SOME
    # Not donated: others, such as a reference, may hold the frozen weights.
    assert state.frozen is frozen and not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


@pytest.mark.slow
def test_what_is_trained_learns_as_in_full_training():
    """The first update of a weight does not depend on whether the others are trained too (without a norm over all)."""
    optimizer = optax.sgd(1e-1)
    states = []
    for trainable in (None, SOME):
        mesh = make_mesh(1, 1, 1)
        weights = init_weights(CONFIG, jax.random.key(0))
        where = state_shardings(CONFIG, optimizer, mesh, jnp.float32, trainable)
        state = create_state(CONFIG, jax.device_put(weights, merge(where.trainable, where.frozen)), optimizer, mesh, "float32",
                             trainable)  # fmt: skip
        with jax.set_mesh(mesh):
            step = compile_step(mesh, where, SCORER, SFT(), optimizer)
            states.append(step(state, put_batch(stacked(make_items(8, 1), 1, 1), mesh, leading=1))[0])
    fresh = init_weights(CONFIG, jax.random.key(0))
    for name in ("q", "v"):
        full, part = (state.weights["layers"][name] for state in states)
        np.testing.assert_allclose(full, part, rtol=1e-6, atol=1e-8)
        assert np.abs(part - fresh["layers"][name]).max() > 1e-6


@pytest.mark.slow
def test_frozen_weights_cost_no_gradient_product():
    flops = []
    for trainable in (None, lambda path: path[0] == "layers", SOME):
        part = Training(trainable, MPO(beta=0.5))
        with jax.set_mesh(part.mesh):
            flops.append(count(part.step.compiled(part.start(), part.batch(0)).program.as_text()).flops)
    assert flops[2] < 0.85 * flops[0] and flops[2] < flops[1] < flops[0]


@pytest.mark.slow
def test_a_run_with_frozen_weights_resumes_exactly(tmp_path):
    part = Training(SOME, MPO(beta=0.5))
    whole, losses = part.run(part.start(), range(4))
    half, _ = part.run(part.start(), range(2))
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        save_state(checkpointer, 2, half, {"data": 2}, source="the base")
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        names = checkpointer.names(2)
        assert {n for n in names if not n.startswith("opt_state")} == {"step", "trainable.layers.q", "trainable.layers.v"}
        _, frozen = split(part.weights(), SOME)
        state, extra = restore_state(checkpointer, part.abstract(), frozen)
    assert extra["data"] == 2 and extra["frozen"]["source"] == "the base"
    assert extra["frozen"]["tensors"].keys() == set(flatten_names(frozen)[0])
    equal(state, half)
    state, rest = part.run(state, range(2, 4))
    assert rest == losses[2:]
    equal(state, whole)


@pytest.mark.slow
def test_a_checkpoint_over_other_frozen_weights_is_refused(tmp_path):
    part = Training(SOME)
    with Checkpointer(tmp_path) as checkpointer:
        save_state(checkpointer, 0, part.start(), {}, source="the base")
        _, frozen = split(part.weights(), SOME)
        other = {**frozen, "norm": frozen["norm"].at[0].add(1e-3)}
        with pytest.raises(UserError, match=r"/0 was trained over other frozen weights \(of the base\): tensor 'norm'"):
            restore_state(checkpointer, part.abstract(), other)
        with pytest.raises(UserError, match="tensor 'embed' was float32:[0-9]+, here it is bfloat16"):
            restore_state(checkpointer, part.abstract(), jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen))
        with pytest.raises(UserError, match="tensor 'embed' was float32:[0-9]+, here it is not frozen"):
            restore_state(checkpointer, part.abstract())
        with pytest.raises(UserError, match="no tensor 'trainable.embed'"):
            restore_weights(checkpointer, CONFIG)
        with pytest.raises(UserError, match="no tensor 'opt_state"):
            restore_state(checkpointer, Training().abstract())
        with pytest.raises(ValueError, match="extra has a key 'frozen'"):
            save_state(checkpointer, 2, part.start(), {"frozen": 1})


@pytest.mark.slow
def test_weights_of_a_checkpoint_are_read_without_the_optimizer(tmp_path):
    mesh = make_mesh(2, 2, 2)
    for trainable in (None, SOME):
        part = Training(trainable)
        state, _ = part.run(part.start(), range(1))
        folder = tmp_path / ("part" if trainable else "all") / "checkpoints"
        with Checkpointer(folder) as checkpointer:
            with pytest.raises(UserError, match=rf"{folder.parent} has no checkpoint yet"):
                restore_weights(checkpointer, CONFIG)
            save_state(checkpointer, 1, state, {})
        sharded = state_shardings(CONFIG, OPTIMIZER, mesh, jnp.float32).weights
        for shardings in (None, sharded):
            with Checkpointer(folder, read_only=True) as checkpointer:
                weights, step = restore_weights(checkpointer, CONFIG, 1, shardings, "float32", state.frozen or None)
            assert step == 1
            equal(weights, state.weights)
            if shardings and not trainable:
                assert jax.tree.map(lambda x: x.sharding, weights) == shardings


def test_the_reference_to_frozen_weights_does_not_depend_on_the_mesh():
    assert frozen_reference({}) is None
    references = []
    for axes in ((1, 1, 1), (2, 2, 2)):
        part = Training(SOME, axes=axes)
        references.append(frozen_reference(part.start().frozen, {"path": "base"}))
    assert references[0] == references[1] and references[0]["source"] == {"path": "base"}


@pytest.mark.slow
def test_checkpoints_of_earlier_versions_resume_exactly(tmp_path):
    """They have `params` for `trainable`, and say nothing of frozen weights."""
    full = Training(None, MPO(beta=0.5))
    whole, losses = full.run(full.start(), range(4))
    half, _ = full.run(full.start(), range(2))
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        old = {"step": half.step, "params": half.trainable, "opt_state": half.opt_state}
        checkpointer.save(2, old, {"data": {"next_index": 2}, "rows": "abc"})
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        assert "params.layers.q" in checkpointer.names(2)
        weights, step = restore_weights(checkpointer, CONFIG)
        assert step == 2
        equal(weights, half.weights)
        state, extra = restore_state(checkpointer, full.abstract())
        assert extra == {"data": {"next_index": 2}, "rows": "abc"}
        equal(state, half)
        state, rest = full.run(state, range(2, 4))
        assert rest == losses[2:]
        equal(state, whole)
        save_state(checkpointer, 4, state, extra)
        checkpointer.wait()
        assert "trainable.layers.q" in checkpointer.names(4)
        equal(restore_state(checkpointer, full.abstract())[0], whole)
        wide = dataclasses.replace(CONFIG, width=32)
        with pytest.raises(UserError, match=r"tensor 'params.embed' has shape \(32, 16\), the run has \(32, 32\)"):
            restore_weights(checkpointer, wide, 2)
        assert flatten_dict(weight_shapes(CONFIG)).keys() == flatten_dict(weights).keys()
