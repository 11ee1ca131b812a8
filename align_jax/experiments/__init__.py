"""Claims of the papers, each a module with `main(argv)`: `align-jax experiment NAME`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from align_jax import registry
from align_jax.errors import UserError


def find_experiment(name: str) -> Callable[[list[str]], int]:
    """`main` of an experiment: a module of this folder that has one, or a function elsewhere, `package.module:main`.

    Raises:
      UserError: an unknown name.
    """
    if ":" in name:
        return registry.find(name, __name__, Callable, "experiment", "experiment")
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name in names and (main := getattr(importlib.import_module(f"{__name__}.{name}"), "main", None)):
        return main
    known = [n for n in names if hasattr(importlib.import_module(f"{__name__}.{n}"), "main")]
    raise UserError(f"experiment: {name!r} is not one of {', '.join(sorted(known))}, or package.module:function")
