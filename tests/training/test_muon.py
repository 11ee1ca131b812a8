"""Muon against a slow reference, a layer at a time with every head's columns side by side; AdamW for the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.models import ModelConfig, init_weights, weight_shapes
from align_jax.models.weights import TABLE, is_embedding, matrix_axes
from align_jax.training import optim

CONFIG = ModelConfig(
    vocab_size=12, width=8, mlp_width=20, layers=2, heads=4, kv_heads=2, head_size=2, qkv_bias=True, qk_norm=True
)
MATRICES = {"q", "k", "v", "o", "gate", "up", "down"}


def gradients(step: int) -> dict:
    rng = np.random.default_rng(step)
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, weight_shapes(CONFIG), is_leaf=lambda x: isinstance(x, tuple))


def updates_of(spec, steps: int) -> dict:
    """Those of the last of some steps, with the sign of the gradient and a learning rate of 1."""
    transform, params = optim.make_optimizer(spec, 100), init_weights(CONFIG, jax.random.key(0))
    state = transform.init(params)
    for step in range(steps):
        updates, state = jax.jit(transform.update)(gradients(step), state, params)
    return jax.tree.map(lambda u: -np.asarray(u), updates)


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """Five steps towards U V^T of one matrix, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / np.linalg.norm(x)
    for _ in range(5):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


def reference(name: str, steps: int, scale) -> np.ndarray:
    """The update of a stacked weight, layer by layer."""
    beta, mean = 0.95, 0.0
    for step in range(steps):
        grad = gradients(step)["layers"][name].astype(np.float64)
        mean = beta * mean + (1 - beta) * grad
    ahead = beta * mean / (1 - beta ** (steps + 1)) + (1 - beta) * grad / (1 - beta**steps)
    layers = []
    for layer in ahead:
        # What is summed over by what is made: heads and their size are one side of the matrix.
        rows = layer.shape[0] * layer.shape[1] if name == "o" else layer.shape[0]
        matrix = layer.reshape(rows, -1)
        layers.append((newton_schulz(matrix) * scale(*matrix.shape)).reshape(layer.shape))
    return np.stack(layers)


@pytest.mark.parametrize(
    "rms, scale",
    [(0.2, lambda rows, columns: 0.2 * max(rows, columns) ** 0.5), (None, lambda rows, columns: max(1, columns / rows) ** 0.5)],
)
def test_matrices_of_stacked_layers_move_as_by_the_slow_reference(rms, scale):
    ours = updates_of(optim.Muon(learning_rate=1.0, schedule="constant", clip_norm=None, rms=rms), 3)["layers"]
    for name in MATRICES:
        np.testing.assert_allclose(ours[name], reference(name, 3, scale), rtol=2e-3, atol=2e-5, err_msg=name)
        for layer in ours[name]:
            matrix = layer.reshape(-1, layer.shape[-1]) if name == "o" else layer.reshape(layer.shape[0], -1)
            values = np.linalg.svd(matrix / scale(*matrix.shape), compute_uv=False)
            assert 0.3 < values.min() and values.max() < 1.3, name  # each layer is orthogonal on its own
            if rms is not None:
                assert np.sqrt(np.mean(matrix**2)) == pytest.approx(rms, rel=0.3)  # of AdamW's size


def test_what_is_no_matrix_of_a_layer_moves_as_by_adamw():
    muon = updates_of(optim.Muon(learning_rate=1.0, schedule="constant", clip_norm=None, b2=0.95), 3)
    adamw = updates_of(optim.AdamW(learning_rate=1.0, schedule="constant", clip_norm=None, b2=0.95), 3)
    for name in ("embed", "norm", "lm_head"):
        np.testing.assert_array_equal(muon[name], adamw[name], err_msg=name)
    for name in weight_shapes(CONFIG)["layers"].keys() - MATRICES:
        np.testing.assert_array_equal(muon["layers"][name], adamw["layers"][name], err_msg=name)
    assert not np.allclose(muon["layers"]["q"], adamw["layers"]["q"])


def test_a_matrix_has_one_moment_and_the_others_have_two():
    state = optim.make_optimizer(optim.Muon(moment_dtype="bfloat16"), 3).init(init_weights(CONFIG, jax.random.key(0)))
    sizes = {
        dtype: sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == dtype) for dtype in ("bfloat16", "float32")
    }
    weights = init_weights(CONFIG, jax.random.key(0))
    whole = sum(leaf.size for leaf in jax.tree.leaves(weights))
    matrices = sum(weights["layers"][name].size for name in MATRICES)
    assert sizes == {"bfloat16": whole, "float32": whole - matrices + 3}  # and three coefficients


def test_weight_decay_reaches_matrices_and_what_is_asked_for():
    def moved(**options):
        return updates_of(optim.Muon(learning_rate=0.5, schedule="constant", **options), 1)

    weights, plain = init_weights(CONFIG, jax.random.key(0)), moved()
    for decayed, names in (("matrices", {"q"}), ("embeddings", {"q", "embed"}), ("all", {"q", "embed", "attn_norm"})):
        now = moved(weight_decay=0.1, decayed=decayed)
        for name in ("q", "embed", "attn_norm"):
            of = lambda tree, name=name: np.asarray({**tree, **tree["layers"]}[name])  # noqa: E731
            expected = of(plain) + 0.05 * of(weights) * (name in names)
            np.testing.assert_allclose(of(now), expected, atol=1e-6, err_msg=f"{decayed} {name}")


def test_the_table_says_which_axes_a_product_sums_over():
    axes = {weight.path[-1]: matrix_axes(weight.path) for weight in TABLE if matrix_axes(weight.path)}
    assert axes.keys() >= MATRICES
    assert {axes[name] for name in ("q", "k", "v")} == {((1,), (2, 3))} and axes["o"] == ((1, 2), (3,))
    assert {axes[name] for name in ("gate", "up", "down")} == {((1,), (2,))}
    for path in (("embed",), ("lm_head",), ("score",), ("norm",), ("layers", "attn_norm"), ("layers", "q_bias"), ("other",)):
        assert matrix_axes(path) is None
    assert is_embedding(("embed",)) and is_embedding(("Embed_0", "embedding")) and not is_embedding(("lm_head",))


@pytest.mark.parametrize(
    "options, key",
    [({"momentum": 1.0}, "momentum: 1.0"), ({"rms": 0.0}, "rms: 0.0"), ({"newton_schulz_steps": 0}, "schulz_steps: 0")],
)
def test_bad_options_of_muon_are_named(options, key):
    with pytest.raises(UserError, match=key):
        optim.Muon(**options)


def test_a_gradient_of_nothing_moves_nothing():
    transform, params = optim.make_optimizer(optim.Muon(), 2), init_weights(CONFIG, jax.random.key(0))
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(updates))
