"""The weights of a checkpoint alone, for every job but training."""

from __future__ import annotations

from pathlib import Path

import jax

from align_jax.errors import UserError
from align_jax.models import ModelConfig, weight_shapes
from align_jax.parallel.mesh import replicated
from align_jax.training.checkpoint import Checkpointer


def restore_weights(
    directory: Path, shape: ModelConfig, step: int | None, shardings: dict | None, dtype: str
) -> tuple[dict, int]:
    """The weights of a checkpoint (the newest by default) and its step.

    Args:
      directory: `checkpoints/` of a run. shape: of its model. step: which checkpoint; None is the newest readable one.
      shardings: where the weights go; None: host memory, since one accelerator may be smaller than the model.
      dtype: what they are converted to.

    Raises:
      UserError: there is no checkpoint, or it is of another model; see `Checkpointer.restore`.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    shapes = weight_shapes(shape)
    where = shardings or jax.tree.map(lambda _: device, shapes, is_leaf=is_shape)
    wanted = jax.tree.map(
        lambda size, place: jax.ShapeDtypeStruct(size, dtype, sharding=place), shapes, where, is_leaf=is_shape
    )
    with Checkpointer(directory, read_only=True) as checkpoints:
        everywhere = replicated(jax.tree.leaves(shardings)[0].mesh) if shardings else device
        counter = jax.ShapeDtypeStruct((), "int32", sharding=everywhere)
        found = checkpoints.restore({"params": wanted, "step": counter}, step, subset=True)
    if found is None:
        raise UserError(f"{directory.parent} has no checkpoint yet")
    return found[0]["params"], int(found[0]["step"])
