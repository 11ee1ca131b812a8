"""Experiments: the quick start, and every claim of the papers, each a file: `align-jax experiment NAME`.

A claim is a module of `gdpo/` or `mpo/` with an `EXPERIMENT`: `gdpo/calibration.py` is `gdpo-calibration`. Anything else
here is a module with `main(argv)`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from align_jax import registry
from align_jax.errors import UserError

ALL, LIST = "all", "list"
PAPERS = ("gdpo", "mpo")
_HERE = Path(__file__).parent


def experiments() -> list[str]:
    """The names of the experiments, claims last; none is imported."""
    return [file.stem for file in sorted(_HERE.glob("*.py")) if _main_of(_parsed(file)) is not None] + claims()


def claims() -> list[str]:
    """The names of the claims, in the order in which the papers' questions build on each other."""
    found = {f"{paper}-{file.stem.replace('_', '-')}": file for paper in PAPERS for file in (_HERE / paper).glob("[a-z]*.py")}
    numbers = {name: _number_of(file) for name, file in found.items()}
    return sorted((name for name, number in numbers.items() if number is not None), key=lambda name: numbers[name])


def about_experiment(name: str) -> str:
    """What an experiment does, by the docstrings of its module and its `main`.

    Raises:
      UserError: an unknown name.
    """
    if ":" in name:
        return inspect.getdoc(find_experiment(name)) or f"{name} does not say what it does."
    if name == ALL:
        return "Every claim, one after the other; what is measured already is not measured again."
    check_experiment(name)
    module = _parsed(_file_of(name))
    main = _main_of(module)
    return "\n\n".join(filter(None, (ast.get_docstring(module), main and ast.get_docstring(main))))


def seconds_of(name: str) -> tuple[int, int]:
    """About how many seconds a claim takes, or all of them: quick and full, on 2 cores; nothing is imported."""
    found = []
    for one in claims() if name == ALL else [name]:
        calls = (node for node in ast.walk(_parsed(_file_of(one))) if isinstance(node, ast.keyword) and node.arg == "seconds")
        found.append(ast.literal_eval(next(calls).value))
    return sum(quick for quick, _ in found), sum(full for _, full in found)


def find_experiment(name: str) -> Callable[[list[str]], int]:
    """`main` of an experiment: of a module of this folder, a claim, all of them, or `package.module:main` elsewhere.

    Raises:
      UserError: an unknown name.
    """
    if ":" in name:
        return registry.find(name, __name__, Callable, "experiment", "experiment")
    check_experiment(name)
    if name != ALL and name not in claims():
        return importlib.import_module(f"{__name__}.{name}").main
    return partial(importlib.import_module(f"{__name__}.command").run_command, name)


def check_experiment(name: str) -> None:
    """UserError where no experiment of this folder has this name."""
    known = [*experiments(), ALL]
    if name not in known:
        near = f"; {registry.suggest(name, known)}".rstrip("; ")
        raise UserError(f"experiment: {name!r} is not one of {', '.join(known)}, or package.module:function{near}")


def module_of(name: str) -> str:
    """The module of a claim, as Python imports it."""
    paper, _, rest = name.partition("-")
    return f"{__name__}.{paper}.{rest.replace('-', '_')}"


def _file_of(name: str) -> Path:
    paper, _, rest = name.partition("-")
    return _HERE / paper / f"{rest.replace('-', '_')}.py" if rest else _HERE / f"{name}.py"


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _main_of(module: ast.Module) -> ast.FunctionDef | None:
    return next((node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "main"), None)


def _number_of(file: Path) -> int | None:
    """`number=N` of the module's `EXPERIMENT`; None where there is none."""
    found = re.search(r"^EXPERIMENT = Experiment\(\n    number=(\d+),", file.read_text(encoding="utf-8"), re.M)
    return int(found[1]) if found else None
