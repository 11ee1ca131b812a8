"""What a training step costs: time, memory, floating-point operations, compilation."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.batch import GroupBatch, computed_positions, real_positions, useful_tokens
from align_jax.cost.compilations import Compilations, so_far
from align_jax.cost.flops import Forward, batch_flops, least_flops, peak_flops
from align_jax.cost.hlo import count
from align_jax.data import RowLayout, Segment, TokenGroup, ahead, pack_groups
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.training.state import TrainState

# Where Linux says what a container's processes may use together (cgroups 2 and 1).
_CONTAINER_LIMITS = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]


@dataclasses.dataclass(frozen=True)
class Work:
    """What the timed batches hold: means of a step.

    Attributes:
      useful_tokens: every response with its prompt (what is computed without prefix sharing).
      padding: fraction of the computed positions. flops_least: of the real tokens, see `align_jax.cost.flops`.
      flops_padded: the same, were every computed position a token (that attends to no padding).
    """

    useful_tokens: float
    padding: float
    flops_least: float
    flops_padded: float

    @classmethod
    def of(cls, config: ModelConfig, batches: Sequence[GroupBatch]) -> Work:
        """Of host batches with microbatches on a leading axis."""
        computed = sum(computed_positions(b) for b in batches)
        return cls(
            useful_tokens=statistics.fmean(useful_tokens(b) for b in batches),
            padding=1 - sum(real_positions(b) for b in batches) / computed,
            flops_least=statistics.fmean(least_flops(batch_flops(config, b)) for b in batches),
            flops_padded=statistics.fmean(least_flops(_padded(batch_flops(config, b), b)) for b in batches),
        )


def _padded(real: Forward, batch: GroupBatch) -> Forward:
    """Operations of every computed position, given those of the real ones: all layers, and the head on response rows."""
    layers = computed_positions(batch) / real_positions(batch)
    scored = 1 if batch.ends else np.prod(batch.tokens.shape) / max(1, np.count_nonzero(np.asarray(batch.slots) >= 0))
    frozen = round(real.frozen * layers)  # nearly all of it is of layers
    return dataclasses.replace(real, layers=round(real.layers * layers), head=round(real.head * scored), frozen=frozen)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step: bytes on one device at its peak, and the operations of all devices."""

    run: Callable[[TrainState, GroupBatch], tuple[TrainState, dict]]
    memory_bytes: int
    flops: float | None


def program(step: Any, state: Any, batch: Any, devices: int) -> CompiledStep:
    """Compiles a jitted step for a state and a batch (arrays or their shapes).

    The operations are counted in the optimized program. They are None on a GPU, whose program calls libraries that say
    nothing of what they compute.
    """
    step = step.compiled(state, batch)
    compiled = step.program
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    platform = jax.tree.leaves(state)[0].sharding.mesh.devices.flat[0].platform
    flops = None if platform in ("gpu", "cuda", "rocm") else count(compiled.as_text()).flops * devices
    return CompiledStep(step, held + memory.temp_size_in_bytes, flops)


def random_batch(
    model: ModelConfig,
    label: Callable[[int], dict[str, np.ndarray]],
    *,
    groups: int,
    responses: int,
    prompt_tokens: int,
    response_tokens: int,
    shards: int,
    accumulation: int,
    seed: int,
) -> GroupBatch:
    """Random tokens of exactly these lengths, microbatches on a leading axis.

    Args:
      label: K -> the labels of one group, without the axis G.
      groups: of the whole step.
    """
    rng = np.random.default_rng(seed)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, model.vocab_size, n).astype(np.int32)

    made = [
        TokenGroup(
            g,
            tokens(prompt_tokens),
            tuple(Segment(tokens(response_tokens), k) for k in range(responses)),
            responses,
            label(responses),
            ends=model.head == "score",
        )
        for g in range(groups)
    ]
    # Lengths as they are: nothing is rounded up to a ladder's step.
    layout = RowLayout(
        pack=False,
        prompt_lengths=(max(prompt_tokens - 1, 1),),
        response_lengths=(response_tokens + (model.head == "score"),),
        row_counts=tuple(range(1, groups * responses + 1)),
        uniform_waste=float("inf"),
    )
    parts = shards * accumulation
    batch = pack_groups(made, shards=parts, groups_per_shard=groups // parts, layout=layout)
    return jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every timed step, waiting for its batch included, and the seconds spent waiting."""

    steps: list[float]
    waited: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.steps)

    @property
    def waiting(self) -> float:
        """Fraction of the time."""
        return sum(self.waited) / sum(self.steps)


def time_steps(
    programs: Callable[[GroupBatch], CompiledStep], state: TrainState, batches: Iterator, put: Callable, steps: int
) -> tuple[TrainState, Timing]:
    """Runs steps as training does: a batch is fetched ahead, and a step ends when its metrics are on the host."""
    fetched, seconds, waited = ahead(batches, put), [], []
    for _ in range(steps):
        began = time.perf_counter()
        batch, host, _ = next(fetched)
        waited.append(time.perf_counter() - began)
        state, metrics = programs(host).run(state, batch)
        jax.device_get(metrics)
        seconds.append(time.perf_counter() - began)
    return state, Timing(seconds, waited)


class Repeated:
    """A loader that hands out one batch for ever."""

    def __init__(self, batch: GroupBatch):
        self._batch = batch

    def __iter__(self) -> Repeated:
        return self

    def __next__(self) -> GroupBatch:
        return self._batch

    def state(self) -> None:
        """There is nothing to go back to."""


def measured_peak(dtype: str) -> float:
    """Operations per second of a large matrix product on one device, the best of a few."""
    n = 2048
    with jax.default_device(jax.local_devices()[0]):
        a = jnp.ones((n, n), dtype)
        product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest" if dtype == "float32" else None))
        product(a).block_until_ready()
        best = float("inf")
        for _ in range(8):
            began = time.perf_counter()
            product(a).block_until_ready()
            best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def device_peak(given: float | None, dtype: str) -> tuple[float, str]:
    """Operations per second of one device, and where the number is from."""
    if given is not None:
        return given, "bench.peak_flops"
    known = peak_flops(jax.devices()[0].device_kind)
    return (known, "data sheet") if known is not None else (measured_peak(dtype), "a large product, measured")


def device_memory(given: float | None) -> int:
    """Bytes that one device may hold: the allocator's limit, or this host's memory shared by its devices."""
    if given is not None:
        return int(given)
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return host_memory() // jax.local_device_count()


def host_memory() -> int:
    """Bytes of this host, or fewer where its container may have no more."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            return min(whole, int(file.read_text()))
    return whole


def memory_in_use() -> int | None:
    """The most bytes that the allocator of a device has handed out so far; None where it does not count."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def report(
    work: Work, timing: Timing, programs: Sequence[CompiledStep], spent: Compilations, peak: tuple[float, str], devices: int
) -> dict[str, Any]:
    """The numbers of a run as JSON values."""
    flops = [p.flops for p in programs]
    rate = work.useful_tokens * len(timing.steps) / sum(timing.steps)
    mean = statistics.fmean(timing.steps)
    return {
        "device": jax.devices()[0].device_kind,
        "devices": devices,
        "steps": len(timing.steps),
        "step_seconds": timing.median,
        "step_seconds_all": [round(t, 5) for t in timing.steps],
        "useful_tokens_per_step": work.useful_tokens,
        "useful_tokens_per_second": rate,
        "padding": work.padding,
        "data_fraction": timing.waiting,
        "flops_least": work.flops_least,
        "flops_done": None if None in flops else max(flops),
        "useful_utilization": work.flops_least / mean / (peak[0] * devices),
        "model_flops_utilization": work.flops_least / mean / (peak[0] * devices),
        "model_flops_utilization_padded": work.flops_padded / mean / (peak[0] * devices),
        "peak_flops": peak[0],
        "peak_flops_source": peak[1],
        "peak_memory_bytes": max(p.memory_bytes for p in programs),
        "peak_memory_in_use_bytes": memory_in_use(),
        "shapes": len(programs),
        "compile_seconds": spent.seconds,
        "compilations": spent.compiled,
        "compilations_cached": spent.cached,
    }


def linear_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares `y = base + slope x`, with the fraction of y's variance that it explains."""
    slope, base = np.polyfit(x, y, 1)
    rest = np.sum((np.asarray(y) - base - slope * np.asarray(x)) ** 2)
    total = np.sum((np.asarray(y) - np.mean(y)) ** 2)
    return {"base": float(base), "slope": float(slope), "r_squared": float(1 - rest / total) if total else 1.0}


def recommend(memory: dict[str, int | str], limit: int) -> str:
    """The first policy, from the fewest operations to the most, whose step fits; UserError where none does.

    Args:
      memory: policy -> bytes on a device at the peak, or why it could not be compiled, in order of operations.
    """
    for policy, size in memory.items():
        if isinstance(size, int) and size <= limit:
            return policy
    sizes = ", ".join(f"{p} {s / 2**30:.2f} GiB" if isinstance(s, int) else f"{p}: {s}" for p, s in memory.items())
    raise UserError(
        f"no rematerialization policy fits {limit / 2**30:.2f} GiB ({sizes}); set model.rows_per_chunk, raise "
        "train.accumulation_steps, or use more devices (mesh.fsdp)"
    )


def compilations_since(before: Compilations) -> Compilations:
    """What was compiled since `compilations.so_far()` gave `before`."""
    return so_far() - before


def distinct(batches: Iterable[GroupBatch]) -> dict[Any, GroupBatch]:
    """One batch of every shape."""
    found: dict[Any, GroupBatch] = {}
    for batch in batches:
        found.setdefault(shape_key(batch), batch)
    return found


def shape_key(batch: GroupBatch) -> Any:
    """What decides which program runs a batch."""
    leaves, tree = jax.tree.flatten(batch)
    return tree, tuple((x.shape, str(x.dtype)) for x in leaves)
