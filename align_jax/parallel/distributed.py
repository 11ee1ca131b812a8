"""What a process sets before JAX starts, and its start as one of several."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

from align_jax.errors import UserError
from align_jax.parallel.gpu_flags import set_gpu_flags
from align_jax.parallel.launched import launched_on_several_hosts
from align_jax.terminal import Watch


def prepare_process() -> None:
    """Settings of the process: quieter logs, flags for GPUs, a compilation cache on disk, and the other processes, if any.

    For programs of their own, such as the command line; in a notebook the process is the user's, and nothing is set.

    Raises:
      UserError: a JAX_NUM_PROCESSES or JAX_PROCESS_ID that is not a number.
    """
    quieter()
    with contextlib.suppress(UserError):  # JAX has started: a second command of one process
        set_gpu_flags()
    import jax

    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")  # the CPU backend donates nothing
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "align_jax", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a second start compiles nothing
    if launched_on_several_hosts():
        with Watch("waiting for the other processes"):
            jax.distributed.initialize(**_processes())


def prepare_compiler() -> None:
    """Settings of a process that compiles for TPUs that are not there; before libtpu is loaded, which JAX's first call does."""
    if not any(Path("/dev").glob("accel*")) and not any(Path("/dev/vfio").glob("[0-9]*")):  # no TPU of this machine
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud machine's metadata what it is, and say so
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # the compiler alone needs no lock on a device


def quieter() -> None:
    """Keeps packages from saying what nobody needs to know; before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there, which nothing here needs


def _processes() -> dict[str, int]:
    """The number of processes and which of them this is, for launchers that JAX does not know; else JAX finds out."""
    found = {}
    for argument, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise UserError(f"{name}: {os.environ[name]!r} in the environment is not a number")
            found[argument] = int(os.environ[name])
    return found
