"""From logits to tokens: repetition penalty, temperature, top-k, top-p, min-p, in the order and with the meaning that
transformers gives them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from align_jax.errors import UserError

_BLOCK = 128  # tokens; the first draw is among vocab_size / 128 blocks


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: only the k most likely tokens (and those that tie with the last of them); 0 is all.
      top_p: only the fewest most likely tokens whose probability reaches it (and ties); 1 is all.
      min_p: only tokens at least this many times as likely as the most likely one; 0 is all.
      repetition_penalty: logits of tokens that stand in the prompt or the response are divided by it where positive and
        multiplied where negative (arXiv 1909.05858); 1 changes nothing.

    Raises:
      UserError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        for name, good, range_ in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
        ):
            if not good:
                raise UserError(f"{name} must be {range_}, got {getattr(self, name)!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        return self.repetition_penalty != 1


def penalize(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Repetition penalty: logits `[..., V]`, seen bool `[..., V]`."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits `[..., V]` less the largest, divided by the temperature (above 0); -inf where a filter removes the token."""
    # The largest becomes 0, and no temperature makes it infinite or, below float32's smallest number, NaN.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / max(sampling.temperature, 1e-30)
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep_top(logits, jnp.ones_like(logits), sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep_top(logits, jax.nn.softmax(logits, axis=-1), sampling.top_p)
    if sampling.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def sample(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws a token per row: logits `[D, N, V]`, keys `[D, N]` -> int32 `[D, N]`.

    By inverting the cumulative distribution, first over blocks of the vocabulary and then within the block that was drawn:
    two random numbers per row instead of V. A rounding difference between two machines changes the token only where a number
    falls between their two distributions.
    """
    if sampling.greedy:
        return _first_largest(logits)
    logits = filter_logits(logits, sampling)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, [(0, 0), (0, 0), (0, -weights.shape[-1] % _BLOCK)])
    blocks = weights.reshape(*weights.shape[:-1], -1, _BLOCK)
    uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys)
    block = _draw(blocks.sum(-1), uniform[..., :1])
    within = _draw(jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :], uniform[..., 1:])
    return block * _BLOCK + within


def _draw(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """An index with probability proportional to its weight: weights `[..., n]` of 0 or more, uniform `[..., 1]` in [0, 1)."""
    above = jnp.cumsum(weights, axis=-1)
    index = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    drawn = (weights > 0) & (above > uniform * above[..., -1:])
    # Where rounding leaves none above, the last that has a weight.
    last = jnp.max(jnp.where(weights > 0, index, 0), axis=-1)
    return jnp.minimum(jnp.min(jnp.where(drawn, index, weights.shape[-1]), axis=-1), last)


def _first_largest(values: jax.Array) -> jax.Array:
    """`argmax` over the last axis as two plain reductions, several times faster than XLA's paired one on the CPU."""
    count = values.shape[-1]
    is_largest = values == jnp.max(values, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_largest, jnp.arange(count, dtype=jnp.int32), count - 1), axis=-1)


def _keep_top(logits: jax.Array, weights: jax.Array, goal: float) -> jax.Array:
    """Keeps the fewest largest logits whose weights add up to `goal`, ties included; the others become -inf.

    The threshold is found by bisection on the bits of the logits: 32 sums over the vocabulary instead of a sort.
    """
    bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    # Unsigned integers in the order of the floats they stand for.
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def refine(i, low):
        candidate = low | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        reached = jnp.sum(jnp.where(order >= candidate, weights, 0.0), axis=-1, keepdims=True) >= goal
        return jnp.where(reached, candidate, low)

    low = jax.lax.fori_loop(0, 32, refine, jnp.zeros_like(order[..., :1]))
    largest = jnp.max(order, axis=-1, keepdims=True)  # stays, however small the goal
    return jnp.where(order >= jnp.minimum(low, largest), logits, -jnp.inf)
