"""Counts of tokens on devices equal those on the host, whatever the layout, the mesh and the cut into microbatches."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from align_jax.batch import computed_positions, real_positions, useful_tokens
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.training.tokens import token_counts


def groups(count, *, ends=False, beliefs=False):
    rng = np.random.default_rng(5)
    draw = lambda n: rng.integers(0, 30, n).astype(np.int32)  # noqa: E731
    made = []
    for row in range(count):
        k = 2 + row % 3
        segments = [Segment(draw(rng.integers(1, 9)), i) for i in range(k)]
        if beliefs:  # a text that continues each belief, the last one a belief that is not scored
            segments += [Segment(draw(rng.integers(1, 9)), k + i, parent=i) for i in range(k)]
            segments[k - 1] = Segment(segments[k - 1].tokens, -1)
        labels = {"truncated": rng.integers(0, 4, 2).astype(np.int32)}
        made.append(TokenGroup(row, draw(rng.integers(1, 9)), tuple(segments), 2 * k, labels, ends=ends))
    return made


def batch_of(items, shards, accumulation, layout):
    parts = shards * accumulation
    batch = pack_groups(items, shards=parts, groups_per_shard=-(-len(items) // parts), layout=layout)
    return jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("how", [{}, {"ends": True}, {"beliefs": True}], ids=str)
@pytest.mark.parametrize(("shards", "accumulation"), [(1, 1), (4, 1), (2, 3)])
def test_counts_are_those_of_the_host(how, pack, shards, accumulation):
    items = groups(11, **how)  # not a multiple of the shards: some groups are padding
    batch = batch_of(items, shards, accumulation, RowLayout(pack=pack))
    mesh = make_mesh(shards, 1, 2)
    counts = {k: v.item() for k, v in jax.jit(token_counts)(put_batch(batch, mesh, leading=1)).items()}
    prompts, responses = np.sum([group.labels["truncated"] for group in items], axis=0)
    assert counts == {
        "tokens/computed": computed_positions(batch),
        "tokens/real": real_positions(batch),
        "tokens/useful": useful_tokens(batch),
        "tokens/truncated_prompts": prompts,
        "tokens/truncated_responses": responses,
    }
    by_hand = 0
    for group in items:
        own = [s for s in group.segments if s.slot >= 0]
        parents = [len(group.segments[s.parent].tokens) if s.parent >= 0 else 0 for s in own]
        by_hand += sum(len(group.prompt) + len(s.tokens) + parent for s, parent in zip(own, parents, strict=True))
    assert counts["tokens/useful"] == by_hand


def test_without_the_label_nothing_is_said_of_cuts():
    batch = batch_of(groups(4), 1, 1, RowLayout())
    del batch.labels["truncated"]
    assert set(token_counts(batch)) == {"tokens/computed", "tokens/real", "tokens/useful"}
