"""The decoder against a slow NumPy float64 one, and properties that any causal language model has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import Decoder, ModelConfig, RopeScaling, init_weights, weight_shapes
from align_jax.models.decoder import _heads
from align_jax.models.remat import POLICIES
from tests.models import reference

BASE = ModelConfig(vocab_size=29, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)
VARIANTS = {
    "grouped-query": BASE,
    "multi-head": dataclasses.replace(BASE, kv_heads=4),
    "tied": dataclasses.replace(BASE, tied_embeddings=True),
    "odd-head-size": dataclasses.replace(BASE, head_size=6, norm_eps=1e-3, rope_theta=500000.0),
    "window": dataclasses.replace(BASE, sliding_window=4),
    "linear": dataclasses.replace(BASE, rope_scaling=RopeScaling("linear", 2.0)),
    "llama3": dataclasses.replace(BASE, head_size=8, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_length=16)),
}
VARIANTS |= {name: dataclasses.replace(BASE, **{name: True}) for name in ("qkv_bias", "qk_norm")}
# What the families are made of, see align_jax/hf/families.py.
FAMILIES = {
    "gemma": dataclasses.replace(
        BASE,
        **{"norms": "both", "norm_offset": 1.0, "norm_float32": True, "activation": "gelu_tanh", "embed_scale": 4.0},
        **{"layers": 3, "sliding_window": 4, "layer_windows": (True, True, False), "qk_norm": True, "local_rope_theta": 100.0},
        **{"attention_scale": 0.3, "attention_softcap": 2.0, "logit_softcap": 3.0, "tied_embeddings": True},
    ),
    "olmo": dataclasses.replace(BASE, norms="after", norm_float32=True, qk_norm_whole=True),
    "granite": dataclasses.replace(BASE, embed_scale=3.0, residual_scale=0.5, attention_scale=0.2, logit_divisor=4.0),
    "some layers without rotation": dataclasses.replace(BASE, layers=3, layer_ropes=(True, False, True)),
    "windows and rotations": dataclasses.replace(
        BASE, layers=3, sliding_window=4, layer_windows=(True, False, False), layer_ropes=(True, True, False)
    ),
    "experts": dataclasses.replace(BASE, mlp_width=10, experts=5, active_experts=2),
    "experts not normed": dataclasses.replace(BASE, experts=4, active_experts=3, norm_expert_weights=False, qk_norm=True),
    "gpt-oss": dataclasses.replace(
        BASE,
        **{"mlp_width": 10, "layers": 3, "experts": 5, "active_experts": 2, "expert_biases": True, "sinks": True},
        **{"qkv_bias": True, "o_bias": True, "norm_float32": True, "activation": "clamped_swiglu"},
        **{"sliding_window": 4, "layer_windows": (True, False, True)},
    ),
    "clamped gates": dataclasses.replace(BASE, activation="clamped_swiglu"),
    "a part is rotated": dataclasses.replace(BASE, head_size=8, rotary_size=6, fused=True),
}
VARIANTS |= FAMILIES
TOKENS = np.random.default_rng(0).integers(0, BASE.vocab_size, (2, 13))


def big_weights(config, seed=0):
    """Weights large enough that attention is far from uniform, so that a wrong mask or rotation shows."""
    weights = jax.tree.map(lambda x: x * 12 if x.ndim > 2 or x.shape[0] > 20 else x, init_weights(config, jax.random.key(seed)))
    small = ("_bias", "sinks", "q_norm", "k_norm", "post_norm")
    for n, name in enumerate(name for name in sorted(weights["layers"]) if name.endswith(small)):
        noise = jax.random.normal(jax.random.key(n), weights["layers"][name].shape)
        weights["layers"][name] = noise if name.endswith(("bias", "sinks")) else 1 - config.norm_offset + noise / 2
    return weights


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_the_reference(config):
    weights = big_weights(config)
    ours = Decoder(config, weights, dtype="float32")(TOKENS)
    theirs = np.stack([reference.logits(config, weights, t) for t in TOKENS])
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_token_sees_a_later_one():
    weights = big_weights(BASE)
    embedded = jax.jacobian(lambda e: Decoder(BASE, {**weights, "embed": e}, dtype="float32")(np.arange(6)[None])[0, 2].sum())(
        weights["embed"]
    )
    assert np.abs(embedded[:3]).max() > 0
    assert np.abs(embedded[3:6]).max() == 0


def test_window_hides_what_is_farther_away():
    config = dataclasses.replace(BASE, layers=1, sliding_window=3)
    weights = big_weights(config)
    grad = jax.grad(lambda e: Decoder(config, {**weights, "embed": e}, dtype="float32")(np.arange(8)[None])[0, 7].sum())(
        weights["embed"]
    )
    assert np.abs(grad[:5]).max() == 0
    assert np.abs(grad[5]).max() > 0


def test_bfloat16_compute_is_near_float32():
    weights = init_weights(BASE, jax.random.key(1))
    exact, rounded = (Decoder(BASE, weights, dtype=d)(TOKENS) for d in ("float32", "bfloat16"))
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.02


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "offload"])  # offloading needs a device with host memory
def test_rematerialization_changes_no_gradient(policy):
    weights = big_weights(BASE)

    def loss(w, remat):
        return jnp.sum(jnp.sin(Decoder(BASE, w, dtype="float32", remat=remat)(TOKENS)))

    expected, grads = (jax.jit(jax.grad(loss), static_argnums=1)(weights, p) for p in ("none", policy))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), grads, expected)


def test_unknown_policy_is_named():
    with pytest.raises(ValueError, match="'dot'.*known: none, dots, full, offload"):
        Decoder(BASE, init_weights(BASE, jax.random.key(0)), remat="dot")(TOKENS)


def test_bad_weights_are_named():
    weights = init_weights(BASE, jax.random.key(0))
    with pytest.raises(ValueError, match="'lm_head' is missing"):
        Decoder(BASE, {k: v for k, v in weights.items() if k != "lm_head"})
    with pytest.raises(ValueError, match="'lm_head' is not part of this model"):
        Decoder(VARIANTS["tied"], weights)
    layers = {**weights["layers"], "q": weights["layers"]["k"]}
    with pytest.raises(ValueError, match=r"'layers.q' has shape \(2, 16, 2, 4\), expected \(2, 16, 4, 4\)"):
        Decoder(BASE, {**weights, "layers": layers})


def test_weights_come_back():
    weights = init_weights(BASE, jax.random.key(0))
    back = Decoder(BASE, weights).weights()
    assert jax.tree.structure(back) == jax.tree.structure(weights)
    assert all(a is b or np.array_equal(a, b) for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(weights), strict=True))


def test_compile_time_does_not_grow_with_depth():
    sizes = []
    for layers in (2, 12):
        config = dataclasses.replace(BASE, layers=layers)
        shapes = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s, jnp.float32), weight_shapes(config), is_leaf=lambda x: isinstance(x, tuple)
        )
        program = jax.jit(lambda w, c=config: Decoder(c, w, dtype="float32")(TOKENS)).lower(shapes).as_text()
        sizes.append(program.count("\n"))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("bad", [dict(kv_heads=3), dict(head_size=5), dict(sliding_window=0)])
def test_impossible_shapes_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dataclasses.replace(BASE, **bad)


def test_gradients_of_biases_are_added_in_float32():
    rng, count = np.random.default_rng(0), 4096
    w = {"q": jnp.zeros((4, 2, 3), jnp.bfloat16)}
    h, d_out = jnp.zeros((1, 1, count, 4), jnp.bfloat16), jnp.asarray(1 + rng.normal(size=(1, 1, count, 2, 3)), jnp.bfloat16)
    _, back = jax.vjp(lambda bias: _heads(h, w | {"q_bias": bias}, "q", "heads", 0.0), jnp.zeros((2, 3), jnp.float32))
    np.testing.assert_allclose(back(d_out)[0], np.asarray(d_out, np.float64).sum((0, 1, 2)), rtol=1e-5)
