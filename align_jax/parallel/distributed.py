"""What a process sets before JAX starts, and its start as one of several."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_jax.errors import UserError
from align_jax.parallel.facts import facts_of_process
from align_jax.parallel.giving_up import clients_that_tell
from align_jax.parallel.gpu_flags import set_gpu_flags
from align_jax.parallel.launched import Launch, find_launch, roughly
from align_jax.parallel.roll_call import LINGER_SECONDS, WAIT_SECONDS, hello_of, receive_first, report
from align_jax.private import private

if TYPE_CHECKING:
    from align_jax.parallel.company import Company


@dataclasses.dataclass(frozen=True)
class JobFacts:
    """What a process was told, for the others to compare.

    Attributes:
      facts: name -> value, the same on all of them. wait_s: `run.wait_s`. again: the command to start it again.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    wait_s: float = WAIT_SECONDS
    again: str = ""


def prepare_process(job: JobFacts | None = None) -> Company | None:
    """Settings of the process: quieter logs, flags for GPUs, a compilation cache on disk, and the other processes, if any.

    For programs of their own, such as the command line; in a notebook the process is the user's, and nothing is set.

    Returns:
      The other processes, to be watched while the work is done; None for one process.

    Raises:
      UserError: variables of the environment that contradict one another; processes that did not come, failed before all were
        there, or were told different things.
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
    launch = find_launch()
    return None if launch is None or jax.distributed.is_initialized() else _join(launch, job or JobFacts())


def _join(launch: Launch, job: JobFacts) -> Company:
    """Meets the other processes, and starts JAX's service among them."""
    import jax

    from align_jax.parallel.company import Company

    _begun.append(launch)
    hello = hello_of(launch, facts_of_process() | job.facts)
    if launch.index == 0:
        wires = receive_first(launch, hello, job.wait_s)
    else:
        wires = {0: report(launch, hello, job.wait_s)}
    company = Company(launch, {key: hello[key] for key in ("process", "of", "host", "pid")}, wires, job.again)
    if launch.index > 0:
        _until_served(launch)
    with clients_that_tell(company.gave_up):
        jax.distributed.initialize(
            launch.address, launch.number, launch.index, None if launch.devices is None else list(launch.devices)
        )
    return company


def fail_early(line: str) -> None:
    """Tells the other processes, where there are some and it did not meet them yet, that this one failed.

    Args:
      line: its error, which it has printed.
    """
    with contextlib.suppress(Exception):  # the error stands, whether it can be told or not
        if _begun or (launch := roughly()) is None or launch.number == 1:
            return
        _begun.append(launch)
        meet = receive_first if launch.index == 0 else report
        meet(launch, hello_of(launch, {}, line), LINGER_SECONDS, lambda said: None)


_begun: list[Launch] = []  # where this process met the others, or tried to


def wait_for_all() -> None:
    """Returns when all processes have done their work, however much longer than this one they take."""
    private("processes").client.wait_at_barrier("align_jax/end", 7 * 24 * 3600 * 1000)


def _until_served(launch: Launch) -> None:
    """Waits until the first process's service listens, so that JAX need not try again later."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection((launch.host, launch.port), 1.0).close()
            return
        time.sleep(0.02)


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
