"""Operations of attention kernels, which a compiled program's text does not say: by the blocks of pairs that they compute.

A pair of blocks costs 2 products in the forward kernel, 3 in that of the queries' gradient and 4 in that of the keys' and
values', each of `2 E` operations for each of its pairs and query heads.
"""

from __future__ import annotations

import numpy as np

from align_jax.batch import GroupBatch
from align_jax.models.attention import splash
from align_jax.models.attention.pairs import computed_pairs
from align_jax.scoring.scorer import Scorer

_FORWARD, _BACKWARD = 2, 7


def kernel_flops(scorer: Scorer, batch: GroupBatch) -> int:
    """Operations of the kernels of a step on a (host) batch, all devices together; 0 where attention is XLA's.

    Args:
      scorer: with the backend that computes attention. batch: with microbatches on a leading axis.
    """
    if scorer.attention == "xla":
        return 0
    again = scorer.remat == "full"
    chunked = scorer.chunk(batch) is not None
    packed = scorer.attention == "pallas"
    prompt, response = computed_pairs(batch, scorer.config.sliding_window) if packed else _splash_pairs(scorer, batch)
    products = prompt * (_FORWARD * (1 + again) + _BACKWARD) + response * (_FORWARD * (1 + again + chunked) + _BACKWARD)
    return scorer.config.layers * scorer.config.heads * 2 * scorer.config.head_size * products


def _splash_pairs(scorer: Scorer, batch: GroupBatch) -> tuple[int, int]:
    """(query, key) pairs of a head that are computed for prompt rows, and for response rows."""
    *_, prompts, before = batch.prompt_tokens.shape
    *shards, rows, length = batch.tokens.shape
    shards = int(np.prod(shards))
    window = scorer.config.sliding_window
    window = window if window and window < before + length else None
    together = rows // prompts if batch.uniform and scorer.chunk(batch) is None else 1
    return (
        shards * prompts * splash.computed_pairs(1, before, 0, window),
        shards * rows // together * splash.computed_pairs(together, length, before, window),
    )
