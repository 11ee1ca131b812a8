"""The tensors of a Hugging Face checkpoint, read off the table of weights, for import and for export."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

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
      turns: how many weights its last axis takes turns among (1: it is ours alone), of which ours is the `start`-th.
    """

    name: str
    shape: tuple[int, ...]
    weight: Weight
    layer: int | None
    start: int = 0
    expert: int | None = None
    turns: int = 1

    def part_of(self, stored: np.ndarray) -> np.ndarray:
        """What of the whole tensor is ours."""
        return stored[..., self.start :: self.turns] if self.turns > 1 else stored[self.start : self.start + self.shape[0]]

    def read(self, checkpoint: Any, bounds: Iterable[tuple[int, int]]) -> np.ndarray:
        """A rectangular piece of what is ours, from the first index to before the last one along each axis."""
        if self.turns == 1:
            first, *others = bounds
            rows = slice(first[0] + self.start, first[1] + self.start)
            return checkpoint.read(self.name, (rows, *(slice(*b) for b in others)))
        *before, (left, right) = bounds
        columns = slice(left * self.turns + self.start, right * self.turns, self.turns)
        return checkpoint.read(self.name, (*(slice(*b) for b in before), columns))

    @property
    def place(self) -> tuple[int, ...]:
        """Where it stands on the leading axes of our array."""
        return tuple(n for n in (self.layer, self.expert) if n is not None)


def tensors_of(weight: Weight, config: ModelConfig) -> Iterator[Tensor]:
    """The checkpoint's tensors that make up our array, in the order of layers."""
    shape = _their_shape(weight, config)
    beside = [other for other in rows(config) if other.stored is not None and other.stored.name == weight.stored.name]
    before = beside[: beside.index(weight)]
    in_turn = weight.stored.in_turn
    start = len(before) if in_turn else sum(_their_shape(other, config)[0] for other in before)
    turns = len(beside) if in_turn else 1
    if not weight.stacked:
        yield Tensor(weight.stored.name, shape, weight, None, start)
        return
    for layer in range(config.layers):
        for expert in range(config.experts) if weight.by_expert else (None,):
            yield Tensor(weight.stored.name.format(layer=layer, expert=expert), shape, weight, layer, start, expert, turns)


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
    """A whole tensor of a checkpoint, and what is ours in it: its rows, one weight's after the other's, or columns in turn."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Tensor, ...]

    def joined(self, pieces: list[np.ndarray]) -> np.ndarray:
        """The tensor, of what its parts are."""
        if len(pieces) == 1:
            return pieces[0]
        return np.stack(pieces, axis=-1).reshape(self.shape) if self.parts[0].turns > 1 else np.concatenate(pieces)


def wholes(config: ModelConfig) -> list[Whole]:
    """Every tensor that a checkpoint with this config holds, in the order of `tensors`."""
    found: dict[str, list[Tensor]] = {}
    for tensor in tensors(config):
        found.setdefault(tensor.name, []).append(tensor)
    return [Whole(name, _shape_of(parts), tuple(parts)) for name, parts in found.items()]


def _shape_of(parts: list[Tensor]) -> tuple[int, ...]:
    shape = parts[0].shape
    if parts[0].turns > 1:
        return *shape[:-1], shape[-1] * len(parts)
    return sum(part.shape[0] for part in parts), *shape[1:]
