"""Whether this process is one of several, which of them, and where they meet: from the environment, or as JAX finds out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from align_jax.errors import UserError
from align_jax.private import changed, private

ADDRESS, NUMBER, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
_EXAMPLE = f"{ADDRESS}=HOST:PORT, {NUMBER}=N and {INDEX}=0 ... N-1"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One of several processes.

    Attributes:
      address: `host:port` where the first one listens. number: of all. index: of this one.
      devices: ids of the local ones that it takes; None: all.
    """

    address: str
    number: int
    index: int
    devices: tuple[int, ...] | None = None

    @property
    def host(self) -> str:
        return _split(self.address)[0]

    @property
    def port(self) -> int:
        return _split(self.address)[1]


def launched_on_several_hosts() -> bool:
    """Whether a launcher that JAX knows started this process as one of several."""
    several = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"))
    if ADDRESS in os.environ or any(n.isdigit() and int(n) > 1 for n in several):
        return True
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES")
    return "," in (_hosts_of_tpu_vm() if hosts is None else hosts)


@functools.cache
def _hosts_of_tpu_vm() -> str:
    """The hosts of the slice that this virtual machine is one of, which Google's metadata server alone knows; else nothing.

    Asked on machines with a TPU only, and not where `TPU_SKIP_MDS_QUERY` is set, as JAX does it.
    """
    tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    if not tpu or "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=3) as answer:
        return answer.read(2**20).decode(errors="replace")
    return ""


def find_launch(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """What the environment says of this process; None where it is the only one.

    Raises:
      UserError: variables that contradict one another, or one that is missing and that no launcher gives.
    """
    number, index = (_whole(name, environ) for name in (NUMBER, INDEX))
    if not launched_on_several_hosts():
        if (number or 1) > 1 or (index or 0) > 0:
            given = " and ".join(f"{name}={environ[name]}" for name in (NUMBER, INDEX) if name in environ)
            raise UserError(
                f"{given} in the environment without {ADDRESS}: processes that do not know where to meet would each train "
                f"alone; set {_EXAMPLE}, or none of them for one process"
            )
        return None
    _check(number, index)
    given = environ.get(ADDRESS)
    if given is not None:
        _split(given)
    address, number, index, devices = _detected(given, number, index, environ.get("JAX_LOCAL_DEVICE_IDS"))
    missing = [name for name, value in ((ADDRESS, address), (NUMBER, number), (INDEX, index)) if value is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} missing in the environment, and no launcher says it; set {_EXAMPLE}")
    _check(number, index)
    _split(address)
    return Launch(address, number, index, None if devices is None else tuple(devices))


def roughly() -> Launch | None:
    """As `find_launch`, also where a number is wrong, as long as it is clear where the first process is."""
    try:
        return find_launch()
    except UserError:
        number, index = (int(value) if (value := os.environ.get(name, "")).isdigit() else 2 for name in (NUMBER, INDEX))
        _split(os.environ.get(ADDRESS, ""))
        return Launch(os.environ[ADDRESS], number, index) if index > 0 else None


def _whole(name: str, environ: Mapping[str, str]) -> int | None:
    if name not in environ:
        return None
    if not environ[name].isascii() or not environ[name].isdigit() or len(environ[name]) > 9:
        raise UserError(f"{name}: {environ[name]!r} in the environment is not a number")
    return int(environ[name])


def _check(number: int | None, index: int | None) -> None:
    if number == 0:
        raise UserError(f"{NUMBER}: 0 processes; give how many there are")
    if number is not None and index is not None and index >= number:
        raise UserError(f"{INDEX}: {index} must be below {NUMBER}={number}: processes are numbered 0 ... {number - 1}")


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or (host.count(":") and not host.startswith("[")):
        raise UserError(f"{ADDRESS}: {address!r} has no port; give HOST:PORT of the first process, such as {address}:1234")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 2**16):
        raise UserError(f"{ADDRESS}: {port!r} in {address!r} is no port; it is a number from 1 to 65535")
    return host.strip("[]"), int(port)


def _detected(address: str | None, number: int | None, index: int | None, devices: str | None) -> tuple:
    """What JAX finds of what was not given, from SLURM, Open MPI, Kubernetes or a TPU's metadata."""
    ids = None if devices is None else [int(one) for one in devices.split(",") if one.strip().isdigit()]
    detect = getattr(private("clusters"), "auto_detect_unset_distributed_params", None)
    if detect is None:
        raise changed("clusters", "it detects nothing any more")
    return detect(address, number, index, ids, None, 300)
