"""How long a collective takes on the network of a TPU: by its bytes, and by which devices take part.

A ring over one axis of the torus sends both ways, so a chip receives at twice the rate of a link; an axis whose ends are not
joined is a line, at whose ends there is one link. Over several axes the rates add up. With n devices and a result of V
bytes each, after "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter 3:

    all-gather           V (n-1)/n / rate               (a reduce-scatter: the same, V the bytes before it)
    all-reduce         2 V (n-1)/n / rate               (a reduce-scatter and an all-gather)
    all-to-all           n V / (4 rate)
    collective-permute   V load / link                  (load: how many of its messages go over the busiest link)

Where devices of S slices take part, each slice does its part as above, and what one chip then has of it, V over the devices of
a slice, crosses the slices: 2 (S-1)/S times for an all-reduce, (S-1)/S times else. Latencies are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.cost.chips import Chip


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the devices of a program stand, in the order in which it numbers them.

    Attributes:
      coords: int `[devices, axes]`, in the torus. slices: int `[devices]`.
    """

    coords: np.ndarray
    slices: np.ndarray

    @classmethod
    def of(cls, devices: Sequence[Any]) -> Places:
        """Of JAX's devices, `mesh.devices.flat`."""
        coords = [(*device.coords, getattr(device, "core_on_chip", 0) or 0) for device in devices]
        return cls(np.array(coords), np.array([getattr(device, "slice_index", 0) or 0 for device in devices]))

    @property
    def extent(self) -> np.ndarray:
        """Length of every axis of the torus."""
        return self.coords.max(0) - self.coords.min(0) + 1


@dataclasses.dataclass(frozen=True)
class Moved:
    """A collective as it is on one device, over a whole step.

    Attributes:
      kind: such as `all-gather`. times: how often it runs. size: bytes of its result, each time.
      groups: int `[groups, devices]` numbers of devices that take part in it together; of a permutation `[pairs, 2]`; None:
        all devices.
    """

    kind: str
    times: float
    size: int
    groups: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a collective costs over a step: seconds within a slice, seconds between slices, bytes between slices by chip."""

    inside: float = 0.0
    across: float = 0.0
    across_bytes: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.inside + other.inside, self.across + other.across, self.across_bytes + other.across_bytes)


def spent(moved: Moved, chip: Chip, places: Places) -> Spent:
    """What a collective costs over a step."""
    if moved.kind == "collective-permute":
        return _permuted(moved, chip, places)
    group = np.arange(len(places.coords)) if moved.groups is None else moved.groups[0]
    if len(group) < 2:
        return Spent()
    of_slice = places.slices[group]
    slices = len(set(of_slice.tolist()))
    inside = group[of_slice == of_slice[0]]
    whole = moved.size * (len(group) if moved.kind == "reduce-scatter" else 1)
    twice = 2 if moved.kind == "all-reduce" else 1
    n, rate = len(inside), _rate(places.coords[inside], chip, places.extent)
    part = n / 4 if moved.kind.endswith("all-to-all") else (n - 1) / n
    seconds = twice * whole * part / rate if n > 1 else 0.0
    crossing = twice * whole / n * (slices - 1) / slices
    return Spent(moved.times * seconds, moved.times * crossing / chip.slice_rate, moved.times * crossing)


def _permuted(moved: Moved, chip: Chip, places: Places) -> Spent:
    if moved.groups is None or not len(moved.groups):
        return Spent()
    source, target = moved.groups.T
    crosses = places.slices[source] != places.slices[target]
    across = moved.times * moved.size if crosses.any() else 0.0
    load = _busiest(places.coords[source[~crosses]], places.coords[target[~crosses]], places, chip)
    return Spent(moved.times * moved.size * load / chip.link_rate, across / chip.slice_rate, across)


def _busiest(source: np.ndarray, target: np.ndarray, places: Places, chip: Chip) -> int:
    """Messages over the busiest link where each goes the shorter way, axis by axis."""
    loads: dict[tuple, int] = {}
    for at, end in zip(source.tolist(), target.tolist(), strict=True):
        for axis, length in enumerate(places.extent.tolist()):
            forth, closed = end[axis] - at[axis], length % chip.ring == 0
            if closed and abs(forth) > length / 2:
                forth -= length if forth > 0 else -length
            step = 1 if forth > 0 else -1
            for _ in range(abs(forth)):
                link = (*at, axis, step)
                loads[link] = loads.get(link, 0) + 1
                at[axis] = (at[axis] + step) % length if closed else at[axis] + step
    return max(loads.values(), default=0)


def _rate(coords: np.ndarray, chip: Chip, extent: np.ndarray) -> float:
    """Bytes per second that a device of a group receives at, over all axes along which the group stretches."""
    rate = 0.0
    for axis in range(coords.shape[1]):
        along = np.unique(coords[:, axis])
        if len(along) < 2:
            continue
        ring = len(along) == extent[axis] and extent[axis] % chip.ring == 0
        apart = int(np.diff(along).max())  # devices in between pass the bytes on, and are in groups of their own
        rate += chip.link_rate * (2 if ring else 1) / apart
    return rate or chip.link_rate
