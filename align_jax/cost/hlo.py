"""What a compiled program does, counted from its text: floating-point operations and collectives, loops included.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs. Trip counts are read from the
loop's condition (`counter < constant`) and the counter's increment.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_BITS = {"pred": 8, "s4": 4, "u4": 4}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its result type as text, operation, operand names, and the attributes as text."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one device: operations of matrix products, collectives by kind as (number, bytes of their results), kernels."""

    flops: float
    collectives: dict[str, tuple[int, int]]
    kernels: int


def count(text: str) -> Counts:
    """Counts what `compiled.as_text()` does when it runs.

    Kernels (custom calls) are counted, not looked into: their operations are not in `flops`.
    """
    computations, entry = parse(text)
    times: dict[str, float] = defaultdict(float)
    _visit(computations, entry, 1.0, times)
    flops, kernels = 0.0, 0.0
    seen: dict[str, tuple[str, float, int]] = {}
    for name, factor in times.items():
        table = {i.name: i for i in computations[name]}
        for i in computations[name]:
            if i.op in ("convolution", "dot"):
                flops += factor * 2 * (_convolution(i, table) if i.op == "convolution" else _dot(i, table))
            elif i.op == "custom-call" and "tpu_custom_call" in i.attributes:
                kernels += factor
            kind = i.op.removesuffix("-start")
            if kind in _COLLECTIVES:
                # An asynchronous collective is written once for every piece that it is cut into, on one channel.
                channel = re.search(r"channel_id=(\d+)", i.attributes)
                key = channel.group(1) if channel else f"{name}/{i.name}"
                if key not in seen or seen[key][1] < factor:
                    seen[key] = (kind, factor, _result_bytes(i))
    totals: dict[str, tuple[int, int]] = {}
    for kind, factor, size in seen.values():
        number, total = totals.get(kind, (0, 0))
        totals[kind] = (number + round(factor), total + round(factor * size))
    return Counts(flops, dict(sorted(totals.items())), round(kernels))


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a module by name, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (match := _LINE.match(line)):
            current.append(_instruction(*match.groups()))
    if not entry:
        raise ValueError("this text has no ENTRY computation; give compiled.as_text()")
    for instructions in computations.values():
        instructions += _elements(instructions)
    return computations, entry


def _elements(instructions: list[Instruction]) -> list[Instruction]:
    """The elements of tuples that are written in place, `%name#2`, as the instructions they stand for."""
    types = {i.name: i.type for i in instructions}
    wanted = dict.fromkeys(name for i in instructions for name in i.operands if "#" in name)
    found = []
    for name in wanted:
        whole, _, index = name.rpartition("#")
        types[name] = _parts(types[whole])[int(index)]
        found.append(Instruction(name, types[name], "get-tuple-element", (whole,), f"index={index}", False))
    return found


def _parts(kind: str) -> list[str]:
    """The types in a tuple's type."""
    inner, parts, depth = re.sub(r"/\*.*?\*/", "", kind.strip()[1:-1]), [""], 0
    for letter in inner:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].strip()
    start = rest.index("(")
    stop = _closing(rest, start)
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)*)", rest[start + 1 : stop]))
    if rest[:start] == "constant":
        operands = (rest[start + 1 : stop],)
    return Instruction(name, kind, rest[:start], operands, rest[stop + 1 :], bool(root))


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _visit(computations, name: str, factor: float, times: dict[str, float]) -> None:
    times[name] += factor
    for i in computations[name]:
        if i.op == "while":
            trips = trip_count(computations, i)
            for role in ("body", "condition"):
                _visit(computations, _called(i, role), factor * trips, times)
        elif i.op == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
            two = re.findall(r"(?:true|false)_computation=(%[\w.\-]+)", i.attributes)
            names = branches.group(1) if branches else "".join(two)
            for branch in re.findall(r"%([\w.\-]+)", names):
                _visit(computations, branch, factor, times)
        elif i.op in ("fusion", "call", "async-start"):
            called = re.search(r"(?:calls|to_apply|called_computation)=%?([\w.\-]+)", i.attributes)
            if called:
                _visit(computations, called.group(1), factor, times)


def _called(i: Instruction, role: str) -> str:
    return re.search(rf"{role}=%?([\w.\-]+)", i.attributes).group(1)


def trip_count(computations: dict[str, list[Instruction]], loop: Instruction) -> int:
    """How often a `while` of the form `for (i = 0; i < n; i += step)` runs.

    Raises:
      ValueError: the loop has another form.
    """
    known = re.search(r'known_trip_count[^}]*?"?n"?[:=]"?(\d+)', loop.attributes)
    if known:
        return int(known.group(1))
    condition = {i.name: i for i in computations[_called(loop, "condition")]}
    body = {i.name: i for i in computations[_called(loop, "body")]}
    compare = next((i for i in condition.values() if i.op == "compare"), None)
    if compare is None or "direction=LT" not in compare.attributes:
        raise ValueError(f"the loop {loop.name} does not run while a counter is below a constant")
    counter, limit = (_source(condition, name) for name in compare.operands)
    index = int(re.search(r"index=(\d+)", counter.attributes).group(1))
    root = next(i for i in body.values() if i.root)
    step = _step(body, _source(body, root.operands[index]))
    return math.ceil(int(limit.operands[0]) / step)


def _source(table: dict[str, Instruction], name: str) -> Instruction:
    while table[name].op in ("copy", "bitcast", "convert"):
        name = table[name].operands[0]
    return table[name]


def _step(table: dict[str, Instruction], update: Instruction) -> int:
    if update.op == "add":
        for name in update.operands:
            if _source(table, name).op == "constant":
                return int(_source(table, name).operands[0])
    raise ValueError(f"the loop's counter is not increased by a constant: {update.name} = {update.op}")


def _dims(kind: str) -> list[int]:
    match = _ARRAY.search(kind)
    return [int(d) for d in match.group(2).split(",") if d]


def _result_bytes(i: Instruction) -> int:
    arrays = _ARRAY.findall(i.type)
    if i.op.endswith("-start") and len(arrays) > 1:
        arrays = arrays[1:2]  # (operand, result, ...)
    total = 0
    for kind, dims in arrays:
        bits = _BITS.get(kind) or int(re.search(r"\d+", kind).group())
        total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total


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
