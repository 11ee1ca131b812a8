"""The decoder of LLaMA and Mistral: one module, its layers stacked on a leading axis L and scanned.

Axes as in `align_jax.batch`; also W the width, H query heads, Hk key/value heads, E the head size, F the MLP width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from align_jax.models.attention import Masks, Rows, Tokens, attend, resolve_backend, visibility
from align_jax.models.config import ModelConfig
from align_jax.models.ops import gated_linear, linear, lookup, precision, rms_norm
from align_jax.models.remat import rematerialize
from align_jax.models.rope import frequencies, rotate, rotation
from align_jax.parallel.axes import constrain, shardings

WEIGHT_AXES = {
    "embed": ("vocab", "embed"),
    "layers": {
        "attn_norm": ("layers", "norm"),
        "q": ("layers", "embed", "heads", "head_size"),
        "k": ("layers", "embed", "kv_heads", "head_size"),
        "v": ("layers", "embed", "kv_heads", "head_size"),
        "o": ("layers", "heads", "head_size", "embed"),
        "mlp_norm": ("layers", "norm"),
        "gate": ("layers", "embed", "mlp"),
        "up": ("layers", "embed", "mlp"),
        "down": ("layers", "mlp", "embed"),
    },
    "norm": ("norm",),
    "lm_head": ("embed", "vocab"),
    "score": (None, None),
}


def weight_shapes(config: ModelConfig) -> dict:
    """Shapes of all weights, as the nested dict that `Decoder` takes; `lm_head` only where it is the head and not tied."""
    c, n = config, config.layers
    shapes = {
        "embed": (c.vocab_size, c.width),
        "layers": {
            "attn_norm": (n, c.width),
            "q": (n, c.width, c.heads, c.head_size),
            "k": (n, c.width, c.kv_heads, c.head_size),
            "v": (n, c.width, c.kv_heads, c.head_size),
            "o": (n, c.heads, c.head_size, c.width),
            "mlp_norm": (n, c.width),
            "gate": (n, c.width, c.mlp_width),
            "up": (n, c.width, c.mlp_width),
            "down": (n, c.mlp_width, c.width),
        },
        "norm": (c.width,),
    }
    if c.head == "score":
        shapes["score"] = (c.width, 1)
    elif not c.tied_embeddings:
        shapes["lm_head"] = (c.width, c.vocab_size)
    return shapes


def weight_shardings(config: ModelConfig, mesh: Mesh) -> dict:
    """Where every weight lives on the mesh: NamedShardings in the nested dict of `weight_shapes`."""
    return shardings(WEIGHT_AXES, weight_shapes(config), mesh)


def init_weights(config: ModelConfig, key: jax.Array, param_dtype=jnp.float32) -> dict:
    """Fresh weights: norms 1, matrices normal with deviation 0.02, those that write to the residual 0.02 / sqrt(2 L)."""
    shapes, is_shape = weight_shapes(config), lambda x: isinstance(x, tuple)
    paths, treedef = jax.tree.flatten_with_path(shapes, is_leaf=is_shape)
    weights = []
    for i, (path, shape) in enumerate(paths):
        name = path[-1].key
        if name.endswith("norm"):
            weights.append(jnp.ones(shape, param_dtype))
            continue
        scale = 0.02 / (2 * config.layers) ** 0.5 if name in ("o", "down") else 0.02
        weights.append((scale * jax.random.normal(jax.random.fold_in(key, i), shape)).astype(param_dtype))
    return jax.tree.unflatten(treedef, weights)


class Layers(nnx.Module):
    """The stacked weights of all layers; attribute names are the keys of `weight_shapes(config)["layers"]`."""

    def __init__(self, weights: dict):
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))

    def weights(self) -> dict:
        return {name: getattr(self, name)[...] for name in WEIGHT_AXES["layers"]}


class Decoder(nnx.Module):
    """LLaMA or Mistral.

    Args:
      config: the shape of the model.
      weights: nested dict as `weight_shapes(config)` describes.
      dtype: what products are computed in; norms, softmax and log-probs are float32 whatever it is.
      remat: what the backward pass recomputes, see `align_jax.models.remat.POLICIES`.
      attention: `auto` or a backend, see `align_jax.models.attention.BACKENDS`.

    Raises:
      ValueError: a missing, unexpected or misshapen weight, by name.
      UserError: an unknown attention backend.
    """

    def __init__(
        self, config: ModelConfig, weights: dict, *, dtype=jnp.bfloat16, remat: str = "none", attention: str = "auto"
    ):
        _check_weights(config, weights)
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        self.attention, self.backend = attention, resolve_backend(attention, dtype)
        self.embed = nnx.Param(weights["embed"])
        self.layers = Layers(weights["layers"])
        self.norm = nnx.Param(weights["norm"])
        for name in weights.keys() & {"lm_head", "score"}:
            setattr(self, name, nnx.Param(weights[name]))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Next-token logits of whole sequences: int `[B, T]` -> float32 `[B, T, V]`.

        For tests, notebooks and small models: scoring never makes this array, see `align_jax.response_logps`.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [batch, length], got shape {tokens.shape}")
        rows = tokens[:, None]
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), rows.shape)
        seen = visibility(self.backend, Tokens(positions, jnp.ones_like(positions)), self.config.sliding_window)
        hidden, _ = self.run(rows, positions, seen)
        return self.logits(hidden[:, 0])

    def run(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        seen: Masks | Rows,
        prefix: tuple[jax.Array, jax.Array] | None = None,
        keep_kv: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Runs all layers over rows of tokens, each row seeing its prompt's keys and values.

        Args:
          tokens, positions: int32 `[D, N, R]`.
          seen: what each token sees, from `align_jax.models.attention.visibility`.
          prefix: keys and values of the prompt rows, each `[L, D, M, P, Hk, E]`; None for rows without a prompt.
          keep_kv: also return this call's own keys and values, each `[L, D, N, R, Hk, E]`.

        Returns:
          The normalized hidden states `[D, N, R, W]`, and the keys and values or None.
        """
        x, layer = self.begin(tokens, positions)

        def body(x, inputs):
            weights, of_prompt = inputs
            return layer(x, weights, lambda q, k, v: (attend(q, k, v, seen, *(of_prompt or ())), (k, v) if keep_kv else None))

        x, kv = jax.lax.scan(rematerialize(body, self.remat), x, (self.layers.weights(), prefix))
        return self.finish(x), kv

    def begin(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Callable]:
        """Embeddings `[D, N, R, W]` of tokens `[D, N, R]`, and the function that applies one layer to them.

        The function is `layer(x, weights of the layer, attention) -> (x, what attention keeps)`, where `attention(q, k, v)`
        returns the mixed values `[D, N, R, H, E]` and anything else.
        """
        x = constrain(lookup(self.embed[...], tokens, self.dtype), "shards", None, None, "act_embed")
        cos, sin = rotation(positions, frequencies(self.config))
        return x, partial(_layer, eps=self.config.norm_eps, cos=cos, sin=sin)

    def finish(self, x: jax.Array) -> jax.Array:
        """The normalized hidden states of what left the last layer."""
        return rms_norm(x, self.norm[...], self.config.norm_eps)

    def weights(self) -> dict:
        """The weights as the nested dict of `weight_shapes`; `Decoder(config, model.weights())` is the same model."""
        tree = {"embed": self.embed[...], "layers": self.layers.weights(), "norm": self.norm[...]}
        return tree | {name: getattr(self, name)[...] for name in ("lm_head", "score") if hasattr(self, name)}

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
        return jnp.einsum(
            "...w,wv->...v",
            hidden,
            self.head_weight(),
            preferred_element_type=jnp.float32,
            precision=precision(self.dtype),
        )


def _layer(x, weights, attention, *, eps, cos, sin):
    """One decoder layer; pre-norm attention and SwiGLU MLP, each added to the residual."""
    w = {name: value if name.endswith("norm") else value.astype(x.dtype) for name, value in weights.items()}

    h = rms_norm(x, w["attn_norm"], eps)
    q = constrain(linear(h, w["q"]), "shards", None, None, "heads", None)
    k = constrain(linear(h, w["k"]), "shards", None, None, "kv_heads", None)
    v = constrain(linear(h, w["v"]), "shards", None, None, "kv_heads", None)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    mixed, kept = attention(q, k, v)
    x = x + constrain(linear(mixed, w["o"], 2), "shards", None, None, "act_embed")

    h = rms_norm(x, w["mlp_norm"], eps)
    gate, up = (constrain(linear(h, w[name]), "shards", None, None, "mlp") for name in ("gate", "up"))
    x = x + constrain(gated_linear(gate, up, w["down"]), "shards", None, None, "act_embed")
    return x, kept


def _check_weights(config: ModelConfig, weights: dict) -> None:
    expected = dict(_flat(weight_shapes(config)))
    given = {name: getattr(value, "shape", None) for name, value in _flat(weights)}
    for name in expected.keys() - given.keys():
        raise ValueError(f"weight {name!r} is missing; the model has {expected[name]} there")
    for name in given.keys() - expected.keys():
        raise ValueError(f"weight {name!r} is not part of this model" + (" (embeddings are tied)" if name == "lm_head" else ""))
    for name, shape in expected.items():
        # Abstract and traced stand-ins (during jax transformations of the module) have no shape to compare.
        if given[name] is not None and tuple(given[name]) != shape:
            raise ValueError(f"weight {name!r} has shape {tuple(given[name])}, expected {shape}")


def _flat(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
