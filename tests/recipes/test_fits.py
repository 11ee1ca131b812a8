"""What cannot be held is refused before it is allocated."""

from __future__ import annotations

import dataclasses
import types

import pytest

from align_jax.config import Config
from align_jax.data.packing.plan import GroupSize, Unit
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.parallel.mesh import make_mesh
from align_jax.recipes import fits
from align_jax.recipes.models import starting_model

TINY = {"vocab_size": 64, "width": 8, "mlp_width": 8, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 4}


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_a_model_larger_than_the_machine_is_refused_at_once(mesh):
    config = Config.of({"model": {"config": {**TINY, "width": 10**6, "layers": 1000}, "tokenizer": "x"}})
    source = starting_model(config)
    with pytest.raises(
        UserError, match=r"model.config: its .* parameters in float32 take .* GiB of .*1000 layers, width 1000000"
    ):
        source.load(mesh and make_mesh(*mesh), "float32")


def test_what_a_mesh_divides_may_be_larger(monkeypatch):
    shape = ModelConfig(**TINY)
    whole = sum(one.size for one in fits.jax.tree.leaves(fits.weight_structs(shape, "float32"))) * 4
    monkeypatch.setattr(fits, "host_memory", lambda: whole)
    fits.check_weights_fit(shape, None, "float32", "model")
    fits.check_weights_fit(shape, make_mesh(1, 8, 1), "float32", "model")
    with pytest.raises(UserError, match="larger mesh.fsdp"):  # eight copies in one memory
        fits.check_weights_fit(shape, make_mesh(8, 1, 1), "float32", "model")
    monkeypatch.setattr(fits, "host_memory", lambda: whole - 1)
    with pytest.raises(UserError, match="of this machine"):
        fits.check_weights_fit(shape, None, "float32", "model")


def test_batches_larger_than_the_machine_are_refused():
    config = Config.of({"data": {"train": "x"}}, "train.groups_per_step=100000000", "data.prefetch=3")
    dataset = types.SimpleNamespace(sizes=[GroupSize(100, (Unit((0,), 200),))])
    with pytest.raises(UserError, match=r"train.groups_per_step: 4 batches ahead .* of 100000000 groups of about 300 tokens"):
        fits.check_batches_fit(config, dataset)
    few = dataclasses.replace(config, train=dataclasses.replace(config.train, groups_per_step=64))
    fits.check_batches_fit(few, dataset)
