"""What the fields of a dataclass mean, read off its source.

That is its entry under `Attributes:` in the docstring, else the comment on its line, else the comment on the lines above it.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize


def meaning(cls: type, field: str) -> str:
    """What a field of a dataclass means, by the first of its classes that says so; empty where none does."""
    for home in cls.__mro__:
        if said := _attributes(home).get(field) or _comments(home).get(field):
            return said
    return ""


def summary(cls: type) -> str:
    """The docstring of a class, without its `Attributes:`."""
    return " ".join(_docstring(cls).partition("\nAttributes:\n")[0].split())


def _docstring(cls: type) -> str:
    return inspect.cleandoc(vars(cls).get("__doc__") or "")


def _attributes(cls: type) -> dict[str, str]:
    """Field -> its entry under `Attributes:` of a class's own docstring."""
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in _docstring(cls).partition("\nAttributes:\n")[2].splitlines():
        if line and not line.startswith("  "):
            break
        if entry := re.match(r"  (\w+(?:, \w+)*): (.*)", line):
            names = entry[1].split(", ")
            entries |= dict.fromkeys(names, entry[2])
        else:
            entries |= {name: f"{entries[name]} {line.strip()}".strip() for name in names}
    return entries


def _comments(cls: type) -> dict[str, str]:
    """Field -> the comment on its line in the source, or else on the lines above it."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # a built-in class, or one without a file
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = [node.end_lineno] if node.end_lineno in comments else _above(node.lineno, comments)
            found[node.target.id] = " ".join(comments[line].string.lstrip("# ") for line in lines)
    return found


def _above(line: int, comments: dict[int, tokenize.TokenInfo]) -> list[int]:
    """The numbers of the lines right above one that hold nothing but a comment."""
    first = line
    while first - 1 in comments and not comments[first - 1].line[: comments[first - 1].start[1]].strip():
        first -= 1
    return list(range(first, line))
