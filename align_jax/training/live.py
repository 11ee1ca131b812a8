"""A reference policy in memory beside the policy that is trained: its log-probs in every step, and how it moves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from align_jax.batch import GroupBatch
from align_jax.scoring.scorer import Scorer
from align_jax.training.optim import apply_updates


@dataclasses.dataclass(frozen=True)
class LiveReference:
    """What becomes of the reference in a step (TR-DPO, arXiv 2404.09656, where it moves).

        reference <- mix * policy + (1 - mix) * reference          after every `sync_every` updates

    Attributes:
      sync_every: updates; None: the reference stays what it is. mix: alpha in (0, 1]; 1 copies the policy.
      quantize: the kind of few bits that it is kept in, where it stays; None: as the policy.
    """

    sync_every: int | None = None
    mix: float = 1.0
    quantize: str | None = None

    def moved(self, reference: dict, policy: dict, updates: jax.Array, seed: int = 0) -> dict:
        """The reference's weights after an update of the policy.

        Args:
          reference, policy: nested dicts of the same leaves. updates: int32 scalar, of the policy so far, this one included.
          seed: of the run, for the rounding of bfloat16, see `apply_updates`.
        """
        if self.sync_every is None:
            return reference
        mixed = policy
        if self.mix != 1:
            way = jax.tree.map(lambda p, r: self.mix * (p.astype(jnp.float32) - r.astype(jnp.float32)), policy, reference)
            mixed = apply_updates(reference, way, seed + 1, updates)
        due = updates % self.sync_every == 0
        return jax.tree.map(lambda new, old: jnp.where(due, new.astype(old.dtype), old), mixed, reference)


def with_live_reference(weights: dict, batch: GroupBatch, scorer: Scorer) -> GroupBatch:
    """The batch with `ref_logps`, float32 `[A, G, K]`, of the reference as it is now; not differentiated.

    Args:
      weights: of the reference. batch: microbatches on a leading axis A of every array.
    """
    plain = dataclasses.replace(batch, labels={}, per_response=())
    if batch.tokens.shape[0] == 1:
        logps = scorer(weights, jax.tree.map(lambda x: x[0], plain))[None]
    else:
        logps = jax.lax.map(lambda micro: scorer(weights, micro), plain)
    return batch.with_labels(ref_logps=jax.lax.stop_gradient(logps))
