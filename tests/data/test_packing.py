"""Batches hold exactly the contexts and targets of their groups, whatever the layout."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from align_jax.batch import computed_positions, real_positions, useful_tokens
from align_jax.data import RowLayout, Segment, TokenGroup, make_groups, pack_groups
from align_jax.data.packing.layout import fit, ladder
from align_jax.data.packing.plan import Shape
from tests.data.reference import expected, unpack

LAYOUTS = {
    "packed": RowLayout(pack=True),
    "left": RowLayout(pack=False, align="left"),
    "right": RowLayout(pack=False, align="right"),
    "uniform": RowLayout(pack=False, uniform_waste=float("inf")),
}


def random_group(rng, row, *, beliefs):
    def draw(n):
        return rng.integers(1, 1000, n).astype(np.int32)

    count = int(rng.integers(1, 6))
    segments = [Segment(draw(rng.integers(1, 12)), k) for k in range(count)]
    if beliefs:
        parent = int(rng.integers(count))
        if rng.random() < 0.3:  # a belief that only gives context
            segments[parent] = dataclasses.replace(segments[parent], slot=-1)
        segments += [Segment(draw(rng.integers(1, 12)), count + k, parent) for k in range(int(rng.integers(1, 4)))]
        rng.shuffle(rest := segments[count:])
        segments = segments[:count] + rest
    slots = count + (3 if beliefs else 0)
    labels = {"scores": rng.normal(size=slots).astype(np.float32), "group_id": np.int32(row % 3)}
    return TokenGroup(row, draw(rng.integers(1, 15)), tuple(segments), slots, labels)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("beliefs", [False, True], ids=["responses", "beliefs"])
def test_every_target_sees_its_prompt_its_belief_and_its_own_past(name, beliefs):
    for seed in range(25):
        rng = np.random.default_rng(seed)
        shards, per_shard = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        count = int(rng.integers(1, shards * per_shard + 1))
        groups = [random_group(rng, 10 + row, beliefs=beliefs) for row in range(count)]
        batch = pack_groups(groups, shards=shards, groups_per_shard=per_shard, layout=LAYOUTS[name])
        assert unpack(batch) == expected(groups), seed
        check_tables(batch, groups, shards * per_shard)
        check_promises(batch)


def check_tables(batch, groups, room):
    """mask, lengths, rows and labels `[G, ...]`."""
    by_row = {group.row: group for group in groups}
    assert sorted(batch.rows.tolist()) == sorted([*by_row, *[-1] * (room - len(groups))])
    for g, row in enumerate(batch.rows):
        lengths = np.zeros(batch.mask.shape[1], np.int32)
        scores = np.zeros(batch.mask.shape[1], np.float32)
        if row >= 0:
            for segment in by_row[row].segments:
                if segment.slot >= 0:
                    lengths[segment.slot] = len(segment.tokens)
            scores[: by_row[row].slots] = by_row[row].labels["scores"]
            assert batch.labels["group_id"][g] == row % 3
        np.testing.assert_array_equal(batch.lengths[g], lengths)
        np.testing.assert_array_equal(batch.mask[g], lengths > 0)
        np.testing.assert_array_equal(batch.scores[g], scores)


def check_promises(batch):
    """What the static flags and the padding promise to the model."""
    rows, prompts = batch.prompt_row.shape[1], batch.prompt_tokens.shape[1]
    if batch.uniform:
        expect = np.repeat(np.arange(prompts), rows // prompts)
        np.testing.assert_array_equal(batch.prompt_row, np.tile(expect, (len(batch.prompt_row), 1)))
    if not batch.packed:
        assert batch.segments.max() == 1 and batch.prompt_segments.max(initial=0) <= 1 and batch.parents.max() == 0
    padding = batch.segments == 0
    assert (batch.slots[padding] == -1).all() and (batch.groups[padding] == 0).all() and (batch.groups[~padding] > 0).all()


def test_a_scored_belief_with_texts_stands_once_in_a_packed_row():
    segments = (Segment(np.array([7, 8]), 0), Segment(np.array([9]), 1, 0), Segment(np.array([5]), 2, 0))
    group = TokenGroup(0, np.array([1, 2, 3]), segments, 3)
    batch = pack_groups([group], shards=1, groups_per_shard=1, layout=RowLayout())
    assert real_positions(batch) == 2 + 2 + 1 + 1
    unpacked = pack_groups([group], shards=1, groups_per_shard=1, layout=RowLayout(pack=False))
    assert real_positions(unpacked) == 2 + 2 + (2 + 1) + (2 + 1)
    assert useful_tokens(batch) == useful_tokens(unpacked) == 5 + 6 + 6


def test_right_alignment_puts_the_prompt_at_the_end_of_its_row():
    groups = [TokenGroup(i, np.arange(1, n + 1), (Segment(np.array([9]), 0),), 1) for i, n in enumerate((3, 6))]
    batch = pack_groups(groups, shards=1, groups_per_shard=2, layout=LAYOUTS["right"])
    assert (batch.prompt_segments[..., -1] == 1).all()
    first = np.argmax(batch.prompt_segments[0] > 0, axis=1)
    np.testing.assert_array_equal(batch.prompt_tokens.shape[2] - first, [2, 5])
    # index distance is position distance
    for row in range(2):
        np.testing.assert_array_equal(np.diff(batch.prompt_positions[0, row, first[row] :]), 1)


def test_shards_balance_and_order_of_the_input_does_not_matter_to_the_load():
    rng = np.random.default_rng(0)
    groups = [TokenGroup(i, np.ones(4, int), (Segment(np.ones(n, int), 0),), 1) for i, n in enumerate(rng.integers(1, 100, 32))]
    batch = pack_groups(groups, shards=4, groups_per_shard=8, layout=RowLayout())
    load = (batch.segments > 0).sum((1, 2)) + (batch.prompt_segments > 0).sum((1, 2))
    assert load.max() <= 1.05 * load.mean()
    again = pack_groups(groups, shards=4, groups_per_shard=8, layout=RowLayout())
    assert jax.tree.all(jax.tree.map(np.array_equal, batch, again))


def test_long_and_short_responses_share_rows():
    """One of 64 and eight of 8: unpacked rows would be mostly padding."""
    segments = tuple(Segment(np.ones(n, int), k) for k, n in enumerate([64] + [8] * 8))
    group = TokenGroup(0, np.ones(9, int), segments, 9)
    packed = pack_groups([group], shards=1, groups_per_shard=1, layout=RowLayout())
    assert computed_positions(packed) <= 1.1 * real_positions(packed)
    unpacked = pack_groups([group], shards=1, groups_per_shard=1, layout=RowLayout(pack=False))
    assert computed_positions(unpacked) > 4 * real_positions(unpacked)


def test_listed_shapes_come_before_the_ladder():
    from align_jax.data.packing.plan import Shape

    group = TokenGroup(0, np.ones(9, int), (Segment(np.ones(20, int), 0),), 1)
    wide, narrow, small = Shape(2, 16, 3, 40), Shape(1, 9, 2, 21), Shape(1, 4, 1, 21)
    layout = RowLayout(shapes=(wide, narrow, small))
    batch = pack_groups([group], shards=1, groups_per_shard=1, layout=layout)
    assert batch.prompt_tokens.shape[1:] + batch.tokens.shape[1:] == narrow
    bigger = TokenGroup(0, np.ones(99, int), (Segment(np.ones(20, int), 0),), 1)
    assert pack_groups([bigger], shards=1, groups_per_shard=1, layout=layout).prompt_tokens.shape[2] >= 98


def test_make_groups_keeps_order_and_lines_up_with_scores():
    batch = make_groups([[1, 2, 3], [4, 5]], [[[6, 7], [8]], [[9], [10], [11, 12, 13]]], [[0.5, 1.0], [3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(batch.mask, [[True, True, False], [True] * 3])
    np.testing.assert_array_equal(batch.lengths, [[2, 1, 0], [1, 1, 3]])
    np.testing.assert_array_equal(batch.scores, [[0.5, 1.0, 0.0], [3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(batch.rows, [0, 1])
    assert batch.uniform and not batch.packed and batch.tokens.shape[1] == 2 * 3
    assert unpack(batch)[1, 2] == [([4, 5], 11), ([4, 5, 11], 12), ([4, 5, 11, 12], 13)]
    assert not make_groups([[1]], [[[2]]]).labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "at least one prompt"),
        (([[1]], [[[2]], [[3]]]), "1 prompts, 2 lists of responses"),
        (([[]], [[[2]]]), "group 0 has an empty prompt"),
        (([[1], [1]], [[[2]], []]), "group 1 has an empty list of responses"),
        (([[1]], [[[2], []]]), "group 0 has an empty response"),
        (([[1]], [[[2], [3]]], [[1.0]]), "group 0 has 2 responses, but scores of shape"),
        (([[1]], [[[2]]], []), "0 lists of scores"),
        (([[1]], [[[2]]], [[1.0], [2.0]]), "2 lists of scores"),
    ],
)
def test_make_groups_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_groups(*arguments)


def test_groups_and_layouts_that_cannot_be():
    one = Segment(np.array([1]), 0)
    with pytest.raises(ValueError, match="row 3 has an empty prompt"):
        TokenGroup(3, np.array([], int), (one,), 1)
    with pytest.raises(ValueError, match="segment 1 .slot 1. has no tokens"):
        TokenGroup(3, np.array([1]), (one, Segment(np.array([], int), 1)), 2)
    with pytest.raises(ValueError, match="different slots below 1"):
        TokenGroup(3, np.array([1]), (one, Segment(np.array([1]), 1)), 1)
    with pytest.raises(ValueError, match="continues another"):
        TokenGroup(3, np.array([1]), (one, Segment(np.array([1]), 1, 0), Segment(np.array([1]), 2, 1)), 3)
    group = TokenGroup(3, np.array([1]), (one,), 1)
    with pytest.raises(ValueError, match="2 groups for 1 shards of 1"):
        pack_groups([group, group], shards=1, groups_per_shard=1, layout=RowLayout())
    with pytest.raises(ValueError, match="more than the 0 of the batch"):
        pack_groups([group], shards=1, groups_per_shard=1, layout=RowLayout(), slots=0)
    with pytest.raises(ValueError, match="the same labels"):
        pack_groups([group, dataclasses.replace(group, labels={"a": 1})], shards=1, groups_per_shard=2, layout=RowLayout())
    with pytest.raises(ValueError, match="align"):
        RowLayout(align="middle")
    with pytest.raises(ValueError, match="ascending"):
        RowLayout(row_counts=(2, 1))


def test_ladder():
    assert ladder(8, 20, 1.25, 8) == (8, 16, 24)
    sizes = ladder(1, 1000, 1.125, 1)
    assert sizes[:8] == (1, 2, 3, 4, 5, 6, 7, 8)
    assert all(b / a < 1.2 for a, b in zip(sizes[8:], sizes[9:], strict=False))
    assert [fit(n, (8, 16, 24)) for n in (0, 8, 9, 24)] == [8, 8, 16, 24]
    with pytest.raises(ValueError, match="25 is more than the largest size of the layout, 24"):
        fit(25, (8, 16, 24))


def test_what_a_shape_costs():
    shape = Shape(3, 8, 6, 16)
    assert shape.positions == 3 * 8 + 6 * 16
    assert shape.work(100) == 3 * 8 * (100 + 8) + 6 * 16 * (100 + 8 + 16)


def test_unpacked_prompts_with_as_many_responses_say_which_is_whose():
    groups = [TokenGroup(row, np.array([1, 2]), (Segment(np.array([3]), 0), Segment(np.array([4]), 1)), 2) for row in range(3)]
    batch = pack_groups(groups, shards=1, groups_per_shard=3, layout=RowLayout(pack=False))
    assert batch.uniform and batch.prompt_row.dtype == np.int32
    np.testing.assert_array_equal(batch.prompt_row, [[0, 0, 1, 1, 2, 2]])
