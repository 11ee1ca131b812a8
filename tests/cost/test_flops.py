"""The formulas against counting, and against what XLA counts."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from align_jax.cost.flops import forward_flops, least_flops, remat_flops
from align_jax.cost.hlo import count
from align_jax.models import Decoder, ModelConfig, init_weights

MODEL = ModelConfig(vocab_size=40, width=16, mlp_width=24, layers=3, heads=4, kv_heads=2, head_size=6)
MIXTURE = dataclasses.replace(MODEL, experts=5, active_experts=2)


def test_pairs_are_counted_one_by_one():
    prompts, responses = [3, 5], [[2, 4], [1]]
    pairs = 0
    for m, group in zip(prompts, responses, strict=True):
        pairs += sum(j <= i for i in range(m) for j in range(m))
        pairs += sum(j <= i for n in group for i in range(m, m + n) for j in range(m + n))
    forward = forward_flops(MODEL, prompts, responses)
    assert forward.attention == pairs * 4 * 3 * 4 * 6
    assert forward.head == 7 * 2 * 16 * 40


@pytest.mark.slow
def test_products_are_those_that_xla_compiles():
    weights, tokens = init_weights(MODEL, jax.random.key(0)), np.zeros((2, 9), np.int32)
    text = jax.jit(lambda w: Decoder(MODEL, w, dtype="float32")(tokens)).lower(weights).compile().as_text()
    forward = forward_flops(MODEL, [0, 0], [[9], [9]])
    square = 2 * 9 * 9 * 4 * 3 * 4 * 6  # XLA's attention computes all pairs
    assert count(text).flops == forward.layers + forward.head + square


def _traced_flops(jaxpr) -> int:
    """Operations of the matrix products of a traced function, loops as often as they run."""
    total = 0
    for e in jaxpr.eqns:
        if e.primitive.name == "dot_general":
            contracted = e.params["dimension_numbers"][0][0]
            total += 2 * math.prod(e.outvars[0].aval.shape) * math.prod(e.invars[0].aval.shape[d] for d in contracted)
        if e.primitive.name == "ragged_dot_general":  # each row with one expert
            rows, first, other = e.invars[0].aval.shape[0], *(e.invars[i].aval.shape[-1] for i in range(2))
            by_rows = len(e.invars[1].aval.shape) == 2
            total += 2 * rows * first * (other if by_rows else math.prod(e.outvars[0].aval.shape) // rows)
        inner = [x for p in e.params.values() for x in (p if isinstance(p, list | tuple) else [p])]
        inner = [getattr(x, "jaxpr", x) for x in inner if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        total += e.params.get("length", 1) * sum(map(_traced_flops, inner))
    return total


@pytest.mark.parametrize("policy", ["none", "dots", "full", "offload"])
@pytest.mark.parametrize("model", [MODEL, MIXTURE], ids=["dense", "experts"])
def test_a_policy_repeats_what_the_formula_says(policy, model):
    """Traced, not run: offloading needs a device with host memory. XLA's attention repeats one of its two products anyway."""
    weights, tokens = init_weights(model, jax.random.key(0)), np.zeros((2, 9), np.int32)
    forward = forward_flops(model, [0, 0], [[9], [9]])

    def gradient(remat):
        loss = lambda w: Decoder(model, w, dtype="float32", remat=remat)(tokens).sum()  # noqa: E731
        return _traced_flops(jax.make_jaxpr(jax.grad(loss))(weights).jaxpr)

    square = 2 * 9 * 9 * 4 * 3 * 4 * 6  # of all pairs
    every = 3 * (forward.layers + forward.head) + square * 7 // 2
    again = forward.layers - forward.down + square if policy == "full" else 0
    summed = 0 if model.experts is None else 2 * 3 * 18 * 2 * 16  # the outputs of a token's experts, once, in no gradient
    assert gradient(policy) == every + again + summed


def test_rematerialization_adds_what_it_says():
    forward = forward_flops(MODEL, [4], [[5, 6]])
    assert least_flops(forward) == 3 * (forward.layers + forward.attention + forward.head)
    assert all(remat_flops(forward, policy) == forward.head for policy in ("none", "dots", "offload"))
    assert remat_flops(forward, "full") == forward.total - forward.down
    with pytest.raises(ValueError, match="'some'"):
        remat_flops(forward, "some")
