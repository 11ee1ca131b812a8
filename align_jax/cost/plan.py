"""Meshes that a step could run on, and what each would take by formula: a first choice, before anything is compiled.

With W weights of which each chip of a shard computes with its part W/t (t = tensor), A microbatches of Q positions a shard, L
layers of width D, and r = 1 where the backward pass computes layers again (else 0), a step moves for each chip

    fsdp      2 A all-gathers of 2 W/t bytes, and A reduce-scatters of gradients of 2 W/t bytes
    data      A all-reduces of 2 W/(f t) bytes (2 A where f = 1)
    tensor    A L (4 + r) all-reduces of 2 Q D bytes
    expert    A L (2 + r) all-gathers of 2 e Q D bytes, and 2 A L reduce-scatters to 2 Q D bytes (tokens; e = expert)

and holds parameters, moments and float32 gradients in f e t parts, the weights of a layer, whole (over t), what remat keeps of
every position, and logits. With `expert`, f is f e for all weights but those of experts, of which a device has its own alone,
W/(e t), and brings them together over f. The compiler all-reduces gradients whose parts are narrow, where a reduce-scatter
would do: both weights whose last axis is cut below 256 columns, all others below 128 rows, and those of experts below 64
(libtpu 0.0.40 to 0.0.42, as its programs show). Products run at the chip's peak, as in `align_jax.cost.estimate`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from align_jax.cost.chips import Chip
from align_jax.cost.epoch import ShapeUse
from align_jax.cost.estimate import Seconds
from align_jax.cost.flops import least_flops, remat_flops
from align_jax.cost.network import Moved, Places, Spent, spent
from align_jax.models import ModelConfig, weight_shapes
from align_jax.models.adapting import trained_paths
from align_jax.models.experts import WEIGHTS as EXPERTS
from align_jax.scoring.chunks import LOGITS, USABLE, position_bytes, state_bytes
from align_jax.scoring.logps import HEAD_CHUNK

REMAT = ("none", "dots", "full")
_MOST_MICROBATCHES = 16
# Parts of a weight below which its gradient is all-reduced: of the last axis, of another, and of an expert's weight.
_NARROW, _NARROW_ROWS, _NARROW_EXPERTS = 256, 128, 64
_ALIKE = 0.02  # of a plan's time
# Times that weights, and what `remat: none` keeps of a position, are read or written in a step: of programs for v5p.
_WEIGHTS_PASSES, _KEPT_PASSES = 6, 8
# Times that XLA's attention writes or reads an array of logits, forward and backward.
_LOGITS_PASSES = 10
_DTYPE = "bfloat16"  # of activations
_OWN_PART = 0.625  # of a row's pairs with itself that XLA's attention computes


@dataclasses.dataclass(frozen=True)
class MeshPlan:
    """What is chosen: sizes of the mesh, `model.remat` and `train.accumulation_steps`."""

    data: int
    fsdp: int
    tensor: int
    remat: str = "none"
    accumulation: int = 1
    expert: int = 1

    @property
    def shards(self) -> int:
        """Blocks of a batch."""
        return self.data * self.fsdp * self.expert

    @property
    def sizes(self) -> dict[str, int]:
        """Of the mesh's axes, in their order; `expert` where it is cut."""
        expert = {} if self.expert == 1 else {"expert": self.expert}
        return {"data": self.data, "fsdp": self.fsdp, **expert, "tensor": self.tensor}

    def __str__(self) -> str:
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.sizes.items())
        return f"{mesh}, remat {self.remat}, {self.accumulation} microbatches"


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


def meshes(devices: int, slices: int, model: ModelConfig, groups: int) -> Iterator[MeshPlan]:
    """Meshes of all devices: heads, MLP and vocabulary divide by tensor, experts by expert; slices hold whole copies."""
    for tensor in _divisors(devices):
        if model.heads % tensor or model.mlp_width % tensor or model.vocab_size % tensor or tensor > model.kv_heads:
            continue
        for data in _divisors(devices // tensor):
            parts = devices // tensor // data
            if data % slices == 0 and groups % (data * parts) == 0 and model.width % parts == 0:
                for expert in _divisors(math.gcd(parts, model.experts or 1)):
                    yield MeshPlan(data, parts // expert, tensor, expert=expert)


def plans(devices: int, slices: int, model: ModelConfig, groups: int) -> Iterator[MeshPlan]:
    """All plans that can be cut so."""
    for mesh in meshes(devices, slices, model, groups):
        each = groups // mesh.shards
        for accumulation in _divisors(each):
            if accumulation <= min(_MOST_MICROBATCHES, each):
                for remat in REMAT:
                    yield dataclasses.replace(mesh, remat=remat, accumulation=accumulation)


@dataclasses.dataclass(frozen=True)
class Planner:
    """What does not depend on the plan.

    Attributes:
      model: the shape. chip: what runs it. param_dtype: of stored weights. flash: whether attention is a kernel's.
      mesh: a plan -> the devices so arranged.
      use: parts (shards x microbatches) -> the shape that computes most where a step's groups are cut so.
      live: whether a reference's weights and forward pass come with a step.
    """

    model: ModelConfig
    chip: Chip
    param_dtype: str
    flash: bool
    mesh: Callable[[MeshPlan], Mesh]
    use: Callable[[int], ShapeUse]
    live: bool = False

    def best(self, candidates: Sequence[MeshPlan]) -> list[PlanEstimate]:
        """The plans that fit, best first; those with least memory where none does."""
        found = [self.estimate(plan) for plan in candidates]
        fitting = [each for each in found if each.memory <= USABLE * self.chip.memory]
        if not fitting:
            return sorted(found, key=lambda each: each.memory)[:1]
        # What a formula cannot tell apart goes by memory: what is free may hold longer rows.
        first = min(each.cost for each in fitting)
        return sorted(fitting, key=lambda each: (round(each.cost / first / _ALIKE), each.memory))

    def estimate(self, plan: MeshPlan) -> PlanEstimate:
        """What a plan takes."""
        mesh = self.mesh(plan)
        use = self.use(plan.shards * plan.accumulation)
        devices, seconds = mesh.devices.size, self._seconds(plan, use, mesh)
        possible = least_flops(use.forward) / (devices * self.chip.peak)
        memory = self._memory(plan, use)
        return PlanEstimate(plan, memory, seconds, possible / seconds.serial, possible / seconds.overlapped)

    def _seconds(self, plan: MeshPlan, use: ShapeUse, mesh: Mesh) -> Seconds:
        done = self._computed_forward(use)
        again = remat_flops(done, plan.remat, head=self._head_twice(plan, use))
        devices = mesh.devices.size
        compute = (least_flops(done) * (4 / 3 if self.live else 1) + again) / devices / self.chip.peak
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
        again, times = plan.remat == "full", plan.accumulation
        numbers = np.arange(plan.shards * plan.tensor).reshape(plan.data, plan.fsdp, plan.expert, plan.tensor)

        def along(*axes: int) -> np.ndarray:
            last = tuple(range(-len(axes), 0))
            return np.moveaxis(numbers, axes, last).reshape(-1, math.prod(numbers.shape[axis] for axis in axes))

        for part in self._parts(plan):
            if part.over == 1:
                continue
            group = along(1, 2) if part.everywhere else along(1)
            yield Moved("all-gather", times * (2 + self.live), 2 * part.weights, group)
            yield Moved("reduce-scatter", times * part.scattered, 2 * part.trained // part.over, group)
            yield Moved("all-reduce", times * (1 - part.scattered), 2 * part.trained, group)
        parts = plan.fsdp * plan.expert
        if plan.data > 1:  # twice where prompts and rows run one after the other, see `scoring.responses`
            each = times if parts > 1 else 2 * times
            yield Moved("all-reduce", each, 2 * self.trained // (parts * plan.tensor), along(0))
        tokens, layers = 2 * self._a_shard(use) * self.model.width, times * self.model.layers
        if plan.tensor > 1:
            yield Moved("all-reduce", layers * (4 + again), tokens, along(3))
        if plan.expert > 1:
            yield Moved("all-gather", layers * (2 + again), plan.expert * tokens, along(2))
            yield Moved("reduce-scatter", layers * 2, tokens, along(2))

    def _parts(self, plan: MeshPlan) -> Iterator[_Part]:
        """The weights as they are cut: all alike, but for those of experts."""
        model, tensor = self.model, plan.tensor
        heads = model.layers * model.heads * model.head_size * model.width  # o: its last axis is the width
        hidden = model.layers * model.mlp_width * model.width  # and down's
        if model.experts is None:
            scattered = _scattered(model.width // plan.fsdp, (heads + hidden) / self.weights)
            yield _Part(self.weights // tensor, self.trained // tensor, plan.fsdp, scattered, True)
            return
        routed, routed_trained = self._count(experts=True), self._count(experts=True, trained=True)
        weights, over = self.weights - routed, plan.fsdp * plan.expert
        scattered = _scattered(model.width // over, heads / weights)
        yield _Part(weights // tensor, (self.trained - routed_trained) // tensor, over, scattered, True)
        each, scattered = tensor * plan.expert, float(model.width // plan.fsdp >= _NARROW_EXPERTS)
        yield _Part(routed // each, routed_trained // each, plan.fsdp, scattered, False)

    def _traffic(self, plan: MeshPlan, use: ShapeUse) -> float:
        """Bytes that a chip reads and writes: weights and activations in every pass, and logits that XLA's attention makes."""
        again = plan.remat == "full"
        total = plan.accumulation * (_WEIGHTS_PASSES + again) * 2 * sum(part.weights for part in self._parts(plan))
        kept = position_bytes(self.model, _DTYPE, "none", plan.tensor, expert=plan.expert)
        total += plan.accumulation * self._a_shard(use) * kept * (_KEPT_PASSES + 2 * again)
        return total if self.flash else total + plan.accumulation * self.model.layers * self._logits(plan, use) * _LOGITS_PASSES

    def _logits(self, plan: MeshPlan, use: ShapeUse) -> float:
        shape, heads = use.describe(), self.model.heads / plan.tensor
        return 4 * heads * shape["rows"] * shape["length"] * (shape["prompt_length"] + shape["length"])

    def _memory(self, plan: MeshPlan, use: ShapeUse) -> float:
        """As a run's `rows_per_chunk: auto` counts it, so that a plan that fits computes all rows at one time."""
        model, shape = self.model, use.describe()
        vocabulary = model.vocab_size // plan.tensor
        logits = LOGITS * min(HEAD_CHUNK, shape["rows"] * shape["length"]) * vocabulary
        attention = 0.0 if self.flash else 3 * self._logits(plan, use) / shape["rows"]  # of one row at a time
        return self._without_logits(plan, use) + logits + attention

    def _without_logits(self, plan: MeshPlan, use: ShapeUse) -> float:
        model, parts = self.model, plan.fsdp * plan.expert * plan.tensor
        state = state_bytes(model, self.param_dtype, parts, live=model if self.live else None)
        state += 4 * self.trained // parts if plan.accumulation > 1 else 0
        outer = model.vocab_size * model.width * (1 if model.tied_embeddings else 2)
        together = sum(part.weights for part in self._parts(plan)) - outer / plan.tensor
        whole = 4 * 2 * together / model.layers + 4 * outer / 2 / plan.tensor if parts > plan.tensor else 0
        return state + whole + self._a_shard(use) * position_bytes(model, _DTYPE, plan.remat, plan.tensor, expert=plan.expert)

    def _head_twice(self, plan: MeshPlan, use: ShapeUse) -> bool:
        shape = use.describe()
        logits = LOGITS * shape["rows"] * shape["length"] * self.model.vocab_size // plan.tensor
        return self._without_logits(plan, use) + logits > USABLE * self.chip.memory

    @property
    def weights(self) -> int:
        """How many the model has."""
        return self._count()

    @property
    def trained(self) -> int:
        """How many of them have a gradient."""
        return self._count(trained=True)

    def _count(self, experts: bool = False, trained: bool = False) -> int:
        """Numbers in all weights, or those of experts alone, or those that have a gradient alone."""
        has_gradient = trained_paths(self.model) if trained else None
        return sum(
            math.prod(shape)
            for path, shape in flatten_dict(weight_shapes(self.model)).items()
            if (not experts or path[-1] in EXPERTS) and (has_gradient is None or path in has_gradient)
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Weights that are cut alike, as numbers on a device: brought together, and trained.

    Attributes:
      over: devices that bring them together; `everywhere`: of both axes, else of fsdp alone.
      scattered: the part whose gradients the compiler reduce-scatters.
    """

    weights: int
    trained: int
    over: int
    scattered: float
    everywhere: bool


def _scattered(rows: int, last: float) -> float:
    """The part of weights whose gradients are reduce-scattered: parts of so many rows, `last` of which are of the last axis."""
    return 1.0 if rows >= _NARROW else 1 - last if rows >= _NARROW_ROWS else 0.0


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
