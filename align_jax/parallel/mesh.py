"""The mesh, and where every weight lives on it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align_jax.errors import UserError
from align_jax.parallel.axes import RULES


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    sequence: int = 1,
    expert: int = 1,
) -> Mesh:
    """A mesh `data x fsdp x tensor`, with `expert` and `sequence` before `tensor` where they are cut; one of the sizes may be
    -1: the devices left.

    Args:
      data: copies of the weights, each with its own part of the batch.
      fsdp: parts that weights, optimizer and batch are cut into.
      tensor: parts that heads, MLP columns and vocabulary are cut into.
      devices: the devices to use; all of them where None. Fewer than there are may be asked for.
      sequence: parts that the positions of long rows, weights and optimizer are cut into; without it, 1, the mesh has no such
        axis.
      expert: parts that the experts of a mixture, all other weights and the batch are cut into; without it, 1, no such axis.

    Raises:
      UserError: sizes that do not fit the devices.
    """
    available = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "sequence": sequence, "tensor": tensor}
    for axis in ("expert", "sequence"):
        if sizes[axis] == 1:
            del sizes[axis]
    where = " x ".join(f"mesh.{k}={v}" for k, v in sizes.items())
    if any(v == 0 or v < -1 for v in sizes.values()) or sum(v == -1 for v in sizes.values()) > 1:
        raise UserError(f"{where}: sizes must be positive, and at most one may be -1 (the devices that are left)")
    fixed = int(np.prod([v for v in sizes.values() if v > 0]))
    for key, value in sizes.items():
        if value == -1:
            if len(available) % fixed:
                raise UserError(f"{where}: {len(available)} devices cannot be divided by {fixed}")
            sizes[key] = len(available) // fixed
    count = int(np.prod(list(sizes.values())))
    if count > len(available):
        raise UserError(f"{where} needs {count} devices, but there are {len(available)} ({available[0].platform})")
    arranged = _arranged(tuple(sizes.values()), available[:count], where)
    return Mesh(arranged, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _arranged(sizes: tuple[int, ...], devices: list[jax.Device], where: str) -> np.ndarray:
    """The devices in the shape of `sizes`, `data` first, neighbours in the network next to each other; slices along `data`.

    Raises:
      UserError: devices that cannot be arranged so.
    """
    # JAX numbers the hosts of GPUs as slices, too; only those of TPUs are joined by nothing faster.
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"} or {0})
    if sizes[0] % slices:
        raise UserError(
            f"{where}: {slices} slices are joined by a slow network, so each must hold whole copies of the weights; set "
            f"mesh.data to {slices} or a multiple of it"
        )
    inside = (sizes[0] // slices, *sizes[1:])

    def arrange(split: bool) -> np.ndarray:
        if slices == 1:
            return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=split)
        outside = (slices, *(1 for _ in inside[1:]))
        return mesh_utils.create_hybrid_device_mesh(inside, outside, devices, allow_split_physical_axes=split)

    try:
        try:
            return arrange(split=False)
        except NotImplementedError:  # an axis that is not a product of whole axes of the torus, such as 32 x 2 on 4 x 4 x 4
            return arrange(split=True)
    except (NotImplementedError, AssertionError, ValueError) as error:
        raise UserError(
            f"{where}: {len(devices)} chips of {_torus(devices)} cannot be arranged so; choose sizes that divide its sides, or "
            "whose product is all of its chips"
        ) from error


def _torus(devices: Sequence[jax.Device]) -> str:
    """What the network of devices looks like, in words."""
    coords = np.array([getattr(device, "coords", (device.id,)) for device in devices])
    sides = coords.max(0) - coords.min(0) + 1
    return f"a {devices[0].device_kind} network of {' x '.join(str(side) for side in sides if side > 1) or 1}"


def idle(mesh: Mesh, devices: int) -> str | None:
    """A line for the user where a mesh leaves some of so many devices without work; None where it uses all of them."""
    if mesh.devices.size >= devices:
        return None
    sizes = " x ".join(f"{name} {size}" for name, size in axis_sizes(mesh).items())
    return (
        f"mesh: {sizes} uses {mesh.devices.size} of {devices} devices, and the others are idle; mesh.fsdp: -1 (or data, or "
        "tensor) takes all that are left"
    )


def axis_sizes(mesh: Mesh) -> dict[str, int]:
    """Mesh axis name -> size."""
    return dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))


def data_shards(mesh: Mesh) -> int:
    """D: how many blocks a batch is cut into on this mesh."""
    sizes = axis_sizes(mesh)
    return int(np.prod([sizes.get(axis, 1) for axis in RULES["shards"]]))


def shards_of_processes(mesh: Mesh, processes: int) -> dict[int, tuple[int, ...]]:
    """Process -> the numbers of the blocks of a batch that its devices hold, wherever they stand on the mesh.

    A TPU's devices are arranged by its network and not by process: one process may hold blocks 0, 4, 16 and 20. Where tensor
    or sequence is larger than a process, several hold the same ones.

    Args:
      processes: how many there are.

    Raises:
      UserError: processes that share some of their blocks and not all, or hold different numbers of them, or none.
    """
    held: dict[int, set[int]] = {process: set() for process in range(processes)}
    for shard, devices in enumerate(mesh.devices.reshape(data_shards(mesh), -1)):
        for device in devices:
            held[device.process_index].add(shard)
    found = {process: tuple(sorted(shards)) for process, shards in held.items()}
    parts = set(found.values())
    if sum(map(len, parts)) != data_shards(mesh) or len({len(part) for part in parts}) > 1:
        written = " x ".join(f"{name} {size}" for name, size in axis_sizes(mesh).items())
        raise UserError(
            f"mesh: on {written}, {processes} processes do not hold whole parts of a batch, each as large as the others'; make "
            "data x fsdp a multiple of their number, or a divisor of it, and use all devices"
        )
    return found


def readers(mesh: Mesh, processes: int) -> int:
    """How many different parts of a batch so many processes read: fewer than they are where some hold the same ones."""
    return 1 if processes == 1 else len(set(shards_of_processes(mesh, processes).values()))


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of batch arrays: axis D (or G, which is shard-major) over its mesh axes, after `leading` whole axes."""
    axes = tuple(axis for axis in RULES["shards"] if axis != "expert" or axis in mesh.axis_names)
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch, mesh: Mesh, leading: int = 0):
    """A host batch (this process's shards of it) as global device arrays.

    Args:
      batch: pytree of NumPy arrays whose axis `leading` is D or G, shard-major.
      leading: axes before it, such as that of microbatches.
    """
    sharding = batch_sharding(mesh, leading)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def put_whole_batch(batch, mesh: Mesh):
    """A host batch that every process holds whole, as global device arrays; axes as in `put_batch`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)
