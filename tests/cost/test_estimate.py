"""Useful utilisation by hand, what is said of it, and what is advised; nothing is compiled."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from align_jax.cost.advice import advice
from align_jax.cost.chips import CHIPS
from align_jax.cost.epoch import ShapeUse, Step
from align_jax.cost.estimate import CompiledShape, EpochEstimate, Memory, collective_costs, covered
from align_jax.cost.flops import Forward
from align_jax.cost.hlo import Counts
from align_jax.cost.network import Moved, Places
from align_jax.cost.topology_report import report, table
from align_jax.errors import UserError
from align_jax.models.known import KNOWN, known_model
from align_jax.scoring.scorer import Scorer

CHIP = CHIPS["TPU v5"]
DEVICES = 4
PEAK = CHIP.peak * DEVICES  # operations a second of all


def use(positions, real, steps, least=PEAK * 0.1):
    @dataclasses.dataclass(frozen=True)
    class Batch:
        prompt_tokens: jax.ShapeDtypeStruct = jax.ShapeDtypeStruct((1, 1, 0, 1), "int32")
        tokens: jax.ShapeDtypeStruct = jax.ShapeDtypeStruct((1, 1, 1, positions), "int32")

    step = Step(Batch(), Forward(int(least / 3), 0, 0, 0), real)
    return ShapeUse((step,) * steps)


def compiled(of, done=0.125, network=0.05, traffic=0.01, total=2**30):
    moved = (Moved("all-gather", 1, round(network * 2 * CHIP.link_rate * 4 / 3), np.arange(4)[None]),)
    counts = Counts(done * CHIP.peak, {"all-gather": (1, moved[0].size)}, 0, moved, traffic * CHIP.hbm_rate)
    places = Places(np.arange(4)[:, None], np.zeros(4, int))
    memory = Memory(total, 0, 0, 0, 0, 0)
    return CompiledShape(of, memory, counts, 0, 0, collective_costs(counts, CHIP, places), CHIP, DEVICES, 1.0)


def test_utilisation_of_one_shape():
    one = use(100, 80, 3)
    estimate = EpochEstimate((one,), (compiled(one),))
    assert estimate.real_fraction == 0.8
    assert estimate.utilization("overlapped") == pytest.approx(0.1 / 0.125, rel=1e-6)
    assert estimate.utilization("serial") == pytest.approx(0.1 / (0.125 + 0.05), rel=1e-6)
    slow = EpochEstimate((one,), (compiled(one, traffic=0.2),))
    assert slow.utilization("bound") == pytest.approx(0.5) and slow.utilization("overlapped") == pytest.approx(0.8)


def test_an_epoch_is_the_sum_of_its_shapes():
    often, seldom, other = use(100, 80, 3), use(200, 190, 1, PEAK * 0.21), use(150, 120, 2, PEAK * 0.16)
    estimate = EpochEstimate((often, seldom, other), (compiled(often), compiled(seldom, done=0.24)))
    times = [0.125, 0.24, 0.125 * 1.5]  # the third as the first, by its positions
    assert estimate.utilization("overlapped") == pytest.approx((0.3 + 0.21 + 0.32) / (3 * times[0] + times[1] + 2 * times[2]))
    assert estimate.main.use is often and covered(estimate.compiled, estimate.uses) == pytest.approx(500 / 800)
    assert estimate.real_fraction == pytest.approx((240 + 190 + 240) / 800)


def test_the_report_has_its_keys_and_can_be_read():
    one, rare = use(100, 80, 3), use(120, 80, 1)
    estimate = EpochEstimate((one, rare), (compiled(one, total=2**30),))
    scorer = Scorer(known_model("llama-3-8b"), attention="xla", remat="none")
    values = json.loads(json.dumps(report(estimate, {"data": 1, "fsdp": 4, "tensor": 1}, scorer, ["less"])))
    assert {
        *(
            "device",
            "devices",
            "mesh",
            "attention",
            "remat",
            "memory_bytes",
            "fits",
            "flops_least",
            "flops_remat",
            "flops_done",
        ),
        *("flops_done_kernels", "flops_ratio", "kernel_calls", "collectives", "compile_seconds", "real_tokens_fraction"),
        *("useful_utilization_serial", "useful_utilization_overlapped"),
    } <= set(values)
    assert values["fits"] and values["collectives"]["all-gather"]["count"] == 1
    assert values["collectives"]["all-gather"]["seconds"] == pytest.approx(0.05)
    assert [shape["compiled"] for shape in values["shapes"]] == [True, False]
    lines = table(values).splitlines()
    assert any(line.endswith("not compiled, time by its size") for line in lines)
    assert lines[0].endswith("4 x TPU v5, mesh data 1 x fsdp 4 x tensor 1") and lines[-1].split() == ["to", "change", "less"]


def lines(shape, remat="none", packed=True, accumulation=1, attention="xla", **more):
    how = {"remat": remat, "accumulation": accumulation, "packed": packed, "attention": attention}
    return advice(EpochEstimate((shape.use,), (shape,)), **how, **more)


def test_advice_names_what_takes_most():
    full = use(100, 95, 1)
    assert lines(compiled(full)) == ["nothing stands out"]
    assert "memory: model.remat: full" in lines(compiled(full, total=200 * 2**30))[0]
    assert "collectives take longer" in lines(compiled(full, network=0.3))[0]
    assert "fewer train.accumulation_steps" in lines(compiled(full, network=0.3), accumulation=2)[0]
    assert "memory traffic takes longest: an attention kernel" in lines(compiled(full, traffic=0.3))[0]
    (line,) = lines(compiled(full, traffic=0.3), attention="pallas")
    assert line.startswith("memory traffic takes longest: more train.groups_per_step")
    (line,) = lines(compiled(full, traffic=0.3), attention="pallas", expert=2, fsdp=4)
    assert line.startswith("memory traffic takes longest: less fsdp in mesh") and "less expert in mesh" in line
    repeated = dataclasses.replace(compiled(full), remat=round(PEAK * 0.025))
    (line,) = lines(repeated, remat="full")
    assert line == "25% of the least FLOPs are repeated, and 99% of memory is free: model.remat: dots or none"
    assert "30% of the positions are padding" in lines(compiled(use(100, 70, 1)))[0]


def test_known_shapes_are_those_of_the_models():
    sizes = {"llama-3-8b": 8.03, "llama-3-70b": 70.55, "mistral-7b": 7.24, "llama-3.2-1b": 1.236, "smollm2-135m": 0.1345}
    for name, billions in sizes.items():
        c = KNOWN[name]
        embeddings = c.vocab_size * c.width * (1 if c.tied_embeddings else 2)
        layer = c.width * c.head_size * 2 * (c.heads + c.kv_heads) + 3 * c.width * c.mlp_width + 2 * c.width
        assert (embeddings + c.layers * layer + c.width) / 1e9 == pytest.approx(billions, rel=2e-3), name
    with pytest.raises(UserError, match="none of the known shapes; did you mean llama-3-8b"):
        known_model("lama-3-8b")


def test_permutations_both_ways_run_at_one_time():
    places = Places(np.arange(4)[:, None], np.zeros(4, int))
    around = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    forth, back = (Moved("collective-permute", 1, 10**9, pairs) for pairs in (around, around[:, ::-1]))
    one = collective_costs(Counts(0, {}, 0, (forth,)), CHIP, places)["collective-permute"].inside
    both = collective_costs(Counts(0, {}, 0, (forth, back)), CHIP, places)["collective-permute"].inside
    assert one == both == pytest.approx(1e9 / CHIP.link_rate)
