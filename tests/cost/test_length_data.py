"""Lengths in place of data: read, cut, packed by the loader; and what of an epoch is real."""

import numpy as np
import pytest

from align_jax.batch import GroupBatch
from align_jax.cost.epoch import chosen, epoch_steps, real_fraction, shapes_of
from align_jax.cost.flops import batch_flops, group_flops
from align_jax.cost.length_data import GroupLengths, LengthData, packaged_lengths, read_lengths
from align_jax.data import BatchLoader, DataConfig, RowLayout
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.objectives import OBJECTIVES

MODEL = ModelConfig(vocab_size=40, width=16, mlp_width=24, layers=3, heads=4, kv_heads=2, head_size=6)


def test_files_are_read_by_path_and_by_name(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": 120, "responses": [300, 41]}\n\n{"prompt": 1, "responses": [1]}\n')
    assert read_lengths(str(file)) == [GroupLengths(120, (300, 41)), GroupLengths(1, (1,))]
    assert {"ultrafeedback", "hh", "long-chat", "alpaca-eval"} == set(packaged_lengths())
    for name in packaged_lengths():
        assert len(read_lengths(name)) >= 500


def test_typical_lengths_have_the_published_medians():
    for name, total, ratio in (("ultrafeedback", 409, 0.42), ("hh", 186, 2.15), ("long-chat", 1160, 1.59)):
        groups = read_lengths(name)
        prompt, answer = np.median([g.prompt for g in groups]), np.median([n for g in groups for n in g.responses])
        assert prompt / answer == pytest.approx(ratio, rel=0.12) and prompt + answer == pytest.approx(total, rel=0.12)


@pytest.mark.parametrize(
    "line",
    ["{", "[1, 2]", '{"prompt": 0, "responses": [3]}', '{"prompt": 4, "responses": []}', '{"prompt": 4, "responses": [true]}'],
)
def test_a_wrong_line_is_named(tmp_path, line):
    file = tmp_path / "l.jsonl"
    file.write_text('{"prompt": 4, "responses": [3]}\n' + line + "\n")
    with pytest.raises(UserError, match=r"--lengths .*l.jsonl:2: .*120"):
        read_lengths(str(file))


def test_wrong_names_and_empty_files(tmp_path):
    with pytest.raises(UserError, match="no such file.*did you mean ultrafeedback"):
        read_lengths("ultrafedback")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no line"):
        read_lengths(str(tmp_path / "e.jsonl"))


def test_lengths_are_cut_and_kept_as_the_data_section_says():
    lengths = [GroupLengths(50, (9, 30, 4)), GroupLengths(5, (7,))]
    config = DataConfig(max_prompt_tokens=20, max_response_tokens=10, max_responses=2)
    data = LengthData(lengths, config, OBJECTIVES["mpo"](beta=0.1))
    assert [len(data[0].prompt), *(len(s.tokens) for s in data[0].segments)] == [20, 9, 10]
    assert len(data) == 2 and data.slots == 2 and data.limits == (19, 10)
    pairs = LengthData(lengths, config, OBJECTIVES["dpo"]())
    assert len(pairs) == 1 and len(pairs[0].segments) == 2
    with pytest.raises(UserError, match="do not say what objective gdpo computes"):
        LengthData(lengths, config, OBJECTIVES["gdpo"]())
    with pytest.raises(UserError, match="no prompt has the 2 answers"):
        LengthData(lengths[1:], config, OBJECTIVES["dpo"]())


def _steps(layout, count=6):
    rng = np.random.default_rng(0)
    lengths = [GroupLengths(int(rng.integers(2, 20)), tuple(map(int, rng.integers(1, 24, 3)))) for _ in range(40)]
    data = LengthData(lengths, DataConfig(), OBJECTIVES["mpo"](beta=0.1))
    loader = BatchLoader(data, shards=2, groups_per_step=8, accumulation_steps=2, layout=layout, workers=1, prefetch=1)
    return data, epoch_steps(loader, data, MODEL, count)


@pytest.mark.parametrize("pack", [True, False])
def test_real_tokens_and_operations_do_not_depend_on_packing(pack):
    _, steps = _steps(RowLayout(pack=pack))
    for step in steps:
        assert isinstance(step.batch, GroupBatch) and step.batch.packed == pack
        assert step.real == np.count_nonzero(step.batch.prompt_segments) + np.count_nonzero(step.batch.segments)
        assert step.forward == batch_flops(MODEL, step.batch)


def test_a_window_cuts_what_is_seen():
    data, steps = _steps(RowLayout(pack=True), 1)
    narrow = ModelConfig(**{**vars(MODEL), "sliding_window": 7})
    groups = [data[int(i)] for i in steps[0].batch.rows.reshape(-1)]
    assert group_flops(narrow, groups) == batch_flops(narrow, steps[0].batch) != group_flops(MODEL, groups)


def test_shapes_are_counted_and_the_largest_is_compiled():
    _, steps = _steps(RowLayout(pack=False), 10)
    uses = shapes_of(steps)
    assert sum(len(use.steps) for use in uses) == 10 and len(uses) > 1
    work = [use.computed * len(use.steps) for use in uses]
    assert work == sorted(work, reverse=True)
    assert max(use.computed for use in uses) in [use.computed for use in chosen(uses, 2)] and len(chosen(uses, 2)) <= 2
    assert len(chosen(uses, 1)) == 1
    assert real_fraction(uses) == pytest.approx(sum(s.real for s in steps) / sum(s.computed for s in steps))
