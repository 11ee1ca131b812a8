"""Imports point down one list of folders, and never in a circle inside one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "align_jax"

# From the maths up to the command line: a folder or module may import what stands before it.
ORDER = (
    *("version", "losses", "errors", "ranges", "parsing", "terminal", "private", "registry", "batch", "parallel"),
    *("lock", "network", "files", "models", "hf"),
    *("data", "objectives", "scoring"),
    *("training", "generation", "evaluation", "cost", "config", "recipes", "experiments", "cli", "__main__"),
)
PACKAGE = "align_jax"  # align_jax/__init__.py, above all
# though one stands before the other
APART = [{"losses", "models"}, {"losses", "data"}, {"models", "data"}]
# third-party packages that a folder must not know
FORBIDDEN = {
    "losses": {"flax", "optax", "grain", "datasets", "transformers", "orbax", "omegaconf"},
    "models": {"optax", "grain", "datasets", "transformers", "orbax", "omegaconf"},
    "data": {"flax", "optax", "orbax", "omegaconf"},
    "training.logs": {"jax", "flax"},
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


def _modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


def _package_of(name: str, path: Path) -> str:
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def _place(folder: str) -> int:
    return ORDER.index(folder) if folder in ORDER else len(ORDER)


def _wrong(name: str, module: str) -> str | None:
    """Why a module (`align_jax.losses.sets`) must not import another, or None."""
    own = name.split(".")[1:]
    here, (top, *rest) = own[0] if own else "", module.split(".")
    banned = [tops for part, tops in FORBIDDEN.items() if f"{'.'.join(own)}.".startswith(f"{part}.")]
    if top in NEVER or any(top in tops for tops in banned):
        return f"{'.'.join(own) or PACKAGE} must not know {top}"
    if top != PACKAGE:
        return None
    there = rest[0] if rest and rest[0] in ORDER else ""
    if here == there:
        return None
    if {here, there} in APART:
        return f"{here} and {there} never import one another"
    if not there or _place(there) > _place(here):
        return f"{here or PACKAGE} imports {there or PACKAGE}, which stands above it; imports point down"
    return None


def violations(root: Path) -> list[str]:
    """Every import below `root` (a copy of the package) that the order does not allow, and every circle."""
    modules, found = _modules(root), []
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        folder = (name.split(".") + [""])[1]
        if folder and folder not in ORDER:
            found.append(f"{path.relative_to(root)}: {folder} is not in ORDER; add it")
            continue
        for line, module in _imports(path, _package_of(name, path)):
            if reason := _wrong(name, module):
                found.append(f"{path.relative_to(root)}:{line}: {reason}")
            target = module if module in modules else module.rpartition(".")[0]
            # A folder's __init__ gathers what its modules have; they do not take it from there.
            if target in modules and target != name and folder and target.startswith(f"{PACKAGE}.{folder}"):
                graph[name].add(target)
    return found + [f"circle: {' -> '.join(circle)}" for circle in _circles(graph)]


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle for every module that closes one in a depth-first walk."""
    found, done = [], set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for target in sorted(graph[name]):
            walk(target, [*path, name])
        done.add(name)

    for name in graph:
        walk(name, [])
    return found


def test_imports_point_down():
    assert violations(ROOT) == []


def test_the_package_is_read():
    assert {"losses", "models", "data"} <= {path.name for path in ROOT.iterdir() if path.is_dir()}
    parts = {name.split(".")[1] for name in _modules(ROOT) if name != PACKAGE}
    assert parts == set(ORDER)
    assert len(_modules(ROOT)) > 80


@pytest.mark.parametrize(
    "where, code, message",
    [
        ("losses/a.py", "from align_jax.models import Decoder", "losses and models never"),
        ("models/a.py", "import align_jax.data.records", "models and data never"),
        ("data/a.py", "from align_jax import losses", "data and losses never"),
        ("data/sub/a.py", "from ...models import config", "data and models never"),
        ("training/step.py", "from align_jax.recipes.train import train", "training imports recipes"),
        ("training/step.py", "def f():\n    from .. import config", "training imports config"),
        ("config/a.py", "from align_jax.cli import main", "config imports cli"),
        ("training/optim.py", "import align_jax", "training imports align_jax"),
        ("losses/a.py", "import optax", "losses.a must not know optax"),
        ("training/logs/a.py", "import jax.numpy as jnp", "training.logs.a must not know jax"),
        ("hf/a.py", "import torch", "hf.a must not know torch"),
        ("training/fit.py", "from tools import x", "training.fit must not know tools"),
        ("surprise.py", "", "surprise is not in ORDER"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, where, code, message):
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"import numpy\n\n{code}\n")
    (found,) = violations(tmp_path)
    assert message in found and found.startswith(where)


def test_a_circle_inside_a_folder_is_found(tmp_path):
    files = {"a": "from align_jax.data import b", "b": "from align_jax.data.c import x", "c": "from . import a"}
    for name, code in files.items():
        path = tmp_path / "data" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{code}\n")
    (found,) = violations(tmp_path)
    assert found.startswith("circle: ") and all(f"align_jax.data.{name}" in found for name in "abc")


@pytest.mark.parametrize(
    "where, code",
    [
        ("recipes/train.py", "from align_jax.config import load_config\nfrom align_jax.training import fit, step"),
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
    # the packages above it may import jax, so they are replaced by empty ones at the same place
    code = f"""
import sys, types
for name, place in (("align_jax", {str(ROOT)!r}), ("align_jax.training", {str(ROOT / "training")!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [place]
sys.modules |= {{"jax": None, "flax": None}}
import align_jax.training.logs
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_function_of_a_recipe_takes_more_than_four_arguments():
    # A keyword with a default is an option, which nobody hands on one by one.
    too_many = []
    for path in sorted((ROOT / "recipes").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                asked = [a for a, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if default is None]
                names = [a.arg for a in [*node.args.args, *asked] if a.arg not in ("self", "cls")]
                too_many += [f"{path.name}:{node.lineno} {node.name}({', '.join(names)})"] if len(names) > 4 else []
    assert too_many == []


def test_a_class_name_means_one_thing():
    homes: dict[str, list[str]] = {}
    for name, path in _modules(ROOT).items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
