"""Whether this process is one of several."""

from __future__ import annotations

import os


def launched_on_several_hosts() -> bool:
    """Whether a launcher that JAX knows started this process as one of several."""
    several = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return "JAX_COORDINATOR_ADDRESS" in os.environ or "," in hosts or any(n.isdigit() and int(n) > 1 for n in several)
