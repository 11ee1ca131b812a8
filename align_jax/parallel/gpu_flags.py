"""The XLA flags that NVIDIA's GPUs are run with, which stand in the environment before JAX starts.

XLA ends the process at a flag that it does not know, so only flags that every jaxlib from 0.10 to 0.12 knows are set
(`tests/parallel/test_gpu_flags.py` asks the one that is installed), and none on another version.

Sources, as of 2026: https://docs.nvidia.com/jax-toolbox (GPU performance, and test-maxtext.sh of NVIDIA/JAX-Toolbox, which
runs LLaMA under fully sharded data parallelism), and src/maxtext/configs/gpu/a3 of AI-Hypercomputer/maxtext.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

from align_jax.errors import UserError
from align_jax.parallel.launched import launched_on_several_hosts
from align_jax.private import TESTED, call

# cuBLAS for products, and no tuning of Triton's kernels against it (MaxText).
ONE_CARD = {"xla_gpu_enable_triton_gemm": "false"}
# Collectives beside products: moved (latency hiding), across layers (pipelined, two layers at a time), in large pieces, and not
# recorded in CUDA graphs, which would order them (JAX-Toolbox, MaxText).
SEVERAL_CARDS = {
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    "xla_gpu_enable_command_buffer": "",
    "xla_gpu_all_reduce_combine_threshold_bytes": str(1 << 30),
    "xla_gpu_all_gather_combine_threshold_bytes": str(1 << 30),
    "xla_gpu_reduce_scatter_combine_threshold_bytes": str(1 << 27),
    "xla_gpu_enable_pipelined_all_gather": "true",
    "xla_gpu_enable_pipelined_reduce_scatter": "true",
    "xla_gpu_enable_pipelined_all_reduce": "true",
    "xla_gpu_enable_while_loop_double_buffering": "true",
    "xla_gpu_enable_all_gather_combine_by_dim": "false",
    "xla_gpu_enable_reduce_scatter_combine_by_dim": "false",
}
# JAX takes 0.75 of a card's memory for itself; it is the only one that trains there.
MEMORY = ("XLA_CLIENT_MEM_FRACTION", "0.9")
_MEMORY_KEYS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE")
_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_DEVICES = Path("/dev")


def set_gpu_flags() -> list[str]:
    """Adds XLA's flags for NVIDIA GPUs to the environment, where this process will use such GPUs.

    Call it before JAX computes anything: `align_jax.set_gpu_flags()`. The command line does. A flag that stands in `XLA_FLAGS`
    keeps its value, and an `XLA_FLAGS` that names a file is left as it is; so is a fraction of memory that is set.

    Returns:
      What was added, as `NAME=VALUE`; nothing where JAX will not run on an NVIDIA GPU, or on a version of JAX whose flags are
      not known to be these.

    Raises:
      UserError: JAX has started, so that flags would not be read.
    """
    cards = _cards()
    if not cards or not _jax_runs_on_cuda() or not _version_is_known():
        return []
    if call("started", {}):
        raise UserError("set_gpu_flags: JAX has started already, and reads no flag any more; call it before")
    added = {}
    given = os.environ.get("XLA_FLAGS", "")
    if not given or given.lstrip().startswith("--"):
        wanted = ONE_CARD | (SEVERAL_CARDS if cards > 1 or launched_on_several_hosts() else {})
        own = _names(given)
        added = {f"--{name}": value for name, value in wanted.items() if name not in own}
        os.environ["XLA_FLAGS"] = " ".join([*(f"{name}={value}" for name, value in added.items()), *given.split()])
    if not any(key in os.environ for key in _MEMORY_KEYS):
        os.environ[MEMORY[0]] = MEMORY[1]
        added[MEMORY[0]] = MEMORY[1]
    return [f"{name}={value}" for name, value in added.items()]


def gpu_flags_in_use() -> str:
    """One line: what the environment says to XLA about GPUs, whoever set it."""
    flags = " ".join(word for word in os.environ.get("XLA_FLAGS", "").split() if word.lstrip("-").startswith("xla_gpu_"))
    memory = [f"{key}={os.environ[key]}" for key in _MEMORY_KEYS if key in os.environ]
    if not flags and not memory:
        return "XLA_FLAGS has no flag for GPUs; align_jax.set_gpu_flags() before JAX starts sets those that are recommended"
    return " ".join(["XLA on GPUs:", *([flags] if flags else []), *memory, "(flags given in XLA_FLAGS stay)"])


def _names(flags: str) -> set[str]:
    """The names of flags such as `--name=value` or `--name`."""
    return {word.lstrip("-").split("=")[0] for word in flags.split()}


def _cards() -> int:
    """How many NVIDIA GPUs this process sees, by the files of their driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([card for card in visible.split(",") if card.strip() not in ("", "-1")])
    found = [path for path in _DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return len(found) or int((_DEVICES / "dxg").exists())  # dxg: under Windows


def _jax_runs_on_cuda() -> bool:
    """Whether a CUDA plugin of JAX is installed, and JAX_PLATFORMS lets JAX start it."""
    allowed = os.environ.get("JAX_PLATFORMS", "")
    named = not allowed or any(name.strip() in ("cuda", "gpu") for name in allowed.split(","))
    return named and any(importlib.util.find_spec(name) is not None for name in _PLUGINS)


def _version_is_known() -> bool:
    oldest, newest = ([int(n) for n in found.split(".")] for found in re.findall(r"\d+\.\d+", TESTED))
    version = [int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2]]
    return oldest <= version < newest
