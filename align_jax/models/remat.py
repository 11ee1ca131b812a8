"""Rematerialization: what the backward pass keeps and what it computes again."""

from __future__ import annotations

from collections.abc import Callable

import jax

_policies = jax.checkpoint_policies

# What may be kept goes by name: a policy that looks at operations does not see those in a gradient that is written out.
ATTENTION = "attention"  # attention's output and log-sum-exp
PRODUCT = "product"  # of activations and a weight

# none: keep everything; dots: keep the products of weights and activations, and what attention gives; full: keep only each
# layer's input; offload: keep what `dots` keeps, in host memory.
POLICIES = {
    "none": None,
    "dots": _policies.save_only_these_names(ATTENTION, PRODUCT),
    "full": _policies.nothing_saveable,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[ATTENTION, PRODUCT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def rematerialize(layer: Callable, policy: str) -> Callable:
    """`layer` with the named policy.

    Raises:
      ValueError: an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown rematerialization policy {policy!r}; known: {', '.join(POLICIES)}")
    if policy == "none":
        return layer
    # Inside scan the barrier that prevents common-subexpression elimination is not needed and only costs time.
    return jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=False)
