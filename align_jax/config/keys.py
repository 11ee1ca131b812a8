"""Every key of a config: its type, default and meaning, known without importing JAX.

They stand in keys.json, which `python -m align_jax.config.collect` writes from the dataclasses of the code (a test compares
the two). Help, and a first check of what a user wrote, read it; `stand_in` makes dataclasses of it that have the same fields as
those of the code, and so are checked by the same functions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union

import yaml

FILE = Path(__file__).with_name("keys.json")
_PACKAGE = Path(__file__).parents[1]
REQUIRED = "required"
FREE_TEXTS = ("data.prompt_template", "data.belief_template")  # in which spaces at the ends and line ends are tokens
_SCALARS = {"int": int, "float": float, "bool": bool, "str": str, "null": type(None), "any": Any}
# What one value may be: a name of _SCALARS, "keys" (any), "section" (keys of their own), or a tuple: ("one of", *choices),
# ("list of", option), ("fixed list of", option) (a tuple, in code), ("keys with", option).
Option = str | tuple


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
      name: dotted, such as `train.steps`.
      of: the objectives or optimizers that have it; empty where all do, or there is nothing to choose.
      options: what its values may be, see `Option`.
      default: as YAML, or `required`.
      meaning: a sentence, or nothing where its dataclass does not say.
    """

    name: str
    of: tuple[str, ...]
    options: tuple[Option, ...]
    default: str
    meaning: str

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def short(self) -> str:
        """The name without its section."""
        return self.name.partition(".")[2]

    @property
    def type(self) -> str:
        """What its values may be, as a user of YAML would call it."""
        return " or ".join(_spelled(option) for option in self.options)


@dataclasses.dataclass(frozen=True)
class KnownSection:
    """A section of a config.

    Attributes:
      about: what it is.
      choices: of a section whose `name` chooses its keys: name -> what that is; else empty.
      files: of objectives, of which a new file in their folder makes one more: the files that there were, see `choice_files`.
    """

    name: str
    about: str
    choices: dict[str, str] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class KnownKeys:
    """All sections and keys, in their order; a key of several objectives is one where they agree about it."""

    sections: tuple[KnownSection, ...]
    keys: tuple[Key, ...]

    def section(self, name: str) -> KnownSection:
        """The section of this name; KeyError where there is none."""
        return {section.name: section for section in self.sections}[name]

    def inside(self, prefix: str, owner: str | None = None) -> Iterator[Key]:
        """The keys directly below a section or key; `owner` is the objective or optimizer that must have them."""
        for key in self.keys:
            if key.name.rpartition(".")[0] == prefix and (owner is None or not key.of or owner in key.of):
                yield key

    def named(self, short: str) -> list[str]:
        """The dotted names of the keys whose last part is this word."""
        return list(dict.fromkeys(key.name for key in self.keys if key.name.rpartition(".")[2] == short))

    def to_json(self) -> str:
        """What `known` reads."""
        sections, keys = ([dataclasses.asdict(item) for item in items] for items in (self.sections, self.keys))
        lines = [",\n".join(json.dumps(item, ensure_ascii=False) for item in items) for items in (sections, keys)]
        return f'{{"sections": [\n{lines[0]}\n],\n"keys": [\n{lines[1]}\n]}}\n'


def choice_files(section: str) -> tuple[str, ...]:
    """The files in which a section's choices are found, where every file of a folder may add one."""
    folder = {"objective": "objectives"}.get(section)
    return () if folder is None else tuple(sorted(file.name for file in (_PACKAGE / folder).glob("*.py")))


@functools.cache
def known() -> KnownKeys:
    """All keys, from keys.json."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    sections = [KnownSection(**section | {"files": tuple(section["files"])}) for section in found["sections"]]
    keys = [Key(**{name: _frozen(value) for name, value in key.items()}) for key in found["keys"]]
    return KnownKeys(tuple(sections), tuple(keys))


def is_text(key: str) -> bool:
    """Whether the values of a key, `section.key`, are texts, or null, and nothing else; False for a key that is not known."""
    return key in _texts()


@functools.cache
def _texts() -> frozenset[str]:
    options: dict[str, set[Option]] = {}
    for key in known().keys:
        options.setdefault(key.name, set()).update(key.options)
    return frozenset(name for name, found in options.items() if "str" in found and found <= {"str", "null"})


def stand_in(prefix: str, owner: str | None = None) -> type:
    """A dataclass with the fields of the one that a section has in the code: names, types, and which of them are required.

    Args:
      prefix: the section, or a key that has keys. owner: the objective or optimizer, where the section's `name` chooses one.
    """
    fields = []
    for key in known().inside(prefix, owner):
        name = key.name.rpartition(".")[2]
        if owner is not None and name == "name":
            continue
        field = {} if key.default == REQUIRED else {"default_factory": functools.partial(yaml.safe_load, key.default)}
        fields.append((name, _hint(key.options, key.name), dataclasses.field(**field)))
    return dataclasses.make_dataclass(prefix.replace(".", "_"), fields, frozen=True, kw_only=True)


def _hint(options: tuple[Option, ...], name: str) -> Any:
    hints = [_hint_of(option, name) for option in options]
    return Union[tuple(hints)] if len(hints) > 1 else hints[0]  # noqa: UP007


def _hint_of(option: Option, name: str) -> Any:
    if isinstance(option, str):
        return {"keys": dict[str, Any]}.get(option) or (stand_in(name) if option == "section" else _SCALARS[option])
    kind, *rest = option
    if kind == "one of":
        return Literal[tuple(rest)]
    inner = _hint_of(rest[0], name)
    return {"list of": list[inner], "fixed list of": tuple[inner, ...]}.get(kind, dict[str, inner])


def _spelled(option: Option) -> str:
    if isinstance(option, str):
        return {"section": "keys", "any": "str, keys or list"}.get(option, option)
    kind, *rest = option
    if kind == "one of":
        return " or ".join(filter(None, (", ".join(map(str, rest[:-1])), str(rest[-1]))))
    return f"{kind.removeprefix('fixed ')} {_spelled(rest[0])}"


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
