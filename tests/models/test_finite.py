"""Which tensors are no numbers."""

import jax.numpy as jnp

from align_jax.models.finite import not_finite, spelled


def test_tensors_that_hold_nan_or_infinity_are_named():
    weights = {"a": jnp.ones(3), "layers": {"q": jnp.ones((2, 2), jnp.bfloat16).at[0, 1].set(jnp.nan), "n": jnp.arange(3)}}
    assert not_finite(weights) == ["layers.q"]
    assert not_finite(weights | {"a": jnp.ones(3).at[2].set(jnp.inf)}) == ["a", "layers.q"]
    assert spelled(["a"]) == "tensor 'a'" and spelled(list("abcde")) == "tensors 'a', 'b', 'c' and 2 more"
