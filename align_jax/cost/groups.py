"""Which devices take part in a collective together, as the text of a compiled program says it."""

from __future__ import annotations

import math
import re

import numpy as np

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)+)\}")
_MESH = re.compile(r"replica_groups=\S*?mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))?\s*\{([^}]*)\}")
_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def device_groups(attributes: str) -> np.ndarray | None:
    """Numbers of the devices of every group, int `[groups, devices]`; of a permutation `[pairs, 2]`; None: all devices.

    Args:
      attributes: what stands behind the operands of a collective, such as `replica_groups=[2,4]<=[8]`, `{{0,1},{2,3}}`, or a
        mesh with the names of its axes, of which JAX 0.12 may take parts, `'axis':(before)size`.

    Raises:
      ValueError: groups written in another way, or of different sizes.
    """
    if found := _IOTA.search(attributes):
        shape, dims, order = found.groups()
        return _in_order(dims, order).reshape(_numbers(shape))
    if found := _MESH.search(attributes):
        return _of_mesh(*found.groups())
    if found := _LISTED.search(attributes):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found.group(1))])
    if re.search(r"replica_groups=(?!\{\})", attributes):
        raise ValueError(f"groups of devices that are not understood: {attributes[:120]}")
    return None


def _of_mesh(axes: str, numbers: str | None, chosen: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts = {name: [(1, size)] for name, size in sizes.items()}  # of every axis (size before it, its size)
    wanted = [(name, int(before or 1), int(size or sizes[name])) for name, before, size in _AXIS.findall(chosen)]
    for name, before, size in wanted:
        cuts = sorted({1, before, before * size, sizes[name], *(at for at, _ in parts[name])})
        parts[name] = [(a, b // a) for a, b in zip(cuts, cuts[1:], strict=False)] or [(1, sizes[name])]
    flat = [(name, before, size) for name in sizes for before, size in parts[name]]
    devices = np.arange(math.prod(sizes.values()))
    if numbers is not None:
        order = _ORDER.search(numbers)
        devices = np.array(_numbers(numbers)) if order is None else _in_order(*order.groups())
    inside = [i for i, part in enumerate(flat) if any(_within(part, axis) for axis in wanted)]
    outside = [i for i in range(len(flat)) if i not in inside]
    array = devices.reshape([size for *_, size in flat]).transpose([*outside, *inside])
    return array.reshape(-1, math.prod(flat[i][2] for i in inside))


def _in_order(dims: str, order: str | None) -> np.ndarray:
    """0, 1, .. in these dimensions, transposed: `[4,2]` and `1,0`."""
    numbers = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (numbers if order is None else numbers.transpose(_numbers(order))).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _within(part: tuple[str, int, int], axis: tuple[str, int, int]) -> bool:
    name, before, size = part
    return name == axis[0] and axis[1] <= before and before * size <= axis[1] * axis[2]
