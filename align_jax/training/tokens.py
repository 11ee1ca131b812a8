"""Tokens of a batch, counted on the devices that hold it: on several processes nobody asks another."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align_jax.batch import GroupBatch


def token_counts(batch: GroupBatch) -> dict[str, jax.Array]:
    """What a batch with microbatches on a leading axis A holds, over all its shards, as int32 scalars.

    Returns:
      `tokens/computed`, `tokens/real` and `tokens/useful`, as `computed_positions`, `real_positions` and `useful_tokens` of
      `align_jax.batch` count them on the host; with a label `truncated` `[A, G, 2]` also `tokens/truncated_prompts` and
      `tokens/truncated_responses`.
    """
    real = jnp.count_nonzero(batch.prompt_segments) + jnp.count_nonzero(batch.segments)
    counts = {
        "tokens/computed": jnp.int32(batch.prompt_tokens.size + batch.tokens.size),
        "tokens/real": real.astype(jnp.int32),
        "tokens/useful": _useful(batch),
    }
    if "truncated" in batch.labels:
        cut = jnp.sum(batch.labels["truncated"], axis=(0, 1), dtype=jnp.int32)
        counts |= {"tokens/truncated_prompts": cut[0], "tokens/truncated_responses": cut[1]}
    return counts


def _useful(batch: GroupBatch) -> jax.Array:
    accumulation, shards = batch.tokens.shape[:2]
    responses = batch.mask.size // (accumulation * shards)
    past_end = 1 if batch.ends else 2

    def of_shard(slots, positions):
        # A negative index would wrap around; one past the end is dropped.
        index = jnp.where(slots < 0, responses, slots).reshape(-1)
        ends = jnp.zeros(responses, jnp.int32).at[index].max(positions.reshape(-1) + past_end, mode="drop")
        return jnp.sum(ends, dtype=jnp.int32)

    return jnp.sum(jax.vmap(jax.vmap(of_shard))(batch.slots, batch.positions), dtype=jnp.int32)
