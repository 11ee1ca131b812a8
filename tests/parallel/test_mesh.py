"""The mesh and the layout of weights on it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from align_jax.errors import UserError
from align_jax.models import ModelConfig, weight_shardings
from align_jax.parallel import mesh as meshes
from align_jax.parallel.axes import constrain, partition_spec
from align_jax.parallel.mesh import data_shards, idle, make_mesh, put_batch, readers, shards_of_processes

CONFIG = ModelConfig(vocab_size=32, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)


def test_mesh_sizes_and_rest():
    assert make_mesh(2, 2, 2).devices.shape == (2, 2, 2)
    assert make_mesh(1, -1, 2).devices.shape == (1, 4, 2)
    assert make_mesh(1, 1, 1).devices.shape == (1, 1, 1)
    assert data_shards(make_mesh(2, 2, 2)) == 4


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (3, -1, 1), (16, 1, 1), (-2, 1, 1)])
def test_impossible_meshes_are_refused_by_name(sizes):
    with pytest.raises(UserError, match=f"mesh.data={sizes[0]} x mesh.fsdp={sizes[1]}"):
        make_mesh(*sizes)


def test_devices_without_work_are_said():
    assert idle(make_mesh(1, -1, 2), 8) is None
    said = "mesh: data 1 x fsdp 2 x tensor 2 uses 4 of 8 devices, and the others are idle"
    assert idle(make_mesh(1, 2, 2), 8).startswith(said)


def test_chips_that_cannot_be_arranged_are_named(monkeypatch):
    """JAX's own words speak of an algorithm of which its users know nothing, or there are none."""
    chips = [
        types.SimpleNamespace(coords=(i % 2, i // 2, 0), id=i, platform="tpu", device_kind="TPU v5 lite", slice_index=0)
        for i in range(4)
    ]
    for error in (NotImplementedError("Failed to find assignment for logical_axis_index 2"), AssertionError()):

        def refuse(*_, error=error, **__):
            raise error

        monkeypatch.setattr(meshes.mesh_utils, "create_device_mesh", refuse)
        with pytest.raises(UserError, match=r"sequence=3 x .*: 3 chips of a TPU v5 lite network of 2 x 2 cannot be arranged"):
            make_mesh(1, 1, 1, devices=chips, sequence=3)


def test_weights_are_split_by_their_axes():
    specs = jax.tree.map(lambda s: s.spec, weight_shardings(CONFIG, make_mesh(2, 2, 2)))
    assert specs["layers"]["q"] == P(None, "fsdp", "tensor", None)
    assert specs["layers"]["down"] == P(None, "tensor", "fsdp")
    assert specs["embed"] == P("tensor", "fsdp")


def test_a_dimension_that_does_not_divide_stays_whole():
    assert partition_spec(("embed", "kv_heads"), (16, 2), {"fsdp": 2, "tensor": 4}) == P("fsdp", None)


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(ValueError, match="two dimensions are mapped to mesh axis"):
        partition_spec(("heads", "mlp"), (4, 8), {"tensor": 2})


def test_constrain_is_inert_without_a_mesh_and_inside_shard_map():
    x = jnp.arange(16.0).reshape(8, 2)
    assert np.array_equal(constrain(x, "shards", None), x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        f = jax.shard_map(lambda a: constrain(a * 2, "shards", None), in_specs=P("data"), out_specs=P("data"))
        assert np.array_equal(f(x), 2 * x)
    assert np.array_equal(jax.pmap(lambda a: constrain(a * 2, "shards", None))(x[:, None]), 2 * x[:, None])


def test_constrain_lays_out_under_jit():
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda a: constrain(a, "shards", None, "vocab"))(jnp.zeros((4, 3, 8)))
    assert out.sharding.spec == P(("data", "fsdp"), None, "tensor")


def test_put_batch_splits_the_axis_after_the_leading_ones():
    mesh = make_mesh(2, 2, 2)
    host = {"a": np.arange(24).reshape(2, 4, 3), "b": np.arange(8).reshape(2, 4)}
    device = put_batch(host, mesh, leading=1)
    jax.tree.map(np.testing.assert_array_equal, device, host)
    assert {s.data.shape for s in device["a"].addressable_shards} == {(2, 1, 3)}


def _mesh_of_processes(shape, processes):
    """A mesh (data, fsdp, sequence, tensor) whose devices belong to these processes, one after the other."""
    devices = np.array([types.SimpleNamespace(process_index=p) for p in processes]).reshape(shape)
    return types.SimpleNamespace(devices=devices, axis_names=("data", "fsdp", "sequence", "tensor"))


def test_what_processes_hold_follows_their_devices():
    apart = _mesh_of_processes((1, 4, 1, 1), [0, 1, 0, 1])
    assert shards_of_processes(apart, 2) == {0: (0, 2), 1: (1, 3)}
    shared = _mesh_of_processes((1, 2, 4, 1), [0, 0, 1, 1, 2, 2, 3, 3])
    assert shards_of_processes(shared, 4) == {0: (0,), 1: (0,), 2: (1,), 3: (1,)}
    assert readers(apart, 2) == readers(shared, 4) == 2 and readers(make_mesh(1, 8), 1) == 1
    for odd in (_mesh_of_processes((1, 3, 2, 1), [0, 0, 0, 1, 1, 1]), _mesh_of_processes((1, 2, 1, 1), [0, 0])):
        with pytest.raises(UserError, match=r"2 processes do not hold whole parts.*data x fsdp( .x expert.)? a multiple"):
            shards_of_processes(odd, 2)
