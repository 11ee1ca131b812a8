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
    """One tensor of a checkpoint, or some of its rows: what a layer of one of our arrays is there.

    Attributes:
      name: of the tensor.
      shape: of what is ours in it.
      weight: ours.
      layer: which layer of our array it is; None is all of it.
      expert: which expert of that layer it is; None is all of the layer.
      start: the first of its rows that is ours; 0 but where a tensor holds several weights (`ModelConfig.fused`).
    """

    name: str
    shape: tuple[int, ...]
    weight: Weight
    layer: int | None
    start: int = 0
    expert: int | None = None

    @property
    def place(self) -> tuple[int, ...]:
        """Where it stands on the leading axes of our array."""
        return tuple(n for n in (self.layer, self.expert) if n is not None)


def tensors_of(weight: Weight, config: ModelConfig) -> Iterator[Tensor]:
    """The checkpoint's tensors that make up our array, in the order of layers."""
    shape, start = _their_shape(weight, config), 0
    for other in rows(config):
        if other.path == weight.path:
            break
        if other.stored is not None and other.stored.name == weight.stored.name:
            start += _their_shape(other, config)[0]
    if not weight.stacked:
        yield Tensor(weight.stored.name, shape, weight, None, start)
        return
    for layer in range(config.layers):
        for expert in range(config.experts) if weight.by_expert else (None,):
            yield Tensor(weight.stored.name.format(layer=layer, expert=expert), shape, weight, layer, start, expert)


def _their_shape(weight: Weight, config: ModelConfig) -> tuple[int, ...]:
    return weight.stored.layout.their_shape(weight.shape_of_one(config)[int(weight.by_expert) :])


def tensors(config: ModelConfig) -> list[Tensor]:
    """What of every tensor that a checkpoint with this config holds is ours, in the table's order, each layer's together."""
    present = rows(config)
    first = next(place for place, weight in enumerate(present) if weight.stacked)
    places = {weight.path: place for place, weight in enumerate(present)}

    def position(tensor: Tensor) -> tuple[int, int, int]:
        place = places[tensor.weight.path]
        return (first if tensor.weight.stacked else place), tensor.layer or 0, place

    return sorted((t for weight in present for t in tensors_of(weight, config)), key=position)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole tensor of a checkpoint, and what is ours in it: its rows, one weight's after the other's."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Tensor, ...]


def wholes(config: ModelConfig) -> list[Whole]:
    """Every tensor that a checkpoint with this config holds, in the order of `tensors`."""
    found: dict[str, list[Tensor]] = {}
    for tensor in tensors(config):
        found.setdefault(tensor.name, []).append(tensor)
    return [Whole(name, (sum(p.shape[0] for p in parts), *parts[0].shape[1:]), tuple(parts)) for name, parts in found.items()]
