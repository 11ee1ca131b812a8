"""What a compiled program does, counted from its text: floating-point operations, memory traffic and collectives.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs. Trip counts are read from the
loop's condition (`counter < constant`) and the counter's increment.
"""

from __future__ import annotations

import dataclasses
import math
import re

from align_jax.cost.groups import device_groups
from align_jax.cost.network import Moved
from align_jax.cost.program import ARRAY, Instruction, parse, parts, runs, size_of
from align_jax.cost.traffic import traffic

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one device.

    Attributes:
      flops: operations of matrix products; those of kernels (custom calls) are not among them.
      collectives: kind -> (number, bytes of their results). kernels: how many run.
      moved: the same collectives, one by one, with the devices that take part.
      traffic: bytes read from and written to the device's memory.
    """

    flops: float
    collectives: dict[str, tuple[int, int]]
    kernels: int
    moved: tuple[Moved, ...] = dataclasses.field(default=(), compare=False)
    traffic: float = 0.0


def count(text: str) -> Counts:
    """Counts what `compiled.as_text()` does when it runs.

    Kernels (custom calls) are counted, not looked into: their operations are not in `flops`.
    """
    computations, entry = parse(text)
    flops, kernels, memory = 0.0, 0.0, 0.0
    seen: dict[str, Moved] = {}
    for name, often in runs(computations, entry).items():
        table = {i.name: i for i in computations[name]}
        for i in computations[name]:
            if i.op in ("convolution", "dot"):
                flops += often.times * 2 * (_convolution(i, table) if i.op == "convolution" else _dot(i, table))
            elif i.op == "custom-call" and "tpu_custom_call" in i.attributes:
                kernels += often.times
            kind = i.op.removesuffix("-start")
            if kind in _COLLECTIVES:
                part = _scattered(i, computations[name])
                kind, result = (kind, _result_bytes(i)) if part is None else ("reduce-scatter", size_of(part.type))
                key = _identity(i, kind) or f"{name}/{i.name}"
                if key not in seen or seen[key].times < often.times:
                    seen[key] = Moved(kind, often.times, result, device_groups(i.attributes))
            elif often.apart:
                memory += often.apart * traffic(i, table, computations)
    totals: dict[str, tuple[int, int]] = {}
    for moved in seen.values():
        number, total = totals.get(moved.kind, (0, 0))
        totals[moved.kind] = (number + round(moved.times), total + round(moved.times * moved.size))
    return Counts(flops, dict(sorted(totals.items())), round(kernels), tuple(seen.values()), memory)


def _identity(i: Instruction, kind: str) -> str | None:
    """What an asynchronous collective has in common with itself: it is written once for every piece that it is cut into.

    Its channel alone does not tell it: the exchange at the edges of a padded reduce-scatter has the same one.
    """
    channel = re.search(r"channel_id=(\d+)", i.attributes)
    who = re.search(r"(?:replica_groups|source_target_pairs)=(\S+)", i.attributes)
    return None if channel is None else f"{channel.group(1)} {kind} {who.group(1) if who else ''}"


def _scattered(i: Instruction, computation: list[Instruction]) -> Instruction | None:
    """The part that a device keeps where an all-reduce and that slice of it are one fusion: a TPU's reduce-scatter."""
    root = next(x for x in computation if x.root)
    sliced = i.op == "all-reduce" and root.op == "dynamic-slice" and root.operands[0] == i.name
    return root if sliced else None


def _dims(kind: str) -> list[int]:
    return [int(d) for d in ARRAY.search(kind).group(2).split(",") if d]


def _result_bytes(i: Instruction) -> int:
    if i.op.endswith("-start") and i.type.startswith("("):  # (operand, result, ...)
        return size_of(parts(i.type)[1])
    return size_of(i.type)


def _dot(i: Instruction, table: dict[str, Instruction]) -> int:
    left = _dims(table[i.operands[0]].type)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes).group(1)
    return math.prod(_dims(i.type)) * math.prod(left[int(d)] for d in contracted.split(",") if d)


def _convolution(i: Instruction, table: dict[str, Instruction]) -> int:
    """Multiply-adds of a convolution, which is what a matrix product is on TPU; products with padding do not count."""
    left_labels, right_labels, out_labels = re.match(
        r"(\w+)_(\w+)->(\w+)", re.search(r"dim_labels=([\w>\-]+)", i.attributes).group(1)
    ).groups()
    left, right, out = (_dims(x) for x in (table[i.operands[0]].type, table[i.operands[1]].type, i.type))
    window = re.search(r"window=\{([^}]*)\}", i.attributes)
    window = dict(part.split("=") for part in window.group(1).split()) if window else {}
    total = out[out_labels.index("b")] * out[out_labels.index("f")] * right[right_labels.index("i")]
    for axis in range(sum(label.isdigit() for label in out_labels)):
        field = lambda name, default, axis=axis: window[name].split("x")[axis] if name in window else default  # noqa: E731
        low = int(field("pad", "0_0").split("_")[0])
        stride, spread, base = (int(field(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        size = left[left_labels.index(str(axis))]
        total *= sum(
            0 <= o * stride + k * spread - low <= (size - 1) * base and (o * stride + k * spread - low) % base == 0
            for o in range(out[out_labels.index(str(axis))])
            for k in range(int(field("size", "1")))
        )
    batches = re.search(r"batch_group_count=(\d+)", i.attributes)
    return total // (int(batches.group(1)) if batches else 1)
