"""What all processes of a job must have alike: versions, code, and what they were told; differences by name."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.version import __version__

# Packages whose versions decide numbers, tokens or what is compiled.
PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("tokenizers", "transformers", "safetensors", "grain", "jinja2"),
)
_ENVIRONMENT = ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE")
_MOST = 12  # differences that are named one by one
NOT_THERE = "not set"


@functools.cache
def code_version() -> str:
    """The package's version and a hash of its sources, wherever they are installed."""
    digest, root = hashlib.blake2b(digest_size=6), Path(__file__).parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{__version__} ({digest.hexdigest()})"


def facts_of_process() -> dict[str, Any]:
    """Versions and settings of this process, by name."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    python = ".".join(platform.python_version_tuple()[:2])
    own = {"align-jax": code_version(), "python": python}
    return own | versions | {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def differences(facts: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """A line for each name on which processes differ, with each one's value; empty where all agree.

    Args:
      facts: process -> name -> value that JSON can hold.
    """
    lines = []
    for name in sorted({name for own in facts.values() for name in own}):
        held: dict[str, list[int]] = {}
        for process in sorted(facts):
            held.setdefault(_shown(facts[process].get(name, NOT_THERE)), []).append(process)
        if len(held) > 1:
            lines.append(f"{name}: " + ", ".join(f"{value} on {named(processes)}" for value, processes in held.items()))
    if len(lines) > _MOST:
        lines = [*lines[:_MOST], f"and {len(lines) - _MOST} more"]
    return lines


def named(processes: list[int]) -> str:
    """`process 1`, `processes 0, 2-5`."""
    parts: list[list[int]] = []
    for one in processes:
        if parts and one == parts[-1][-1] + 1:
            parts[-1].append(one)
        else:
            parts.append([one])
    spelled = [str(part[0]) if len(part) == 1 else f"{part[0]}{', ' if len(part) == 2 else '-'}{part[-1]}" for part in parts]
    return f"process{'es' if len(processes) > 1 else ''} {', '.join(spelled)}"


def _shown(value: Any) -> str:
    text = value if value == NOT_THERE else repr(value)
    return text if len(text) <= 200 else f"{text[:160]} ... ({hashlib.blake2b(text.encode(), digest_size=4).hexdigest()})"
