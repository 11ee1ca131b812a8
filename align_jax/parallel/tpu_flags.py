"""What the TPU's compiler is asked for where weights are cut over devices."""

from __future__ import annotations

import os
import re

from jax.sharding import Mesh

# Names of libtpu, for v5e, v5p and v6e alike. MaxText sets all but the last (its benchmarks/xla_flags_library.py), PyTorch/XLA
# the last (its pull request 6528).
TPU_OPTIONS: dict[str, bool | int] = {
    # A weight is gathered whole, not in as many pieces as devices, whose products are added up in memory one by one.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
    # Gathers run beside products, in the same kernels ("continuation fusion"), over several of their steps.
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    # Without it, a gather over three axes of a torus becomes an all-reduce of zeros but for the own part: twice the bytes.
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
}


def compiler_options(mesh: Mesh) -> dict[str, bool | int] | None:
    """Options for `jax.jit` of a program on this mesh; None where there are none: one device, or none of a TPU.

    What the environment's LIBTPU_INIT_ARGS names is left out: there the user decides.
    """
    if mesh.devices.size == 1 or mesh.devices.flat[0].platform != "tpu":
        return None
    named = set(re.findall(r"--(\w+)", os.environ.get("LIBTPU_INIT_ARGS", "")))
    return {name: value for name, value in TPU_OPTIONS.items() if name not in named} or None
