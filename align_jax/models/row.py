"""One row of the table of weights (`align_jax.models.weights`): what is known of a weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from align_jax.models import adapter as lora
from align_jax.models.config import ModelConfig
from align_jax.models.initializers import Initializer, normal
from align_jax.models.layouts import SPLIT_INPUTS, SPLIT_OUTPUTS, Layout

Path = tuple[str, ...]


def always(config: ModelConfig) -> bool:
    """A weight of every model."""
    return True


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a Hugging Face checkpoint holds a weight, one tensor (of each layer).

    Attributes:
      name: of the tensor; `{layer}` is the layer's number, `{expert}` the expert's.
      layout: how that tensor becomes ours.
      in_turn: the last axis of a tensor that holds several weights takes turns among them (False: one's rows follow another's).
    """

    name: str
    layout: Layout
    in_turn: bool = False


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row: a weight, of one layer where its path starts with `layers` (all layers are stacked on a leading axis).

    Attributes:
      path: its keys in the nested dict that `Decoder` takes.
      dims: its dimensions, each a number, the name of a field of ModelConfig, or what makes a number of one.
      axes: the logical axis of each dimension, a key of `align_jax.parallel.axes.RULES` or None.
      stored: its tensors in a Hugging Face checkpoint; None for those of an adapter (`align_jax.hf.adapter`).
      init: how it starts in a fresh model.
      decay: whether weight decay pulls it towards zero.
      present: whether a model with this config has it.
      dtype: what it is kept in; None: as the other weights.
    """

    path: Path
    dims: tuple[str | int | Callable[[ModelConfig], int], ...]
    axes: tuple[str | None, ...]
    stored: Stored | None
    init: Initializer = normal
    decay: bool = True
    present: Callable[[ModelConfig], bool] = always
    dtype: str | None = None

    @property
    def stacked(self) -> bool:
        """True where the array holds all layers on its leading axis."""
        return self.path[0] == "layers"

    @property
    def name(self) -> str:
        """The path in errors: `layers.q`."""
        return ".".join(self.path)

    @property
    def by_expert(self) -> bool:
        """True where a checkpoint has a tensor for each expert, and the array all of them behind the layers' axis."""
        return self.stored is not None and "{expert}" in self.stored.name

    @property
    def of_experts(self) -> bool:
        """True for a matrix of each expert."""
        return self.dims[0] == "experts" and len(self.dims) == 3

    def shape_of_one(self, config: ModelConfig) -> tuple[int, ...]:
        """Its shape, without the layers' axis."""
        of = {int: lambda dim: dim, str: lambda dim: getattr(config, dim)}
        return tuple(of.get(type(dim), lambda dim: dim(config))(dim) for dim in self.dims)

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape of its array."""
        return (config.layers,) * self.stacked + self.shape_of_one(config)

    @property
    def outputs(self) -> int:
        """How many of its axes a projection's outputs have."""
        return len(self.dims) - lora.TARGETS.get(self.path[1], 2)  # an expert's: experts and inputs stand before them

    def few_bits(self, config: ModelConfig) -> bool:
        """Whether a model with this config has it as `Quantized`: the projections of its layers."""
        return config.quantize is not None and self.stacked and (self.path[1] in lora.TARGETS or self.of_experts)

    @property
    def matrix_axes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Axes of its array that a product in a layer sums over, and those that it makes; None where it is no such matrix."""
        layout, end = self.stored and self.stored.layout, self.stacked + len(self.dims)
        first = self.stacked + self.of_experts
        if not self.stacked or not self.decay or not (self.of_experts or layout in (SPLIT_INPUTS, SPLIT_OUTPUTS)):
            return None
        cut = end - 1 if layout is SPLIT_INPUTS else first + 1
        return tuple(range(first, cut)), tuple(range(cut, end))

    @property
    def all_axes(self) -> tuple[str | None, ...]:
        """The logical axes of its array."""
        return ("layers",) * self.stacked + self.axes


def in_layer(name: str, kind: str = "weight") -> str:
    """The name of a layer's tensor in a checkpoint."""
    return f"model.layers.{{layer}}.{name}.{kind}"
