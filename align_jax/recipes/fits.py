"""Whether what a config asks for can be held at all, asked before any of it is allocated."""

from __future__ import annotations

import math
import statistics
from typing import Any

import jax
from jax.sharding import Mesh

from align_jax.config import Config
from align_jax.cost.benchmark import device_memory, host_memory
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.models.weights import weight_structs
from align_jax.parallel.mesh import axis_sizes

GIB = 2**30
_TOKEN_BYTES = 20  # of a batch on the host: ids, positions, owners, masks
_DIVIDE = ("fsdp", "tensor", "sequence")  # axes of a mesh that divide weights
_MANY = 100_000  # groups at hand at one time, fewer of which are not looked at


def check_weights_fit(shape: ModelConfig, mesh: Mesh | None, dtype: str, key: str) -> None:
    """UserError where a model's weights alone are more than a device (or, without a mesh, this machine) holds.

    Args:
      dtype: what they are kept in. key: what the config calls the model.
    """
    structs = jax.tree.leaves(weight_structs(shape, dtype))
    count, total = sum(one.size for one in structs), sum(one.size * one.dtype.itemsize for one in structs)
    devices = [] if mesh is None else list(mesh.devices.flat)
    if devices and devices[0] not in jax.devices():  # of a topology: nothing is allocated
        return
    sizes = {} if mesh is None else axis_sizes(mesh)
    needed, there, what = total // math.prod(sizes.get(axis, 1) for axis in _DIVIDE), host_memory(), "this machine"
    if devices and devices[0].platform != "cpu":
        there, what = device_memory(None), "a device"
    else:  # devices of a CPU share its memory
        needed *= max(1, sum(device.process_index == jax.process_index() for device in devices))
    if needed > there:
        raise UserError(
            f"{key}: its {count:.4g} parameters in {dtype} take {needed / GIB:.4g} GiB of {what}, which has {there / GIB:.4g} "
            f"GiB: is the shape right ({shape.layers} layers, width {shape.width}, vocabulary {shape.vocab_size})? A larger "
            "mesh.fsdp divides the weights over more devices"
        )


def check_batches_fit(config: Config, dataset: Any) -> None:
    """UserError where the batches that are made ahead are more than this machine holds."""
    ahead = max(config.data.prefetch, config.data.workers) + 1 if config.data is not None else 1
    groups = ahead * config.train.groups_per_step / jax.process_count()
    if groups < _MANY or not dataset.sizes:
        return
    tokens = statistics.fmean(size.positions for size in dataset.sizes)
    needed, there = groups * tokens * _TOKEN_BYTES, host_memory()
    if needed > there:
        raise UserError(
            f"train.groups_per_step: {ahead} batches ahead (data.prefetch, data.workers) of {config.train.groups_per_step} "
            f"groups of about {tokens:.0f} tokens take {needed / GIB:.4g} GiB of the {there / GIB:.4g} GiB here; lower one"
        )
