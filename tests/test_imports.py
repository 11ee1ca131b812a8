"""Imports point strictly down the floors; `models`, `data` and `losses` know nothing of one another."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "align_jax"

FLOORS = {
    **dict.fromkeys(("losses", "batch", "axes", "errors", "compilations"), 0),
    **dict.fromkeys(("models", "data", "sharding", "optim", "hlo", "processes"), 1),
    **dict.fromkeys(("logprobs", "reward_scores", "hf", "objectives", "state", "flops"), 2),
    **dict.fromkeys(("step", "reference", "checkpoint", "generate", "reward_model"), 3),
    **dict.fromkeys(("loop", "evaluation", "logs", "config_source", "config_sections", "tpu", "benchmark", "onpolicy"), 4),
    **dict.fromkeys(("cli", "config", "experiments"), 5),
}
TOP = 6  # align_jax/__init__.py
# `cli` wires everything, and an experiment is a sequence of its commands
SIDEWAYS = {("cli", "config"), ("cli", "experiments"), ("experiments", "config"), ("experiments", "cli")}
APART = {"models", "data", "losses"}
# third-party packages that a part must not know
FORBIDDEN = {
    "losses": {"flax", "optax", "grain", "datasets", "transformers", "orbax", "omegaconf"},
    "models": {"optax", "grain", "datasets", "transformers", "orbax", "omegaconf"},
    "data": {"flax", "optax", "orbax", "omegaconf"},
    "logs": {"jax", "flax"},
}
NEVER = {"torch", "pickle", "tests", "tools", "configs"}


def _imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of a file; `from package import name` is `package.name`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _wrong(part: str, module: str) -> str | None:
    """Why a part (`losses`, `step`, ...; empty for the package itself) must not import a module, or None."""
    top, *rest = module.split(".")
    if top in NEVER or top in FORBIDDEN.get(part, ()):
        return f"{part or 'align_jax'} must not know {top}"
    if top != "align_jax":
        return None
    target = rest[0] if rest and rest[0] in FLOORS else ""
    if target == part:
        return None
    here, there = FLOORS.get(part, TOP), FLOORS.get(target, TOP)
    if {part, target} <= APART:
        return f"{part} and {target} never import one another"
    if there > here or (there == here and (part, target) not in SIDEWAYS):
        return f"{part} (floor {here}) imports {target or 'align_jax'} (floor {there}); imports point strictly down"
    return None


def violations(root: Path) -> list[str]:
    """Every import below `root` (a copy of the package) that the floors do not allow."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        part = "" if parts == ("__init__",) else parts[0]
        if part and part not in FLOORS:
            found.append(f"{path.relative_to(root)}: {part} is on no floor; add it to FLOORS")
            continue
        package = ".".join(["align_jax", *parts[:-1]])
        for line, module in _imports(path, package):
            reason = _wrong(part, module)
            if reason:
                found.append(f"{path.relative_to(root)}:{line}: {reason}")
    return found


def test_imports_point_down():
    assert violations(ROOT) == []


def test_the_package_is_read():
    assert {"losses", "models", "data"} <= {path.name for path in ROOT.iterdir() if path.is_dir()}
    modules = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if not path.name.startswith("_")}
    assert modules - set(FLOORS) == set()


@pytest.mark.parametrize(
    "where, code, message",
    [
        ("losses/a.py", "from align_jax.models import Decoder", "losses and models never"),
        ("models/a.py", "import align_jax.data.records", "models and data never"),
        ("data/a.py", "from align_jax import losses", "data and losses never"),
        ("data/sub/a.py", "from ...models import config", "data and models never"),
        ("step.py", "from align_jax.loop import run", "step (floor 3) imports loop (floor 4)"),
        ("step.py", "def f():\n    from . import config", "step (floor 3) imports config (floor 5)"),
        ("state.py", "from align_jax.logprobs import response_logps", "state (floor 2) imports logprobs (floor 2)"),
        ("config.py", "from align_jax.cli import main", "config (floor 5) imports cli (floor 5)"),
        ("optim.py", "import align_jax", "optim (floor 1) imports align_jax (floor 6)"),
        ("losses/a.py", "import optax", "losses must not know optax"),
        ("logs.py", "import jax.numpy as jnp", "logs must not know jax"),
        ("hf/a.py", "import torch", "hf must not know torch"),
        ("loop.py", "from tools import x", "loop must not know tools"),
        ("surprise.py", "", "surprise is on no floor"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, where, code, message):
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"import jax.numpy\n\n{code}\n" if "surprise" not in where and "logs" not in where else code)
    (found,) = violations(tmp_path)
    assert message in found and found.startswith(where)


@pytest.mark.parametrize(
    "where, code",
    [
        ("cli/train.py", "from align_jax.config import load_config\nfrom align_jax import loop, step"),
        ("models/a.py", "from .config import ModelConfig\nfrom align_jax.models import rope\nimport flax"),
        ("__init__.py", "from align_jax.hf import load_model"),
    ],
)
def test_what_is_allowed_is_not_found(tmp_path, where, code):
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert violations(tmp_path) == []


def test_logs_need_no_jax():
    # the package itself may import jax, so it is replaced by an empty one at the same place
    code = f"""
import sys, types
package = types.ModuleType("align_jax")
package.__path__ = [{str(ROOT)!r}]
sys.modules |= {{"align_jax": package, "jax": None, "flax": None}}
import align_jax.logs
"""
    subprocess.run([sys.executable, "-c", code], check=True)
