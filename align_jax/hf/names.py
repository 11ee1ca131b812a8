"""The one table of Hugging Face tensor names, used for import and for export.

Hugging Face stores a projection as `[outputs, inputs]`; here it is `[inputs, outputs]` with the heads unfolded. A
layout is the pair of inverse functions between the two, applied to one layer's tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import PartitionSpec

from align_jax.models import ModelConfig, weight_shapes


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is stored there and here.

    Attributes:
      name: for error messages.
      to_ours: (their array, our shape) -> our array.
      to_theirs: our array -> their array; the inverse of `to_ours`.
      their_shape: our shape -> their shape.
      their_axes: which of our axes leads each of their axes (a merged axis is led by its slowest-varying part).
    """

    name: str
    to_ours: Callable[[Any, tuple[int, ...]], Any]
    to_theirs: Callable[[Any], Any]
    their_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    their_axes: Callable[[int], tuple[int, ...]]

    def their_spec(self, spec: PartitionSpec, ndim: int) -> PartitionSpec:
        """Their tensor's partitioning that needs no communication to become ours, where only leading axes are split."""
        padded = tuple(spec) + (None,) * (ndim - len(spec))
        return PartitionSpec(*(padded[axis] for axis in self.their_axes(ndim)))


SAME = Layout(
    "same",
    to_ours=lambda x, shape: x.reshape(shape),
    to_theirs=lambda x: x,
    their_shape=lambda shape: shape,
    their_axes=lambda ndim: tuple(range(ndim)),
)
# [inputs, *outputs] here, [outputs, inputs] there
SPLIT_OUTPUTS = Layout(
    "split outputs",
    to_ours=lambda x, shape: x.T.reshape(shape),
    to_theirs=lambda x: x.reshape(x.shape[0], -1).T,
    their_shape=lambda shape: (math.prod(shape[1:]), shape[0]),
    their_axes=lambda ndim: (1, 0),
)
# [*inputs, outputs] here, [outputs, inputs] there
SPLIT_INPUTS = Layout(
    "split inputs",
    to_ours=lambda x, shape: x.T.reshape(shape),
    to_theirs=lambda x: x.reshape(-1, x.shape[-1]).T,
    their_shape=lambda shape: (shape[-1], math.prod(shape[:-1])),
    their_axes=lambda ndim: (ndim - 1, 0),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table: `pattern` is their name (`{layer}` is the layer's number), `path` ours."""

    pattern: str
    path: tuple[str, ...]
    layout: Layout

    @property
    def stacked(self) -> bool:
        """True where our array holds all layers on its leading axis."""
        return self.path[0] == "layers"


TABLE = (
    Entry("model.embed_tokens.weight", ("embed",), SAME),
    Entry("model.layers.{layer}.input_layernorm.weight", ("layers", "attn_norm"), SAME),
    Entry("model.layers.{layer}.self_attn.q_proj.weight", ("layers", "q"), SPLIT_OUTPUTS),
    Entry("model.layers.{layer}.self_attn.k_proj.weight", ("layers", "k"), SPLIT_OUTPUTS),
    Entry("model.layers.{layer}.self_attn.v_proj.weight", ("layers", "v"), SPLIT_OUTPUTS),
    Entry("model.layers.{layer}.self_attn.o_proj.weight", ("layers", "o"), SPLIT_INPUTS),
    Entry("model.layers.{layer}.post_attention_layernorm.weight", ("layers", "mlp_norm"), SAME),
    Entry("model.layers.{layer}.mlp.gate_proj.weight", ("layers", "gate"), SPLIT_OUTPUTS),
    Entry("model.layers.{layer}.mlp.up_proj.weight", ("layers", "up"), SPLIT_OUTPUTS),
    Entry("model.layers.{layer}.mlp.down_proj.weight", ("layers", "down"), SPLIT_OUTPUTS),
    Entry("model.norm.weight", ("norm",), SAME),
    Entry("lm_head.weight", ("lm_head",), SPLIT_OUTPUTS),
    Entry("score.weight", ("score",), SPLIT_OUTPUTS),  # the reward head of a sequence classifier
)

# Buffers that old checkpoints carry and that follow from the config.
IGNORED_SUFFIX = "rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: its name and shape there, and which layer of `entry.path` it is (None: all of it)."""

    name: str
    shape: tuple[int, ...]
    entry: Entry
    layer: int | None


def entries(config: ModelConfig) -> list[Entry]:
    """The rows of the table that a model with this config has."""
    tree = weight_shapes(config)
    return [entry for entry in TABLE if lookup(tree, entry.path) is not None]


def tensors_of(entry: Entry, config: ModelConfig) -> Iterator[Tensor]:
    """The checkpoint's tensors that make up our array `entry.path`, in the order of layers."""
    shape = lookup(weight_shapes(config), entry.path)
    if not entry.stacked:
        yield Tensor(entry.pattern, entry.layout.their_shape(shape), entry, None)
        return
    theirs = entry.layout.their_shape(shape[1:])
    for layer in range(config.layers):
        yield Tensor(entry.pattern.format(layer=layer), theirs, entry, layer)


def tensors(config: ModelConfig) -> list[Tensor]:
    """Every tensor that a checkpoint with this config holds, in the model's order."""
    by_layer = [t for entry in entries(config) for t in tensors_of(entry, config)]
    order = {entry.path: i for i, entry in enumerate(TABLE)}

    def position(t: Tensor):
        # Layers lie between the embedding and the final norm, each with its tensors together.
        section = 1 if t.layer is not None else 0 if t.entry.path == ("embed",) else 2
        return section, t.layer or 0, order[t.entry.path]

    return sorted(by_layer, key=position)


def lookup(tree: dict, path: tuple[str, ...]):
    """The leaf of a nested dict at a path, or None."""
    for key in path:
        if key not in tree:
            return None
        tree = tree[key]
    return tree
