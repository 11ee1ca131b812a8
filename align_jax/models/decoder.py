"""The decoder of all families: one module, its layers stacked on a leading axis L and scanned.

Axes as in `align_jax.batch`; also W the width, H query heads, Hk key/value heads, E the head size, F the MLP width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from align_jax.models.adapter import KEY, MAGNITUDE, SCALE, TARGETS, A
from align_jax.models.attention import Seen, Tokens, attend, choose_backend, visibility_by_kind
from align_jax.models.config import ModelConfig
from align_jax.models.experts import WEIGHTS as EXPERTS
from align_jax.models.experts import Load, sparse_mlp
from align_jax.models.kinds import kinds_of
from align_jax.models.lora import adapted, stacked_scales
from align_jax.models.ops import (
    Norm,
    gated_linear,
    gated_unit,
    linear,
    lookup,
    precision,
    rms_norm,
    soft_cap,
    soft_cap_slope,
)
from align_jax.models.quantized import Quantized
from align_jax.models.remat import rematerialize
from align_jax.models.rope import rotate, rotate_by_kind, rotations
from align_jax.models.weights import TABLE, check_weights
from align_jax.parallel import sequence
from align_jax.parallel.axes import constrain

# The ends of names of what is not cast to the compute type.
_AS_KEPT = ("norm", "bias", "sinks", MAGNITUDE, SCALE, KEY)
# The logical axes of projections.
_AXES = {weight.path[1]: weight.axes for weight in TABLE if weight.stacked and weight.path[1] in TARGETS}
_Pair = tuple[jax.Array, jax.Array]


class Layers(nnx.Module):
    """The stacked weights of all layers; attribute names are the second keys of their paths in the table."""

    def __init__(self, weights: dict):
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))

    def weights(self) -> dict:
        return {name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Variable)}


class Inputs(NamedTuple):
    """What layers run over: tokens and positions, int32 `[D, N, R]`, what each token sees, from `visibility`, and, bool
    `[D, N, R]`, which tokens are counted in the load of experts (None: it is not wanted)."""

    tokens: jax.Array
    positions: jax.Array
    seen: Seen
    real: jax.Array | None = None


class Ran(NamedTuple):
    """What layers made of `Inputs`: normalized hidden states `[D, N, R, W]`, keys and values `[L, D, N, R, Hk, E]` where they
    are kept, and the load of experts where a mixture has counted tokens."""

    hidden: jax.Array
    kv: _Pair | None = None
    load: Load | None = None


class Decoder(nnx.Module):
    """A model of any family.

    Args:
      config: the shape of the model.
      weights: nested dict as `weight_shapes(config)` describes.
      dtype: what products are computed in; norms, softmax and log-probs are float32 whatever it is.
      remat: what the backward pass recomputes, see `align_jax.models.remat.POLICIES`.
      attention: `auto` or a backend, see `align_jax.models.attention.BACKENDS`.

    Raises:
      ValueError: a missing, unexpected or misshapen weight, by name.
      UserError: an unknown attention backend, or one that cannot compute this model.
    """

    def __init__(self, config: ModelConfig, weights: dict, *, dtype=jnp.bfloat16, remat: str = "none", attention: str = "auto"):
        check_weights(config, weights)
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        choice = choose_backend(attention, dtype, config=config)
        if choice.reason:
            warnings.warn(f"attention: auto takes xla here, which is slower: {choice.reason}", stacklevel=2)
        self.attention, self.backend = attention, choice.backend
        for name, value in weights.items():
            setattr(self, name, Layers(value) if name == "layers" else nnx.Param(value))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Next-token logits of whole sequences: int `[B, T]` -> float32 `[B, T, V]`.

        For tests, notebooks and small models: scoring makes logits of response positions alone, and no more of them at one time
        than fit, see `align_jax.response_logps`.
        """
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Normalized hidden states of whole sequences: int `[B, T]` -> `[B, T, W]`."""
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [batch, length], got shape {tokens.shape}")
        length = tokens.shape[1]
        rows = jnp.pad(tokens, ((0, 0), (0, sequence.padded(length) - length)))[:, None]
        positions = jnp.broadcast_to(jnp.arange(rows.shape[-1], dtype=jnp.int32), rows.shape)
        seen = visibility_by_kind(kinds_of(self.config).windows, self.backend, Tokens(positions, jnp.ones_like(positions)))
        inputs = Inputs(sequence.dealt(rows, 2), sequence.dealt(positions, 2), seen)
        return sequence.natural(self.run(inputs, length=length).hidden, 2)[:, 0, :length]

    def run(self, rows: Inputs, prefix: _Pair | None = None, keep_kv: bool = False, length: int | None = None) -> Ran:
        """Runs all layers over rows of tokens, each row seeing its prompt's keys and values.

        Args:
          rows: where a mesh cuts rows, as `align_jax.parallel.sequence` deals them; what each token sees is from
            `align_jax.models.attention.visibility_by_kind`.
          prefix: keys and values of the prompt rows, each `[L, D, M, P, Hk, E]`; None for rows without a prompt.
          keep_kv: also return this call's own keys and values, each `[L, D, N, R, Hk, E]`.
          length: tokens of the longest text, where rotary frequencies depend on it; None is the config's `rope_length`.
        """
        seen = rows.seen
        x, layer = self.begin(rows.tokens, rows.positions, length, rows.real)

        def body(x, inputs):
            weights, kind, of_prompt = inputs

            def attention(q, k, v):
                mixed = self._look(weights, kind)(q, k, v, seen, *(of_prompt or ()))
                return mixed, (k, v) if keep_kv else None

            return layer(x, weights, attention, kind)

        x, (kv, loads) = jax.lax.scan(rematerialize(body, self.remat), x, (self.stacked(), self.kinds(), prefix))
        return Ran(self.finish(x), kv, _load(loads, rows.real))

    def run_together(self, prompts: Inputs, rows: Inputs) -> Ran:
        """Runs all layers over prompt rows and the rows that see them at once: what `run` gives for one after the other.

        Every product of a weight is over the tokens of both. Where weights are cut over devices, a layer's are brought together
        once instead of twice, and so are their gradients.

        Returns:
          The normalized hidden states of the rows `[D, N, R, W]`, and the load of experts by both.
        """
        flat = [[x.reshape(x.shape[0], 1, -1) for x in each[:2]] for each in (prompts, rows)]
        counted = [each.real.reshape(each.real.shape[0], 1, -1) for each in (prompts, rows) if each.real is not None]
        real = jnp.concatenate(counted, axis=2) if counted else None
        x, layer = self.begin(*(jnp.concatenate(each, axis=2) for each in zip(*flat, strict=True)), real=real)
        shapes, at = (prompts.tokens.shape, rows.tokens.shape), flat[0][0].shape[2]

        def apart(x):
            parts = jax.lax.split(x, (at, x.shape[2] - at), axis=2)
            return [part.reshape(*shape, *x.shape[3:]) for part, shape in zip(parts, shapes, strict=True)]

        def body(x, inputs):
            weights, kind = inputs
            look = self._look(weights, kind)

            def attention(q, k, v):
                (q, q_rows), (k, k_rows), (v, v_rows) = map(apart, (q, k, v))
                mixed = look(q, k, v, prompts.seen), look(q_rows, k_rows, v_rows, rows.seen, k, v)
                return jnp.concatenate([x.reshape(x.shape[0], 1, -1, *x.shape[3:]) for x in mixed], axis=2), None

            return layer(x, weights, attention, kind)

        x, (_, loads) = jax.lax.scan(rematerialize(body, self.remat), x, (self.stacked(), self.kinds()))
        return Ran(self.finish(apart(x)[1]), load=_load(loads, real))

    def _look(self, weights: dict, kind: jax.Array | None) -> Callable:
        """`attend` of a layer with these weights."""
        return partial(attend, kind=kind, cap=self.config.attention_softcap, sinks=weights.get("sinks"))

    def kinds(self) -> jax.Array | None:
        """The number of each layer's kind, int32 `[L]`; None where all layers are of one kind."""
        kinds = kinds_of(self.config)
        return jnp.asarray(kinds.of_layers, jnp.int32) if len(kinds.kinds) > 1 else None

    def begin(
        self, tokens: jax.Array, positions: jax.Array, length: int | None = None, real: jax.Array | None = None
    ) -> tuple[jax.Array, Callable]:
        """Embeddings `[D, N, R, W]` of tokens `[D, N, R]`, and the function that applies one layer to them.

        The function is `layer(x, weights of the layer, attention, kind) -> (x, (what attention keeps, load of experts))`, where
        `attention(q, k, v)` returns the mixed values `[D, N, R, H, E]` and anything else, and `kind` is the layer's number in
        `kinds`; the load is of the tokens in `real`, and None without it.
        """
        x = lookup(self.embed[...], tokens, self.dtype)
        if self.config.embed_scale != 1:
            x = x * jnp.asarray(self.config.embed_scale, self.dtype)
        x = constrain(x, "shards", None, "positions", "act_embed")
        cos, sin = rotations(self.config, kinds_of(self.config).ropes, positions, length)
        return x, partial(_layer, config=self.config, cos=cos, sin=sin, dropout=self._dropout, real=real)

    @property
    def drops(self) -> bool:
        """Whether the weights hold the keys of an adapter's dropout."""
        return hasattr(self.layers, KEY)

    def of_part(self, part: jax.Array) -> Decoder:
        """The model for a part of a batch, an integer: its adapter's dropout draws other masks for other parts."""
        weights, fold = self.weights(), lambda key: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), part))
        layers = weights["layers"] | {KEY: jax.vmap(fold)(weights["layers"][KEY])}
        how = {"dtype": self.dtype, "remat": self.remat, "attention": self.attention}
        return Decoder(self.config, weights | {"layers": layers}, **how)

    @property
    def _dropout(self) -> float:
        return 0.0 if self.config.lora is None else self.config.lora.dropout

    def finish(self, x: jax.Array) -> jax.Array:
        """The normalized hidden states of what left the last layer."""
        return rms_norm(x, self.norm[...], _norm(self.config))

    def stacked(self) -> dict:
        """What layers are scanned over: their weights, and the scales of an adapter."""
        adapter = self.config.lora
        return self.layers.weights() | ({} if adapter is None else stacked_scales(adapter, self.config.layers))

    def weights(self) -> dict:
        """The weights as the nested dict of `weight_shapes`; `Decoder(config, model.weights())` is the same model."""
        own = {name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Variable)}
        return own | {"layers": self.layers.weights()}

    def head_weight(self) -> jax.Array:
        """The output projection `[W, V]` in the compute type.

        Raises:
          ValueError: a reward model, whose head is a score.
        """
        if self.config.head != "lm_head":
            raise ValueError("this is a reward model: it has scores (align_jax.response_scores), no logits and no log-probs")
        weight = self.embed[...].T if self.config.tied_embeddings else self.lm_head[...]
        return weight.astype(self.dtype)

    def scores(self, hidden: jax.Array) -> jax.Array:
        """Scores of normalized hidden states, `h @ score`: `[..., W]` -> float32 `[...]`.

        Raises:
          ValueError: a language model.
        """
        if self.config.head != "score":
            raise ValueError("this is a language model: it has log-probs (align_jax.response_logps), no scores")
        weight = self.score[...].astype(self.dtype)[:, 0]
        return jnp.einsum("...w,w->...", hidden, weight, preferred_element_type=jnp.float32, precision=precision(self.dtype))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits of normalized hidden states: `[..., W]` -> float32 `[..., V]`."""
        products = jnp.einsum(
            "...w,wv->...v",
            hidden,
            self.head_weight(),
            preferred_element_type=jnp.float32,
            precision=precision(self.dtype),
        )
        return head_logits(self.config, products)


def head_logits(config: ModelConfig, products: jax.Array) -> jax.Array:
    """Logits, from the products of hidden states and the output projection: divided and bounded where the model asks for it."""
    divided = products if config.logit_divisor == 1 else products / config.logit_divisor
    return soft_cap(divided, config.logit_softcap)


def head_slope(config: ModelConfig, logits: jax.Array, d_logits: jax.Array) -> jax.Array:
    """The gradient of what `head_logits` takes, from the logits that it gave and their gradient."""
    if config.logit_softcap is not None:
        d_logits = d_logits * soft_cap_slope(logits, config.logit_softcap)
    return d_logits if config.logit_divisor == 1 else d_logits / config.logit_divisor


def _norm(config: ModelConfig, axes: int = 1) -> Norm:
    return Norm(config.norm_eps, config.norm_offset, axes, config.norm_float32)


def _load(loads: _Pair | None, real: jax.Array | None) -> Load | None:
    """The load of experts, of what layers counted on each device."""
    if loads is None:
        return None
    chosen, probs = (jnp.sum(each, axis=(1, 2)) for each in loads)
    return Load(chosen, probs, jnp.sum(real, dtype=jnp.float32))


def _layer(x, weights, attention, kind=None, *, config, cos, sin, dropout, real=None):
    """One decoder layer; attention and a gated MLP or experts, each added to the residual, with norms before, after or both."""
    w = {name: _ready(name, value, x.dtype) for name, value in weights.items()}
    norm = _norm(config)

    h = _normed(x, w, "attn_norm", norm)
    q = _heads(h, w, "q", "heads", dropout)
    k = _heads(h, w, "k", "kv_heads", dropout)
    v = _heads(h, w, "v", "kv_heads", dropout)
    if "q_norm" in w:
        of_heads = _norm(config, 2) if config.qk_norm_whole else norm
        q, k = rms_norm(q, w["q_norm"], of_heads), rms_norm(k, w["k_norm"], of_heads)
    # Attention multiplies by 1 / sqrt(head_size); what else there is goes into the queries before they are rounded.
    scale = None if config.attention_scale is None else config.attention_scale * config.head_size**0.5
    turn = partial(rotate if cos.ndim == q.ndim else partial(_by_kind, kind), cos=cos, sin=sin)
    q, k = turn(q, scale=scale), turn(k)
    mixed, kept = attention(q, k, v)
    out = constrain(_project(mixed, w, "o", dropout), "shards", None, "positions", "act_embed")
    x = _added(x, _biased(out, w, "o"), w, "attn_post_norm", config)

    h, loads = _normed(x, w, "mlp_norm", norm), None
    if config.experts is None:
        gate, up = (constrain(_project(h, w, name, dropout), "shards", None, "positions", "mlp") for name in ("gate", "up"))
        down = _down(gate, up, w, dropout, config.activation)
    else:
        down, loads = sparse_mlp(h, w, config, real)
    x = _added(x, constrain(down, "shards", None, "positions", "act_embed"), w, "mlp_post_norm", config)
    return x, (kept, loads)


def _by_kind(kind, x, cos, sin, scale=None):
    return rotate_by_kind(x, cos, sin, kind, scale)


def _normed(x, w, name, norm):
    return rms_norm(x, w[name], norm) if name in w else x


def _added(x, branch, w, name, config):
    """The residual with a branch, which has a norm of its own where the model has one."""
    branch = _normed(branch, w, name, _norm(config))
    if config.residual_scale != 1:
        branch = (branch.astype(jnp.float32) * config.residual_scale).astype(branch.dtype)
    return x + branch


def _ready(name, value, dtype):
    """A weight as products take it: in the compute type, or as it is kept."""
    if isinstance(value, Quantized):
        if name in EXPERTS:
            return value
        return value.gathered(*(None if axis == "embed" else axis for axis in _AXES[name]))
    return value if name.endswith(_AS_KEPT) else value.astype(dtype)


def _project(x, w, name, dropout):
    """The product of a projection, over the last axes of x, and what its adapter makes of it."""
    return adapted(linear(x, w[name], TARGETS[name]), x, w, name, dropout)


def _down(gate, up, w, dropout, activation):
    """The gate and the product after it."""
    y = gated_linear(gate, up, w["down"], activation)
    return adapted(y, gated_unit(gate, up, activation), w, "down", dropout) if f"down_{A}" in w else y


def _heads(h, w, name, axis, dropout):
    """Queries, keys or values of each head; with a bias where the model has one."""
    return _biased(constrain(_project(h, w, name, dropout), "shards", None, "positions", axis, None), w, name)


def _biased(x, w, name):
    if f"{name}_bias" not in w:
        return x
    # Added in float32, so that its gradient, a sum over all tokens, is one in float32, too.
    return (x.astype(jnp.float32) + w[f"{name}_bias"]).astype(x.dtype)
