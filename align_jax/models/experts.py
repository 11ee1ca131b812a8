"""The sparse layer: a router that gives each token a few experts, and the products of these alone.

Tokens are sorted by expert, so that every expert's are rows that follow one another, and `ragged_dot` multiplies each run of
rows by its expert's weight. No token is dropped and none is padded, whatever the balance.

On a mesh every device sorts its own tokens. `expert` cuts the experts, and the batch as `fsdp` does: the devices along it
show each other all their tokens, each computes what its own experts make of them, and the results are summed where the tokens
came from. That moves `2 (S - 1) T W` numbers for each device and pass, S the size of the axis, T its tokens: no more than an
exchange of every token for its k experts does while S <= k. As any of the tokens may be an expert's, there are rows for all
`S T k` pairs of a token and an expert on every device, of which about one of S is computed. `fsdp` gathers the weights of a
layer's experts for each product, and `tensor` cuts their hidden columns.

Axes as in `align_jax.models.decoder`; also X the experts, k those of a token, T tokens of a device.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import RaggedDotDimensionNumbers, ragged_dot_general
from jax.sharding import PartitionSpec

from align_jax.errors import UserError
from align_jax.models.config import ModelConfig
from align_jax.models.ops import gate_gradients, gated_unit, precision
from align_jax.models.quantized import Quantized
from align_jax.models.remat import PRODUCT
from align_jax.parallel.axes import auto_sizes, partition_spec

# The logical axes of what the layer takes; the weights in the order in which they are used.
_TOKENS = ("shards", None, "positions", None)
_BIASES = {"router_bias": (None,), "expert_gate_bias": ("experts", "mlp"), "expert_up_bias": ("experts", "mlp")}
# What one device adds for all experts is small, and is added to its own tokens.
_BIASES["expert_down_bias"] = (None, None)
WEIGHTS = {
    "expert_gate": ("experts", "expert_embed", "mlp"),
    "expert_up": ("experts", "expert_embed", "mlp"),
    "expert_down": ("experts", "mlp", "expert_embed"),
}


class Load(NamedTuple):
    """How tokens are spread over experts.

    Attributes:
      chosen: float32 `[L, X]`, how many real tokens each expert of each layer has.
      probs: float32 `[L, X]`, the sum of the probabilities that they give it.
      tokens: float32 scalar, how many real tokens there are.
    """

    chosen: jax.Array
    probs: jax.Array
    tokens: jax.Array


def balance_loss(load: Load) -> jax.Array:
    """The load-balancing loss (Switch Transformers, arXiv 2101.03961, Eq. 4 to 6), as transformers takes it, of all layers:

        X sum_x f_x p_x,    f_x = chosen / (L tokens),  p_x = probs / (L tokens)

    It is k, the experts of a token, where all experts have as many tokens, and at most X. Only p has a gradient.
    """
    layers, experts = load.chosen.shape
    total = jnp.maximum(layers * load.tokens, 1)
    return experts * jnp.sum(load.chosen.sum(0) / total * (load.probs.sum(0) / total))


def busiest(load: Load) -> jax.Array:
    """The tokens of the expert with most over those that each had if all had as many; the mean over layers."""
    return jnp.mean(load.chosen.max(-1) / jnp.maximum(load.chosen.mean(-1), 1e-9))


def route(
    x: jax.Array, router: jax.Array, config: ModelConfig, bias: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The experts of each token: the k largest of `softmax(x router + bias)`, in float32.

    Args:
      x: `[T, W]`. router: `[W, X]`, in the type of x. bias: `[X]`, or None.

    Returns:
      What their outputs are weighted by, float32 `[T, k]`; which they are, int32 `[T, k]`; all probabilities, float32 `[T, X]`.
    """
    logits = jnp.einsum("tw,wx->tx", x, router, preferred_element_type=jnp.float32, precision=precision(x.dtype))
    logits = checkpoint_name(logits, PRODUCT)
    probs = jax.nn.softmax(logits if bias is None else logits + bias.astype(jnp.float32), axis=-1)
    weights, chosen = jax.lax.top_k(probs, config.active_experts)
    if config.norm_expert_weights:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen, probs


def sparse_mlp(
    x: jax.Array, w: dict[str, Any], config: ModelConfig, real: jax.Array | None = None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """What the experts make of each token: `sum_x p_x down_x(act(gate_x h) * up_x h)` over the k that its router chose.

    Each product has a bias where w holds one; `gated_unit` is what stands between them.

    Args:
      x: normalized hidden states `[D, N, R, W]`. w: the weights of a layer, in the type of x or `Quantized`.
      real: bool `[D, N, R]`, which tokens are counted; None: the count is not wanted.

    Returns:
      `[D, N, R, W]`, and float32 `[D, S, X]` twice: tokens and probabilities of each expert (S parts of positions); or None.
    """
    sizes = {name: size for name, size in auto_sizes().items() if size > 1}
    weights = [w[name] for name in WEIGHTS]
    axes = [_specs(w[name], of, sizes) for name, of in WEIGHTS.items()]
    biases = {name: w[name] for name in _BIASES if name in w}
    tokens = partition_spec(_TOKENS, x.shape, sizes)
    counted = jnp.zeros(x.shape[:3], bool) if real is None else real
    layer = partial(_layer, config=config, axes=axes)
    if sizes:
        of_loads = PartitionSpec(tokens[0], tokens[2], None)
        of_biases = {name: partition_spec(_BIASES[name], bias.shape, sizes) for name, bias in biases.items()}
        specs = (tokens, PartitionSpec(*tokens[:3]), PartitionSpec(), axes, of_biases)
        # The gradients are written out, and carry no record of how they vary over the mesh.
        mapped = {"out_specs": (tokens, (of_loads, of_loads)), "axis_names": set(auto_sizes()), "check_vma": False}
        layer = jax.shard_map(layer, in_specs=specs, **mapped)
    y, loads = layer(x, counted, w["router"], weights, biases)
    return y, None if real is None else loads


def _specs(weight, axes, sizes):
    """Where an expert's weight is cut: a PartitionSpec, of `Quantized` one for each of its arrays."""
    found = jax.tree.map(lambda x: partition_spec(axes, x.shape, sizes), weight)
    if isinstance(weight, Quantized) and ("tensor" in found.values) != ("tensor" in found.scales):
        raise UserError(
            f"mesh.tensor: {sizes['tensor']} would cut the {weight.scales.shape[1]} blocks in which an expert's weights are "
            f"quantized ({weight.kind}); choose a divisor of them"
        )
    return found


def _layer(x, real, router, weights, biases, *, config, axes):
    """`sparse_mlp` of one device, whose parts of the weights are cut along `axes`."""
    flat = x.reshape(-1, x.shape[-1])
    shares, chosen, probs = route(flat, router, config, biases.get("router_bias"))
    added = _down_biases(shares, chosen, biases)
    is_chosen = jnp.any(chosen[..., None] == jnp.arange(config.experts), axis=-2)
    counted = real.reshape(-1, 1)
    loads = [jnp.sum(jnp.where(counted, each, 0), axis=0, dtype=jnp.float32)[None, None] for each in (is_chosen, probs)]
    leaves = [jax.tree.leaves(each, is_leaf=lambda s: isinstance(s, PartitionSpec))[0] for each in axes]
    over, tensor = leaves[0][0], leaves[0][2]
    if over is not None:
        flat, shares, chosen = (jax.lax.all_gather(each, over, axis=0, tiled=True) for each in (flat, shares, chosen))
    y = _experts(flat, shares, chosen, weights, biases, config=config, axes=axes, over=over)
    if tensor is not None:
        y = jax.lax.psum(y, tensor)
    if over is not None:
        y = jax.lax.psum_scatter(y, over, scatter_dimension=0, tiled=True)
    if added is not None:
        y = (y.astype(jnp.float32) + added).astype(y.dtype)
    return y.reshape(x.shape), tuple(loads)


def _down_biases(shares, chosen, biases):
    """The biases of tokens' experts, each times its share, float32 `[T, W]`; None where there are none."""
    if "expert_down_bias" not in biases:
        return None
    bias = biases["expert_down_bias"].astype(jnp.float32)
    of_experts = jnp.sum(shares[..., None] * (chosen[..., None] == jnp.arange(bias.shape[0])), axis=1)
    return jnp.dot(of_experts, bias, precision="highest")


def _experts(x, shares, chosen, weights, biases, *, config, axes, over):
    """What the experts that are here make of tokens `[T, W]`, each times its share; 0 for tokens with none of them."""
    gate, up, down = weights
    count = jax.tree.leaves(gate)[0].shape[0]
    mine = None
    if over is not None:
        chosen = chosen - count * jax.lax.axis_index(over)
        mine = (chosen >= 0) & (chosen < count)
        chosen = jnp.where(mine, chosen, count)  # behind the others, where nothing is computed
    expert = chosen.reshape(-1)
    order = jnp.argsort(expert, stable=True)
    rows = _Rows(order, jnp.argsort(order).reshape(chosen.shape), mine)
    sizes = jnp.sum(expert[:, None] == jnp.arange(count), axis=0, dtype=jnp.int32)
    x = _sorted_rows(x, rows)
    hidden = [_expert_linear(x, each, sizes, _Cut.of(axis)) for each, axis in zip((gate, up), axes[:2], strict=True)]
    if biases:
        hidden = [_with_bias(h, biases[f"expert_{n}_bias"], expert[order]) for h, n in zip(hidden, ("gate", "up"), strict=True)]
    return _outputs(*hidden, down, shares, rows, sizes, _Cut.of(axes[2]), config.activation)


class _Rows(NamedTuple):
    """Where rows stand: their order, the places `[T, k]` of each token's, and which of these are here (None: all)."""

    order: jax.Array
    places: jax.Array
    mine: jax.Array | None

    def of_tokens(self, x: jax.Array) -> jax.Array:
        """Rows `[T k, W]` of tokens `[T, W]`."""
        return x[self.order // self.places.shape[1]]

    def by_token(self, rows: jax.Array) -> jax.Array:
        """The rows of each token, float32 `[T, k, ...]`: those that are here, since what stands in others may be anything."""
        taken = rows[self.places].astype(jnp.float32)
        if self.mine is None:
            return taken
        return jnp.where(self.mine.reshape(*self.mine.shape, *(1,) * (taken.ndim - 2)), taken, 0)


@jax.custom_vjp
def _sorted_rows(x, rows):
    """Rows `[T k, W]` of tokens `[T, W]`, in the order of experts; the gradient is a sum over a token's rows, not a scatter."""
    return rows.of_tokens(x)


def _sorted_forward(x, rows):
    return rows.of_tokens(x), rows


def _sorted_backward(rows, d_rows):
    return jnp.sum(rows.by_token(d_rows), axis=1).astype(d_rows.dtype), None


_sorted_rows.defvjp(_sorted_forward, _sorted_backward)


class _Cut(NamedTuple):
    """How an expert's weight is cut over mesh axes that every product brings together: pairs of a dimension and its axes.

    Of `Quantized` both its arrays are; `scales` has theirs.
    """

    values: tuple[tuple[int, Any], ...]
    scales: tuple[tuple[int, Any], ...] = ()

    @classmethod
    def of(cls, spec: PartitionSpec | Quantized) -> _Cut:
        """The cut of this spec along the width, which stands on the axis that is not of experts or hidden columns."""
        if isinstance(spec, Quantized):
            return cls(*(cls.of(each).values for each in (spec.values, spec.scales)))
        return cls(tuple((n, axes) for n, axes in enumerate(spec) if n > 0 and axes not in (None, "tensor")))

    def together(self, weight: jax.Array | Quantized, dtype: Any) -> jax.Array:
        """The weight, whole along the width."""
        if isinstance(weight, Quantized):
            codes, scales = _gathered(weight.values, self.values), _gathered(weight.scales, self.scales)
            return Quantized(codes, scales, weight.kind, weight.behind).astype(dtype)
        return _gathered(weight, self.values)

    def scattered(self, gradient: jax.Array) -> jax.Array:
        """The part of a weight's gradient that belongs here, summed over the devices of the cut."""
        for dimension, axes in self.values:
            gradient = jax.lax.psum_scatter(gradient, axes, scatter_dimension=dimension, tiled=True)
        return gradient


def _gathered(x, cut):
    for dimension, axes in cut:
        x = jax.lax.all_gather(x, axes, axis=dimension, tiled=True)
    return x


def _ragged(lhs, rhs, sizes, dims, grouped):
    numbers = RaggedDotDimensionNumbers(
        dot_dimension_numbers=(dims, ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=grouped
    )
    return ragged_dot_general(lhs, rhs, sizes, numbers, precision=precision(lhs.dtype))


def _product(x, weight, sizes):
    return _ragged(x, weight, sizes, ((1,), (1,)), [0])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _expert_linear(x, weight, sizes, cut):
    """Each expert's product of its rows, `[T k, W]`, `[X, W, F]` -> `[T k, F]`; rows behind the last expert's may be anything.

        d_x = d_y weight^T,    d_weight = x^T d_y,    both by expert

    What is kept of the weight is this device's part, so that a scan over layers never holds all of them whole.

    Args:
      sizes: int32 `[X]`, rows of each expert. cut: how the weight is brought together.
    """
    return _product(x, cut.together(weight, x.dtype), sizes)


def _linear_forward(x, weight, sizes, cut):
    y = checkpoint_name(_product(x, cut.together(weight, x.dtype), sizes), PRODUCT)
    return y, (None if isinstance(weight, Quantized) else x, weight, sizes)


def _linear_backward(cut, saved, d_y):
    x, weight, sizes = saved
    d_x = _ragged(d_y, cut.together(weight, d_y.dtype), sizes, ((1,), (2,)), [0])
    if isinstance(weight, Quantized):
        return d_x, weight.no_gradient(), None
    return d_x, cut.scattered(_ragged(x, d_y, sizes, ((0,), (0,)), [])), None


_expert_linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def _with_bias(rows, bias, expert):
    """Rows `[T k, F]` with the biases `[X, F]` of their experts, int32 `[T k]`; one of X or more is not here.

    Added in float32. The gradient is a product with what is 1 where a row is an expert's, and no scatter; rows of experts that
    are not here may be anything, also there.
    """
    return (rows.astype(jnp.float32) + bias.astype(jnp.float32)[expert]).astype(rows.dtype)


def _bias_forward(rows, bias, expert):
    return _with_bias(rows, bias, expert), (bias, expert)


def _bias_backward(saved, d_rows):
    bias, expert = saved
    count = bias.shape[0]
    here = jnp.where((expert < count)[:, None], d_rows, 0)
    of_expert = (expert[:, None] == jnp.arange(count)).astype(d_rows.dtype)
    kind = {"preferred_element_type": jnp.float32, "precision": precision(d_rows.dtype)}
    return d_rows, jnp.einsum("tx,tf->xf", of_expert, here, **kind).astype(bias.dtype), None


_with_bias.defvjp(_bias_forward, _bias_backward)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _outputs(gate, up, weight, shares, rows, sizes, cut, activation):
    """What the experts make of each token `[T, W]`, summed in float32 and rounded once:

        y = sum_k share_k u_k weight,   u = act(gate) up, `gated_unit`
        v = d_y weight^T by row,   d_share = <u, v>,   d_u = share v,   d_weight = (share u)^T d_y

    No gradient needs the product itself, so that it is neither kept nor made again; the elementwise part is, as in
    `align_jax.models.ops.gated_linear`.
    """
    return _summed(gate, up, weight, shares, rows, sizes, cut, activation)


def _summed(gate, up, weight, shares, rows, sizes, cut, activation):
    y = _product(gated_unit(gate, up, activation), cut.together(weight, gate.dtype), sizes)
    return jnp.einsum("tkw,tk->tw", rows.by_token(y), shares, precision="highest").astype(y.dtype)


def _outputs_forward(gate, up, weight, shares, rows, sizes, cut, activation):
    y = _summed(gate, up, weight, shares, rows, sizes, cut, activation)
    return checkpoint_name(y, PRODUCT), (gate, up, weight, shares, rows, sizes)


def _outputs_backward(cut, activation, saved, d_y):
    gate, up, weight, shares, rows, sizes = saved
    unit, d_rows = gated_unit(gate, up, activation), rows.of_tokens(d_y)
    v = _ragged(d_rows, cut.together(weight, d_y.dtype), sizes, ((1,), (2,)), [0]).astype(jnp.float32)
    share = shares.reshape(-1)[rows.order][:, None]
    d_shares = rows.by_token(jnp.sum(v * unit.astype(jnp.float32), axis=-1))
    if isinstance(weight, Quantized):
        d_weight = weight.no_gradient()
    else:
        scaled = (share * unit.astype(jnp.float32)).astype(unit.dtype)
        d_weight = cut.scattered(_ragged(scaled, d_rows, sizes, ((0,), (0,)), []))
    d_gate, d_up = gate_gradients(gate, up, (share * v).astype(d_y.dtype), activation)
    return d_gate, d_up, d_weight, d_shares, None, None


_outputs.defvjp(_outputs_forward, _outputs_backward)
