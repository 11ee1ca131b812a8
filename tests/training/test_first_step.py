"""Step one of DPO: policy and reference agree, so the loss is ln 2, on every backend, packing, mesh and accumulation."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from align_jax.data import RowLayout
from align_jax.models import init_weights
from align_jax.objectives import DPO
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.scorer import Scorer
from tests.models.test_attention import portable_kernels  # noqa: F401  (a fixture)
from tests.training.test_step import CONFIG, make_items, one_step, scores, stacked, with_reference

PACKED, SINGLE = RowLayout(pack=True), RowLayout(pack=False)
# backend, layout, (data, fsdp, tensor, sequence), microbatches, options of the scorer
CASES = {
    "xla single": ("xla", SINGLE, (8, 1, 1, 1), 1, {"head_chunk": 4}),
    "xla chunks": ("xla", PACKED, (1, 4, 2, 1), 2, {"rows_per_chunk": 1, "remat": "dots"}),
    "xla sequence": ("xla", PACKED, (2, 1, 2, 2), 2, {"remat": "full"}),
    "pallas": ("pallas", PACKED, (2, 2, 2, 1), 2, {}),
    "splash": ("splash", SINGLE, (2, 2, 2, 1), 1, {"remat": "dots"}),
    "cudnn": ("cudnn", SINGLE, (2, 2, 2, 1), 2, {}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("portable_kernels")
@pytest.mark.parametrize("name", CASES)
def test_the_first_dpo_loss_is_ln_2(name):
    """The reference is scored by plain products on one device, so what a backend computes otherwise shows."""
    backend, layout, (data, fsdp, tensor, sequence), accumulation, options = CASES[name]
    batch = stacked(make_items(16, 2, scores=scores), accumulation, data * fsdp, layout)
    batch = with_reference(Scorer(CONFIG, "float32", attention="xla"), init_weights(CONFIG, jax.random.key(0)), batch)
    mesh = make_mesh(data, fsdp, tensor, sequence=sequence)
    _, metrics = one_step(batch, DPO(beta=0.7), mesh, Scorer(CONFIG, "float32", attention=backend, **options))
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert metrics["rewards/chosen"] == pytest.approx(0, abs=1e-4) and metrics["grad_norm"] > 1e-3
