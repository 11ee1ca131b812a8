"""The training step compiled for a TPU topology that is not there: it fits the formulas, and policies save memory."""

import dataclasses
import json
import types
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install 'align-jax[tpu]'")

import jax  # noqa: E402

from align_jax.cost import topology as tpu  # noqa: E402
from align_jax.cost.estimate import EpochEstimate  # noqa: E402
from align_jax.cost.flops import forward_flops  # noqa: E402
from align_jax.cost.topology_report import report, table  # noqa: E402
from align_jax.errors import UserError  # noqa: E402
from align_jax.models import ModelConfig  # noqa: E402
from align_jax.objectives import OBJECTIVES  # noqa: E402
from align_jax.parallel.mesh import axis_sizes, make_mesh  # noqa: E402
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
    use = tpu.full_rows(objective, LENGTHS, mesh, GROUPS, 1, MODEL)
    shape = tpu.StepCompiler(mesh, scorer, objective, optimizer, "float32").compile(use)
    return report(EpochEstimate((use,), (shape,)), axis_sizes(mesh), scorer, [])


@pytest.fixture(scope="module")
def reports(devices):
    return {policy: compiled(devices, remat=policy) for policy in ("none", "full")}


def test_the_step_compiles_with_splash_attention_and_fits(reports):
    values = reports["full"]
    assert values["attention"] == "splash" and values["fits"]
    # a forward, one more in the backward pass, and two backward kernels; for prompts and for responses
    assert values["kernel_calls"] == MODEL.layers * 2 * 4
    assert reports["none"]["kernel_calls"] == MODEL.layers * 2 * 3


def test_matrix_products_are_those_of_the_formula(reports):
    """Attention is left out: its kernels compute whole blocks, which at these lengths is much of so small a model."""
    for policy, values in reports.items():
        attention = forward_flops(MODEL, [LENGTHS.prompt] * GROUPS, [[LENGTHS.response] * 4] * GROUPS).attention
        products = values["flops_done"] - values["flops_done_kernels"]
        expected = values["flops_least"] + values["flops_remat"] - attention * (4 if policy == "full" else 3)
        assert products == pytest.approx(expected, rel=0.01)


def test_less_is_kept_where_more_is_recomputed(reports):
    assert reports["full"]["memory_bytes"]["temporaries"] < reports["none"]["memory_bytes"]["temporaries"]


def test_the_report_can_be_read(reports):
    values = json.loads(json.dumps(reports["full"]))
    lines = table(values).splitlines()
    assert lines[0].endswith("4 x TPU v5 lite, mesh data 1 x fsdp 2 x tensor 2")
    assert any("of 16 GiB: fits" in line for line in lines)
    assert {"all-reduce"} <= set(values["collectives"])
    seconds = values["step_seconds"]
    assert 0 < seconds["compute"] < seconds["overlapped"] < seconds["serial"] and seconds["network"] > 0
    assert 0 < values["useful_utilization_serial"] < values["useful_utilization_overlapped"] < 1


@pytest.mark.parametrize(
    "name, said",
    [
        ("v99:1x1", "is no TPU and its size, such as v5e:4x4.*known are v4"),
        ("v5p", "is no TPU and its size"),
        ("v5p:4x4x", "is no TPU and its size"),
        ("v5p:3x3x3", "libtpu cannot describe it: .*chips come by the host"),
        ("v5p:4x4", "v5p is a network of three axes, such as v5p:4x4x1 or v5p:4x4x4"),
    ],
)
def test_unknown_topologies_are_named(name, said):
    with pytest.raises(UserError, match=f"--topology {name}: {said}"):
        tpu.topology_devices(name)


def test_groups_that_cannot_be_cut(devices):
    with pytest.raises(UserError, match="groups_per_step: 6 is not a multiple of 4"):
        tpu.check_groups(6, 2, make_mesh(1, 2, 2, devices=devices))


def test_meshes_that_split_an_axis_of_the_torus_are_arranged():
    devices = tpu.topology_devices("v5p:4x4x4")
    assert make_mesh(2, 32, 1, devices=devices).devices.shape == (2, 32, 1)
    assert make_mesh(1, 32, 2, devices=devices).devices.shape == (1, 32, 2)


def test_three_of_four_chips_are_no_ring(devices):
    with pytest.raises(UserError, match=r"3 chips of a TPU v5 lite network of 2 x 2 cannot be arranged so; choose sizes"):
        make_mesh(1, 1, 1, devices=devices, sequence=3)


def test_a_program_without_text_is_named(monkeypatch, tmp_path):
    """What JAX's cache had, or a folder that was cleaned up, leaves none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lowered = types.SimpleNamespace(
        compile=lambda compiler_options: types.SimpleNamespace(memory_analysis=lambda: Path(compiler_options["xla_dump_to"]))
    )
    with pytest.raises(UserError, match=f"left no text of the program in {tmp_path}/align_jax/dumps/.* .nothing is there"):
        tpu.program_text(lowered)


def test_two_cores_of_a_v4_chip_are_one_device():
    devices = tpu.topology_devices("v4:2x2x2")
    assert len(devices) == 8 and make_mesh(1, 8, 1, devices=devices).devices.size == 8


def test_slices_hold_whole_copies_of_the_weights():
    devices = tpu.topology_devices("v5e:2x2", slices=2)
    mesh = make_mesh(2, 2, 2, devices=devices)
    assert {d.slice_index for d in mesh.devices[0].flat} == {0} and {d.slice_index for d in mesh.devices[1].flat} == {1}
    with pytest.raises(UserError, match="2 slices are joined by a slow network.*set mesh.data to 2"):
        make_mesh(1, 8, 1, devices=devices)
    with pytest.raises(UserError, match="--slices: 0"):
        tpu.topology_devices("v5e:2x2", slices=0)


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
