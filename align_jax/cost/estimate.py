"""From compiled shapes to what an epoch takes: seconds of a step by its parts, and useful utilisation.

With T the operations that are done over the chip's peak, and C the seconds of all collectives one after the other (within a
slice, and between slices), a step takes

    in series    T + C          nothing overlaps
    overlapped   max(T, C)      everything does

and useful utilisation is the least operations of the real tokens (each prompt and each answer once, nothing computed twice,
`align_jax.cost.flops`) over what the chips could do in that time, both summed over the steps of an epoch. Products are taken
to run at the peak, which they do not: these are upper bounds, to compare programs with. Memory traffic, M seconds at the
memory's rate, is a bound of its own: where it is larger than both, M is what a step takes at least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from align_jax.cost.chips import Chip
from align_jax.cost.epoch import ShapeUse, real_fraction
from align_jax.cost.flops import least_flops, remat_flops
from align_jax.cost.hlo import Counts
from align_jax.cost.network import Moved, Places, Spent, spent
from align_jax.cost.parts import Parts


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip, by kind, as the compiler's analysis gives them."""

    arguments: int
    outputs: int
    outputs_in_place: int
    temporaries: int
    program: int
    host: int

    @classmethod
    def of(cls, analysis: Any) -> Memory:
        """Of `compiled.memory_analysis()`."""
        a = analysis
        device = (a.argument_size_in_bytes, a.output_size_in_bytes, a.alias_size_in_bytes, a.temp_size_in_bytes)
        return cls(*device, a.generated_code_size_in_bytes, a.host_temp_size_in_bytes)

    @property
    def total(self) -> int:
        """What a chip holds at the peak."""
        return self.arguments + self.outputs - self.outputs_in_place + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Parts of a step: products, memory traffic, collectives within a slice and between slices."""

    compute: float
    memory: float
    network: float
    slices: float

    @property
    def serial(self) -> float:
        """Where nothing overlaps."""
        return self.compute + self.network + self.slices

    @property
    def overlapped(self) -> float:
        """Where everything does."""
        return max(self.compute, self.network + self.slices)

    @property
    def bound(self) -> float:
        """The longest part, memory traffic among them: less it cannot be."""
        return max(self.overlapped, self.memory)

    def scaled(self, factor: float) -> Seconds:
        """Of a step with so many times the positions; collectives of weights do not grow with them."""
        return Seconds(self.compute * factor, self.memory * factor, self.network, self.slices)


@dataclasses.dataclass(frozen=True)
class CompiledShape:
    """A shape with what the compiler made of it.

    Attributes:
      counts: of one device. kernels: operations of attention kernels, of all devices.
      remat: operations repeated by choice for the real tokens, all devices. spent: kind of collective -> what it costs.
      parts: where the operations go, all devices.
    """

    use: ShapeUse
    memory: Memory
    counts: Counts
    kernels: int
    remat: int
    spent: dict[str, Spent]
    chip: Chip
    devices: int
    compile_seconds: float
    parts: Parts | None = None

    @property
    def least(self) -> int:
        """The least operations of a step's real tokens."""
        return least_flops(self.use.forward)

    @property
    def done(self) -> int:
        """Operations of all devices."""
        return round(self.counts.flops * self.devices) + self.kernels

    @property
    def seconds(self) -> Seconds:
        """Of a step."""
        total = sum(self.spent.values(), Spent())
        compute = self.done / self.devices / self.chip.peak
        return Seconds(compute, self.counts.traffic / self.chip.hbm_rate, total.inside, total.across)

    @property
    def fits(self) -> bool:
        """Whether a chip holds it."""
        return self.memory.total <= self.chip.memory


def collective_costs(counts: Counts, chip: Chip, places: Places) -> dict[str, Spent]:
    """Kind -> what all collectives of it cost over a step.

    The compiler sends the pieces of a product half to one neighbour and half to the other, at the same time: permutations that
    go both ways count half.
    """
    found: dict[str, Spent] = {}
    ways = {_way(moved) for moved in counts.moved if moved.kind == "collective-permute"}
    for moved in counts.moved:
        cost = spent(moved, chip, places)
        if moved.kind == "collective-permute" and _way(moved, back=True) in ways - {_way(moved)}:
            cost = dataclasses.replace(cost, inside=cost.inside / 2)
        found[moved.kind] = found.get(moved.kind, Spent()) + cost
    return found


def _way(moved: Moved, back: bool = False) -> frozenset:
    """Who sends to whom, or the other way round."""
    pairs = [] if moved.groups is None else moved.groups.tolist()
    return frozenset((b, a) if back else (a, b) for a, b in pairs)


def repeated(use: ShapeUse, policy: str, *, chunks: bool, head: bool) -> int:
    """Operations that a step on this shape's real tokens repeats by choice, see `remat_flops`."""
    return remat_flops(use.forward, policy, chunks=chunks, head=head)


@dataclasses.dataclass(frozen=True)
class EpochEstimate:
    """All shapes of an epoch, some of them compiled: the time of another is that of the compiled one next in size, scaled.

    Attributes:
      uses: all shapes. compiled: those that were compiled, at least one of them.
    """

    uses: tuple[ShapeUse, ...]
    compiled: tuple[CompiledShape, ...]

    @property
    def main(self) -> CompiledShape:
        """The compiled shape whose steps compute most."""
        return max(self.compiled, key=lambda shape: shape.use.computed * len(shape.use.steps))

    @property
    def largest(self) -> CompiledShape:
        """The compiled shape that needs most memory."""
        return max(self.compiled, key=lambda shape: shape.memory.total)

    @property
    def real_fraction(self) -> float:
        """Real tokens among the positions computed."""
        return real_fraction(self.uses)

    def seconds(self, use: ShapeUse) -> Seconds:
        """Of a step of this shape."""
        near = min(self.compiled, key=lambda shape: abs(shape.use.computed - use.computed))
        return near.seconds.scaled(use.computed / near.use.computed)

    def utilization(self, by: str) -> float:
        """Useful utilisation, by `serial`, `overlapped`, or one part alone such as `compute`; see the module."""
        steps = [(len(use.steps), least_flops(use.forward), getattr(self.seconds(use), by)) for use in self.uses]
        time = sum(count * seconds for count, _, seconds in steps)
        least = sum(count * flops for count, flops, _ in steps)
        return least / (time * self.main.devices * self.main.chip.peak) if time else 0.0


def covered(compiled: Sequence[CompiledShape], uses: Sequence[ShapeUse]) -> float:
    """The part of all computed positions that stands in shapes that were compiled."""
    work = lambda use: use.computed * len(use.steps)  # noqa: E731
    return sum(work(shape.use) for shape in compiled) / sum(map(work, uses))
