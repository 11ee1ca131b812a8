"""The train state on disk: what is trained is written, what is frozen is referred to and supplied again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import SingleDeviceSharding

from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.models.weights import weight_structs
from align_jax.parallel.mesh import replicated
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.state import TrainState, merge, split
from align_jax.training.tensors import checksums, flatten_names

_FROZEN = "frozen"  # the key in a checkpoint's `extra`


def frozen_reference(frozen: dict, source: Any = None) -> dict[str, Any] | None:
    """What a checkpoint says of weights that it does not hold.

    Args:
      frozen: nested dict of arrays.
      source: JSON, where they are from (a path, a fingerprint), for whoever reads the checkpoint.

    Returns:
      `{"source": source, "tensors": {dotted name: "type:checksum"}}`, the same on every mesh; None where nothing is frozen.
    """
    arrays, _ = flatten_names(frozen)
    if not arrays:
        return None
    sums = checksums(arrays)
    return {"source": source, "tensors": {name: f"{arrays[name].dtype}:{sums[name]}" for name in sorted(arrays)}}


def save_state(
    checkpointer: Checkpointer,
    step: int,
    state: TrainState,
    extra: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    source: Any = None,
) -> None:
    """Starts writing a checkpoint of what is trained, see `Checkpointer.save`; `source` as in `frozen_reference`.

    Raises:
      ValueError: `extra` has a key `frozen`, which is written here.
    """
    if _FROZEN in extra:
        raise ValueError(f"checkpoint of step {step}: extra has a key {_FROZEN!r}, which is that of the frozen weights")
    checkpointer.save(step, _written(state), {**extra, _FROZEN: frozen_reference(state.frozen, source)}, metrics)


def restore_state(
    checkpointer: Checkpointer, abstract: TrainState, frozen: dict | None = None, step: int | None = None
) -> tuple[TrainState, dict[str, Any]] | None:
    """Reads a checkpoint and completes it with the frozen weights that it refers to.

    Args:
      abstract: the state as arrays or `jax.ShapeDtypeStruct`s with shardings; its own `frozen` is not read.
      frozen: nested dict of the frozen weights, which become part of the state; None: there are none.
      step: which checkpoint; None is the newest readable one.

    Returns:
      `(state, extra)`, or None when the folder has no checkpoint.

    Raises:
      UserError: the frozen weights are not those that the checkpoint was trained over; see also `Checkpointer.restore`.
    """
    found = checkpointer.restore(_written(abstract), step)
    if found is None:
        return None
    read, extra = found
    _check_frozen(checkpointer, int(read["step"]), extra, frozen or {})
    return TrainState(frozen=frozen or {}, **read), extra


def restore_weights(
    checkpointer: Checkpointer,
    config: ModelConfig,
    step: int | None = None,
    shardings: dict | None = None,
    dtype: Any = "float32",
    frozen: dict | None = None,
) -> tuple[dict, int]:
    """The weights of a checkpoint, without the optimizer, and its step.

    Args:
      config: of the model.
      step: which checkpoint; None is the newest readable one.
      shardings: nested dict as `weight_shardings` gives it; None: host memory.
      dtype: what the weights are converted to.
      frozen: nested dict of the weights that the run did not train; None: it trained all.

    Raises:
      UserError: there is no checkpoint, or it was trained over other frozen weights; see also `Checkpointer.restore`.
    """
    # In host memory: one accelerator may be smaller than the model.
    host = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    structs = weight_structs(config, dtype)
    wanted = jax.tree.map(
        lambda one, place: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=place),
        structs,
        shardings or jax.tree.map(lambda _: host, structs),
    )
    held = flatten_dict(frozen or {})
    trained, _ = split(wanted, lambda path: path not in held)
    counter = jax.ShapeDtypeStruct((), "int32", sharding=_everywhere(shardings) or host)
    found = checkpointer.restore({"trainable": trained, "step": counter}, step, subset=True)
    if found is None:
        raise UserError(f"{checkpointer.directory.parent} has no checkpoint yet")
    read, extra = found
    _check_frozen(checkpointer, int(read["step"]), extra, frozen or {})
    return merge(read["trainable"], frozen or {}), int(read["step"])


def _everywhere(shardings: dict | None):
    return replicated(jax.tree.leaves(shardings)[0].mesh) if shardings else None


def _written(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != _FROZEN}


def _check_frozen(checkpointer: Checkpointer, step: int, extra: Mapping[str, Any], frozen: dict) -> None:
    """UserError naming the first tensor that is not what the checkpoint refers to."""
    there = extra.get(_FROZEN) or {"source": None, "tensors": {}}  # earlier versions trained everything
    here = frozen_reference(frozen) or {"tensors": {}}
    for name in sorted(there["tensors"].keys() | here["tensors"].keys()):
        saved, given = (side["tensors"].get(name, "not frozen") for side in (there, here))
        if saved != given:
            origin = f" (of {there['source']})" if there["source"] else ""
            raise UserError(
                f"checkpoint {checkpointer.directory / str(step)} was trained over other frozen weights{origin}: tensor "
                f"{name!r} was {saved}, here it is {given} (type:checksum); give the model that the run began with, in the "
                "same type"
            )
