"""Things found by name: writing one file adds one.

    table("align_jax.objectives", Objective)["mpo"]                                            # a module of the folder has it
    find("mpo", "align_jax.objectives", Objective, "objective", "objective.name")              # the same, with errors for users
    find("my_module:Mine", "align_jax.objectives", Objective, "objective", "objective.name")   # from outside the package

A thing is a subclass of `base` with a `name` of its own (what only others derive from has none), or an instance of `base` with
a `name`; it stands at the top level of a module of the folder.
"""

from __future__ import annotations

import difflib
import importlib
import operator
import os
import pkgutil
import sys
from collections.abc import Iterable
from typing import Any

from align_jax.errors import UserError


def table(package: str, base: type) -> dict[str, Any]:
    """Everything that the modules of a folder define, by name.

    Args:
      package: dotted name of the folder. base: what its things are subclasses or instances of.

    Raises:
      ValueError: two things of one name.
    """
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if _defines(module.__name__, value, base) and found.setdefault(value.name, value) is not value:
                raise ValueError(f"{found[value.name]!r} and {value!r} in {package} are both named {value.name!r}")
    return found


def _defines(module: str, value: Any, base: type) -> bool:
    if isinstance(value, type):
        return issubclass(value, base) and value.__module__ == module and isinstance(vars(value).get("name"), str)
    return isinstance(value, base) and isinstance(getattr(value, "name", None), str)


def find(name: str | None, package: str, base: type, what: str, key: str) -> Any:
    """The thing of this name.

    Args:
      name: of a thing in the folder, or `package.module:Class`, which is imported; the current directory is searched too.
      package, base: as in `table`.
      what: what is looked for, such as "objective". key: what the name was given as, such as "objective.name"; for errors.

    Returns:
      The subclass or instance of `base`.

    Raises:
      UserError: no name, an unknown name, a module that cannot be imported, or something else than was looked for.
    """
    if isinstance(name, str) and ":" in name:
        return _outside(name, base, what, key)
    known = table(package, base)
    if name not in known:
        problem = "is required" if name is None else f"{name!r} is unknown"
        near = suggest(str(name), known)
        raise UserError(f"{key}: {problem}; {near}choose one of {', '.join(sorted(known))}, or write package.module:Class")
    return known[name]


def spelled(thing: Any, package: str) -> str:
    """The name under which `find` finds a thing again: its own inside the folder, else `package.module:Class`."""
    home = thing if isinstance(thing, type) else type(thing)
    inside = home.__module__.startswith(f"{package}.")
    return thing.name if inside else f"{home.__module__}:{home.__qualname__}"


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean X? `, or nothing when no known word is near."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}? " if near else ""


def _outside(name: str, base: type, what: str, key: str) -> Any:
    module_name, _, attribute = name.partition(":")
    module = _imported(module_name, f"{key}: {name!r}")
    try:
        thing = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        there = [n for n, value in vars(module).items() if _fits(value, base)]
        near = suggest(attribute, there) or (f"its {what}s are {', '.join(there)}; " if there else "")
        hint = "a class of a script or notebook must move to a file of its own" if module_name == "__main__" else "correct it"
        where = getattr(module, "__file__", None) or module_name
        raise UserError(f"{key}: {name!r}: {where} has no {attribute!r}; {near}{hint}") from error
    if not _fits(thing, base):
        raise UserError(f"{key}: {name!r} is no {what}: it must be a subclass of {base.__module__}.{base.__qualname__}")
    return thing


def _fits(value: Any, base: type) -> bool:
    return issubclass(value, base) and value is not base if isinstance(value, type) else isinstance(value, base)


def _imported(module: str, where: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does; a console script has its own folder there instead
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{where}: importing {module} failed: {error}") from error
        raise UserError(
            f"{where}: there is no module {error.name!r} on Python's path or in {os.getcwd()}; put it back, run from the "
            "folder that holds it, or add that folder to PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the user's file does when it is read
        raise UserError(f"{where}: importing {module} failed: {type(error).__name__}: {error}") from error
