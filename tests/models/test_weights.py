"""The table of weights: what it must say of every row, and that those who read it do as it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import Decoder, ModelConfig, init_weights, weight_shapes, weight_shardings
from align_jax.models import weights as table
from align_jax.parallel.axes import RULES
from align_jax.parallel.mesh import make_mesh

CONFIG = ModelConfig(vocab_size=32, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)
MIXTURE = dataclasses.replace(CONFIG, experts=3, active_experts=2)
CONFIGS = {
    "untied": CONFIG,
    "tied": dataclasses.replace(CONFIG, tied_embeddings=True),
    "reward": dataclasses.replace(CONFIG, head="score"),
}


@pytest.mark.parametrize("weight", table.BASE, ids=lambda weight: weight.name)
def test_every_row_is_complete(weight):
    shape = weight.shape(MIXTURE)
    assert len(weight.all_axes) == len(shape) and {*weight.all_axes} <= {*RULES, None}
    assert ("{layer}" in weight.stored.name) == weight.stacked
    assert ("{expert}" in weight.stored.name) == weight.by_expert
    stored = weight.shape_of_one(MIXTURE)[int(weight.by_expert) :]
    one = np.arange(np.prod(stored)).reshape(stored)
    theirs = weight.stored.layout.to_theirs(one)
    assert theirs.shape == weight.stored.layout.their_shape(one.shape)
    np.testing.assert_array_equal(weight.stored.layout.to_ours(theirs, one.shape), one)
    start = weight.init(MIXTURE, jax.random.key(0), shape)
    assert start.shape == shape and start.dtype == jnp.float32


def test_matrices_of_experts_are_one_for_each_of_them():
    assert table.matrix_axes(("layers", "expert_down")) == ((2,), (3,))


_EXPERTS = {"experts": 3, "active_experts": 2}


@pytest.mark.parametrize(
    "more", [{}, {"norms": "both"}, {"norms": "after", "qk_norm_whole": True}, _EXPERTS, {**_EXPERTS, "qk_norm": True}]
)
def test_names_are_those_of_one_weight_each(more):
    """But for a tensor that holds several weights one after the other."""
    config = dataclasses.replace(CONFIG, **more)
    names = [weight.stored.name for weight in table.rows(config)]
    assert len(set(names)) == len(names)
    fused = [weight.stored.name for weight in table.rows(dataclasses.replace(config, fused=True))]
    assert len(set(fused)) == len(names) - (2 if "experts" in more else 3)


@pytest.mark.parametrize("name, heads", [("untied", {"lm_head"}), ("tied", set()), ("reward", {"score"})])
def test_a_model_has_the_weights_that_its_config_asks_for(name, heads):
    shapes = weight_shapes(CONFIGS[name])
    assert shapes.keys() == {"embed", "layers", "norm"} | heads
    assert jax.tree.structure(weight_shardings(CONFIGS[name], make_mesh(2, 2, 2))) == jax.tree.structure(
        init_weights(CONFIGS[name], jax.random.key(0))
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_names_the_same_weights_for_ever(name):
    """A weight's key is its place in the flattened tree: what earlier versions drew, later ones draw."""
    config, key = CONFIGS[name], jax.random.key(3)
    leaves = jax.tree.leaves_with_path(init_weights(config, key, jnp.bfloat16))
    assert [jax.tree_util.keystr(path, simple=True) for path, _ in leaves][:2] == ["embed", "layersattn_norm"]
    for place, (path, leaf) in enumerate(leaves):
        drawn = jax.random.normal(jax.random.fold_in(key, place), leaf.shape)
        scale = 0.01 if path[-1].key in ("o", "down") else 0.02
        expected = jnp.ones_like(drawn) if path[-1].key.endswith("norm") else scale * drawn
        np.testing.assert_array_equal(leaf, expected.astype(jnp.bfloat16))


def test_deviations_are_those_of_the_rows():
    config = dataclasses.replace(CONFIG, width=64, mlp_width=128, layers=8)
    weights = init_weights(config, jax.random.key(0))
    assert float(weights["layers"]["q"].std()) == pytest.approx(0.02, rel=0.05)
    for name in ("o", "down"):
        assert float(weights["layers"][name].std()) == pytest.approx(0.02 / 4, rel=0.05)
    assert (weights["norm"] == 1).all() and (weights["layers"]["mlp_norm"] == 1).all()


def test_a_weight_is_added_by_a_row(monkeypatch):
    bias = table.Weight(
        ("layers", "q_bias"),
        ("heads", "head_size"),
        ("heads", "head_size"),
        table.Stored("model.layers.{layer}.self_attn.q_proj.bias", table.SAME),
        init=table.ones,
        decay=False,
        present=lambda config: config.rope_theta == 1e6,
    )
    monkeypatch.setattr(table, "TABLE", (*table.TABLE, bias))
    assert "q_bias" not in weight_shapes(CONFIG)["layers"]
    config = dataclasses.replace(CONFIG, rope_theta=1e6)
    assert weight_shapes(config)["layers"]["q_bias"] == (2, 4, 4)
    weights = init_weights(config, jax.random.key(0))
    assert "q_bias" in Decoder(config, weights).weights()["layers"]
    with pytest.raises(ValueError, match="'layers.q_bias' is missing"):
        Decoder(config, init_weights(CONFIG, jax.random.key(0)))
    monkeypatch.setattr(table, "TABLE", (*table.TABLE, bias))
    with pytest.raises(ValueError, match="'layers.q_bias' twice"):
        weight_shapes(config)


def test_decay_is_what_the_table_says_and_by_name_elsewhere():
    assert {weight.path for weight in table.BASE if not table.decays(weight.path)} == {
        ("norm",),
        ("layers", "attn_norm"),
        ("layers", "mlp_norm"),
        *(("layers", name) for name in ("q_bias", "k_bias", "v_bias", "q_norm", "k_norm", "attn_post_norm", "mlp_post_norm")),
        *(("layers", name) for name in ("o_bias", "sinks", "router_bias")),
        *(("layers", f"expert_{name}_bias") for name in ("gate", "up", "down")),
    }
    assert table.decays(("head", "w")) and not table.decays(("blocks", "0", "input_norm")) and not table.decays(("norm", "w"))
