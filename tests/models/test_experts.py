"""The sparse layer: on meshes of all kinds, in few bits, and the load of its experts."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from align_jax.models import ModelConfig, weight_shardings
from align_jax.models.experts import Load, balance_loss, busiest, sparse_mlp
from align_jax.models.quantized import quantize
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.scorer import Scorer
from tests.models.test_decoder import big_weights
from tests.training.test_step import make_items, stacked

MIXTURE = ModelConfig(32, 16, 8, 2, 4, 2, 4, experts=4, active_experts=2)
# As a GPT-OSS.
BIASED = dataclasses.replace(
    MIXTURE,
    **{"qkv_bias": True, "o_bias": True, "sinks": True, "expert_biases": True, "activation": "clamped_swiglu"},
    **{"sliding_window": 4, "layer_windows": (True, False)},
)


def _batch(shards):
    return jax.tree.map(lambda x: x[0], stacked(make_items(8, 2), 1, shards))


def _loss_and_gradients(scorer, weights, batch):
    def loss(weights):
        values, load, _ = scorer.scored(weights, batch)
        signs = (batch.rows[:, None] + jnp.arange(2)) % 3 - 1.0
        return jnp.sum(values * signs) + 5 * balance_loss(load), (values, load)

    (_, (values, load)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    return (np.asarray(values)[np.argsort(batch.rows)], load), grads


# data, fsdp, tensor, expert, sequence; what the scorer does
MESHES = {
    "expert and tensor": ((1, 2, 2, 2, 1), {"remat": "dots"}),
    "expert alone": ((2, 1, 1, 4, 1), {"rows_per_chunk": 1}),
    "expert and sequence": ((1, 2, 1, 2, 2), {"remat": "full"}),
    "more devices than experts": ((1, 1, 1, 8, 1), {}),
    "no experts": ((2, 2, 2, 1, 1), {}),
}


@functools.cache
def _on_one_device(config):
    return _loss_and_gradients(Scorer(config, "float32", attention="xla"), big_weights(config), _batch(1))


_BIASED = ("expert and tensor", "expert and sequence", "no experts")


@pytest.mark.slow
@pytest.mark.parametrize(("config", "name"), [*((MIXTURE, name) for name in MESHES), *((BIASED, name) for name in _BIASED)])
def test_a_mesh_changes_no_value_and_no_gradient(config, name):
    (data, fsdp, tensor, expert, sequence), options = MESHES[name]
    weights, (expected, grads) = big_weights(config), _on_one_device(config)
    mesh = make_mesh(data, fsdp, tensor, sequence=sequence, expert=expert)
    places = weight_shardings(config, mesh)
    if name == "expert and tensor":
        assert places["layers"]["expert_gate"].spec == jax.P(None, "expert", "fsdp", "tensor")
        assert places["layers"]["q"].spec == jax.P(None, ("fsdp", "expert"), "tensor", None)
    with jax.set_mesh(mesh):
        scorer = Scorer(config, "float32", attention="xla", **options)
        batch = put_batch(_batch(data * fsdp * expert), mesh)
        found, cut = _loss_and_gradients(scorer, jax.device_put(weights, places), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_the_balance_is_transformers_and_counts_no_padding():
    """Logits of two layers; the router of ours gives them where the hidden states are the identity's rows."""
    logits = 2 * np.random.default_rng(0).standard_normal((2, 12, 5)).astype(np.float32)
    real = np.arange(12) % 4 != 3
    theirs = [torch.tensor(each, requires_grad=True) for each in logits]
    expected = load_balancing_loss_func(tuple(theirs), 5, 2, torch.tensor(real[None]))
    expected.backward()
    config = dataclasses.replace(MIXTURE, experts=5, width=12)
    layer = {
        f"expert_{name}": jnp.zeros((5, *shape)) for name, shape in (("gate", (12, 8)), ("up", (12, 8)), ("down", (8, 12)))
    }

    def ours(logits):
        found = [sparse_mlp(jnp.eye(12)[None, None], {**layer, "router": each}, config, real[None, None])[1] for each in logits]
        chosen, probs = (jnp.stack(each).sum((1, 2)) for each in zip(*found, strict=True))
        return balance_loss(Load(chosen, probs, jnp.sum(real)))

    loss, grads = jax.value_and_grad(ours)(jnp.asarray(logits))
    assert loss == pytest.approx(expected.item(), rel=1e-5) and loss > 2.01
    for grad, their in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(grad, their.grad.numpy(), rtol=0, atol=1e-5 * their.grad.abs().max().item())


def test_even_experts_have_the_least_balance_loss():
    even = Load(jnp.full((3, 4), 6.0), jnp.full((3, 4), 3.0), jnp.asarray(12.0))
    assert balance_loss(even) == pytest.approx(2) and busiest(even) == pytest.approx(1)
    one = Load(jnp.asarray([[12.0, 0, 0, 0]]), jnp.asarray([[12.0, 0, 0, 0]]), jnp.asarray(12.0))
    assert balance_loss(one) == pytest.approx(4) and busiest(one) == pytest.approx(4)


def test_prompts_are_counted_once_and_padding_never():
    batch = _batch(1)
    weights = big_weights(MIXTURE)
    load = jax.jit(Scorer(MIXTURE, "float32", attention="xla").scored)(weights, batch).load
    real = (batch.prompt_segments > 0).sum() + (batch.segments > 0).sum()
    assert real < batch.prompt_segments.size + batch.segments.size
    assert load.tokens == real
    np.testing.assert_array_equal(load.chosen.sum(-1), 2 * real)
    np.testing.assert_allclose(load.probs.sum(-1), real, rtol=1e-5)
    in_chunks = jax.jit(Scorer(MIXTURE, "float32", attention="xla", rows_per_chunk=1).scored)(weights, batch).load
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), in_chunks, load)


@pytest.mark.parametrize(("kind", "expert"), [("int8", 2), ("nf4", 1)])
def test_experts_of_few_bits_are_those_that_the_codes_mean(kind, expert):
    config, key = dataclasses.replace(MIXTURE, mlp_width=128), jax.random.key(0)
    layer = jax.tree.map(
        lambda x: x[0], {k: v for k, v in big_weights(config)["layers"].items() if "expert" in k or k == "router"}
    )
    few = {name: x if name == "router" else quantize(x, kind, 1) for name, x in layer.items()}
    plain = {name: x if name == "router" else x.astype(jnp.float32) for name, x in few.items()}
    x = jax.random.normal(key, (4, 1, 3, 16))

    def loss(x, w):
        return jnp.sum(jnp.sin(sparse_mlp(x, w, config)[0]))

    expected = jax.value_and_grad(loss)(x, plain)
    with jax.set_mesh(make_mesh(1, 2, 2 // expert, expert=expert, devices=jax.devices()[:4])):
        found = jax.jit(jax.value_and_grad(loss))(x, few)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("bad", [dict(experts=4), dict(active_experts=2), dict(experts=2, active_experts=3)])
def test_impossible_experts_are_refused(bad):
    with pytest.raises(ValueError, match="active_experts is"):
        ModelConfig(32, 16, 8, 2, 4, 2, 4, **bad)
