"""Few shapes, little padding."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from align_jax.batch import computed_positions, real_positions, sizes
from align_jax.data import BatchLoader, DataConfig, Encoder, GroupDataset, RowLayout
from align_jax.data.arrange import Group
from align_jax.data.packing.cover import MOST_SHAPES
from align_jax.data.packing.layout import packed_plans
from align_jax.data.packing.plan import GroupSize, Unit, first_fit
from align_jax.data.packing.shapes import choose_shapes


def random_sizes(seed, count=200):
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        lengths = rng.integers(1, 101, int(rng.integers(2, 10)))
        drawn.append(GroupSize(int(rng.integers(0, 50)), tuple(Unit((i,), int(n)) for i, n in enumerate(lengths))))
    return drawn


@pytest.mark.parametrize("most", [1, 3, MOST_SHAPES])
def test_chosen_shapes_hold_nearly_all_steps_with_little_padding(most):
    data = random_sizes(0)
    layout = choose_shapes(data, shards=1, groups_per_shard=8, layout=RowLayout(), limits=(49, 100), steps=64, most=most)
    assert 1 <= len(layout.shapes) <= most
    rng, used, real, computed = np.random.default_rng(1), set(), 0, 0
    for _ in range(100):
        step = [data[i] for i in rng.choice(len(data), 8, replace=False)]
        shape, _ = packed_plans([step], layout)
        used.add(shape)
        real, computed = real + sum(g.positions for g in step), computed + shape.positions
    assert len(used - set(layout.shapes)) <= 2
    assert real / computed > {1: 0.6, 3: 0.8}.get(most, 0.85)


def test_the_choice_is_of_the_data_and_the_seed():
    how = {"shards": 2, "groups_per_shard": 4, "layout": RowLayout(), "limits": (49, 100), "steps": 32}
    assert choose_shapes(random_sizes(0), **how) == choose_shapes(random_sizes(0), **how)
    assert choose_shapes(random_sizes(0), **how, seed=1) != choose_shapes(random_sizes(0), **how)
    unpacked = RowLayout(pack=False)
    assert choose_shapes(random_sizes(0), **{**how, "layout": unpacked}) is unpacked


def test_a_shape_must_save_more_than_its_compilation_costs():
    how = {"shards": 1, "groups_per_shard": 8, "limits": (49, 100), "steps": 64}
    free = choose_shapes(random_sizes(0), **how, layout=RowLayout())
    work = max(shape.work(RowLayout().dense) for shape in free.shapes)

    def chosen(batches):
        return choose_shapes(random_sizes(0), **how, layout=RowLayout(price=5.0 * work), batches=batches).shapes

    # A shape can save no more than all the work of the run: ten batches are not worth five a shape.
    assert len(chosen(10)) == 1
    counts = [len(chosen(batches)) for batches in (10, 100, 1000, 1e9)]
    assert counts == sorted(counts) and counts[1] < counts[-1] == len(free.shapes)


def test_steps_that_are_all_alike_fill_their_shape():
    """Rows as long as the limit, which is on no ladder, and as many as there are units; one with a spare row beside."""
    alike = [GroupSize(45, (Unit((0,), 93), Unit((1,), 93)))] * 40
    layout = choose_shapes(alike, shards=1, groups_per_shard=4, layout=RowLayout(), limits=(45, 97), steps=16)
    assert layout.shapes == ((4, 45, 8, 97), (5, 45, 9, 97))
    assert choose_shapes(alike, shards=1, groups_per_shard=4, layout=RowLayout(), limits=(45, 200), steps=16).shapes == (
        (4, 45, 8, 96),
        (5, 45, 9, 96),
    )


def test_first_fit_fills_bins_and_loses_nothing():
    assert first_fit([3, 5, 2, 5], 5) == [[1], [3], [0, 2]]
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(0, 20, int(rng.integers(1, 40))).tolist()
        bins = first_fit(lengths, 20)
        assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in b) <= 20 for b in bins)
        assert len(bins) <= 11 / 9 * -(-sum(lengths) // 20) + 2


def real_data(prompt, response):
    if "ALIGN_JAX_DATA" not in os.environ:
        pytest.skip("ALIGN_JAX_DATA is not set: no real data")
    from transformers import AutoTokenizer

    folder = Path(os.environ["ALIGN_JAX_DATA"])
    config = DataConfig(
        train=str(folder / "preferences" / "train.jsonl"),
        format="ultrafeedback",
        max_prompt_tokens=prompt,
        max_response_tokens=response,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "stories260k")
    return GroupDataset(config, "train", Encoder(tokenizer, config), arrangement=Group())


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(192, 512), (100, 200)])
def test_nine_positions_of_ten_are_real_on_real_data_in_few_shapes(lengths):
    data = real_data(*lengths)
    for groups in (4, 8, 16):
        loader, shapes, real, computed = BatchLoader(data, shards=1, groups_per_step=groups), set(), 0, 0
        for batch in itertools.islice(loader, len(data) // groups):
            shapes.add(sizes(batch))
            real, computed = real + real_positions(batch), computed + computed_positions(batch)
        assert real / computed >= 0.9, groups
        assert len(shapes) <= MOST_SHAPES, groups
