"""Where tokens stand: what visibility is decided from."""

from __future__ import annotations

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Where tokens stand, for deciding what sees what: int32 arrays `[D, N, R]` (see `align_jax.batch`).

    `parents` and `groups` may be None: no parents; nothing but the own row is seen.
    """

    positions: jax.Array
    segments: jax.Array
    parents: jax.Array | None = None
    groups: jax.Array | None = None
