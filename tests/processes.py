"""Two processes on this machine that JAX joins to one."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_address() -> str:
    """A port of this machine that nobody has, outside of those that the system gives to connections: it stays free."""
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return f"localhost:{port}"


def start_two(arguments: list) -> list[subprocess.Popen]:
    """Starts `align-jax ARGUMENTS` as two processes of two fake devices each."""
    return start_two_programs("import sys; from align_jax.cli import main; sys.exit(main())", arguments)


def start_two_programs(code: str, arguments: list) -> list[subprocess.Popen]:
    """Starts a Python program likewise; it has to join them, by `jax.distributed.initialize`."""
    return start_several(code, arguments, 2)


def start_several(code: str, arguments: list, number: int) -> list[subprocess.Popen]:
    """Starts a Python program as so many processes."""
    together = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": free_address(),
        "JAX_NUM_PROCESSES": str(number),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # quick to compile
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return [
        subprocess.Popen(command, env=together | {"JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE, text=True)
        for i in range(number)
    ]


def finish(processes: list[subprocess.Popen], seconds: float = 300) -> list[str]:
    """What they said on stderr, once all have ended well."""
    try:
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), said
    return said
