"""What a device can hold at a time, by an estimate from shapes: response rows and logits, where their chunks are `auto`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from align_jax.models.adapting import trained_paths
from align_jax.models.config import ModelConfig
from align_jax.models.weights import weight_shapes, weight_structs

USABLE = 0.9  # of a device's memory: the rest is the allocator's, and the estimate's error
STATE_BYTES = 8  # of a parameter, beside itself and its gradient: two float32 moments
SUM_BYTES = 4  # of a parameter, where gradients of microbatches are added up
TRANSIENT = 2.5  # layers' values alive in a backward pass beside what is kept; measured 2.4 with `remat: full`
UNKNOWN = 1 << 30  # bytes of logits that are kept where a device's memory is not known
LOGITS = 10  # bytes for a logit that exists: float32, its gradient, and half of one more


def state_bytes(
    config: ModelConfig, param_dtype: str, shards: int, microbatches: int = 1, live: ModelConfig | None = None
) -> int:
    """Bytes on a device of parameters, gradients and two moments, divided over `shards` devices.

    With several microbatches there are two sets of gradients: those of one, and the sum, which is float32. What is beneath an
    adapter has neither gradients nor moments. A live reference, of shape `live`, is one more set of what is trained.
    """
    weights, trained = flatten_dict(weight_structs(config, param_dtype)), trained_paths(config)
    total = sum(part.size * part.dtype.itemsize for one in weights.values() for part in jax.tree.leaves(one))
    for path, one in weights.items():
        if trained is None or path in trained:
            total += one.size * (one.dtype.itemsize + STATE_BYTES + (SUM_BYTES if microbatches > 1 else 0))
    beside = {} if live is None else flatten_dict(weight_structs(live, param_dtype))
    kept = [part for path, one in beside.items() if trained is None or path in trained for part in jax.tree.leaves(one)]
    total += sum(part.size * part.dtype.itemsize for part in kept)
    return total // shards


def gathered_bytes(config: ModelConfig, dtype: str, tensor: int) -> int:
    """Bytes of frozen weights that a device of an fsdp mesh brings together at a time: two layers', and those outside them."""
    sizes = {path: math.prod(shape) for path, shape in flatten_dict(weight_shapes(config.plain)).items()}
    layers = sum(size for path, size in sizes.items() if path[0] == "layers")
    count = 2 * layers // config.layers + sum(sizes.values()) - layers
    return count * jnp.dtype(dtype).itemsize // tensor


def position_bytes(config: ModelConfig, dtype: str, remat: str, tensor: int = 1, sequence: int = 1, expert: int = 1) -> int:
    """Bytes that one position takes at the peak of a backward pass over all layers, apart from the head.

    With `remat: none` each layer keeps its input and those of its norms and products,
    `4 W + (3 H E + 4 Hk E + 3 F) / tensor` values; with `dots` its input and what products and attention give,
    `2 W + (2 H E + 2 Hk E + 2 F) / tensor`; else its input, W. The rest is there for one layer. Of a mixture F is that of a
    token's k experts, whose inputs and outputs are k W more each; and a device has rows for the tokens of all devices that
    share experts with it, as any of them may be for its own.

    Args:
      config: the model. dtype: of activations. remat: a key of `align_jax.models.remat.POLICIES`.
      tensor: devices that share heads and MLP.
      sequence: devices that share the positions of a row, whose keys and values each brings together, and their gradients.
      expert: devices that share experts.
    """
    heads, mlp = (3 * config.heads + 4 * config.kv_heads) * config.head_size, config.computed_mlp_width * expert
    routed = config.width * (config.active_experts or 0) * expert
    layer = 4 * config.width + 2 * routed + (heads + 3 * mlp) / tensor
    products = 2 * config.width + routed + 2 * ((config.heads + config.kv_heads) * config.head_size + mlp) / tensor
    kept = {"none": layer, "dots": products}.get(remat, config.width)
    together = 0 if sequence == 1 else 4 * config.kv_heads * config.head_size * sequence / tensor
    return math.ceil((config.layers * kept + TRANSIENT * layer + together) * jnp.dtype(dtype).itemsize)


def rows_that_fit(rows: tuple[int, int], prompts: tuple[int, int], each: int, memory: int, head: tuple[int, int]) -> int | None:
    """Response rows of a shard that fit at one time; None where all of them do.

    Args:
      rows, prompts: (rows, positions of one) of responses and of prompts; prompts are never chunked.
      each: bytes of a position. memory: bytes that there are for activations.
      head: (positions whose logits exist at one time, vocabulary).

    Returns:
      Rows of a chunk, at least 1, such that chunks are about equally large.
    """
    count, length = rows
    left = memory - math.prod(prompts) * each - min(head[0], count * length) * head[1] * LOGITS
    fit = max(1, left // max(1, length * each))
    return None if fit >= count else math.ceil(count / math.ceil(count / fit))


def head_that_fits(positions: int, vocabulary: int, memory: int | None, least: int) -> int:
    """Positions whose logits exist at one time: all where they fit, since they are then kept for the backward pass.

    Args:
      positions: of a shard that are computed at one time. vocabulary: logits of a position on a device.
      memory: bytes that there are for logits; None where that is not known: all if they take 1 GiB at most, else `least`.
      least: positions of a chunk at least.

    Returns:
      Positions of a chunk, such that chunks are about equally large.
    """
    if memory is None:
        return positions if 4 * positions * vocabulary <= UNKNOWN else min(positions, least)
    fit = max(least, memory // (vocabulary * LOGITS))
    return positions if fit >= positions else math.ceil(positions / math.ceil(positions / fit))
