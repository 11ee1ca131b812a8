"""What a TPU chip can do: memory, arithmetic, and the networks that it is on."""

from __future__ import annotations

import dataclasses

from align_jax.cost.flops import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of JAX: a chip, or half of one where a chip is two devices (TPU7x).

    Attributes:
      hbm_gib: memory, GiB. hbm_rate: bytes per second that it reads or writes.
      link_rate: bytes per second of one link between neighbours, in one direction.
      ring: how long an axis of the torus must be (a multiple of it) for its two ends to be joined.
      slice_rate: bytes per second of one chip to other slices, over the data center's network.
    """

    kind: str
    hbm_gib: int
    hbm_rate: float
    link_rate: float
    ring: int
    slice_rate: float

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.hbm_gib * 2**30

    @property
    def peak(self) -> float:
        """Operations per second, of bfloat16 products."""
        return peak_flops(self.kind)


# cloud.google.com/tpu/docs: system architecture of each version (memory, "bidirectional ICI bandwidth per chip" over twice
# the number of links, data center network per chip or pod). Axes of 3D tori are closed in cubes of 4, those of 2D tori
# where they are as long as a pod, 16.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("TPU v4", 32, 1.228e12, 50e9, 4, 6.25e9),
        Chip("TPU v5 lite", 16, 0.819e12, 50e9, 16, 3.125e9),
        Chip("TPU v5", 95, 2.765e12, 100e9, 4, 6.25e9),
        Chip("TPU v6 lite", 32, 1.638e12, 100e9, 16, 12.5e9),
        Chip("TPU7x", 96, 3.69e12, 100e9, 4, 12.5e9),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of JAX's `device_kind`; None for one that is not known."""
    return CHIPS.get(device_kind)
