"""The tensors of a Hugging Face checkpoint, read off the table of weights, for import and for export."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from align_jax.models import ModelConfig
from align_jax.models.weights import Weight, rows

# Buffers that old checkpoints carry and that follow from the config.
IGNORED_SUFFIX = "rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: its name and shape there, and which layer of our array it is (None: all of it)."""

    name: str
    shape: tuple[int, ...]
    weight: Weight
    layer: int | None


def tensors_of(weight: Weight, config: ModelConfig) -> Iterator[Tensor]:
    """The checkpoint's tensors that make up our array, in the order of layers."""
    shape = weight.stored.layout.their_shape(weight.shape_of_one(config))
    if not weight.stacked:
        yield Tensor(weight.stored.name, shape, weight, None)
        return
    for layer in range(config.layers):
        yield Tensor(weight.stored.name.format(layer=layer), shape, weight, layer)


def tensors(config: ModelConfig) -> list[Tensor]:
    """Every tensor that a checkpoint with this config holds, in the table's order, each layer's together."""
    present = rows(config)
    first = next(place for place, weight in enumerate(present) if weight.stacked)

    def position(tensor: Tensor) -> tuple[int, int, int]:
        place = present.index(tensor.weight)
        return (first if tensor.weight.stacked else place), tensor.layer or 0, place

    return sorted((t for weight in present for t in tensors_of(weight, config)), key=position)
