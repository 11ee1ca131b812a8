"""Attention by our own flash kernels for GPUs (Pallas through Triton): packed rows, several prompts and responses in each.

The same work and the same runs of keys as `align_jax.models.attention.pallas` has on a TPU: a program takes a tile of tokens
(or of keys) and visits the blocks in which something is visible to it. It has never run on a card, so `auto` does not take it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from align_jax.models.attention import triton_kernels as kernels
from align_jax.models.attention.pallas import _by_key, _padded, _split, _whole
from align_jax.models.attention.partition import over_mesh
from align_jax.models.attention.runs import Blocks, GpuRuns, Runs, block_of
from align_jax.models.remat import ATTENTION

_TILE, _TILE_WIDE = 64, 32  # tokens, and keys; of heads above 128
call = pl.pallas_call  # tests interpret it


def attend_triton(q, k, v, seen: GpuRuns, prefix_k=None, prefix_v=None, cap=None) -> jax.Array:
    """See `align_jax.models.attention.attend`; padding gets 0."""
    size, runs = q.shape[-1], seen.runs
    scaled = (q.astype(jnp.float32) * size**-0.5).astype(q.dtype)
    # Triton's tiles are powers of two, of a product at least 16; zeros add nothing to it.
    keys = (k, v) if prefix_k is None else (k, v, prefix_k, prefix_v)
    wide = [_padded(x, max(16, pl.next_power_of_2(size)), 4) for x in (scaled, *keys)]
    of_parts = (runs.spans, runs.by_token, runs.by_key, runs.counts)
    return over_mesh(partial(_run, cap, runs.blocks), wide[0], tuple(wide[1:]), (), of_parts)[..., :size]


def _run(cap, blocks: Blocks, q, k, v, *rest):
    """Of one device: q `[D, N, R, H, E]`; then prompts `[D, M, P, Hk, E]`, if any, and the arrays of `Runs`."""
    *prompt, spans, by_token, by_key, counts = rest
    return _attention(cap, q, k, v, *(prompt or (None, None)), Runs(spans, by_token, by_key, counts, blocks))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(cap, q, k, v, prefix_k, prefix_v, seen: Runs):
    return _forward(cap, q, k, v, prefix_k, prefix_v, seen)[0]


def _forward(cap, q, k, v, prefix_k, prefix_v, seen: Runs):
    keys = (_by_key(*_whole(seen, *x), seen) for x in ((k, prefix_k), (v, prefix_v)))
    out, lse = _Calls(seen, cap).forward(_by_token(q, seen), *keys)
    out, lse = checkpoint_name(_as_rows(out, q), ATTENTION), checkpoint_name(lse, ATTENTION)
    return out, (q, k, v, prefix_k, prefix_v, seen, out, lse)


def _backward(cap, saved, d_out):
    q, k, v, prefix_k, prefix_v, seen, out, lse = saved
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    q_rows, delta, d_rows = (_by_token(x, seen) for x in (q, delta, d_out.astype(q.dtype)))
    (whole_k, d_of_k), (whole_v, d_of_v) = (jax.vjp(partial(_whole, seen), *x) for x in ((k, prefix_k), (v, prefix_v)))
    args = q_rows, _by_key(*whole_k, seen), _by_key(*whole_v, seen), lse, delta[..., 0], d_rows
    d_q, (d_k, d_v) = _Calls(seen, cap).backward_queries(*args), _Calls(seen, cap).backward_keys(*args)
    d_k, d_prefix_k = d_of_k(_split(d_k, *whole_k, seen))
    d_v, d_prefix_v = d_of_v(_split(d_v, *whole_v, seen))
    return _as_rows(d_q, q), d_k, d_v, d_prefix_k, d_prefix_v, None


_attention.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Calls:
    """The kernels over the work of some runs: grid `(shard, head, tile)`.

    Arrays are q, out and d_out `[D, H, tokens, E]`, k and v `[D, Hk, keys, E]`, lse and delta float32 `[D, H, tokens]`.
    """

    seen: Runs
    cap: float | None

    def forward(self, q, k, v):
        """Output in the type of q, and log-sum-exp; 0 and a large number for a token that sees nothing."""
        tile, group = self._tile(q), q.shape[1] // k.shape[1]
        outs = [q, jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)]
        specs = [self._some(q, tile), *(self._all(x, group) for x in (k, v))]
        return self._call(kernels.forward, q, (q, k, v), specs, outs, [self._some(x, tile) for x in outs])

    def backward_queries(self, q, k, v, lse, delta, d_out):
        """The gradient of q."""
        tile, group = self._tile(q), q.shape[1] // k.shape[1]
        specs = [self._some(q, tile), *(self._all(x, group) for x in (k, v))]
        specs += [self._some(x, tile) for x in (lse, delta, d_out)]
        return self._call(kernels.backward_queries, q, (q, k, v, lse, delta, d_out), specs, [q], [specs[0]])[0]

    def backward_keys(self, q, k, v, lse, delta, d_out):
        """The gradients of k and v."""
        tile, group = self._tile(q), q.shape[1] // k.shape[1]
        heads = [pl.BlockSpec((None, group, *x.shape[2:]), lambda d, h, t, n=x.ndim: (d, h, *(0,) * (n - 2))) for x in (q, lse)]
        key = self._some(k, tile)
        specs = [heads[0], key, key, heads[1], heads[1], heads[0]]
        return self._call(kernels.backward_keys, k, (q, k, v, lse, delta, d_out), specs, [k, v], [key, key], by_key=True)

    def _tile(self, q) -> int:
        return min(self.seen.blocks.size, _TILE if q.shape[-1] <= 128 else _TILE_WIDE)

    @staticmethod
    def _some(x, tile):
        """A tile of one head."""
        return pl.BlockSpec((None, None, tile, *x.shape[3:]), lambda d, h, t: (d, h, t, *(0,) * (x.ndim - 3)))

    @staticmethod
    def _all(x, group):
        """All keys of a query head."""
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda d, h, t: (d, jax.lax.div(h, group), 0, 0))

    def _call(self, kernel, over, arrays, specs, outs, out_specs, by_key=False):
        """Runs a kernel for every tile of `over`."""
        seen, tile = self.seen, self._tile(arrays[0])
        work, count = (seen.by_key, seen.blocks.of_keys) if by_key else (seen.by_token, seen.blocks.of_tokens)
        starts = jax.vmap(partial(_starts, count))(work, seen.counts[:, int(by_key)])
        whole = [_of_shard(x) for x in (work, starts, seen.spans)]
        return call(
            partial(kernel, block=seen.blocks.size, cap=self.cap),
            grid=(over.shape[0], over.shape[1], over.shape[2] // tile),
            in_specs=[*whole, *specs],
            out_specs=out_specs,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs],
            compiler_params=_compiler_params(),
            name=f"gpu_runs_{kernel.__name__}",
        )(work, starts, seen.spans, *arrays)


def missing() -> str | None:
    """Why these kernels cannot be compiled by this JAX, or None: since 0.12 it says that Pallas through Triton will go."""
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return "this version of JAX has no Pallas through Triton any more"
    return None


def _compiler_params():
    return importlib.import_module("jax.experimental.pallas.triton").CompilerParams(num_warps=4, num_stages=2)


def _of_shard(x):
    return pl.BlockSpec((None, *x.shape[1:]), lambda d, h, t: (d, *(0,) * (x.ndim - 1)))


def _starts(blocks, work, count):
    """Where the items of each block begin, int32 `[blocks + 1]`."""
    of_block = jnp.where(jnp.arange(work.shape[0]) < count, block_of(work), blocks)
    return jnp.searchsorted(of_block, jnp.arange(blocks + 1)).astype(jnp.int32)


def _by_token(x, seen: Runs):
    """`[D, N, R, H, E]` -> `[D, H, tokens, E]`."""
    flat = x.reshape(x.shape[0], -1, *x.shape[3:])
    return jnp.swapaxes(_padded(flat, seen.blocks.tokens, 1), 1, 2)


def _as_rows(x, like):
    """`[D, H, tokens, E]` -> `[D, N, R, H, E]`, the shape of `like`."""
    return jnp.swapaxes(x, 1, 2)[:, : like.shape[1] * like.shape[2]].reshape(like.shape)
