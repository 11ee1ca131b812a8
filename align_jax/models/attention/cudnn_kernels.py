"""cuDNN's fused attention with its log-sum-exp, forward and backward, as functions of their own.

`jax.nn.dot_product_attention(return_residual=True)` rounds the log-sum-exp to the type of its output and drops the
gradient that arrives through it, so the rules behind it are called here. They are not public, see `align_jax.private`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from align_jax.errors import UserError
from align_jax.private import call, check, parameters_of, private

MISSING = "cuDNN is not installed where JAX looks for it (pip install 'align-jax[gpu]' brings it)"
# Of versions that can change scores by a function: none is asked for.
_NEWER = {"score_mod": None, "score_mod_args": ()}
_NO_ARRAYS = ("bias", "q_offsets", "kv_offsets", "page_table_k", "page_table_v")


def forward(q, k, v, q_lengths, k_lengths, *, causal: bool, window: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Output `[B, T, H, E]` and log-sum-exp float32 `[B, T, H]` of q `[B, T, H, E]` over k, v `[B, S, Hk, E]`.

    Sequences stand at the start of their rows, `lengths` int32 `[B]`; what is left at padded queries is not defined.
    """
    return _forward(_arrays(q, k, v, q_lengths, k_lengths), _options(q, causal, window))[0]


def backward(q, k, v, q_lengths, k_lengths, out, top, grad, *, causal: bool, window: int | None = None):
    """Gradients of q, k and v, from an output and a log-sum-exp that may be those of a larger set of keys."""
    saved = _saved(_arrays(q, k, v, q_lengths, k_lengths), out, top)
    given = {"return_residual": True, "res": saved, "grad_output": (grad.astype(q.dtype), None)}
    newer = _NEWER | {"cudnn_version": version(), "is_training": True}
    return call("cudnn backward", _options(q, causal, window) | given, newer)[:3]


def changed() -> str | None:
    """What of JAX's rules is not as it was, so that they cannot be called; None where all is."""
    try:
        options = _options(jnp.zeros((1, 1, 1, 8)), True, None)
        arrays = ("query", "key", "value", "q_seqlen", "kv_seqlen", *_NO_ARRAYS)
        check("cudnn forward", (*arrays, *options, "cudnn_version", "return_residual"), _NEWER)
        check("cudnn backward", (*options, "return_residual", "res", "grad_output"), (*_NEWER, "cudnn_version", "is_training"))
        check("cudnn version", ())
    except (UserError, AttributeError) as error:
        return str(error)
    return None


def _forward(arrays: dict[str, jax.Array], options: dict[str, Any]) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    """The output with its log-sum-exp, and what the rule saves for the backward pass."""
    given = {"cudnn_version": version(), "return_residual": True}
    (out, top), saved = call("cudnn forward", arrays | options | given, _NEWER)
    return (out, jnp.swapaxes(top, 1, 2)), saved


def _saved(arrays: dict[str, jax.Array], out: jax.Array, top: jax.Array) -> tuple:
    """What the forward rule would save: its arrays in its order, then the log-sum-exp and the output."""
    known = arrays | {"score_mod_args": _NEWER["score_mod_args"]}
    own = [known[name] for name in parameters_of("cudnn forward") if name in known]
    return (*own, jnp.swapaxes(top, 1, 2), out)


def installed() -> int | None:
    """The version of cuDNN, such as 91002 for 9.10.2; None where there is none."""
    try:
        return call("cudnn version", {})
    except RuntimeError:  # which is how JAX says so
        return None


def version() -> int:
    """The version of cuDNN; UserError where there is none."""
    found = installed()
    if found is None:
        raise UserError(f"model.attention: 'cudnn' cannot be used: {MISSING}; set model.attention: xla")
    return found


def _arrays(q, k, v, q_lengths, k_lengths) -> dict[str, jax.Array]:
    none = jnp.zeros(0, q.dtype)
    given = {"query": q, "key": k, "value": v, "q_seqlen": q_lengths, "kv_seqlen": k_lengths}
    return given | dict.fromkeys(_NO_ARRAYS, none)


def _options(q, causal: bool, window: int | None) -> dict[str, Any]:
    masks = private("cudnn masks")
    return {
        "scale": q.shape[-1] ** -0.5,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # no bias, and no gradient of one
        "mask_type": masks.PADDING_CAUSAL if causal else masks.PADDING,
        "layout": private("cudnn layouts").BTNH.value,
        "sliding_window_length": window,
    }
