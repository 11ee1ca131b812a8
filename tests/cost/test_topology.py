"""The training step compiled for a TPU topology that is not there: it fits the formulas, and policies save memory."""

import dataclasses
import json

import pytest

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install 'align-jax[tpu]'")

import jax  # noqa: E402

from align_jax.cost import topology as tpu  # noqa: E402
from align_jax.errors import UserError  # noqa: E402
from align_jax.models import ModelConfig  # noqa: E402
from align_jax.objectives import OBJECTIVES  # noqa: E402
from align_jax.parallel.mesh import make_mesh  # noqa: E402
from align_jax.training.optim import AdamW, make_optimizer  # noqa: E402
from align_jax.training.step import Scorer  # noqa: E402

MODEL = ModelConfig(vocab_size=1024, width=256, mlp_width=512, layers=16, heads=4, kv_heads=2, head_size=128)
LENGTHS = tpu.Lengths(prompt=256, response=128, responses=4)
GROUPS = 4


@pytest.fixture(scope="module")
def devices():
    return tpu.topology_devices("v5e:2x2")


def compiled(devices, sizes=(1, 2, 2), **scorer):
    mesh = make_mesh(*sizes, devices=devices)
    objective, optimizer = OBJECTIVES["mpo"](beta=0.1), make_optimizer(AdamW(), 10)
    scorer = tpu.resolved(Scorer(MODEL, head_chunk=256, **scorer))
    batch = tpu.abstract_batch(objective, LENGTHS, mesh, GROUPS, 1)
    return tpu.report(tpu.compile_for(mesh, scorer, objective, optimizer, "float32", batch), mesh, scorer, LENGTHS, GROUPS)


@pytest.fixture(scope="module")
def reports(devices):
    return {policy: compiled(devices, remat=policy) for policy in ("none", "full")}


def test_the_step_compiles_with_splash_attention_and_fits(reports):
    report = reports["full"]
    assert report["attention"] == "splash" and report["fits"]
    # a forward, one more in the backward pass, and two backward kernels; for prompts and for responses
    assert report["kernel_calls"] == MODEL.layers * 2 * 4
    assert reports["none"]["kernel_calls"] == MODEL.layers * 2 * 3


def test_matrix_products_are_those_of_the_formula(reports):
    """Attention is left out: its kernels compute whole blocks, which at these lengths is much of so small a model."""
    for policy, report in reports.items():
        attention = tpu.forward_flops(MODEL, [LENGTHS.prompt] * GROUPS, [[LENGTHS.response] * 4] * GROUPS).attention
        products = report["flops_done"] - report["flops_done_kernels"]
        expected = report["flops_least"] + report["flops_remat"] - attention * (4 if policy == "full" else 3)
        assert products == pytest.approx(expected, rel=0.01)


def test_less_is_kept_where_more_is_recomputed(reports):
    assert reports["full"]["memory_bytes"]["temporaries"] < reports["none"]["memory_bytes"]["temporaries"]


def test_the_report_can_be_read(reports):
    report = json.loads(json.dumps(reports["full"]))
    lines = tpu.table(report).splitlines()
    assert lines[0].endswith("4 x TPU v5 lite, mesh data 1 x fsdp 2 x tensor 2")
    assert any("of 16 GiB: fits" in line for line in lines)
    assert {"all-reduce"} <= set(report["collectives"])


def test_unknown_topologies_and_groups_are_named(devices):
    with pytest.raises(UserError, match="--topology v99:1x1: libtpu cannot describe it"):
        tpu.topology_devices("v99:1x1")
    with pytest.raises(UserError, match="groups_per_step: 6 is not a multiple of 4"):
        tpu.check_groups(6, 2, make_mesh(1, 2, 2, devices=devices))


@pytest.mark.parametrize("name", ["kto", "sft", "gdpo", "dpo"])
def test_every_layout_has_an_abstract_batch(devices, name):
    objective, mesh = OBJECTIVES[name](), make_mesh(2, 2, 1, devices=devices)
    batch = tpu.abstract_batch(objective, LENGTHS, mesh, 8, 2)
    logps = jax.ShapeDtypeStruct(batch.mask.shape[1:], "float32")
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
    metrics = jax.eval_shape(lambda values, micro: objective(values, micro, _statistic(objective, values, micro)), logps, one)
    assert metrics["loss"][0].shape == (4,)
    assert dataclasses.is_dataclass(batch)


def _statistic(objective, logps, batch):
    own = objective.statistics(logps, batch)
    return None if own is None else own[0] / own[1]
