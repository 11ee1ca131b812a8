"""Claims of the papers, each a module with `main(argv)`: `align-jax experiment NAME`."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from align_jax import registry
from align_jax.errors import UserError


def experiments() -> list[str]:
    """The names of the experiments: the modules of this folder that have a `main`; none is imported."""
    return [file.stem for file in sorted(Path(__file__).parent.glob("*.py")) if _main_of(_parsed(file)) is not None]


def about_experiment(name: str) -> str:
    """What an experiment does, by the docstrings of its module and its `main`.

    Raises:
      UserError: an unknown name.
    """
    if ":" in name:
        return inspect.getdoc(find_experiment(name)) or f"{name} does not say what it does."
    check_experiment(name)
    module = _parsed(Path(__file__).parent / f"{name}.py")
    return "\n\n".join(filter(None, (ast.get_docstring(module), ast.get_docstring(_main_of(module)))))


def find_experiment(name: str) -> Callable[[list[str]], int]:
    """`main` of an experiment: a module of this folder that has one, or a function elsewhere, `package.module:main`.

    Raises:
      UserError: an unknown name.
    """
    if ":" in name:
        return registry.find(name, __name__, Callable, "experiment", "experiment")
    check_experiment(name)
    return importlib.import_module(f"{__name__}.{name}").main


def check_experiment(name: str) -> None:
    """UserError where no experiment of this folder has this name."""
    known = experiments()
    if name not in known:
        near = f"; {registry.suggest(name, known)}".rstrip("; ")
        raise UserError(f"experiment: {name!r} is not one of {', '.join(known)}, or package.module:function{near}")


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _main_of(module: ast.Module) -> ast.FunctionDef | None:
    return next((node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "main"), None)
