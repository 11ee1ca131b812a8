"""`mesh: auto`: written in three ways, chosen on the devices that there are, and kept by the run."""

import types

import numpy as np
import pytest

from align_jax.cli.arguments import parse
from align_jax.config import Config, load_config, parse_overrides
from align_jax.config.source import ConfigValues
from align_jax.cost.chips import CHIPS
from align_jax.cost.estimate import Seconds
from align_jax.cost.plan import MeshPlan, PlanEstimate
from align_jax.errors import UserError
from align_jax.recipes import auto_mesh
from align_jax.recipes.compile import AutoMesh, CompileRequest, shapes_for, with_model
from align_jax.recipes.models import starting_model
from align_jax.recipes.setup import Setup

SHAPE = {"vocab_size": 64, "width": 32, "mlp_width": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8}


def config(folder, **train):
    return Config.of(
        {
            "model": {"config": SHAPE, "remat": "full"},
            "objective": {"name": "mpo"},
            "data": {},
            "run": {"dir": str(folder)},
            "mesh": "auto",
            "train": {"groups_per_step": 8, **train},
        }
    )


def test_it_is_written_in_three_ways(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("mesh: auto\n")
    assert load_config(file).mesh.auto
    assert Config.of({"mesh": "auto"}).mesh.auto and Config.of({"mesh": {"auto": True}}).mesh.auto
    for words in (["--mesh", "auto"], ["--mesh=auto"], ["--mesh.auto", "true"]):
        assert parse([*words, "--train.steps", "3"], [], "", config=True).overrides == [("mesh.auto", True), ("train.steps", 3)]


def test_an_option_takes_the_files_sizes_out(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("mesh: {fsdp: -1, tensor: 2}\n")
    found = load_config(file, parse_overrides(["--mesh.auto", "true"]))
    assert found.mesh.auto and (found.mesh.fsdp, found.mesh.tensor) == (1, 1)
    assert any("mesh.fsdp: -1 no longer holds, since --mesh.auto True" in note for note in found.source.notes)
    file.write_text("mesh: auto\n")
    assert load_config(file, parse_overrides(["--mesh.fsdp", "4"])).mesh.auto is False
    off = Config.of({"model": {"path": "a"}, "mesh": {"auto": False}}, "mesh.sequence=2")  # as a run folder has it
    assert off.mesh.sequence == 2 and not off.source.notes
    with pytest.raises(UserError, match="mesh.auto: true chooses the sizes; leave out mesh.fsdp: -1"):
        load_config(ConfigValues.of({"mesh": {"auto": True, "fsdp": -1}}))


def test_where_the_network_is_not_known_weights_are_cut(tmp_path, capsys):
    made = Setup.of(config(tmp_path / "run"))
    assert dict(made.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert not made.config.mesh.auto and (made.config.mesh.fsdp, made.config.model.remat) == (8, "full")
    assert "mesh: auto: nothing is trained here, so the weights are cut" in capsys.readouterr().err
    assert dict(Setup.of(config(tmp_path / "run", groups_per_step=4)).mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    with pytest.raises(UserError, match="8 devices and 1 microbatches cannot share 3 groups a step"):
        Setup.of(config(tmp_path / "run", groups_per_step=3))


def test_a_run_keeps_what_it_chose(tmp_path, monkeypatch, capsys):
    before = auto_mesh.planned(config(tmp_path), MeshPlan(2, 2, 2, "none", 2))
    folder = types.SimpleNamespace(is_run=True, config=before)
    monkeypatch.setattr(auto_mesh, "RunFolder", lambda path: types.SimpleNamespace(newest=folder))
    made = Setup.of(config(tmp_path))
    assert dict(made.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert (made.config.model.remat, made.config.train.accumulation_steps) == ("none", 2)
    assert "began: data 2 x fsdp 2 x tensor 2, remat none, 2 microbatches" in capsys.readouterr().err
    assert auto_mesh.pinned(config(tmp_path), 16) is None  # of another number of devices


def test_processes_agree_on_a_plan_by_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(auto_mesh, "_pinned", lambda *_: MeshPlan(1, 2, 1, "offload", 4, 4))
    monkeypatch.setattr(auto_mesh, "of_first", lambda value: int(np.asarray(value, np.int32)))  # all that is sent
    assert auto_mesh.pinned(config(tmp_path), 8) == MeshPlan(1, 2, 1, "offload", 4, 4)


def test_a_planned_config_is_written_and_read_again(tmp_path):
    plan = MeshPlan(2, 2, 2, "none", 2)
    (tmp_path / "c.yaml").write_text(auto_mesh.planned(config(tmp_path), plan).to_yaml())
    found = load_config(tmp_path / "c.yaml")
    assert (found.mesh.data, found.mesh.fsdp, found.mesh.tensor, found.mesh.auto) == (2, 2, 2, False)


def test_plans_are_ranked_on_a_known_chip_and_shown(tmp_path):
    devices = [
        types.SimpleNamespace(coords=at, core_on_chip=0, device_kind="TPU v5", platform="tpu", id=i, process_index=0)
        for i, at in enumerate(np.ndindex(2, 2, 1))
    ]
    given = Config.of(config(tmp_path), "model.attention=xla")
    model = starting_model(given)

    def use_of(planned, mesh):
        assert not planned.mesh.auto
        fake = types.SimpleNamespace(devices=mesh.devices, shape=mesh.shape, axis_names=mesh.axis_names)
        return shapes_for(Setup(planned, fake, model), CompileRequest("v5p:2x2x1", lengths="hh"))[0][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto_mesh, "make_mesh", _fake_mesh)
        found = auto_mesh.ranked(given, model.shape, devices, use_of)[:4]
    assert len({str(each.plan) for each in found}) == 4 and found[0].cost <= found[1].cost
    lines = auto_mesh.shown(found, CHIPS["TPU v5"].memory).splitlines()
    assert "GiB of 95" in lines[0] and len(lines) == 6


def _fake_mesh(*sizes_and_devices, expert):
    *sizes, devices = sizes_and_devices
    assert expert == 1
    array = np.empty(len(devices), object)
    array[:] = devices
    names = ("data", "fsdp", "tensor")
    shape = dict(zip(names, sizes, strict=True))
    return types.SimpleNamespace(devices=array.reshape(sizes), shape=shape, axis_names=names)


def test_what_replaces_a_users_key_is_said(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("mesh: auto\nmodel:\n  remat: full\n")
    plan = MeshPlan(1, 8, 1, "none", 1)
    found = load_config(file, parse_overrides(["--train.accumulation_steps", "4"]))
    assert auto_mesh.replaced(found, plan) == [
        f"mesh: auto: model.remat: full ({file}:3) is replaced by none",
        "mesh: auto: train.accumulation_steps: 4 (--train.accumulation_steps) is replaced by 1",
    ]
    assert auto_mesh.replaced(auto_mesh.planned(found, plan), plan) == []
    file.write_text("mesh: auto\n")
    assert auto_mesh.replaced(load_config(file), MeshPlan(1, 8, 1, "full", 2)) == []  # nothing that anybody gave


def test_a_known_model_takes_the_place_of_one_that_is_elsewhere():
    given = Config.of({"model": {"path": "some/where", "revision": "abc", "remat": "full"}, "objective": {"name": "mpo"}})
    found = with_model(given, "mistral-7b")
    source = starting_model(found)
    assert source.shape.width == 4096 and source.shape.sliding_window == 4096 and source.shape.head == "lm_head"
    assert source.tokenizer_at == "some/where@abc" and found.model.remat == "full"
    with pytest.raises(UserError, match="not both"):
        CompileRequest("v5e:4x4", lengths="hh", rows=object())
    with pytest.raises(UserError, match="--shapes: 0"):
        CompileRequest("v5e:4x4", shapes=0)


def test_the_best_of_those_compiled_is_taken_and_the_rest_are_shown(monkeypatch, tmp_path):
    plans = [MeshPlan(1, 4, 1, remat, 1) for remat in ("none", "full")] + [MeshPlan(4, 1, 1, "none", 1)]
    found = [PlanEstimate(plan, 2.0**30, Seconds(1, 1, n, 0), 0.5, 0.6) for n, plan in enumerate(plans)]
    took = {plans[0]: Seconds(3, 1, 1, 0), plans[1]: Seconds(2, 1, 1, 0)}
    monkeypatch.setattr(auto_mesh, "ranked", lambda *_: found)

    def compiled(self, given, plan):
        return types.SimpleNamespace(seconds=took[plan], memory=types.SimpleNamespace(total=7), fits=True)

    monkeypatch.setattr(AutoMesh, "_compiled", compiled)
    devices = [types.SimpleNamespace(device_kind="TPU v5")]
    source = types.SimpleNamespace(shape=None)
    made = AutoMesh(source, devices, CompileRequest("v5p:2x2x1")).chosen(config(tmp_path))
    assert made.config.model.remat == "full" and made.shape.seconds == took[plans[1]]
    assert [(row["remat"], row["data"], row["compiled"] is None) for row in made.rows] == [
        ("full", 1, False),
        ("none", 1, False),
        ("none", 4, True),
    ]
    monkeypatch.setattr(AutoMesh, "_compiled", lambda *_: None)
    with pytest.raises(UserError, match="none of the 3 best meshes fits when compiled; raise --candidates"):
        AutoMesh(source, devices, CompileRequest("v5p:2x2x1")).chosen(config(tmp_path))
