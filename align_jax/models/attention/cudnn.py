"""Attention by cuDNN's flash kernels (GPU): one call on the row's own keys, one on its prompt's, merged.

cuDNN's causal mask counts from the first key, so the two sets of keys cannot be one call. Each call returns its output
`o_i` and log-sum-exp `s_i`; the attention over both is

    s = log sum_i exp(s_i),   o = sum_i exp(s_i - s) o_i

The backward kernel of a part, given the merged `o` and `s` in place of the part's own, computes exactly the part's share
of the gradient: `p = exp(logit - s)` and `dlogit = p (do . v - do . o)` (arXiv 2307.08691, section 3.1).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from align_jax.errors import UserError
from align_jax.models.attention import cudnn_kernels
from align_jax.models.attention.partition import over_mesh
from align_jax.models.attention.visible import RowIds
from align_jax.models.remat import ATTENTION

_NEVER = -1e30


def attend_cudnn(q, k, v, seen: RowIds, prefix_k=None, prefix_v=None, cap=None) -> jax.Array:
    """See `align_jax.models.attention.attend`; takes no soft cap."""
    if cap is not None:
        raise UserError(f"model.attention: cuDNN has no kernel with a soft cap of logits ({cap}); set model.attention: xla")
    lengths = jnp.sum(seen.segments > 0, axis=-1, dtype=jnp.int32)
    run = partial(_run, seen.window)
    if prefix_k is None:
        return over_mesh(run, q, (k, v), (lengths,))
    if seen.window is not None:
        raise UserError(
            f"model.attention: cuDNN has no kernel for a sliding window of {seen.window} tokens over a shared prompt; set "
            "model.attention: xla"
        )
    prefix = seen.prefix
    if seen.prompt_row is not None:
        prefix_k, prefix_v, prefix = (
            jax.vmap(lambda rows, i: rows[i])(x, seen.prompt_row) for x in (prefix_k, prefix_v, prefix)
        )
    return over_mesh(run, q, (k, v, prefix_k, prefix_v), (lengths, jnp.sum(prefix, axis=-1, dtype=jnp.int32)))


def _run(window, q, k, v, *prompt):
    """Of one device: q `[D, N, R, H, E]`; prompts `[D, M, P, Hk, E]`, M a divisor of N; lengths `[D, N]` and `[D, M]`."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    if len(prompt) == 1:
        args = (flat(k), flat(v), None, None, flat(prompt[0]), None)
    else:
        prompt_k, prompt_v, lengths, prompt_lengths = prompt
        args = (flat(k), flat(v), flat(prompt_k), flat(prompt_v), flat(lengths), flat(prompt_lengths))
    return _attention(window, flat(q), *args).reshape(q.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(window, q, k, v, prompt_k, prompt_v, lengths, prompt_lengths):
    """`[B, R, H, E]`; keys `[B, R, Hk, E]` and `[B', P, Hk, E]`, where prompt b is seen by rows `b B/B' ..`."""
    return _forward(window, q, k, v, prompt_k, prompt_v, lengths, prompt_lengths)[0]


def _forward(window, q, k, v, prompt_k, prompt_v, lengths, prompt_lengths):
    out, top = cudnn_kernels.forward(q, k, v, lengths, lengths, causal=True, window=window)
    # What the kernels leave at padded queries is not defined.
    real = (jnp.arange(q.shape[1]) < lengths[:, None])[..., None]
    out, top = jnp.where(real[..., None], out, 0), jnp.where(real, top, _NEVER)
    if prompt_k is not None:
        queries, whole, some = _per_prompt(q, prompt_k, prompt_lengths)
        more, at = cudnn_kernels.forward(queries, prompt_k, prompt_v, whole, jnp.maximum(prompt_lengths, 1), causal=False)
        at = jnp.where(some[:, None, None], at, _NEVER).reshape(top.shape)
        both = jnp.logaddexp(top, at)
        out = _scaled(out, top - both) + _scaled(more.reshape(q.shape), at - both)
        top = both
    out, top = checkpoint_name(out.astype(q.dtype), ATTENTION), checkpoint_name(top, ATTENTION)
    return out, (q, k, v, prompt_k, prompt_v, lengths, prompt_lengths, out, top)


def _backward(window, saved, grad):
    q, k, v, prompt_k, prompt_v, lengths, prompt_lengths, out, top = saved
    real = (jnp.arange(q.shape[1]) < lengths[:, None])[..., None, None]
    own = jnp.where(real, grad, 0)
    dq, dk, dv = cudnn_kernels.backward(q, k, v, lengths, lengths, out, top, own, causal=True, window=window)
    dq = jnp.where(real, dq, 0)
    if prompt_k is None:
        return dq, dk, dv, None, None, None, None
    queries, whole, some = _per_prompt(q, prompt_k, prompt_lengths)
    seen = jnp.where(some[:, None, None, None], grad.reshape(queries.shape), 0)
    parts = cudnn_kernels.backward(
        queries, prompt_k, prompt_v, whole, jnp.maximum(prompt_lengths, 1),
        out.reshape(queries.shape), top.reshape(queries.shape[:-1]), seen, causal=False,
    )  # fmt: skip
    return dq + parts[0].reshape(q.shape), dk, dv, parts[1], parts[2], None, None


_attention.defvjp(_forward, _backward)


def _scaled(out, log_weight):
    return out.astype(jnp.float32) * jnp.exp(log_weight)[..., None]


def _per_prompt(q, prompt_k, prompt_lengths):
    """The queries of a prompt's rows one after the other, their number, and whether the prompt has a token at all.

    A prompt without tokens is given one to the kernels, which take no empty sequence; it gets weight and gradient 0.
    """
    queries = q.reshape(prompt_k.shape[0], -1, *q.shape[2:])
    return queries, jnp.full(prompt_k.shape[:1], queries.shape[1], jnp.int32), prompt_lengths > 0
