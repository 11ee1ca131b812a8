"""Operations of kernels, which a compiled program's text does not say: of attention, by the blocks of pairs that they compute,
and on TPU those of the products of experts, by the rows that tokens have there.

A pair of blocks costs 2 products in the forward kernel, 3 in that of the queries' gradient and 4 in that of the keys' and
values', each of `2 E` operations for each of its pairs and query heads.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from align_jax.batch import GroupBatch
from align_jax.models.attention import blockwise, splash, xla
from align_jax.models.attention.pairs import computed_pairs
from align_jax.models.kinds import mean_over_layers
from align_jax.scoring.scorer import Scorer

# Products for a pair of a query and a key: forward, backward, and the least of a backward pass.
FORWARD, BACKWARD_LEAST = 2, 4
_BACKWARD = {"xla": 5, "pallas": 7, "triton": 7, "splash": 7, "cudnn": 5}
_BACKWARD_OF_PIECES = 6  # by XLA over rows that a mesh cuts: both products again, for each block of queries


def backward_products(scorer: Scorer) -> int:
    """Products for a pair of a query and a key in attention's backward pass."""
    return _BACKWARD_OF_PIECES if scorer.attention == "xla" and scorer.sequence > 1 else _BACKWARD[scorer.attention]


def kernel_flops(scorer: Scorer, batch: GroupBatch) -> int:
    """Operations of the kernels of a step on a (host) batch, all devices together; 0 where attention is XLA's.

    Args:
      scorer: with the backend that computes attention. batch: with microbatches on a leading axis.
    """
    if scorer.attention == "xla":
        return 0
    again, chunked = scorer.remat == "full", scorer.chunk(batch) is not None
    backward, (prompt, response) = backward_products(scorer), computed(scorer, batch)
    products = prompt * (FORWARD * (1 + again) + backward) + response * (FORWARD * (1 + again + chunked) + backward)
    return scorer.config.layers * scorer.config.heads * 2 * scorer.config.head_size * products


def expert_flops(scorer: Scorer, batch: GroupBatch) -> int:
    """Operations of the products of a mixture's experts in a step on a (host) batch, all devices together: three a row, their
    gradients, and what is repeated; 0 for other models.

    A TPU has a kernel for them, of which only rows with a token cost anything. Elsewhere XLA may multiply all rows by all
    experts, which then stands in the program's text.
    """
    c = scorer.config
    if c.experts is None:
        return 0
    rows, prompts, (chunk, count) = math.prod(batch.tokens.shape), math.prod(batch.prompt_tokens.shape), _chunks(scorer, batch)
    rows = rows // count * (chunk * -(-count // chunk))
    products = (rows + prompts) * (9 + 2 * (scorer.remat == "full")) + rows * 3 * (scorer.chunk(batch) is not None)
    return 2 * c.layers * c.width * c.computed_mlp_width * products


def _chunks(scorer: Scorer, batch: GroupBatch) -> tuple[int, int]:
    """Response rows of a shard that are computed at one time, and all of them."""
    count = batch.tokens.shape[-2]
    return scorer.chunk(batch) or count, count


def computed(scorer: Scorer, batch: GroupBatch) -> tuple[int, int]:
    """(query, key) pairs of a head that are computed for all prompt rows, and for all response rows of a (host) batch."""
    if scorer.attention == "xla":
        return _xla_pairs(scorer, batch)
    if scorer.attention in ("pallas", "triton"):
        of_window = functools.cache(lambda window: computed_pairs(batch, window, scorer.sequence))
    else:
        of_window = functools.cache(lambda window: _splash_pairs(scorer, batch, window))
    prompt, response = (mean_over_layers(scorer.config, lambda window, i=i: of_window(window)[i]) for i in range(2))
    return prompt, response


def _xla_pairs(scorer: Scorer, batch: GroupBatch) -> tuple[int, int]:
    *shards, prompts, before = batch.prompt_tokens.shape
    rows, length = batch.tokens.shape[-2:]
    chunk = scorer.chunk(batch)
    rows = rows if chunk is None else chunk * -(-rows // chunk)
    parts, pieces = math.prod(shards), scorer.sequence
    if pieces > 1:
        heads = scorer.config.heads // scorer.tensor
        pairs = lambda length, keys: pieces * blockwise.computed_pairs(length, keys, pieces, heads)  # noqa: E731
        return parts * prompts * pairs(before, 0), parts * rows * pairs(length, before)
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
