"""Operations of attention kernels, which a compiled program's text does not say: by the blocks of pairs that they compute.

A pair of blocks costs 2 products in the forward kernel, 3 in that of the queries' gradient and 4 in that of the keys' and
values', each of `2 E` operations for each of its pairs and query heads.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from align_jax.batch import GroupBatch
from align_jax.models.attention import splash, xla
from align_jax.models.attention.pairs import computed_pairs
from align_jax.models.kinds import mean_over_layers
from align_jax.scoring.scorer import Scorer

# Products for a pair of a query and a key: forward, backward, and the least of a backward pass.
FORWARD, BACKWARD, BACKWARD_LEAST = 2, {"xla": 5, "pallas": 7, "triton": 7, "splash": 7, "cudnn": 5}, 4


def kernel_flops(scorer: Scorer, batch: GroupBatch) -> int:
    """Operations of the kernels of a step on a (host) batch, all devices together; 0 where attention is XLA's.

    Args:
      scorer: with the backend that computes attention. batch: with microbatches on a leading axis.
    """
    if scorer.attention == "xla":
        return 0
    again, chunked = scorer.remat == "full", scorer.chunk(batch) is not None
    backward, (prompt, response) = BACKWARD[scorer.attention], computed(scorer, batch)
    products = prompt * (FORWARD * (1 + again) + backward) + response * (FORWARD * (1 + again + chunked) + backward)
    return scorer.config.layers * scorer.config.heads * 2 * scorer.config.head_size * products


def computed(scorer: Scorer, batch: GroupBatch) -> tuple[int, int]:
    """(query, key) pairs of a head that are computed for all prompt rows, and for all response rows of a (host) batch."""
    if scorer.attention == "xla":
        return _xla_pairs(scorer, batch)
    if scorer.attention in ("pallas", "triton"):
        of_window = functools.cache(lambda window: computed_pairs(batch, window))
    else:
        of_window = functools.cache(lambda window: _splash_pairs(scorer, batch, window))
    prompt, response = (mean_over_layers(scorer.config, lambda window, i=i: of_window(window)[i]) for i in range(2))
    return prompt, response


def _xla_pairs(scorer: Scorer, batch: GroupBatch) -> tuple[int, int]:
    *shards, prompts, before = batch.prompt_tokens.shape
    rows, length = batch.tokens.shape[-2:]
    chunk = scorer.chunk(batch)
    rows = rows if chunk is None else chunk * -(-rows // chunk)
    parts = math.prod(shards)
    return parts * prompts * xla.computed_pairs(before), parts * rows * xla.computed_pairs(length, before)


def _splash_pairs(scorer: Scorer, batch: GroupBatch, window: int | None) -> tuple[int, int]:
    """(query, key) pairs of a head that are computed for prompt rows, and for response rows."""
    *_, prompts, before = batch.prompt_tokens.shape
    *shards, rows, length = batch.tokens.shape
    shards = int(np.prod(shards))
    window = window if window and window < before + length else None
    together = rows // prompts if batch.uniform and scorer.chunk(batch) is None else 1
    return (
        shards * prompts * splash.computed_pairs(1, before, 0, window),
        shards * rows // together * splash.computed_pairs(together, length, before, window),
    )
