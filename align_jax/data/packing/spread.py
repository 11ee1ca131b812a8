"""Groups over the shards of a step by their tokens: where a group does not fit whole, its responses are split over several.

A shard has M lanes: a prompt row of P positions, and the N / M response rows of R positions that see it. A group whose
responses stand in several lanes has its prompt in each of them. Everything follows from lengths alone, so all processes plan
the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align_jax.data.packing.plan import GroupSize, Shape, ShardPlan, Unit, longest


def plan_spread(sizes: Sequence[GroupSize], shards: int, shape: Shape) -> list[ShardPlan] | None:
    """Where every group goes in shards of this shape; None where it found no way.

    Largest groups first, each to a lane that holds it whole: where lanes hold few groups, the fullest one (best fit); else the
    one whose room, of its prompt row and of its response rows, is most like the group in proportion, so that neither is used
    up before the other. One that no lane holds is split, its largest units first, over as few lanes as it takes.

    Args:
      sizes: of the groups. shards: D.
      shape: of every shard; its response rows are a multiple of its prompt rows.

    Returns:
      A plan for each shard, with the numbers of the groups in `sizes`.
    """
    lanes = shards * shape.prompt_rows
    prompt, unit = longest(sizes)
    each = shape.rows // shape.prompt_rows
    if prompt > shape.prompt_length or unit > shape.length:
        return None
    if sum(size.responses for size in sizes) > lanes * each * shape.length:
        return None
    filling = _Lanes(lanes, shape.prompt_length, each, shape.length, few=len(sizes) < _FEW * lanes)
    for g in sorted(range(len(sizes)), key=lambda g: (-sizes[g].positions, g)):
        if not (filling.whole(g, sizes[g]) or filling.split(g, sizes[g])):
            return None
    return filling.plans(shards)


_FEW = 3  # groups of a lane


class _Lanes:
    """Lanes while they are filled: the room of their prompt row and of their response rows, and what stands there."""

    def __init__(self, lanes: int, prompt_length: int, rows: int, length: int, few: bool):
        self.few, self.whole_lane = few, (prompt_length, rows * length)
        self.prompt_room = np.full(lanes, prompt_length)
        self.room = [[length] * rows for _ in range(lanes)]
        self.left, self.most = np.full(lanes, rows * length), np.full(lanes, length)
        self.prompts: list[list[int]] = [[] for _ in range(lanes)]
        self.rows: list[list[list[tuple[int, Unit]]]] = [[[] for _ in range(rows)] for _ in range(lanes)]

    def whole(self, g: int, size: GroupSize) -> bool:
        """Puts a group in one lane, if one holds it."""
        units = _largest_first(size)
        fits = (self.prompt_room >= size.prompt) & (self.left >= size.responses) & (self.most >= units[0].size)
        for lane in self._in_order(np.flatnonzero(fits), size).tolist():
            rows = _best_fit(self.room[lane], units)
            if rows is not None:
                self._open(lane, g, size)
                self._put(lane, rows, g, units)
                return True
        return False

    def _in_order(self, lanes: np.ndarray, size: GroupSize) -> np.ndarray:
        """The lanes in the order in which they are tried."""
        if self.few or len(lanes) < 2:
            return lanes[np.argsort(self.left[lanes], kind="stable")]
        of_prompt, of_rows = self.whole_lane
        prompts, rows = self.prompt_room[lanes] / of_prompt, self.left[lanes] / of_rows
        # the cosine between what is left and what is wanted, but for a factor
        alike = (prompts * (size.prompt / of_prompt) + rows * (size.responses / of_rows)) / np.sqrt(prompts**2 + rows**2)
        return lanes[np.argsort(-alike, kind="stable")]

    def split(self, g: int, size: GroupSize) -> bool:
        """Puts a group in several lanes, each time the one with the most room; False where they do not hold it."""
        opened: list[int] = []
        for unit in _largest_first(size):
            lane = next((lane for lane in opened if self.most[lane] >= unit.size), None)
            if lane is None:
                fits = (self.prompt_room >= size.prompt) & (self.most >= unit.size)
                fits[opened] = False
                if not fits.any():
                    return False
                lane = int(np.argmax(np.where(fits, self.left, -1)))
                self._open(lane, g, size)
                opened.append(lane)
            self._put(lane, _best_fit(self.room[lane], [unit]), g, [unit])
        return True

    def _open(self, lane: int, g: int, size: GroupSize) -> None:
        self.prompts[lane].append(g)
        self.prompt_room[lane] -= size.prompt

    def _put(self, lane: int, rows: Sequence[int], g: int, units: Sequence[Unit]) -> None:
        room = self.room[lane]
        for unit, row in zip(units, rows, strict=True):
            self.rows[lane][row].append((g, unit))
            room[row] -= unit.size
        self.left[lane], self.most[lane] = sum(room), max(room)

    def plans(self, shards: int) -> list[ShardPlan]:
        """The lanes of every shard."""
        each, seen, plans = len(self.prompts) // shards, set(), []
        for first in range(0, len(self.prompts), each):
            mine = range(first, first + each)
            repeats = set()
            for lane in mine:
                repeats |= {(lane - first, g) for g in self.prompts[lane] if g in seen}
                seen.update(self.prompts[lane])
            rows = [(lane - first, row) for lane in mine for row in self.rows[lane]]
            plans.append(ShardPlan([self.prompts[lane] for lane in mine], rows, frozenset(repeats)))
        return plans


def _largest_first(size: GroupSize) -> list[Unit]:
    return sorted(size.units, key=lambda unit: -unit.size)


def _best_fit(room: Sequence[int], units: Sequence[Unit]) -> list[int] | None:
    """The row of each unit, the fullest one that holds it; None where one finds none."""
    left, rows = list(room), []
    for unit in units:
        fitting = [(n, row) for row, n in enumerate(left) if n >= unit.size]
        if not fitting:
            return None
        row = min(fitting)[1]
        left[row] -= unit.size
        rows.append(row)
    return rows
