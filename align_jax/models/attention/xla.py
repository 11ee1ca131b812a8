"""Attention by XLA's matrix products: every platform, every batch; logits of a row and its prompt exist in memory.

Axes as in `align_jax.batch`; H query heads, Hk key/value heads, E the head size. Two parts are computed apart and merged
by their log-sum-exps, so the prompt's keys are never repeated for its responses:

    out = sum_i w_i o_i / sum_i w_i l_i,   w_i = exp(m_i - max_j m_j)

with m_i the largest logit of part i, l_i the sum of exp(logit - m_i) and o_i the values summed with the same weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align_jax.models.attention.visible import Masks

_NEVER = -1e30  # below any real logit, yet finite: a part in which nothing is visible gets weight 0, not NaN


def attend_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masks: Masks,
    prefix_k: jax.Array | None = None,
    prefix_v: jax.Array | None = None,
) -> jax.Array:
    """See `align_jax.models.attention.attend`."""
    heads = q.shape[:-2] + (k.shape[-2], q.shape[-2] // k.shape[-2], q.shape[-1])
    grouped = (q * (q.shape[-1] ** -0.5)).reshape(heads)
    parts = [_part("dnrhge,dnshe->dnhgrs", "dnhgrs,dnshe->dnrhge", grouped, k, v, masks.own[:, :, None, None])]
    if prefix_k is not None:
        parts.append(_prefix_part(grouped, prefix_k, prefix_v, masks))
    return _merge(parts).astype(q.dtype).reshape(q.shape)


def _prefix_part(q, prefix_k, prefix_v, masks):
    if masks.prompt_row is not None:
        take = jax.vmap(lambda rows, index: rows[index])
        prefix_k, prefix_v = take(prefix_k, masks.prompt_row), take(prefix_v, masks.prompt_row)
        mask = masks.prefix[:, :, None, None]
        return _part("dnrhge,dnphe->dnhgrp", "dnhgrp,dnphe->dnrhge", q, prefix_k, prefix_v, mask)
    # Uniform rows: the C rows of a prompt are the rows of one larger product, and no key is copied.
    shards, prompts = prefix_k.shape[:2]
    split = (shards, prompts, q.shape[1] // prompts)
    mask = masks.prefix.reshape(split + masks.prefix.shape[2:])[:, :, None, None]
    part = _part(
        "dmcrhge,dmphe->dmhgcrp", "dmhgcrp,dmphe->dmcrhge", q.reshape(split + q.shape[2:]), prefix_k, prefix_v, mask
    )
    return tuple(x.reshape(q.shape[:2] + x.shape[3:]) for x in part)


def _part(logits_spec, values_spec, q, k, v, mask):
    """Largest logit, sum of weights and weighted values over one set of keys, the first two as `[..., R, Hk, g, 1]`."""
    logits = jnp.einsum(logits_spec, q, k, preferred_element_type=jnp.float32, precision=precision(q.dtype))
    logits = jnp.where(mask, logits, _NEVER)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - top), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    values = jnp.einsum(
        values_spec, weights.astype(v.dtype), v, preferred_element_type=jnp.float32, precision=precision(q.dtype)
    )
    to_rows = values_spec.split(",")[0][:-1], values_spec.split("->")[1][:-1]
    return tuple(jnp.einsum(f"{to_rows[0]}->{to_rows[1]}", x[..., 0])[..., None] for x in (top, total)) + (values,)


def _merge(parts):
    top = parts[0][0]
    for part in parts[1:]:
        top = jnp.maximum(top, part[0])
    scales = [jnp.exp(part[0] - top) for part in parts]
    total = sum(scale * part[1] for scale, part in zip(scales, parts, strict=True))
    return sum(scale * part[2] for scale, part in zip(scales, parts, strict=True)) / total


def precision(dtype) -> str | None:
    """Matrix-product precision: float32 means float32, also where the hardware would round its inputs (TF32, bf16 passes)."""
    return "highest" if jnp.dtype(dtype) == jnp.float32 else None
