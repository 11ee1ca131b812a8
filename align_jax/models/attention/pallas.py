"""Attention by our own flash kernels (Pallas, TPU): packed rows, several prompts and responses in each.

What a token sees is given as runs of keys (`align_jax.models.attention.runs`), so that rows may hold anything: the kernels
visit the pairs of blocks in which something is visible, and no others are fetched. Prompts are keys once for all rows that
see them. FlashAttention (arXiv 2205.14135, 2307.08691), with the backward pass in two kernels, as splash attention has it.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from align_jax.models.attention import pallas_kernels as kernels
from align_jax.models.attention.partition import over_mesh
from align_jax.models.attention.runs import Blocks, Runs, block_of, other_block_of
from align_jax.models.remat import ATTENTION
from align_jax.parallel import sequence

# Heads of one program, and bytes of their queries: several blocks as large must fit in a chip's 16 MiB of on-chip memory.
_MOST_HEADS, _MOST_BYTES = 8, 1 << 20
call = pl.pallas_call  # tests interpret it


def attend_pallas(q, k, v, seen: Runs, prefix_k=None, prefix_v=None, cap=None, sinks=None) -> jax.Array:
    """See `align_jax.models.attention.attend`; padding gets 0."""
    scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    keys = (k, v) if prefix_k is None else (k, v, prefix_k, prefix_v)
    of_parts = (seen.spans, seen.by_token, seen.by_key, seen.counts)
    return over_mesh(partial(_run, cap, seen.blocks), scaled, keys, (), of_parts, () if sinks is None else (sinks,))


def _run(cap, blocks: Blocks, q, k, v, *rest):
    """Of one device: q `[D, N, R, H, E]`; prompts `[D, M, P, Hk, E]`, if any; the arrays of `Runs`; sinks `[H]`, if any."""
    sinks = rest[-1] if rest[-1].ndim == 1 else None
    *prompt, spans, by_token, by_key, counts = rest if sinks is None else rest[:-1]
    return _attention(cap, q, k, v, *(prompt or (None, None)), Runs(spans, by_token, by_key, counts, blocks), sinks)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(cap, q, k, v, prefix_k, prefix_v, seen: Runs, sinks):
    return _forward(cap, q, k, v, prefix_k, prefix_v, seen, sinks)[0]


def _forward(cap, q, k, v, prefix_k, prefix_v, seen: Runs, sinks):
    heads = _Heads.of(q, k, seen.blocks.size)
    keys = (_by_key(*_whole(seen, *x), seen) for x in ((k, prefix_k), (v, prefix_v)))
    arrays = _by_token(q, heads, seen), *keys
    out, lse = _Calls(heads, seen, arrays[0].shape[3], cap).forward(*arrays)
    if sinks is not None:
        out, lse = _with_sinks(out, lse, _of_programs(sinks, heads))
    out, lse = checkpoint_name(_as_rows(out, q), ATTENTION), checkpoint_name(lse, ATTENTION)
    return out, (q, k, v, prefix_k, prefix_v, seen, sinks, out, lse)


def _with_sinks(out, lse, sinks):
    """What the kernels gave, with one more logit in each softmax.

        lse' = log(exp(lse) + exp(s)),    out' = out exp(lse - lse')

    The backward kernels take these two as they take those without it: no weight of a key is other than `exp(logit - lse')`.
    """
    merged = jnp.logaddexp(lse, sinks)
    return (out * jnp.exp(lse - merged)[:, :, :, None]).astype(out.dtype), merged


def _sink_gradient(sinks, lse, delta, heads):
    """`-sum_queries exp(s - lse) delta`, delta the sum of `out d_out`, both `[D, programs, heads of one, tokens]`."""
    if sinks is None:
        return None
    return -jnp.sum(jnp.exp(_of_programs(sinks, heads) - lse) * delta, axis=(0, 3)).reshape(sinks.shape)


def _of_programs(sinks, heads):
    return sinks.reshape(heads.programs, heads.queries, 1)


def _backward(cap, saved, d_out):
    q, k, v, prefix_k, prefix_v, seen, sinks, out, lse = saved
    heads = _Heads.of(q, k, seen.blocks.size)
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    rows = [_by_token(x, heads, seen) for x in (q, delta, d_out)]
    # Keys of other devices are brought together once more: kept, they would be as much memory as one device has for all.
    (whole_k, d_of_k), (whole_v, d_of_v) = (jax.vjp(partial(_whole, seen), *x) for x in ((k, prefix_k), (v, prefix_v)))
    args = rows[0], _by_key(*whole_k, seen), _by_key(*whole_v, seen), lse, rows[1][:, :, :, 0], rows[2]
    calls = _Calls(heads, seen, q.shape[-1], cap)
    d_q, (d_k, d_v) = calls.backward_queries(*args), calls.backward_keys(*args)
    d_k, d_prefix_k = d_of_k(_split(d_k, *whole_k, seen))
    d_v, d_prefix_v = d_of_v(_split(d_v, *whole_v, seen))
    d_sinks = _sink_gradient(sinks, lse, args[4], heads)
    return _as_rows(d_q, q), d_k, d_v, d_prefix_k, d_prefix_v, None, d_sinks


_attention.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class _Heads:
    """Heads of one program: `queries` of them read `keys` heads of keys; `shared` programs read the same ones."""

    queries: int
    keys: int
    programs: int
    shared: int

    @classmethod
    def of(cls, q, k, block: int) -> _Heads:
        """As many as fit, for q `[D, N, R, H, E]` and k; but two programs where there can be: a chip may have two cores."""
        (shards, _, _, heads, size), kv_heads = q.shape, k.shape[3]
        most = min(_MOST_HEADS, _MOST_BYTES // (block * size * q.dtype.itemsize), shards * heads // 2)
        most = max(1, most)
        group = heads // kv_heads
        per_key = max(n for n in range(1, group + 1) if group % n == 0 and n <= most)
        keys = max(n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and (n == 1 or n * group <= most))
        return cls(per_key * keys, keys, heads // (per_key * keys), group // per_key)


@dataclasses.dataclass(frozen=True)
class _Calls:
    """The kernels over the work of some runs: grid `(shard, some heads, item of work)`.

    Arrays are q, out and d_out `[D, programs, heads of one, E, tokens]`, k and v `[D, Hk, keys, E]`, lse and delta
    `[D, programs, heads of one, tokens]`; size is E, cap the soft cap of logits or None.
    """

    heads: _Heads
    seen: Runs
    size: int
    cap: float | None

    def forward(self, q, k, v):
        """Output in the type of q, and log-sum-exp; 0 and a large number for a token that sees nothing."""
        row, wide = self._of_tokens(block_of)
        many, block = self.heads.queries, self.seen.blocks.size
        outs = [q, jax.ShapeDtypeStruct((*q.shape[:3], q.shape[4]), jnp.float32)]
        scratch = [(many, self.size, block), (many, block), (many, block)]
        return self._call(kernels.forward, 2, (q, k, v), outs, (wide, row), scratch)

    def backward_queries(self, *arrays):
        """The gradient of q, from q, k, v, lse, delta, d_out."""
        _, wide = self._of_tokens(block_of)
        scratch = [(self.heads.queries, self.size, self.seen.blocks.size)]
        return self._call(kernels.backward_queries, 3, arrays, arrays[:1], (wide,), scratch)[0]

    def backward_keys(self, *arrays):
        """The gradients of k and v, from the same."""
        heads, keys = self.heads, arrays[1:3]
        shape = (heads.keys, self.seen.blocks.size, self.size)
        part = pl.BlockSpec((None, *shape), lambda d, h, t, work: (d, h, block_of(work[d, t]), 0))
        # Programs that share key heads have a part of the sum each.
        whole = heads.shared == 1
        outs = [
            jax.ShapeDtypeStruct((x.shape[0], heads.programs * heads.keys, *x.shape[2:]), x.dtype if whole else jnp.float32)
            for x in keys
        ]
        parts = self._call(kernels.backward_keys, 4, arrays, outs, (part, part), [shape, shape], by_key=True)
        if whole:
            return parts
        split = [x.reshape(*k.shape[:2], heads.shared, *k.shape[2:]) for x, k in zip(parts, keys, strict=True)]
        return [jnp.sum(x, axis=2).astype(k.dtype) for x, k in zip(split, keys, strict=True)]

    def _of_tokens(self, which):
        """Blocks of what is `[.., tokens]` and of what is `[.., E, tokens]`; which block an item of work names."""
        many, block = self.heads.queries, self.seen.blocks.size
        row = pl.BlockSpec((None, None, many, block), lambda d, h, t, work: (d, h, 0, which(work[d, t])))
        wide = pl.BlockSpec((None, None, many, self.size, block), lambda d, h, t, work: (d, h, 0, 0, which(work[d, t])))
        return row, wide

    def _call(self, kernel, products, arrays, outs, out_specs, scratch, by_key=False):
        """Runs a kernel that takes the work, the spans and these arrays; products: of a pair of blocks and a head."""
        heads, seen, block = self.heads, self.seen, self.seen.blocks.size
        of_token, of_key = (other_block_of, block_of) if by_key else (block_of, other_block_of)
        row, wide = self._of_tokens(of_token)
        spans = pl.BlockSpec((None, seen.spans.shape[1], block), lambda d, h, t, work: (d, 0, of_token(work[d, t])))
        key = pl.BlockSpec(
            (None, heads.keys, block, self.size), lambda d, h, t, work: (d, jax.lax.div(h, heads.shared), of_key(work[d, t]), 0)
        )
        specs = [wide, key, key, row, row, wide]  # q, k, v, lse, delta, d_out
        work = seen.by_key if by_key else seen.by_token
        pairs = math.prod(work.shape) * heads.programs * heads.queries * block**2  # at most
        return call(
            partial(kernel, cap=self.cap),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(work.shape[0], heads.programs, jnp.max(seen.counts[:, int(by_key)])),
                in_specs=[spans, *specs[: len(arrays)]],
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in (*scratch, (block, block))],
            ),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * self.size * pairs,
                transcendentals=pairs,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *outs)),
            ),
            name=f"runs_{kernel.__name__}",
        )(work, seen.spans, *arrays)


def _whole(seen: Runs, x, prefix):
    """Keys or values of all positions of rows and of prompts (None without), from those that a device has."""
    return tuple(None if part is None else sequence.gathered(part, 2, seen.blocks.parts) for part in (x, prefix))


def _by_token(x, heads: _Heads, seen: Runs):
    """`[D, N, R, H, E]` -> `[D, programs, heads of one, E, tokens]`."""
    shards, rows, length, _, size = x.shape
    x = x.reshape(shards, rows * length, heads.programs, heads.queries, size).transpose(0, 2, 3, 4, 1)
    return _padded(x, seen.blocks.tokens, 4)


def _as_rows(x, like):
    """`[D, programs, heads of one, E, tokens]` -> `[D, N, R, H, E]`, the shape of `like`."""
    shards, rows, length, heads, size = like.shape
    x = x[..., : rows * length].transpose(0, 4, 1, 2, 3)
    return x.reshape(like.shape)


def _by_key(x, prefix, seen: Runs):
    """`[D, N, R, Hk, E]` and prompts `[D, M, P, Hk, E]` -> `[D, Hk, keys, E]`."""
    parts = [(x, seen.blocks.rows)] if prefix is None else [(prefix, seen.blocks.prompts), (x, seen.blocks.rows)]
    flat = [_padded(x.reshape(x.shape[0], -1, *x.shape[3:]), size, 1) for x, size in parts]
    return jnp.swapaxes(jnp.concatenate(flat, axis=1), 1, 2)


def _split(x, like, prefix, seen: Runs):
    """What `_by_key` joined: of rows and of prompts (None without)."""
    x, at = jnp.swapaxes(x, 1, 2), seen.blocks.prompts
    count = like.shape[1] * like.shape[2]
    rows = x[:, at : at + count].reshape(like.shape)
    return rows, None if prefix is None else x[:, : prefix.shape[1] * prefix.shape[2]].reshape(prefix.shape)


def _padded(x, size, axis):
    return jnp.pad(x, [(0, size - x.shape[i] if i == axis else 0) for i in range(x.ndim)])
