"""The estimate of a step on a GPU: counted by hand for one batch in each way of filling rows."""

from __future__ import annotations

import pytest

from align_jax.cost.epoch import Step
from align_jax.cost.flops import group_flops
from align_jax.cost.gpu_rows import RowsEstimate, intensity, steps_cost
from align_jax.cost.length_data import GroupLengths, LengthData
from align_jax.data import DataConfig, RowLayout, pack_groups
from align_jax.models import ModelConfig
from align_jax.objectives import OBJECTIVES

MODEL = ModelConfig(vocab_size=50, width=16, mlp_width=24, layers=3, heads=4, kv_heads=2, head_size=8)
LAYER = 2 * 3 * (2 * 16 * 4 * 8 + 2 * 16 * 2 * 8 + 3 * 16 * 24)  # operations of a position, forward
HEAD = 2 * 16 * 50


@pytest.mark.parametrize("pack", [True, False])
def test_by_hand(pack):
    data = LengthData([GroupLengths(9, (5, 3)), GroupLengths(4, (6, 2))], DataConfig(), OBJECTIVES["mpo"](beta=0.1))
    groups = [data[0], data[1]]
    batch = pack_groups(groups, shards=1, groups_per_shard=2, layout=RowLayout(pack=pack))
    step = Step(batch, group_flops(MODEL, groups), 0)
    (_, m, p), (_, n, r) = batch.prompt_tokens.shape, batch.tokens.shape
    dense = 3 * (LAYER * (m * p + n * r) + HEAD * n * r)
    if pack:
        attention = (5 / 8 * (m * p * p + n * r * r) + n * r * p) * (14 * 8 + 40 * 989e12 / 4.8e12)
    else:
        visible = 8 * 9 / 2 + 3 * 4 / 2 + sum(m * n + n * (n + 1) / 2 for m, n in ((8, 5), (8, 3), (3, 6), (3, 2)))
        attention = visible * 1.5 * 14 * 8
    assert steps_cost(MODEL, [step, step], "NVIDIA H200 NVL") == pytest.approx(2 * (dense + 3 * 4 * attention), rel=1e-12)


def test_cards():
    assert intensity("NVIDIA H100 80GB HBM3") == pytest.approx(989 / 3.35)
    assert intensity("an unknown card") == 250
    assert RowsEstimate(1.0, 2.0).packing_pays and not RowsEstimate(2.0, 1.0).packing_pays
