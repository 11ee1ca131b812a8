"""Bytes that an instruction of a compiled program reads from and writes to the device's memory.

An instruction reads its operands and writes its result once. Slices and updates in place touch their part alone, inside a
fusion, too; arrays that the compiler keeps on the chip (memory space 1 and above) cost nothing.
"""

from __future__ import annotations

import dataclasses

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
        return _Body.of(i, computations).moved([_size(table[name].type) for name in i.operands], i)
    return _size(i.type) + sum(_size(table[name].type) for name in i.operands if name in table)


@dataclasses.dataclass(frozen=True)
class _Body:
    """The computation inside a fusion: its instructions by name, and which of them use each."""

    table: Table
    users: dict[str, list[Instruction]]
    computations: dict[str, list[Instruction]]

    @classmethod
    def of(cls, fusion: Instruction, computations: dict[str, list[Instruction]]) -> _Body:
        users: dict[str, list[Instruction]] = {}
        for x in computations[inside(fusion)]:
            for name in x.operands:
                users.setdefault(name, []).append(x)
        return cls({x.name: x for x in computations[inside(fusion)]}, users, computations)

    def moved(self, given: list[int], fusion: Instruction) -> int:
        """Bytes read and written, where the operands have these sizes in memory."""
        read = sum(min(size, self.read(number)) for number, size in enumerate(given))
        return read + sum(self._written(x, fusion) for x in self.table.values() if x.root)

    def read(self, number: int) -> int:
        """Bytes that are used of an operand; the fusion inside, where it goes on to one, decides."""
        parameter = next(x for x in self.table.values() if x.op == "parameter" and x.operands == (str(number),))
        part = 0
        for user in self._users(parameter):
            places = [at for at, name in enumerate(user.operands) if self._origin(name) == parameter.name]
            if user.op == "fusion":
                part += sum(_Body.of(user, self.computations).read(at) for at in places)
            elif places == [0] and user.op in _PARTS:
                part += size_of(user.type)
            elif not (places == [0] and user.op in ("dynamic-update-slice", "scatter")):
                return size_of(parameter.type)
        return min(part, size_of(parameter.type))

    def _users(self, x: Instruction) -> list[Instruction]:
        """Those that use an array, seen through bitcasts."""
        found = []
        for user in self.users.get(x.name, []):
            found += self._users(user) if user.op == "bitcast" else [user]
        return found

    def _written(self, root: Instruction, fusion: Instruction) -> int:
        if root.op == "tuple":
            return sum(self._written(self.table[name], self.table[name]) for name in root.operands)
        source = self.table[self._origin(root.name)]
        if source.op == "dynamic-update-slice":
            return size_of(self.table[source.operands[1]].type)
        return _size(fusion.type)

    def _origin(self, name: str) -> str:
        while self.table[name].op == "bitcast":
            name = self.table[name].operands[0]
        return name


def _size(kind: str) -> int:
    return size_of(kind, on_chip=False)
