"""What an adapter adds to a product, its start and its gradients, beside NumPy in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import align_jax
from align_jax.models import Decoder, ModelConfig, init_weights
from align_jax.models.adapter import KEY, Adapter
from align_jax.models.adapting import fresh_adapter, merged, trained_paths, with_adapter
from align_jax.models.lora import adapted
from align_jax.models.ops import linear

CONFIG = ModelConfig(vocab_size=32, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 8))


def start(adapter):
    config = dataclasses.replace(CONFIG, lora=adapter)
    weights = init_weights(CONFIG, jax.random.key(0))
    return config, with_adapter(weights, fresh_adapter(config, weights, jax.random.key(1)))


def moved(config, weights):
    """The weights with an adapter that was trained."""
    layers = {
        name: value + 0.1 * jax.random.normal(jax.random.key(n), value.shape) if "lora" in name else value
        for n, (name, value) in enumerate(weights["layers"].items())
    }
    return {**weights, "layers": layers}


@pytest.mark.parametrize("adapter", [Adapter(rank=3), Adapter(rank=3, rslora=True), Adapter(rank=3, dora=True)])
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_is_what_is_merged(adapter):
    config, weights = start(adapter)
    plain = Decoder(CONFIG, init_weights(CONFIG, jax.random.key(0)), dtype="float32")(TOKENS)
    np.testing.assert_allclose(Decoder(config, weights, dtype="float32")(TOKENS), plain, atol=1e-6)
    weights = moved(config, weights)
    found = Decoder(config, weights, dtype="float32")(TOKENS)
    assert np.abs(found - plain).max() > 0.01
    np.testing.assert_allclose(Decoder(*merged(config, weights), dtype="float32")(TOKENS), found, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_values_and_gradients_are_those_of_the_equation(dora):
    """y = W x + s B A x, DoRA's m / ||W + s B A|| of it with the norm a constant; in float64."""
    rng = np.random.default_rng(1)
    x, w, a, b, m, d = (rng.normal(size=shape) for shape in ((5, 6), (6, 4), (6, 2), (2, 4), (4,), (5, 4)))
    s = 0.7
    whole = w + s * a @ b
    gain = m / np.linalg.norm(whole, axis=0) if dora else np.ones(4)
    inner = d * gain
    want = {
        "q_lora_a": s * x.T @ (inner @ b.T),
        "q_lora_b": s * (x @ a).T @ inner,
        "x": inner @ whole.T,
    }
    given = {"q": w, "q_lora_a": a, "q_lora_b": b, "q_lora_scale": np.float32(s), "x": x}
    if dora:
        given["q_lora_magnitude"] = m
        want["q_lora_magnitude"] = np.sum(d * (x @ whole), 0) / np.linalg.norm(whole, axis=0)
    given = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}

    def value(given):
        return adapted(linear(given["x"], given["q"]), given["x"], given, "q")

    np.testing.assert_allclose(jax.jit(value)(given), gain * (x @ whole), rtol=1e-4, atol=1e-5)
    grads = jax.jit(jax.grad(lambda given: jnp.vdot(value(given), d.astype(np.float32))))(given)
    for name, expected in want.items():
        np.testing.assert_allclose(grads[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_dropout_is_of_the_adapter_alone_and_on_the_average_nothing():
    config, weights = start(Adapter(rank=3, dropout=0.5))
    weights = moved(config, weights)

    def says(key):
        keys = {} if key is None else {KEY: jax.random.key_data(jax.random.split(jax.random.key(key), config.layers))}
        return Decoder(config, {**weights, "layers": {**weights["layers"], **keys}}, dtype="float32")(TOKENS)

    one, other, without = says(0), says(1), says(None)
    assert np.abs(one - other).max() > 1e-3  # other masks
    np.testing.assert_array_equal(one, says(0))
    fresh_config, fresh = start(Adapter(rank=3, dropout=0.5))
    keys = {KEY: jax.random.key_data(jax.random.split(jax.random.key(0), config.layers))}
    plain = Decoder(fresh_config, {**fresh, "layers": {**fresh["layers"], **keys}}, dtype="float32")(TOKENS)
    np.testing.assert_allclose(plain, Decoder(fresh_config, fresh, dtype="float32")(TOKENS), atol=1e-6)
    assert np.isfinite(without).all()


def test_each_chunk_of_rows_draws_its_own_masks():
    config, weights = start(Adapter(rank=3, dropout=0.5))
    weights = moved(config, weights)
    batch = align_jax.make_groups([[1, 2, 3]], [[[4, 5, 6, 7]] * 3])
    keys = {KEY: jax.random.key_data(jax.random.split(jax.random.key(0), config.layers))}

    def says(keys):
        model = Decoder(config, {**weights, "layers": {**weights["layers"], **keys}}, dtype="float32")
        return np.asarray(jax.jit(lambda model: align_jax.response_logps(model, batch, rows_per_chunk=1))(model)[0])

    found = says(keys)
    assert np.abs(np.diff(found)).min() > 1e-3 and abs(found[0] - found[2]) > 1e-3
    np.testing.assert_allclose(np.ptp(says({})), 0, atol=1e-5)


def test_only_the_adapter_and_what_is_saved_is_trained():
    config, weights = start(Adapter(targets=("q", "down"), rank=2, saved=("norm", "layers.attn_norm")))
    names = {".".join(path) for path in trained_paths(config)}
    assert names == {"norm", "layers.attn_norm", *(f"layers.{t}_lora_{k}" for t in ("q", "down") for k in "ab")}
    assert weights["layers"]["q_lora_b"].shape == (2, 2, 4, 4) and not np.any(weights["layers"]["q_lora_b"])
    assert np.any(weights["layers"]["q_lora_a"])
    assert trained_paths(CONFIG) is None


def test_a_gain_below_the_digits_of_bfloat16_counts():
    a, b = jnp.zeros((4, 2), jnp.bfloat16), jnp.zeros((2, 4), jnp.bfloat16)
    w = {"q": jnp.eye(4, dtype=jnp.bfloat16), "q_lora_a": a, "q_lora_b": b}
    w |= {"q_lora_scale": jnp.float32(1), "q_lora_magnitude": jnp.full(4, 1.003)}
    x = jnp.full((1, 4), 255, jnp.bfloat16)  # the next number above is 256
    assert adapted(linear(x, w["q"]), x, w, "q").tolist() == [[256.0] * 4]


@pytest.mark.parametrize(
    "bad",
    [{"targets": ("w_proj",)}, {"targets": ()}, {"dropout": 1.0}, {"init": "guassian"}, {"rank": 0}],
)
def test_an_adapter_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match="an adapter"):
        Adapter(**bad)
    assert Adapter(targets=("v_proj", "q")).targets == ("q", "v")
