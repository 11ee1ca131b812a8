"""Bytes that an instruction of a compiled program reads from and writes to the device's memory.

An instruction reads its operands and writes its result once. Slices and updates in place touch their part alone, inside a
fusion, too; arrays that the compiler keeps on the chip (memory space 1 and above) cost nothing.
"""

from __future__ import annotations

from align_jax.cost.program import Instruction, inside, size_of

# What moves nothing, is counted elsewhere (the bodies of loops and calls), or ends what its start has begun.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "async-start"),
    *("after-all", "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency"),
}
_PARTS = ("dynamic-slice", "slice", "gather")

Table = dict[str, Instruction]


def traffic(i: Instruction, table: Table, computations: dict[str, list[Instruction]]) -> int:
    """Bytes of one run of an instruction that is not a collective.

    Args:
      table: the instructions of its computation by name. computations: those of the program.
    """
    if i.op in _FREE or i.op.endswith(("-done", "-update")):
        return 0
    if i.op.endswith("-start"):  # (destination, source, context)
        return _size(i.type)
    if i.op in _PARTS:
        return 2 * _size(i.type)
    if i.op == "dynamic-update-slice":
        return 2 * _size(table[i.operands[1]].type)
    if i.op == "scatter":
        return 3 * _size(table[i.operands[-1]].type)
    if i.op == "fusion":
        return _of_fusion(i, table, computations[inside(i)])
    return _size(i.type) + sum(_size(table[name].type) for name in i.operands if name in table)


def _of_fusion(i: Instruction, table: Table, body: list[Instruction]) -> int:
    by_name = {x.name: x for x in body}
    users: dict[str, list[Instruction]] = {}
    for x in body:
        for name in x.operands:
            users.setdefault(name, []).append(x)
    total = 0
    for x in body:
        if x.op != "parameter":
            continue
        given = table[i.operands[int(x.operands[0])]] if x.operands else None
        total += _read(x, given, users, by_name)
    return total + sum(_written(x, i, by_name) for x in body if x.root)


def _read(parameter: Instruction, given: Instruction | None, users: dict[str, list[Instruction]], body: Table) -> int:
    whole = _size(parameter.type if given is None else given.type)
    if not whole:
        return 0
    part = 0
    for user in _users(parameter, users):
        first = user.operands[0] if user.operands else None
        is_first = first is not None and _origin(first, body) == parameter.name
        if is_first and user.op in _PARTS:
            part += size_of(user.type)
        elif not (is_first and user.op in ("dynamic-update-slice", "scatter")):
            return whole
    return min(part, whole)


def _users(x: Instruction, users: dict[str, list[Instruction]]) -> list[Instruction]:
    """Those that use an array, seen through bitcasts."""
    found = []
    for user in users.get(x.name, []):
        found += _users(user, users) if user.op == "bitcast" else [user]
    return found


def _written(root: Instruction, fusion: Instruction, body: Table) -> int:
    if root.op == "tuple":
        return sum(_written(body[name], body[name], body) for name in root.operands)
    source = body[_origin(root.name, body)]
    if source.op == "dynamic-update-slice":
        return size_of(body[source.operands[1]].type)
    return _size(fusion.type)


def _origin(name: str, body: Table) -> str:
    while body[name].op == "bitcast":
        name = body[name].operands[0]
    return name


def _size(kind: str) -> int:
    return size_of(kind, on_chip=False)
