"""Every key of a config with type, default and meaning: what `align-jax config` prints, and docs/config.md."""

from __future__ import annotations

import dataclasses
import functools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from align_jax.config.load import SECTIONS, Config
from align_jax.config.meaning import meaning, summary
from align_jax.config.source import suggest
from align_jax.errors import UserError
from align_jax.models.config import ModelConfig
from align_jax.objectives import OBJECTIVES
from align_jax.training.optim import OPTIMIZERS, AdamW

REQUIRED = "required"
# Sections whose `name` chooses a dataclass: what they are, the choices, the default.
_NAMED: dict[str, tuple[str, Mapping[str, type], str]] = {
    "objective": (
        "What is minimized: `name` chooses it, or is `package.module:Class`, one of your own; only its keys are accepted.",
        OBJECTIVES,
        REQUIRED,
    ),
    "optimizer": ("How weights follow gradients: `name` chooses how; only its keys are accepted.", OPTIMIZERS, AdamW.name),
}
# Keys whose values are keys of a dataclass that their type does not name, and which of them a config may not set.
_NESTED = {"model.config": (ModelConfig, ("head",))}
_YAML = {"None": "null", "True": "true", "False": "false"}
_WIDTH = 120
_PAGE = """\
# Every key of a config

Written from the code by `align-jax config --markdown > docs/config.md`: do not edit. `align-jax config` prints all keys in a
terminal, `align-jax config --explain train.eval_every` one of them. What is `eval_every: 100` in the section `train` of a file
is `--train.eval_every 100` on the command line and `"train.eval_every=100"` for `Config.of`.
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
      name: dotted, such as `train.steps`.
      of: the objectives or optimizers that have it; empty where all do, or there is nothing to choose.
      type: of its values.
      default: as YAML, or `required`.
      meaning: a sentence, or nothing where its dataclass does not say.
    """

    name: str
    of: tuple[str, ...]
    type: str
    default: str
    meaning: str

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def short(self) -> str:
        """The name without its section."""
        return self.name.partition(".")[2]


@functools.cache
def keys() -> tuple[Key, ...]:
    """Every key, section by section; a key of several objectives is one where they agree about it."""
    found: list[Key] = []
    for section in sections():
        found += _named_keys(section) if section in _NAMED else _keys_of(SECTIONS[section], section)
    return tuple(found)


def sections() -> list[str]:
    """The sections of a config, in their order."""
    return [field.name for field in dataclasses.fields(Config) if field.name in SECTIONS or field.name in _NAMED]


def table() -> str:
    """All keys for a terminal: a line for each, with long meanings shortened."""
    lines = []
    for section in sections():
        lines += ["", textwrap.shorten(f"{section}: {_about(section)}", _WIDTH, placeholder=" ...")]
        rows = [_row(key) for key in keys() if key.section == section]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        for name, value, text in rows:
            line = f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {text}"
            lines.append(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3].rstrip()}...")
    return "\n".join([*lines[1:], "", "All about a key or a section: align-jax config --explain KEY"])


def _row(key: Key) -> tuple[str, str, str]:
    of = f"[{textwrap.shorten(', '.join(key.of), 24, placeholder=' ...')}] " if key.of else ""
    return key.short, key.default if key.default == REQUIRED else f"{key.type} = {key.default}", of + key.meaning


def explain(word: str) -> str:
    """All about one key, or about every key of a section.

    Raises:
      UserError: there is no such key; names the nearest.
    """
    chosen = [key for key in keys() if key.name == word or key.name.startswith(f"{word}.")]
    if not chosen:
        raise UserError(f"--explain {word}: there is no such section or key; {_near(word)}`align-jax config` prints them all")
    parts = []
    if word in sections():
        parts += [_about(word), *(_wrapped(f"{name}: {text}") for name, text in _choices(word).items())]
    for key in chosen:
        of = f", of {', '.join(key.of)}" if key.of else ""
        default = key.default if key.default == REQUIRED else f"default {key.default}"
        parts.append(f"{key.name}: {key.type}, {default}{of}\n{_wrapped(key.meaning)}")
    return "\n\n".join(parts)


def markdown() -> str:
    """All keys as a page of documentation."""
    parts = [_PAGE.rstrip()]
    for section in sections():
        bullets = [f"- `{name}`: {text}" for name, text in _choices(section).items()]
        columns = ["key", *(["of"] if bullets else []), "type", "default", "meaning"]
        parts += ["", f"## {section}", "", _about(section), *([""] if bullets else []), *bullets, ""]
        parts += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for key in (key for key in keys() if key.section == section):
            of = [", ".join(key.of) or "all"] if bullets else []
            default = key.default if key.default == REQUIRED else f"`{key.default}`"
            cells = [f"`{key.short}`", *of, key.type, default, key.meaning]
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def _about(section: str) -> str:
    """What a section is."""
    return _NAMED[section][0] if section in _NAMED else _in_yaml(summary(SECTIONS[section]))


def _choices(section: str) -> dict[str, str]:
    """What a section's `name` chooses among, with what each is."""
    choices = _NAMED[section][1] if section in _NAMED else {}
    return {name: summary(choices[name]) for name in sorted(choices)}


def _named_keys(section: str) -> Iterator[Key]:
    """Keys of the dataclasses that a section's `name` chooses among; those that agree but for their owner are one."""
    _, choices, default = _NAMED[section]
    yield Key(f"{section}.name", (), "str", default, f"one of {', '.join(sorted(choices))}")
    owners: dict[Key, list[str]] = {}
    for name in sorted(choices):
        for key in _keys_of(choices[name], section):
            owners.setdefault(key, []).append(name)
    for key, names in sorted(owners.items(), key=lambda item: -len(item[1])):
        yield dataclasses.replace(key, of=() if len(names) == len(choices) else tuple(names))


def _keys_of(cls: type, prefix: str, leave_out: Iterable[str] = ()) -> Iterator[Key]:
    """Keys of a dataclass, and of the dataclasses in it."""
    hints = typing.get_type_hints(cls)
    for field in (field for field in dataclasses.fields(cls) if field.name not in leave_out):
        name, hint = f"{prefix}.{field.name}", hints[field.name]
        yield Key(name, (), _spell(hint), _default(field), _in_yaml(meaning(cls, field.name)))
        nested, not_set = _NESTED.get(name, (_dataclass_in(hint), ()))
        if nested is not None:
            yield from _keys_of(nested, name, not_set)


def _dataclass_in(hint: Any) -> type | None:
    return next((option for option in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(option)), None)


def _spell(hint: Any) -> str:
    """A type as a user of YAML would call it."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"{', '.join(map(str, options[:-1]))} or {options[-1]}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _spell(option) for option in options)
    if origin is list:
        return f"list of {_spell(options[0])}"
    if origin is dict and options[1] is not Any:
        return f"keys with {_spell(options[1])}"
    return "keys" if origin is dict or dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))


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


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _near(word: str) -> str:
    """`did you mean train.steps or bench.steps? ` for `steps`, else the nearest key or section."""
    names = list(dict.fromkeys(key.name for key in keys()))
    same = [name for name in names if name.rpartition(".")[2] == word.rpartition(".")[2]]
    return f"did you mean {' or '.join(same)}? " if same else suggest(word, [*names, *sections()])
