"""Rematerialization: what the backward pass keeps and what it computes again."""

from __future__ import annotations

from collections.abc import Callable

import jax

_policies = jax.checkpoint_policies

ATTENTION = "attention"  # the name that attention kernels give to their output and log-sum-exp

# none: keep everything; dots: keep the products of weights and activations, and what attention kernels give; full: keep
# only each layer's input; offload: keep the products, in host memory.
POLICIES = {
    "none": None,
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(ATTENTION)
    ),
    "full": _policies.nothing_saveable,
    "offload": _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
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
