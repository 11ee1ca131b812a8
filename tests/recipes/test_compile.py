"""What `align-jax compile` compiles for, before anything is compiled."""

import types

import pytest

from align_jax.config import Config
from align_jax.cost.estimate import Seconds
from align_jax.cost.plan import MeshPlan, PlanEstimate
from align_jax.cost.topology import Lengths
from align_jax.errors import UserError
from align_jax.recipes import auto_mesh
from align_jax.recipes.compile import AutoMesh, CompileRequest, lengths_of


def config(objective, **data):
    return Config.of({"objective": {"name": objective}, **({"data": data} if data else {})})


def test_lengths_that_were_not_given_are_said(capsys):
    assert lengths_of(config("mpo", max_response_tokens=7), prompt=5) == Lengths(5, 7, 4)
    said = capsys.readouterr().err
    assert said.endswith("or by default: --response-tokens 7, --responses 4\n") and said.count("\n") == 1
    assert lengths_of(config("dpo"), 5, 6, 3).responses == 2
    assert capsys.readouterr().err == "align-jax: --responses 3: objective.name: dpo takes 2, and so these rows have\n"
    assert lengths_of(config("mpo"), 5, 6, 3) == Lengths(5, 6, 3) and lengths_of(config("dpo")) == Lengths(512, 512, 2)
    assert capsys.readouterr().err == ""


def test_lengths_must_be_positive():
    with pytest.raises(UserError, match="compile: response tokens or responses must be positive, got 0"):
        lengths_of(config("mpo"), 5, 0)


@pytest.mark.parametrize("candidates, compiled, chosen", [(1, 3, 2), (2, 3, 2), (4, 4, 3)])
def test_meshes_are_compiled_until_one_fits(candidates, compiled, chosen, monkeypatch):
    """The first two do not, whatever the formula says; of the others the fastest is taken."""
    found = [PlanEstimate(MeshPlan(1, 2**i, 1), 1.0, Seconds(1.0, 0.0, 0.0, 0.0), 0.5, 0.5) for i in range(4)]
    shapes = {
        each.plan: types.SimpleNamespace(
            fits=i > 1, seconds=Seconds(9.0 - i, 0.0, 0.0, 0.0), memory=types.SimpleNamespace(total=1)
        )
        for i, each in enumerate(found)
    }
    tried = []
    monkeypatch.setattr(auto_mesh, "ranked", lambda *_: found)
    monkeypatch.setattr(AutoMesh, "_compiled", lambda self, config, plan: tried.append(plan) or shapes[plan])
    device = types.SimpleNamespace(device_kind="TPU v5")
    auto = AutoMesh(types.SimpleNamespace(shape=None), [device], CompileRequest("v5p:4x4x4", candidates=candidates))
    best = auto.chosen(config("mpo"))
    assert len(tried) == compiled and best.config.mesh.fsdp == found[chosen].plan.fsdp
    for shape in shapes.values():
        shape.fits = False
    with pytest.raises(UserError, match="none of the 4 best meshes fits"):
        auto.chosen(config("mpo"))
