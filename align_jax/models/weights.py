"""The one table of weights: a row per weight says its shape, axes, start, weight decay and Hugging Face name.

Whoever needs to know something of weights reads it here: the decoder, init, sharding, import, export, the optimizer's mask.
A model has the rows that its config asks for, so a weight that only some models have is one more row; so is another name
of a weight for another family, a second row with the same path of which no config has both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from align_jax.models import adapter as lora
from align_jax.models import quantized
from align_jax.models.config import ModelConfig
from align_jax.models.expert_weights import expert_rows
from align_jax.models.initializers import normal_to_residual, ones, zeros
from align_jax.models.layouts import FLAT, SAME, SPLIT_INPUTS, SPLIT_OUTPUTS
from align_jax.models.quantized import Quantized
from align_jax.models.row import Path, Stored, Weight, always, in_layer
from align_jax.parallel.axes import shardings


def _norm(path: Path, name: str, present: Callable[[ModelConfig], bool] = always) -> Weight:
    return Weight(path, ("width",), ("norm",), Stored(name, SAME), init=ones, decay=False, present=present)


def _layer_norm(name: str, stored: str, *places: str) -> Weight:
    """A norm of a layer, where the model's norms stand in one of these places."""
    return _norm(("layers", name), in_layer(stored), lambda config: config.norms in places)


def _projection(name: str, stored: str, inputs: str, outputs: tuple[str, ...], fused: str) -> tuple[Weight, Weight]:
    """A projection under its own name in a checkpoint, and as a part of another tensor's rows, in the order of this table."""
    dims, axes = (inputs, *outputs), ("embed", *(("mlp",) if outputs == ("mlp_width",) else outputs))
    own, part = (Stored(in_layer(n), SPLIT_OUTPUTS) for n in (stored, fused))
    path, has = ("layers", name), _has_one_mlp if outputs == ("mlp_width",) else always
    return (
        Weight(path, dims, axes, own, present=lambda config: has(config) and not config.fused),
        Weight(path, dims, axes, part, present=lambda config: has(config) and config.fused),
    )


def _has_one_mlp(config: ModelConfig) -> bool:
    return config.experts is None


def _bias(name: str, heads: str) -> Weight:
    stored = Stored(in_layer(f"self_attn.{name}_proj", "bias"), FLAT)
    dims, has = (heads, "head_size"), lambda config: config.qkv_bias
    return Weight(("layers", f"{name}_bias"), dims, dims, stored, init=zeros, decay=False, present=has)


def _head_norm(name: str) -> Weight:
    stored, has = Stored(in_layer(f"self_attn.{name}_norm"), SAME), lambda config: config.qk_norm
    return Weight(("layers", f"{name}_norm"), ("head_size",), ("norm",), stored, init=ones, decay=False, present=has)


def _whole_norm(name: str, heads: str) -> Weight:
    stored, has = Stored(in_layer(f"self_attn.{name}_norm"), FLAT), lambda config: config.qk_norm_whole
    dims = (heads, "head_size")
    return Weight(("layers", f"{name}_norm"), dims, dims, stored, init=ones, decay=False, present=has)


def _rank(config: ModelConfig) -> int:
    return config.lora.rank


def _lora_start(config: ModelConfig, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A: as PEFT draws it, within 1 / sqrt(inputs) or with deviation 1 / r."""
    if config.lora.init == "gaussian":
        return jax.random.normal(key, shape) / config.lora.rank
    return jax.random.uniform(key, shape, minval=-1, maxval=1) * math.prod(shape[1:-1]) ** -0.5


def _adapter(of: Weight) -> list[Weight]:
    """The rows of the adapter of a projection: its two factors, and DoRA's magnitudes."""
    name, axes = of.path[1], lora.TARGETS[of.path[1]]
    has = lambda config: config.lora is not None and name in config.lora.targets  # noqa: E731
    both = lambda config: has(config) and config.lora.dora  # noqa: E731
    rest = {"stored": None, "decay": False, "dtype": "float32"}
    path = lambda kind: ("layers", f"{name}_{kind}")  # noqa: E731
    return [
        Weight(path(lora.A), (*of.dims[:axes], _rank), (*of.axes[:axes], None), init=_lora_start, present=has, **rest),
        Weight(path(lora.B), (_rank, *of.dims[axes:]), (None, *of.axes[axes:]), init=zeros, present=has, **rest),
        Weight(path(lora.MAGNITUDE), of.dims[axes:], of.axes[axes:], init=ones, present=both, **rest),
    ]


_QKV = (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads"))

# In the order of a checkpoint's tensors: the embedding, every layer with its tensors together, what follows the layers.
BASE = (
    Weight(("embed",), ("vocab_size", "width"), ("vocab", "embed"), Stored("model.embed_tokens.weight", SAME)),
    _layer_norm("attn_norm", "input_layernorm", "before", "both"),
    *(
        row
        for name, heads in _QKV
        for row in _projection(name, f"self_attn.{name}_proj", "width", (heads, "head_size"), "self_attn.qkv_proj")
    ),
    Weight(
        ("layers", "o"),
        ("heads", "head_size", "width"),
        ("heads", "head_size", "embed"),
        Stored(in_layer("self_attn.o_proj"), SPLIT_INPUTS),
        init=normal_to_residual,
    ),
    *(_bias(name, heads) for name, heads in _QKV),
    Weight(
        ("layers", "o_bias"),
        ("width",),
        ("norm",),
        Stored(in_layer("self_attn.o_proj", "bias"), SAME),
        init=zeros,
        decay=False,
        present=lambda config: config.o_bias,
    ),
    Weight(
        ("layers", "sinks"),
        ("heads",),
        ("heads",),
        Stored("model.layers.{layer}.self_attn.sinks", SAME),
        decay=False,
        present=lambda config: config.sinks,
    ),
    *(_head_norm(name) for name in ("q", "k")),
    *(_whole_norm(name, heads) for name, heads in _QKV[:2]),
    # One name, two things: of a LLaMA it is the norm before the MLP, of a Gemma and an OLMo the one after attention.
    _layer_norm("mlp_norm", "post_attention_layernorm", "before"),
    _layer_norm("attn_post_norm", "post_attention_layernorm", "both", "after"),
    _layer_norm("mlp_norm", "pre_feedforward_layernorm", "both"),
    *(
        row
        for name in ("gate", "up")
        for row in _projection(name, f"mlp.{name}_proj", "width", ("mlp_width",), "mlp.gate_up_proj")
    ),
    Weight(
        ("layers", "down"),
        ("mlp_width", "width"),
        ("mlp", "embed"),
        Stored(in_layer("mlp.down_proj"), SPLIT_OUTPUTS),
        init=normal_to_residual,
        present=_has_one_mlp,
    ),
    *expert_rows(),
    _layer_norm("mlp_post_norm", "post_feedforward_layernorm", "both", "after"),
    _norm(("norm",), "model.norm.weight"),
    Weight(
        ("lm_head",),
        ("width", "vocab_size"),
        ("embed", "vocab"),
        Stored("lm_head.weight", SPLIT_OUTPUTS),
        present=lambda config: config.head == "lm_head" and not config.tied_embeddings,
    ),
    # The reward head of a sequence classifier with one label.
    Weight(
        ("score",),
        ("width", 1),
        (None, None),
        Stored("score.weight", SPLIT_OUTPUTS),
        present=lambda config: config.head == "score",
    ),
)

# And the adapter's behind them.
_ADAPTED = {of.path: of for of in BASE if of.path[0] == "layers" and of.path[1] in lora.TARGETS}
TABLE = (*BASE, *(row for of in _ADAPTED.values() for row in _adapter(of)))


def rows(config: ModelConfig) -> list[Weight]:
    """The rows of the table that a model with this config has, in its order.

    Raises:
      ValueError: two of them have the same path, a mistake in the table.
    """
    found = [weight for weight in TABLE if weight.present(config)]
    paths = [weight.path for weight in found]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"the table of weights has {'.'.join(path)!r} twice for {config}")
    return found


def tree_of(config: ModelConfig, value: Callable[[Weight], object]) -> dict:
    """A value for every weight, in the nested dict that `Decoder` takes."""
    return unflatten_dict({weight.path: value(weight) for weight in rows(config)})


def weight_shapes(config: ModelConfig) -> dict:
    """Shapes of all weights, as the nested dict that `Decoder` takes; `lm_head` only where it is the head and not tied."""
    return tree_of(config, lambda weight: weight.shape(config))


def weight_structs(config: ModelConfig, param_dtype) -> dict:
    """All weights as `jax.ShapeDtypeStruct`s: in `param_dtype`, what an adapter trains in float32."""
    saved = config.lora.saved if config.lora else ()

    def struct(weight: Weight) -> jax.ShapeDtypeStruct | Quantized:
        if weight.few_bits(config):
            return quantized.structs(weight.shape(config), config.quantize, weight.outputs)
        kept = "float32" if weight.name in saved else weight.dtype or param_dtype
        return jax.ShapeDtypeStruct(weight.shape(config), kept)

    return tree_of(config, struct)


def weight_shardings(config: ModelConfig, mesh: Mesh) -> dict:
    """Where every weight lives on the mesh: NamedShardings in the nested dict of `weight_shapes`."""
    axes = tree_of(config, lambda weight: weight.all_axes)
    if config.quantize is None:
        return shardings(axes, weight_shapes(config), mesh)
    structs = flatten_dict(weight_structs(config, jnp.float32))
    each = {}
    for path, axis in flatten_dict(axes).items():
        place = lambda x, axis=axis: shardings({"": axis}, {"": x.shape}, mesh)[""]  # noqa: E731
        each[path] = jax.tree.map(place, structs[path])
    return unflatten_dict(each)


def init_weights(config: ModelConfig, key: jax.Array, param_dtype=jnp.float32) -> dict:
    """Fresh weights: norms 1, matrices normal with deviation 0.02, those that write to the residual 0.02 / sqrt(2 L)."""
    place = _places(config)

    def fresh(weight: Weight) -> jax.Array:
        made = weight.init(config, jax.random.fold_in(key, place[weight.path]), weight.shape(config))
        made = made.astype(weight.dtype or param_dtype)
        return quantized.quantize(made, config.quantize, weight.outputs) if weight.few_bits(config) else made

    return tree_of(config, fresh)


def _places(config: ModelConfig) -> dict[Path, int]:
    """What the random numbers of each weight are keyed by: its place among the leaves of the flattened tree, sorted by path.

    An adapter's weights come behind all others, whose numbers it does not change.
    """
    paths = sorted((weight.stored is None, weight.path) for weight in rows(config))
    return {path: n for n, (_, path) in enumerate(paths)}


def check_weights(config: ModelConfig, weights: dict) -> None:
    """Whether a nested dict holds the weights of a model with this config, by name and shape.

    Raises:
      ValueError: a missing, unexpected or misshapen weight, by name.
    """
    expected = {weight.name: weight.shape(config) for weight in rows(config)}
    given = {".".join(path): getattr(value, "shape", None) for path, value in flatten_dict(weights).items()}
    given.pop(f"layers.{lora.KEY}", None)  # of dropout's mask, which is no weight
    for name in expected.keys() - given.keys():
        raise ValueError(f"weight {name!r} is missing; the model has {expected[name]} there")
    for name in given.keys() - expected.keys():
        raise ValueError(f"weight {name!r} is not part of this model" + (" (embeddings are tied)" if name == "lm_head" else ""))
    for name, shape in expected.items():
        # Abstract and traced stand-ins (during jax transformations of the module) have no shape to compare.
        if given[name] is not None and tuple(given[name]) != shape:
            raise ValueError(f"weight {name!r} has shape {tuple(given[name])}, expected {shape}")


_BY_PATH = {weight.path: weight for weight in TABLE}


def decays(path: Path) -> bool:
    """Whether weight decay pulls the weight at this path: what the table says.

    A tree that is not a model's has no rows; there, what is called a norm (`norm`, `attn_norm`, or anything below one) is
    not decayed, by name, since stacked layers give the norms of all layers one two-dimensional array; nor is a bias.
    """
    if path in _BY_PATH:
        return _BY_PATH[path].decay
    return not (any(name.endswith("norm") for name in path) or path[-1:] and path[-1].endswith("bias"))


def is_embedding(path: Path) -> bool:
    """Whether the weight at this path holds a vector for each token that is read; in a tree that is not a model's, by name."""
    return path == ("embed",) if path in _BY_PATH else any("embed" in name.lower() for name in path)


def matrix_axes(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """`Weight.matrix_axes` of the weight at this path; None, too, for what the table does not have."""
    return _BY_PATH[path].matrix_axes if path in _BY_PATH else None
