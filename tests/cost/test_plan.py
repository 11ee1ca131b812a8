"""Plans for meshes: which there are, what each takes by formula, and that more of something costs what it must."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from align_jax.cost.chips import CHIPS
from align_jax.cost.epoch import ShapeUse, Step
from align_jax.cost.flops import forward_flops
from align_jax.cost.plan import MeshPlan, Planner, meshes, plans
from align_jax.models.known import known_model

MODEL, CHIP = known_model("llama-3-8b"), CHIPS["TPU v5"]
SIZES, GROUPS = (4, 4, 4), 128
AT = list(np.ndindex(*SIZES))


def mesh(*sizes):
    devices = np.empty(64, object)
    devices[:] = [SimpleNamespace(coords=at, core_on_chip=0, slice_index=0) for at in AT]
    return SimpleNamespace(devices=devices.reshape(sizes))


def use(parts):
    """Full rows: a prompt of 512, four answers of 512."""
    each = GROUPS // parts
    shape = lambda n: jax.ShapeDtypeStruct((1, parts, n, 512), "int32")  # noqa: E731
    batch = SimpleNamespace(prompt_tokens=shape(each), tokens=shape(4 * each))
    forward = forward_flops(MODEL, [512] * GROUPS, [[512] * 4] * GROUPS)
    return ShapeUse((Step(batch, forward, GROUPS * 5 * 512),))


PLANNER = Planner(MODEL, CHIP, "float32", True, mesh, use)


def test_meshes_use_all_devices_and_divide_what_they_cut():
    found = list(meshes(64, 1, MODEL, GROUPS))
    assert (1, 64, 1) in found and (1, 16, 4) in found and len(set(found)) == len(found)
    assert all(d * f * t == 64 and t <= MODEL.kv_heads and GROUPS % (d * f) == 0 for d, f, t in found)
    assert all(d % 2 == 0 for d, *_ in meshes(64, 2, MODEL, GROUPS))
    assert not list(meshes(64, 1, MODEL, 7))
    assert {plan.accumulation for plan in plans(64, 1, MODEL, GROUPS) if plan.shards == 64} == {1, 2}


def test_by_formula_the_best_mesh_is_the_one_that_was_measured():
    """Of LLaMA-3-8B on v5p 4x4x4, full rows: fsdp 16 x tensor 4 without remat is better than fsdp 64 with `full`."""
    small = PLANNER.estimate(MeshPlan(1, 64, 1, "full", 1))
    good = PLANNER.estimate(MeshPlan(1, 16, 4, "none", 1))
    assert good.serial > small.serial and good.overlapped > small.overlapped
    assert small.overlapped == pytest.approx(0.81, abs=0.02)  # 1.23 times the least operations
    best = PLANNER.best(list(plans(64, 1, MODEL, GROUPS)))[0]
    assert best.plan.remat != "full" and best.cost <= 1.02 * good.cost and best.memory < CHIP.memory


def test_more_costs_more():
    plan = MeshPlan(1, 16, 4, "none", 1)
    base = PLANNER.estimate(plan)
    again = PLANNER.estimate(dataclasses.replace(plan, remat="full"))
    assert again.seconds.compute > base.seconds.compute and again.memory < base.memory
    halves = PLANNER.estimate(dataclasses.replace(plan, accumulation=2))
    assert halves.seconds.network > base.seconds.network and halves.memory < base.memory
    dots = PLANNER.estimate(dataclasses.replace(plan, remat="dots"))
    assert dots.seconds.compute == base.seconds.compute and again.memory < dots.memory < base.memory
    xla = dataclasses.replace(PLANNER, flash=False).estimate(plan)
    assert xla.seconds.memory > base.seconds.memory and xla.memory > base.memory


def test_where_nothing_fits_the_smallest_is_given():
    tiny = dataclasses.replace(PLANNER, chip=dataclasses.replace(CHIP, hbm_gib=1))
    (only,) = tiny.best(list(plans(64, 1, MODEL, GROUPS)))
    assert only.memory == min(tiny.estimate(plan).memory for plan in plans(64, 1, MODEL, GROUPS))
