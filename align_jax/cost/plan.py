"""Meshes that a step could run on, and what each would take by formula: a first choice, before anything is compiled.

With W weights of which each chip of a shard computes with its part W/t (t = tensor), A microbatches of Q positions a shard, L
layers of width D, and r = 1 where the backward pass computes layers again (else 0), a step moves for each chip

    fsdp      A (2 + r) all-gathers of 2 W/t bytes, and A reduce-scatters of gradients of 4 W/t bytes
    data      A all-reduces of 4 W/(f t) bytes
    tensor    A L (4 + 2 r) all-reduces of 2 Q D bytes

and holds parameters, moments and float32 gradients in f t parts, the layer that is computed, whole (over t), what remat keeps
of every position, and the logits of a chunk. Products run at the chip's peak, as in `align_jax.cost.estimate`; the compiler's
own counts differ, in both directions (windowed products move pieces, and add them up in memory).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from align_jax.cost.chips import Chip
from align_jax.cost.epoch import ShapeUse
from align_jax.cost.estimate import Seconds
from align_jax.cost.flops import least_flops, remat_flops
from align_jax.cost.network import Moved, Places, Spent, spent
from align_jax.models import ModelConfig, weight_shapes

REMAT = ("none", "full")
_MOST_MICROBATCHES = 16
_CHUNKS = (4096, 1024)
# Of a chip's memory, what a plan may fill by formula.
_FULL = 0.85
# Times that XLA's attention writes or reads an array of logits, forward and backward.
_LOGITS_PASSES = 10
_OWN_PART = 0.625  # of a row's pairs with itself that XLA's attention computes


@dataclasses.dataclass(frozen=True)
class MeshPlan:
    """What is chosen: sizes of the mesh, `model.remat`, `train.accumulation_steps` and `model.head_chunk`."""

    data: int
    fsdp: int
    tensor: int
    remat: str = "none"
    accumulation: int = 1
    head_chunk: int | Literal["auto"] | None = None

    @property
    def shards(self) -> int:
        """Blocks of a batch."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        mesh = f"data {self.data} x fsdp {self.fsdp} x tensor {self.tensor}"
        return f"{mesh}, remat {self.remat}, {self.accumulation} microbatches, head_chunk {self.head_chunk}"


@dataclasses.dataclass(frozen=True)
class PlanEstimate:
    """A plan with what it takes: bytes of a chip, seconds of a step, and useful utilisation of the shape that computes most."""

    plan: MeshPlan
    memory: float
    seconds: Seconds
    serial: float
    overlapped: float

    @property
    def cost(self) -> float:
        """What plans are ordered by: between what takes place in series and what overlaps, nobody knows where a run is."""
        return (self.seconds.serial + self.seconds.bound) / 2


def meshes(devices: int, slices: int, model: ModelConfig, groups: int) -> Iterator[tuple[int, int, int]]:
    """(data, fsdp, tensor) that use all devices: heads, MLP and vocabulary divide by tensor, slices hold whole copies."""
    for tensor in _divisors(devices):
        if model.heads % tensor or model.mlp_width % tensor or model.vocab_size % tensor or tensor > model.kv_heads:
            continue
        for data in _divisors(devices // tensor):
            fsdp = devices // tensor // data
            if data % slices == 0 and groups % (data * fsdp) == 0 and model.width % fsdp == 0:
                yield data, fsdp, tensor


def plans(devices: int, slices: int, model: ModelConfig, groups: int) -> Iterator[MeshPlan]:
    """All plans that can be cut so."""
    for data, fsdp, tensor in meshes(devices, slices, model, groups):
        most = min(_MOST_MICROBATCHES, groups // (data * fsdp))
        for accumulation in _divisors(groups // (data * fsdp)):
            if accumulation <= most:
                for remat in REMAT:
                    for chunk in _CHUNKS:
                        yield MeshPlan(data, fsdp, tensor, remat, accumulation, chunk)


@dataclasses.dataclass(frozen=True)
class Planner:
    """What does not depend on the plan.

    Attributes:
      model: the shape. chip: what runs it. param_bytes: of a stored weight. flash: whether attention is a kernel's.
      mesh: (data, fsdp, tensor) -> the devices so arranged.
      use: parts (data x fsdp x microbatches) -> the shape that computes most where a step's groups are cut so.
    """

    model: ModelConfig
    chip: Chip
    param_bytes: int
    flash: bool
    mesh: Callable[[int, int, int], Mesh]
    use: Callable[[int], ShapeUse]

    def best(self, candidates: Sequence[MeshPlan]) -> list[PlanEstimate]:
        """The plans that fit, best first; those with least memory where none does."""
        found = [self.estimate(plan) for plan in candidates]
        fitting = [each for each in found if each.memory <= _FULL * self.chip.memory]
        if not fitting:
            return sorted(found, key=lambda each: each.memory)[:1]
        # Equal but for the chunk of the head: the larger one gathers its weights less often.
        return sorted(fitting, key=lambda each: (each.cost, -each.plan.head_chunk))

    def estimate(self, plan: MeshPlan) -> PlanEstimate:
        """What a plan takes."""
        mesh = self.mesh(plan.data, plan.fsdp, plan.tensor)
        use = self.use(plan.shards * plan.accumulation)
        devices, seconds = mesh.devices.size, self._seconds(plan, use, mesh)
        possible = least_flops(use.forward) / (devices * self.chip.peak)
        memory = self._memory(plan, use)
        return PlanEstimate(plan, memory, seconds, possible / seconds.serial, possible / seconds.overlapped)

    def _seconds(self, plan: MeshPlan, use: ShapeUse, mesh: Mesh) -> Seconds:
        done = self._computed_forward(use)
        again = remat_flops(done, plan.remat)
        devices = mesh.devices.size
        compute = (least_flops(done) + again) / devices / self.chip.peak
        total = sum((spent(moved, self.chip, Places.of(list(mesh.devices.flat))) for moved in self._moved(plan, use)), Spent())
        return Seconds(compute, self._traffic(plan, use) / self.chip.hbm_rate, total.inside, total.across)

    def _computed_forward(self, use: ShapeUse):
        """Operations of the positions that are computed, padding included."""
        forward, shape, padded = use.forward, use.describe(), 1 / use.real_fraction
        attention = forward.attention * padded
        if not self.flash:  # every pair of a row with its prompt row, and with what stands before it in itself, in four blocks
            seen = shape["prompt_length"] + _OWN_PART * shape["length"]
            pairs = use.computed * (shape["rows"] * shape["length"]) / self._a_shard(use) * seen
            attention = 4 * self.model.layers * self.model.heads * self.model.head_size * pairs
        return dataclasses.replace(
            forward,
            layers=round(forward.layers * padded),
            down=round(forward.down * padded),
            attention=round(attention),
            head=round(forward.head * padded),
        )

    def _a_shard(self, use: ShapeUse) -> int:
        shape = use.describe()
        return shape["prompt_rows"] * shape["prompt_length"] + shape["rows"] * shape["length"]

    def _moved(self, plan: MeshPlan, use: ShapeUse) -> Iterator[Moved]:
        weights, again = self.weights, plan.remat == "full"
        numbers = np.arange(plan.shards * plan.tensor).reshape(plan.data, plan.fsdp, plan.tensor)

        def along(axis: int) -> np.ndarray:
            return np.moveaxis(numbers, axis, -1).reshape(-1, numbers.shape[axis])

        times, positions = plan.accumulation, self._a_shard(use)
        if plan.fsdp > 1:
            yield Moved("all-gather", times * (2 + again), 2 * weights // plan.tensor, along(1))
            yield Moved("reduce-scatter", times, 4 * weights // (plan.tensor * plan.fsdp), along(1))
        if plan.data > 1:
            yield Moved("all-reduce", times, 4 * weights // (plan.fsdp * plan.tensor), along(0))
        if plan.tensor > 1:
            count = times * self.model.layers * (4 + 2 * again)
            yield Moved("all-reduce", count, 2 * positions * self.model.width, along(2))

    def _traffic(self, plan: MeshPlan, use: ShapeUse) -> float:
        """Bytes that a chip reads and writes: weights in every pass, and the logits of attention where XLA makes them."""
        passes = 3 + (plan.remat == "full")
        total = plan.accumulation * passes * 2 * self.weights / plan.tensor
        return total if self.flash else total + plan.accumulation * self.model.layers * self._logits(plan, use) * _LOGITS_PASSES

    def _logits(self, plan: MeshPlan, use: ShapeUse) -> float:
        shape, heads = use.describe(), self.model.heads / plan.tensor
        return 4 * heads * shape["rows"] * shape["length"] * (shape["prompt_length"] + shape["length"])

    def _memory(self, plan: MeshPlan, use: ShapeUse) -> float:
        model, shape, parts = self.model, use.describe(), plan.fsdp * plan.tensor
        positions = self._a_shard(use)
        state = self.weights / parts * (self.param_bytes + 8 + 4 * (2 if plan.accumulation > 1 else 1))
        outer = model.vocab_size * model.width * (1 if model.tied_embeddings else 2)
        layer = (self.weights - outer) / model.layers
        whole = (2 * 2 * layer + (2 + 4) * outer / 2) / plan.tensor
        kept = 2 * model.width
        if plan.remat == "none":
            heads = 2 * (model.heads + model.kv_heads) * model.head_size
            kept = 2 * (6 * model.width + (heads + 3 * model.mlp_width) / plan.tensor)
        chunk = min(plan.head_chunk or _CHUNKS[-1], shape["rows"] * shape["length"])
        logits = 3 * 4 * chunk * model.vocab_size / plan.tensor
        attention = 0.0 if self.flash else 3 * self._logits(plan, use) / shape["rows"]  # of one row at a time
        return state + whole + model.layers * positions * kept + logits + attention

    @property
    def weights(self) -> int:
        """How many the model has."""
        return sum(math.prod(shape) for shape in flatten_dict(weight_shapes(self.model)).values())


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
