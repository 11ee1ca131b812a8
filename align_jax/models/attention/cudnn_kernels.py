"""cuDNN's fused attention with its log-sum-exp, forward and backward, as functions of their own.

`jax.nn.dot_product_attention(return_residual=True)` rounds the log-sum-exp to the type of its output and drops the
gradient that arrives through it, so the rules behind it are called here. They are not public: JAX 0.10 is what they
were read from.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def forward(q, k, v, q_lengths, k_lengths, *, causal: bool, window: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Output `[B, T, H, E]` and log-sum-exp float32 `[B, T, H]` of q `[B, T, H, E]` over k, v `[B, S, Hk, E]`.

    Sequences stand at the start of their rows, `lengths` int32 `[B]`; what is left at padded queries is not defined.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    none = jnp.zeros(0, q.dtype)
    args = (q, k, v, none, q_lengths, k_lengths, none, none, none, none)
    options = _options(cudnn, q, causal, window)
    (out, top), _ = cudnn._dot_product_attention_fwd_rule(*args, *options, cudnn.check_cudnn_version(), True)
    return out, jnp.swapaxes(top, 1, 2)


def backward(q, k, v, q_lengths, k_lengths, out, top, grad, *, causal: bool, window: int | None = None):
    """Gradients of q, k and v, from an output and a log-sum-exp that may be those of a larger set of keys."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    none = jnp.zeros(0, q.dtype)
    saved = (q, k, v, none, q_lengths, k_lengths, none, none, none, none, jnp.swapaxes(top, 1, 2), out)
    options = _options(cudnn, q, causal, window)
    grads = cudnn._dot_product_attention_bwd_rule(
        *options, cudnn.check_cudnn_version(), True, saved, (grad.astype(q.dtype), None)
    )
    return grads[:3]


def _options(cudnn, q, causal, window):
    mask = cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING
    seed, dropout, bias = 42, 0.0, (False, False)
    return q.shape[-1] ** -0.5, seed, dropout, bias, mask, cudnn.AttentionLayout.BTNH.value, window
