"""What a batch means, the slow way: every scored target with all tokens that it may see, one comparison at a time."""

from __future__ import annotations

import numpy as np


def visible(batch, d, row, at):
    """(position, token) of everything that input `at` of a response row sees, itself included, by the documented rule."""
    segment, parent = batch.segments[d, row, at], batch.parents[d, row, at]
    seen = []
    p = batch.prompt_row[d, row]
    for i in range(batch.prompt_tokens.shape[2]):
        # padding has segment 0, which no token's group is
        if batch.prompt_segments[d, p, i] == batch.groups[d, row, at]:
            seen.append((batch.prompt_positions[d, p, i], batch.prompt_tokens[d, p, i]))
    for i in range(at + 1):
        if batch.segments[d, row, i] == segment or (parent and batch.segments[d, row, i] == parent):
            seen.append((batch.positions[d, row, i], batch.tokens[d, row, i]))
    return seen


def unpack(batch):
    """{(row, slot): [(context tokens, target), ...]} of every scored target, in the order of the positions.

    Raises AssertionError where the context is not the positions 0, 1, 2, ..., each once.
    """
    found = {}
    slots = batch.mask.shape[1]
    per_shard = 0 if batch.spread > 1 else batch.mask.shape[0] // batch.tokens.shape[0]
    for d, row, at in np.argwhere(batch.slots >= 0):
        assert batch.segments[d, row, at] > 0, "a scored target in padding"
        seen = sorted(visible(batch, d, row, at))
        assert [position for position, _ in seen] == list(range(len(seen))), "positions seen are not 0, 1, 2, ..."
        group, slot = divmod(int(batch.slots[d, row, at]), slots)
        key = (int(batch.rows[d * per_shard + group]), slot)
        found.setdefault(key, []).append(([int(token) for _, token in seen], int(batch.targets[d, row, at])))
    return {key: sorted(values, key=lambda v: len(v[0])) for key, values in found.items()}


def expected(groups):
    """The same from the groups: each response token with prompt, parent and response before it."""
    result = {}
    for group in groups:
        for segment in group.segments:
            if segment.slot < 0:
                continue
            prefix = [int(t) for t in group.prompt]
            if segment.parent >= 0:
                prefix += [int(t) for t in group.segments[segment.parent].tokens]
            tokens = [int(t) for t in segment.tokens]
            result[group.row, segment.slot] = [(prefix + tokens[:i], token) for i, token in enumerate(tokens)]
    return result
