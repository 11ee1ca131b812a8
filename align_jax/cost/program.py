"""A compiled program's text as instructions, and how often each of its computations runs."""

from __future__ import annotations

import dataclasses
import math
import re

ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its result type as text, operation, operand names, and the attributes as text."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


@dataclasses.dataclass
class Repeats:
    """How often a computation runs.

    Attributes:
      times: in all. apart: of these, as instructions of their own, and not as parts of a fusion.
    """

    times: float = 0.0
    apart: float = 0.0


def runs(computations: dict[str, list[Instruction]], entry: str) -> dict[str, Repeats]:
    """Name -> how often, of every computation that runs."""
    found: dict[str, Repeats] = {}
    _visit(computations, entry, 1.0, False, found)
    return found


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
        types[name] = parts(types[whole])[int(index)]
        found.append(Instruction(name, types[name], "get-tuple-element", (whole,), f"index={index}", False))
    return found


def parts(kind: str) -> list[str]:
    """The types in a tuple's type."""
    inner, found, depth = re.sub(r"/\*.*?\*/", "", kind.strip()[1:-1]), [""], 0
    for letter in inner:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [part.strip() for part in found]


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].strip()
    start = rest.index("(")
    stop = _closing(rest, start)
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)*)", rest[start + 1 : stop]))
    if rest[:start] in ("constant", "parameter"):
        operands = (rest[start + 1 : stop],)
    return Instruction(name, kind, rest[:start], operands, rest[stop + 1 :], bool(root))


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _visit(computations, name: str, factor: float, fused: bool, found: dict[str, Repeats]) -> None:
    own = found.setdefault(name, Repeats())
    own.times += factor
    own.apart += 0.0 if fused else factor
    for i in computations[name]:
        if i.op == "while":
            trips = trip_count(computations, i)
            for role in ("body", "condition"):
                _visit(computations, called(i, role), factor * trips, fused, found)
        elif i.op == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
            two = re.findall(r"(?:true|false)_computation=(%[\w.\-]+)", i.attributes)
            names = branches.group(1) if branches else "".join(two)
            for branch in re.findall(r"%([\w.\-]+)", names):
                _visit(computations, branch, factor, fused, found)
        elif i.op in ("fusion", "call", "async-start"):
            inner = inside(i)
            if inner:
                _visit(computations, inner, factor, fused or i.op == "fusion", found)


def inside(i: Instruction) -> str | None:
    """The computation that a fusion, call or asynchronous start runs."""
    match = re.search(r"(?:calls|to_apply|called_computation)=%?([\w.\-]+)", i.attributes)
    return match.group(1) if match else None


def called(i: Instruction, role: str) -> str:
    return re.search(rf"{role}=%?([\w.\-]+)", i.attributes).group(1)


def trip_count(computations: dict[str, list[Instruction]], loop: Instruction) -> int:
    """How often a `while` of the form `for (i = 0; i < n; i += step)` runs.

    Raises:
      ValueError: the loop has another form.
    """
    known = re.search(r'known_trip_count[^}]*?"?n"?[:=]"?(\d+)', loop.attributes)
    if known:
        return int(known.group(1))
    condition = {i.name: i for i in computations[called(loop, "condition")]}
    body = {i.name: i for i in computations[called(loop, "body")]}
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


def size_of(kind: str, on_chip: bool = True) -> int:
    """Bytes of all arrays of a type.

    Args:
      on_chip: whether those that the layout puts elsewhere than into the device's memory (`S(1)`: on the chip) count, too.
    """
    total = 0
    for element, dims, layout in ARRAY.findall(kind):
        if not on_chip and re.search(r"S\([1-9]\d*\)", layout):
            continue
        bits = _BITS[element] if element in _BITS else int(re.search(r"\d+", element).group())
        total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total
