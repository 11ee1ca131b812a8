"""Where the values of a config come from: YAML with line numbers, overrides, interpolation; and their types.

What is refused is refused here, with the key, the value, and the file and line or the option that gave it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align_jax.config.packaged import how_to_copy
from align_jax.data.sources import GivenRows, given_rows
from align_jax.errors import UserError
from align_jax.registry import suggest

T = TypeVar("T")
Override = tuple[str, Any]  # ("train.steps", 10)


def parse_overrides(argv: Sequence[str]) -> list[Override]:
    """`--section.key value` and `--section.key=value` as pairs; values are YAML (`3`, `1e-4`, `null`, `[a]`) or text.

    Raises:
      UserError: an argument that is not an option, or an option without a value.
    """
    overrides: list[Override] = []
    rest = list(argv)
    while rest:
        option = rest.pop(0)
        key, equals, text = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not re.fullmatch(r"\w+(\.\w+)+", key):
            raise UserError(f"unexpected argument {option!r}; overrides are written --section.key value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} has no value; write --{key} VALUE")
            text = rest.pop(0)
        overrides.append((key, _parse_value(text)))
    return overrides


def _parse_value(text: str) -> Any:
    try:
        # OmegaConf's YAML reads 1e-4 as a number, which PyYAML alone does not
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except yaml.YAMLError:
        return text
    # prose with a colon or a hash is text, not a mapping or nothing; so is a template such as {prompt}
    prose = isinstance(value, (dict, list)) and (text[:1] not in "{[" or (isinstance(value, dict) and ":" not in text))
    prose = prose and value != {}
    return text if prose or (value is None and text not in ("null", "~")) else value


@dataclasses.dataclass
class ConfigValues:
    """The values of a config file with overrides applied, and where each came from.

    Attributes:
      name: the file, as the user wrote it.
      values: nested dict, interpolations not resolved.
      lines: dotted key -> line of the file.
      overridden: dotted keys that the command line set. replaced: those among them that had a value before.
    """

    name: str
    values: dict[str, Any]
    lines: dict[str, int]
    overridden: set[str] = dataclasses.field(default_factory=set)
    replaced: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def read(cls, path: str | Path) -> ConfigValues:
        """Reads a YAML file; UserError for a missing file, bad YAML or a duplicate key."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the config {path}: {error}{how_to_copy(path)}") from error
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            lines = dict(_key_lines(node, str(path)))
            values = OmegaConf.to_container(OmegaConf.create(text)) if node is not None else {}
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
        except OmegaConfBaseException as error:  # a malformed ${...}
            raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}:1: a config is sections with keys, not {text.strip().splitlines()[0]!r}")
        return cls(str(path), values, lines)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> tuple[ConfigValues, dict[str, Any]]:
        """The values of nested dicts, and the data that stands among them as rows: dotted key -> `GivenRows`.

        Raises:
          UserError: sections that are not dicts, or rows that cannot be read.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"a config is a path, or sections with keys, not a {type(values).__name__}")
        copied: dict[str, Any] = {}
        for section, keys in values.items():
            is_section = isinstance(keys, Mapping)
            copied[str(section)] = {str(key): _plain(value) for key, value in keys.items()} if is_section else keys
        rows, data = {}, copied.get("data")
        for name in ("train", "eval"):
            if isinstance(data, dict) and not isinstance(data.get(name), str | int | float | None):
                rows[f"data.{name}"] = given_rows(data[name], f"data.{name}")
                data[name] = str(rows[f"data.{name}"])
        return cls("the config", copied, {}), rows

    def where(self, key: str) -> str:
        """What set a key: the option, else `file:line` of the key or of the nearest section around it."""
        if key in self.overridden:
            return f"--{key}"
        given = next((other for other in sorted(self.overridden) if other.startswith(f"{key}.")), None)
        if given and key not in self.lines:  # a section that only options name
            return f"--{given}"
        while key:
            if key in self.lines:
                return f"{self.name}:{self.lines[key]}"
            key = key.rpartition(".")[0]
        return self.name

    def error(self, key: str, message: str) -> UserError:
        """A UserError that opens with the place and the key."""
        place = self.where(key)
        return UserError(f"{place}: {message}" if place == f"--{key}" or not key else f"{place}: {key}: {message}")

    def override(self, overrides: Iterable[Override]) -> None:
        """Sets values; the last one wins."""
        for key, value in overrides:
            *parents, last = key.split(".")
            target = self.values
            for parent in parents:
                if not isinstance(target.get(parent), dict):
                    target[parent] = {}
                target = target[parent]
            if last in target:
                self.replaced.add(key)
            target[last] = value
            self.overridden.add(key)

    def resolve(self) -> None:
        """Replaces `${oc.env:NAME}` and `${section.key}` by their values; UserError names key, place and variable."""
        try:
            self.values = OmegaConf.to_container(OmegaConf.create(self.values), resolve=True)
        except OmegaConfBaseException as error:
            key = re.sub(r"\[.*", "", error.full_key or "")
            reason = str(error).splitlines()[0]
            variable = re.search(r"Environment variable '(\w+)' not found", reason)
            if variable:
                name = variable[1]
                reason = f"the environment variable {name} is not set; run: export {name}=..., or give --{key} VALUE"
            raise self.error(key, reason) from error


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _key_lines(node: yaml.Node | None, name: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, line) of every key of a YAML mapping; UserError for a key written twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if key in seen:
            raise UserError(f"{name}:{line}: {key} is given twice, first on line {seen[key]}; remove one")
        seen[key] = line
        yield key, line
        yield from _key_lines(value_node, name, f"{key}.")


def check_keys(source: ConfigValues, values: Mapping[str, Any], known: Iterable[str], prefix: str, what: str) -> None:
    """UserError for a key that is not known, naming what `what` accepts."""
    known = sorted(known)
    for key in [key for key in values if key not in known]:
        near = suggest(str(key), known)
        accepted = f"{what} accepts {', '.join(known) or 'no keys'}"
        raise source.error(f"{prefix}{key}", f"{what} has no key {key!r} (value {values[key]!r}); {near}{accepted}")


def _nested_class(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`, or None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    return classes[0] if classes else None


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _check_value(source: ConfigValues, schema: Any, key: str, value: Any, full: str, hint: Any) -> None:
    try:
        converted = OmegaConf.to_container(OmegaConf.merge(schema, {key: escaped(value)}), resolve=True)[key]
    except OmegaConfBaseException as error:
        raise source.error(full, f"{value!r} is not {_spell(hint)}: {str(error).splitlines()[0]}") from error
    # OmegaConf turns 1 into True and True into 'True'
    if isinstance(value, bool) != isinstance(converted, bool) and not isinstance(value, str):
        raise source.error(full, f"{value!r} is not {_spell(hint)}")


def check_types(source: ConfigValues, cls: type, values: Any, prefix: str, what: str) -> None:
    """UserError for unknown keys and wrong types in the values of a dataclass, nested ones too."""
    if not isinstance(values, dict):
        raise source.error(prefix.rstrip("."), f"expected keys and values, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    for key in [key for key, value in values.items() if key not in fields and value is None]:
        if f"{prefix}{key}" in source.replaced:
            del values[key]
    check_keys(source, values, fields, prefix, what)
    schema = OmegaConf.structured(cls)
    for key, value in values.items():
        nested = _nested_class(fields[key])
        if nested is not None and value is not None:
            check_types(source, nested, value, f"{prefix}{key}.", f"{prefix}{key}")
        _check_value(source, schema, key, value, f"{prefix}{key}", fields[key])


def build(source: ConfigValues, cls: type[T], values: Any, prefix: str, what: str) -> T:
    """An instance of a dataclass from checked values.

    Raises:
      UserError: an unknown key, a wrong type, a missing key, or what the dataclass itself refuses; each with its place.
    """
    check_types(source, cls, values, prefix, what)
    merged = OmegaConf.merge(OmegaConf.structured(cls), escaped(values))
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise source.error(f"{prefix}{missing[0]}", "is required")
    try:
        return OmegaConf.to_object(merged)
    except ValueError as error:
        message = str(error)
        named = re.match(rf"{re.escape(prefix)}\w+", message)
        key = named[0] if named else prefix.rstrip(".")
        raise source.error(key, message.removeprefix(key).lstrip(": ")) from error


def escaped(value: Any) -> Any:
    """Resolved text that holds `${` must not be interpolated again."""
    if isinstance(value, GivenRows):
        return value
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, (list, tuple)) else value


def dump(values: Mapping[str, Any]) -> str:
    """YAML that `ConfigValues.read` and `resolve` turn into the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(_texts(escaped(dict(values)))))


def _texts(value: Any) -> Any:
    """Rows given in Python by the name that stands for them."""
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    return str(value) if isinstance(value, GivenRows) else value
