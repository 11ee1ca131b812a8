"""What a device holds, what training keeps there, and what is left for activations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from align_jax.batch import GroupBatch
from align_jax.config import Config
from align_jax.config.sections import ModelSection
from align_jax.cost.benchmark import device_memory
from align_jax.cost.chips import chip_of
from align_jax.models import ModelConfig
from align_jax.parallel.mesh import axis_sizes
from align_jax.parallel.processes import of_first
from align_jax.scoring.chunks import USABLE, gathered_bytes, state_bytes
from align_jax.scoring.scorer import Scorer
from align_jax.training.live import LiveReference

MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Room:
    """The memory of a device in training.

    Attributes:
      device: bytes that it holds; None for devices that are not here, of a kind not known.
      state: bytes that weights, gradients and moments take; with `lora`, the frozen ones that are gathered, too.
      live: whether a reference is among them.
    """

    device: float | None
    state: int
    live: bool

    @classmethod
    def of(cls, config: Config, mesh: Mesh, shape: ModelConfig, live: LiveReference | None) -> Room:
        """The room on the devices of a mesh.

        Args:
          live: how a live reference is kept; None: there is none.
        """
        return cls(_device_bytes(config, mesh), _state(config, mesh, shape, live), live is not None)

    @property
    def activations(self) -> int | None:
        """Bytes that training leaves for activations; None where it is not known what a device holds."""
        return None if self.device is None else int(USABLE * self.device) - self.state

    def chunks(self, model: ModelSection, scorer: Scorer, batch: GroupBatch) -> Iterator[str]:
        """Lines about what `auto` cuts of such a batch: rows, logits, and whether the model fits at all."""
        if model.head_chunk == "auto" and scorer.head_twice(batch):
            yield (
                "model.head_chunk: auto makes the logits of a part of the response positions at a time, and twice: by an "
                "estimate all of them do not fit a device (mesh.memory_gib says what it holds)"
            )
        if model.rows_per_chunk != "auto":
            return
        rows, length = batch.tokens.shape[-2:]
        chunk = scorer.chunk(batch)
        if scorer.memory is not None and scorer.memory <= 0:
            yield (
                "by an estimate the model does not fit a device: weights, gradients and two moments"
                f"{' and the live reference' if self.live else ''} take "
                f"{self.state / GIB:.3g} GiB, more than the {USABLE:.0%} that can be used of "
                f"{self.device / GIB:.3g} GiB (mesh.memory_gib, or what there is); model.rows_per_chunk: auto takes "
                f"{chunk or rows} of {rows} response rows at a time. A larger mesh.fsdp divides the model over more devices"
            )
        elif chunk is not None:
            yield (
                f"model.rows_per_chunk: auto takes {chunk} of {rows} response rows of {length} at a time, and their forward "
                "pass twice: by an estimate more do not fit a device (mesh.memory_gib says what it holds; null takes all)"
            )


def _device_bytes(config: Config, mesh: Mesh) -> float | None:
    """As `mesh.memory_gib` says, else what there is on the device with the least, or its kind has."""
    given, device = config.mesh.memory_gib, mesh.devices.flat[0]
    if given is not None:
        return given * GIB
    if device in jax.devices():
        return of_first(device_memory(None) // MIB) * MIB
    chip = chip_of(getattr(device, "device_kind", ""))
    return None if chip is None else chip.memory


def _state(config: Config, mesh: Mesh, shape: ModelConfig, live: LiveReference | None) -> int:
    sizes = axis_sizes(mesh)
    shards = math.prod(sizes.get(axis, 1) for axis in ("fsdp", "tensor", "sequence", "expert"))
    model, train, tensor = config.model, config.train, sizes.get("tensor", 1)
    reference = None if live is None else dataclasses.replace(shape, quantize=live.quantize or shape.quantize)
    gathered = gathered_bytes(shape, model.dtype, tensor) if shape.lora is not None and shards > tensor else 0
    return gathered + state_bytes(shape, model.param_dtype, shards, train.accumulation_steps, reference)
