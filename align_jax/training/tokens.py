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
    accumulation, shards = batch.tokens.shape[:2]
    by_shard = {"tokens/real": _real(batch), "tokens/useful": _useful(batch)}
    if "truncated" in batch.labels:
        cut = batch.labels["truncated"].reshape(accumulation, shards, -1, 2).sum(2, dtype=jnp.int32)
        by_shard |= {"tokens/truncated_prompts": cut[..., 0], "tokens/truncated_responses": cut[..., 1]}
    # Together, so that devices exchange one small array.
    counts = jnp.stack(list(by_shard.values()), axis=-1).sum((0, 1))
    computed = jnp.int32(batch.prompt_tokens.size + batch.tokens.size)
    return {"tokens/computed": computed, **dict(zip(by_shard, counts, strict=True))}


def _real(batch: GroupBatch) -> jax.Array:
    """Of every microbatch and shard, `[A, D]`."""
    count = lambda x: jnp.count_nonzero(x, axis=(-2, -1)).astype(jnp.int32)  # noqa: E731
    again = 0 if batch.repeated is None else count(batch.repeated)
    return count(batch.prompt_segments) + count(batch.segments) - again


def _useful(batch: GroupBatch) -> jax.Array:
    """Of every microbatch and shard, `[A, D]`."""
    accumulation, shards = batch.tokens.shape[:2]
    responses = batch.mask.size // (accumulation * (1 if batch.spread > 1 else shards))
    past_end = 1 if batch.ends else 2

    def of_shard(slots, positions):
        # A negative index would wrap around; one past the end is dropped.
        index = jnp.where(slots < 0, responses, slots).reshape(-1)
        reach = jnp.zeros(responses, jnp.int32).at[index].max(positions.reshape(-1) + past_end, mode="drop")
        return jnp.sum(reach, dtype=jnp.int32)

    return jax.vmap(jax.vmap(of_shard))(batch.slots, batch.positions)
