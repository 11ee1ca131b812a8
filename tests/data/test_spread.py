"""Groups spread over shards: every response once, no row too full, and the same losses wherever they stand."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align_jax.batch import computed_positions, pad_to, real_positions, sizes, useful_tokens
from align_jax.data import BatchLoader, RowLayout, Segment, TokenGroup, pack_groups
from align_jax.data.of_lengths import GroupsOfLengths, read_lengths
from align_jax.data.packing.cover import MOST_SHAPES
from align_jax.data.packing.plan import GroupSize, Shape, Unit
from align_jax.data.packing.spread import plan_spread
from align_jax.data.packing.spread_shapes import choose_spread_shapes
from align_jax.data.packing.step_plan import first_shape, plan_step
from align_jax.errors import UserError
from tests.data.reference import expected, unpack
from tests.data.test_packing import check_promises, check_tables, random_group

GROUP_SIZES = st.lists(
    st.builds(
        lambda prompt, units: GroupSize(prompt, tuple(Unit((i,), n) for i, n in enumerate(units))),
        st.integers(0, 40),
        st.lists(st.integers(1, 60), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=24,
)
SHAPES = st.builds(
    lambda m, p, each, r: Shape(m, p, m * each, r),
    st.integers(1, 3),
    st.integers(8, 96),
    st.integers(1, 3),
    st.integers(30, 200),
)


def check_plans(plans, groups, shape):
    """Each unit once, beside its prompt, in rows that are not too full; each prompt counted once."""
    seen, counted = [], []
    for plan in plans:
        assert len(plan.prompts) == shape.prompt_rows and len(plan.rows) == shape.rows
        for row, members in enumerate(plan.prompts):
            assert len(set(members)) == len(members)
            assert sum(groups[g].prompt for g in members) <= shape.prompt_length
            counted += [g for g in members if (row, g) not in plan.repeats]
        for at, (row, units) in enumerate(plan.rows):
            assert row == at // (shape.rows // shape.prompt_rows)
            assert sum(unit.size for _, unit in units) <= shape.length
            assert all(g in plan.prompts[row] for g, _ in units)
            seen += [(g, unit.segments) for g, unit in units]
    assert sorted(seen) == [(g, unit.segments) for g, size in enumerate(groups) for unit in size.units]
    assert sorted(counted) == list(range(len(groups)))


@settings(max_examples=200, deadline=None)
@given(GROUP_SIZES, st.integers(1, 6), SHAPES)
def test_a_plan_holds_every_unit_once_within_its_shape(groups, shards, shape):
    plans = plan_spread(groups, shards, shape)
    if plans is None:  # never where rows are so large that any lane holds all
        prompts, responses = sum(g.prompt for g in groups), sum(g.responses for g in groups)
        roomy = Shape(shape.prompt_rows, max(1, prompts), shape.rows, responses)
        plans, shape = plan_spread(groups, shards, roomy), roomy
    check_plans(plans, groups, shape)


@settings(max_examples=100, deadline=None)
@given(GROUP_SIZES, st.integers(2, 5), st.integers(1, 3))
def test_a_step_has_every_group_once_and_its_places_in_order(groups, shards, microbatches):
    per_shard = -(-len(groups) // (shards * microbatches))
    layout = RowLayout(spread=shards)
    plan = plan_step(groups, microbatches=microbatches, groups_per_shard=per_shard, layout=layout)
    standing = [g for block in plan.places for g in block if g >= 0]
    assert sorted(standing) == list(range(len(groups))) and {len(block) for block in plan.places} == {shards * per_shard}
    for block, places in zip(plan.blocks, plan.places, strict=True):
        mine = sorted(g for g in places if g >= 0)
        number = {g: i for i, g in enumerate(mine)}
        local = [GroupSize(groups[g].prompt, tuple(Unit((i,), u.size) for i, u in enumerate(groups[g].units))) for g in mine]
        if not mine:
            continue
        renumbered = [
            type(p)(
                [[number[g] for g in row] for row in p.prompts],
                [(row, [(number[g], unit) for g, unit in units]) for row, units in p.rows],
                frozenset((row, number[g]) for row, g in p.repeats),
            )
            for p in block
        ]
        check_plans(renumbered, local, plan.shape)
    again = plan_step(groups, microbatches=microbatches, groups_per_shard=per_shard, layout=layout)
    assert again == plan
    for count in range(1, shards + 1):  # processes share all that there is
        if shards % count == 0:
            parts = [plan.part(range(i * shards // count, (i + 1) * shards // count)) for i in range(count)]
            assert [sum((p.places[b] for p in parts), []) for b in range(microbatches)] == plan.places
            assert [sum((p.blocks[b] for p in parts), []) for b in range(microbatches)] == plan.blocks
    odd = plan.part(range(1, shards, 2))  # of a process whose devices stand apart
    assert odd.blocks == [block[1::2] for block in plan.blocks]
    assert [p[i : i + per_shard] for p in odd.places for i in range(0, len(p), per_shard)] == [
        p[i : i + per_shard] for p in plan.places for i in range(per_shard, len(p), 2 * per_shard)
    ]


@pytest.mark.parametrize("beliefs", [False, True], ids=["responses", "beliefs"])
def test_every_target_sees_its_prompt_its_belief_and_its_own_past(beliefs):
    split = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        shards, microbatches, per_shard = int(rng.integers(2, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 5))
        count = int(rng.integers(1, shards * microbatches * per_shard + 1))
        groups = [random_group(rng, 10 + row, beliefs=beliefs) for row in range(count)]
        how = {"shards": shards * microbatches, "groups_per_shard": per_shard}
        batch = pack_groups(groups, **how, layout=RowLayout(spread=shards))
        found = {}
        for a in range(microbatches):
            micro = jax.tree.map(lambda x, a=a, n=microbatches: x.reshape(n, -1, *x.shape[1:])[a], batch)
            check_promises(micro)
            found |= unpack(micro)
        assert found == expected(groups), seed
        check_tables(batch, groups, how["shards"] * per_shard)
        whole = pack_groups(groups, **how, layout=RowLayout())
        assert real_positions(batch) == real_positions(whole) and useful_tokens(batch) == useful_tokens(whole)
        split += bool(batch.repeated.any())
        m, p, n, r, k = sizes(batch)
        wider = pad_to(batch, (m, p + 8, n, r + 8, k + 1))
        assert real_positions(wider) == real_positions(batch) and useful_tokens(wider) == useful_tokens(batch)
    assert split > 5


def lengths(count=300, seed=0):
    """Like those of preference data: prompts short, answers very unequal."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(3.5, 0.8, count), 4, 200).astype(int)
    answers = np.clip(rng.lognormal(5.0, 0.9, (count, 4)), 4, 512).astype(int)
    return [(int(p), tuple(map(int, a))) for p, a in zip(prompts, answers, strict=True)]


def real_tokens(data, shards, groups, spread, accumulation=1, epochs=2):
    layout = RowLayout(spread=shards if spread else 1)
    how = {"shards": shards, "groups_per_step": groups, "accumulation_steps": accumulation, "layout": layout}
    loader, real, computed, shapes = BatchLoader(data, **how), 0, 0, set()
    for batch in itertools.islice(loader, epochs * len(data) // groups):
        real, computed = real + real_positions(batch), computed + computed_positions(batch)
        shapes.add(sizes(batch))
    return real / computed, shapes


@pytest.mark.parametrize(("shards", "groups", "accumulation", "least"), [(16, 32, 1, 0.8), (4, 32, 1, 0.9), (8, 64, 2, 0.88)])
def test_positions_are_real_tokens_in_few_shapes(shards, groups, accumulation, least):
    data = GroupsOfLengths(lengths())
    share, shapes = real_tokens(data, shards, groups, True, accumulation)
    assert share >= least and len(shapes) <= MOST_SHAPES
    assert share > 0.015 + real_tokens(data, shards, groups, False, accumulation)[0]


def test_shapes_are_of_the_data_and_the_seed():
    data = GroupsOfLengths(lengths())
    how = {"microbatches": 1, "groups_per_shard": 2, "layout": RowLayout(spread=8), "limits": data.limits}
    found = choose_spread_shapes(data.sizes, **how)
    assert 1 < len(found.shapes) <= MOST_SHAPES
    assert found == choose_spread_shapes(data.sizes, **how)
    assert found != choose_spread_shapes(data.sizes, **how, seed=1)
    priced = {**how, "layout": RowLayout(spread=8, price=1e15)}
    assert len(choose_spread_shapes(data.sizes, **priced, batches=10).shapes) == 1
    tiled = choose_spread_shapes(data.sizes, **{**how, "layout": RowLayout(spread=8, multiple=128)})
    assert all(shape.prompt_length % 128 == shape.length % 128 == 0 for shape in tiled.shapes)


def test_a_step_that_no_shape_holds_makes_rows_longer():
    group = TokenGroup(0, np.ones(50, int), (Segment(np.ones(300, int), 0),), 1)
    layout = RowLayout(spread=2, shapes=(Shape(1, 16, 2, 64), Shape(1, 16, 2, 32)))
    batch = pack_groups([group], shards=2, groups_per_shard=1, layout=layout)
    assert unpack(batch) == expected([group]) and batch.tokens.shape[:2] == (2, 2)
    small = TokenGroup(0, np.ones(9, int), (Segment(np.ones(30, int), 0),), 1)
    assert sizes(pack_groups([small], shards=2, groups_per_shard=1, layout=layout))[:4] == (1, 16, 2, 32)


def test_what_cannot_be():
    group = TokenGroup(3, np.array([1]), (Segment(np.array([1]), 0),), 1)
    with pytest.raises(ValueError, match="3 shards are no multiple of the 2"):
        pack_groups([group], shards=3, groups_per_shard=1, layout=RowLayout(spread=2))
    with pytest.raises(ValueError, match="3 groups for 1 shards of 2"):
        pack_groups([group] * 3, shards=2, groups_per_shard=1, layout=RowLayout(spread=2))
    with pytest.raises(ValueError, match="spread rows packed"):
        RowLayout(pack=False, spread=2)


def test_lengths_of_a_file(tmp_path):
    file = tmp_path / "lengths.jsonl"
    file.write_text('{"prompt": 120, "responses": [300, 41]}\n\n{"prompt": 1, "responses": [2]}\n')
    data = GroupsOfLengths(read_lengths(file))
    assert data.slots == 2 and data.limits == (119, 300) and [s.positions for s in data.sizes] == [460, 2]
    for text, message in (
        ("", "no line of lengths"),
        ('{"prompt": 1}', r"lengths.jsonl:1: not a line such as"),
        ('{"prompt": 1, "responses": []}', "no response"),
        ('{"prompt": 0, "responses": [1]}', "0 is no number of tokens"),
        ('{"prompt": 1, "responses": [true]}', "True is no number of tokens"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_lengths(file)
    with pytest.raises(UserError, match="No such file"):
        read_lengths(tmp_path / "absent")


def test_the_first_shape_holds_about_what_a_shard_gets():
    """Eight groups of 10 + 3 x 24 positions over two shards: two lanes of two prompts, rows of about six units between them."""
    sizes = [GroupSize(10, (Unit((0,), 24), Unit((1,), 24), Unit((2,), 24)))] * 8
    shape = first_shape([sizes], RowLayout(spread=2, multiple=8))
    assert shape == Shape(2, 24, 12, 24)
    assert shape.rows * shape.length == 8 * 72 // 2
