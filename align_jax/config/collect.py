"""From the dataclasses of the code to keys.json and docs/config.md: `python -m align_jax.config.collect` writes both."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from align_jax.config.describe import markdown
from align_jax.config.keys import FILE, REQUIRED, Key, KnownKeys, KnownSection, Option, choice_files
from align_jax.config.load import SECTIONS, Config
from align_jax.config.meaning import meaning, summary
from align_jax.data.members import Member
from align_jax.models.config import ModelConfig
from align_jax.objectives import OBJECTIVES
from align_jax.training.optim import OPTIMIZERS, AdamW

# Sections whose `name` chooses a dataclass: what they are, the choices, the default.
_NAMED: dict[str, tuple[str, Mapping[str, type], str]] = {
    "objective": (
        "What is minimized: `name` chooses it, or is `package.module:Class`, one of your own; only its keys are accepted. "
        "A list, `[{name: dpo}, {name: sft, weight: 0.1}]`, is a mixture (docs/objectives.md): the keys of its terms are "
        "`objective.0.beta`, `objective.1.weight`, and so on.",
        OBJECTIVES,
        REQUIRED,
    ),
    "optimizer": ("How weights follow gradients: `name` chooses how; only its keys are accepted.", OPTIMIZERS, AdamW.name),
}
# Keys whose values are keys of a dataclass that their type does not name, and which of them a config may not set.
_NESTED = {"model.config": (ModelConfig, ("head", "quantize", "lora")), "data.train": (Member, ())}
_YAML = {"None": "null", "True": "true", "False": "false"}
_ROOT = Path(__file__).parents[2]


def collected() -> KnownKeys:
    """Every section and key as the code has them."""
    names = [field.name for field in dataclasses.fields(Config) if field.name in SECTIONS or field.name in _NAMED]
    keys: list[Key] = []
    for name in names:
        keys += _named_keys(name) if name in _NAMED else _keys_of(SECTIONS[name], name)
    return KnownKeys(tuple(_section(name) for name in names), tuple(keys))


def _section(name: str) -> KnownSection:
    if name not in _NAMED:
        return KnownSection(name, _in_yaml(summary(SECTIONS[name])))
    about, choices, _ = _NAMED[name]
    files = choice_files(name)
    return KnownSection(name, about, {choice: summary(choices[choice]) for choice in sorted(choices)}, files)


def _named_keys(section: str) -> Iterator[Key]:
    """Keys of the dataclasses that a section's `name` chooses among; those that agree but for their owner are one."""
    _, choices, default = _NAMED[section]
    yield Key(f"{section}.name", (), ("str",), default, f"one of {', '.join(sorted(choices))}")
    owners: dict[Key, list[str]] = {}
    for name in sorted(choices):
        for key in _keys_of(choices[name], section):
            owners.setdefault(key, []).append(name)
    for key, names in sorted(owners.items(), key=lambda item: -len(item[1])):
        yield dataclasses.replace(key, of=() if len(names) == len(choices) else tuple(names))
    if section == "objective":
        meaning_of_weight = "in a list: what the loss of the term counts in the sum; N is its place, from 0"
        yield Key("objective.N.weight", (), ("float",), "1.0", meaning_of_weight)


def _keys_of(cls: type, prefix: str, leave_out: Iterable[str] = ()) -> Iterator[Key]:
    """Keys of a dataclass, and of the dataclasses in it."""
    hints = typing.get_type_hints(cls)
    for field in (field for field in dataclasses.fields(cls) if field.name not in leave_out):
        name, hint = f"{prefix}.{field.name}", hints[field.name]
        yield Key(name, (), _options(hint), _default(field), _in_yaml(meaning(cls, field.name)))
        nested, not_set = _NESTED.get(name, (_dataclass_in(hint), ()))
        if nested is not None:
            yield from _keys_of(nested, name, not_set)


def _dataclass_in(hint: Any) -> type | None:
    return next((option for option in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(option)), None)


def _options(hint: Any) -> tuple[Option, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(_option(option) for option in (typing.get_args(hint) if union else (hint,)))


def _option(hint: Any) -> Option:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ("one of", *inner)
    if origin is list:
        return ("list of", _option(inner[0]))
    if origin is tuple:
        return ("fixed list of", _option(inner[0]))
    if origin is dict:
        return "keys" if inner[1] is Any else ("keys with", _option(inner[1]))
    if dataclasses.is_dataclass(hint):
        return "section"
    return {type(None): "null", Any: "any"}.get(hint) or hint.__name__


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return REQUIRED
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).partition("\n")[0]


def _in_yaml(text: str) -> str:
    """None, True and False in the words of a config."""
    return re.sub(rf"\b({'|'.join(_YAML)})\b", lambda match: _YAML[match[0]], text)


def main() -> None:
    """Writes keys.json, and docs/config.md where there are docs."""
    found, page = collected(), _ROOT / "docs" / "config.md"
    FILE.write_text(found.to_json(), encoding="utf-8")
    if page.exists():
        page.write_text(markdown(found), encoding="utf-8")
    print(f"wrote {FILE}" + (f" and {page}" if page.exists() else ""))


if __name__ == "__main__":
    main()
