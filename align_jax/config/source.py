"""Where the values of a config come from: YAML with line numbers, overrides, interpolation.

What is refused is named with its key, its value, and the file and line or the option that gave it. Nothing here imports JAX, so
that a mistake of the command line is answered at once.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align_jax.config.keys import FREE_TEXTS, is_text
from align_jax.config.packaged import how_to_copy
from align_jax.config.rivals import displaced
from align_jax.errors import UserError
from align_jax.parsing import check_yaml

Override = tuple[str, Any]  # ("train.steps", 10)
# sections that an option may give whole: --objective '[{name: dpo}, {name: sft, weight: 0.1}]', --lora {} or null
WHOLE = ("objective", "lora")
_LONGEST = 2**20  # characters of a config
_QUOTES = ("'", '"')  # with which YAML begins a text that is not as it stands
_NAMES = ("&", "*")  # with which it names a value, and takes a named one: nothing that an option has
_NULL = ("null", "~")
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # refused where texts stand


def parse_overrides(argv: Sequence[str]) -> list[Override]:
    """`--section.key value` and `--section.key=value` as pairs, and the sections of `WHOLE`.

    Values are YAML (`3`, `1e-4`, `null`, `[a]`) or text, without spaces around it but for templates. A text stays as it was
    typed unless it has quotes, whatever it looks like where the key is one of texts.

    Raises:
      UserError: an argument that is not an option, or an option without a value.
    """
    overrides: list[Override] = []
    rest = list(argv)
    while rest:
        option = rest.pop(0)
        key, equals, text = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not (re.fullmatch(r"\w+(\.\w+)+", key) or key in WHOLE):
            raise UserError(f"unexpected argument {option!r}; overrides are written --section.key value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} has no value; write --{key} VALUE")
            text = rest.pop(0)
        overrides.append((key, _parse_value(text, key)))
    return overrides


def _parse_value(text: str, key: str) -> Any:
    if key not in FREE_TEXTS:
        text = text.strip()
    if text[:1] in _NAMES:
        return text
    if is_text(key) and text.lstrip()[:1] not in _QUOTES:
        plain = text.strip()
        return _SWITCHES.get(plain.lower(), None if plain in _NULL else text)
    try:
        check_yaml(text)
    except yaml.YAMLError:
        return text
    except ValueError as error:
        raise UserError(f"--{key}: {str(error).partition(': ')[2]}") from error
    try:
        # OmegaConf's YAML reads 1e-4 as a number, which PyYAML alone does not
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    # for a malformed ${...}, which `resolve` names; a ValueError: no day of the calendar
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError):
        return text
    # YAML folds lines of a text without quotes, trims it, and ends it at a hash: it is what was typed instead
    if isinstance(value, str) and text.lstrip()[:1] not in _QUOTES:
        return text
    # prose with a colon or a hash is text, not a mapping or nothing; so is a template such as {prompt}
    prose = isinstance(value, (dict, list)) and (text[:1] not in "{[" or (isinstance(value, dict) and ":" not in text))
    prose = prose and value != {}
    return text if prose or (value is None and text not in _NULL) else value


@dataclasses.dataclass
class ConfigValues:
    """The values of a config file with overrides applied, and where each came from.

    Attributes:
      name: the file, as the user wrote it.
      values: nested dict, interpolations not resolved.
      lines: dotted key -> line of the file.
      overridden: dotted keys that the command line set. before: those among them that had a value before, with that value.
      notes: a line for each value of the file that an option displaced.
    """

    name: str
    values: dict[str, Any]
    lines: dict[str, int]
    overridden: set[str] = dataclasses.field(default_factory=set)
    before: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> ConfigValues:
        """Reads a YAML file; UserError for a missing file, bad YAML or a duplicate key."""
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(_LONGEST + 1)
        except OSError as error:
            near = f"; did you mean {path}.yaml?" if Path(f"{path}.yaml").is_file() else how_to_copy(path)
            raise UserError(f"cannot read the config {path}: {error.strerror}{near}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read the config {path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
        except ValueError as error:  # a NUL
            raise UserError(f"cannot read the config {str(path)!r}: {error}") from error
        if len(text) > _LONGEST:
            raise UserError(f"cannot read the config {path}: it has more than {_LONGEST:,} characters; is it data?")
        try:
            check_yaml(text)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            lines = dict(_key_lines(node, str(path)))
            if isinstance(node, yaml.ScalarNode | yaml.SequenceNode):
                raise UserError(f"{path}:1: a config is sections with keys, not {text.strip().splitlines()[0]!r:.80}")
            values = OmegaConf.to_container(OmegaConf.create(text)) if node is not None else {}
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: a malformed ${{...}} (for the text itself, write \\${{): {reason}") from error
        except UserError:
            raise
        except (ValueError, RecursionError) as error:  # a UserError has its place, the others begin with the line
            raise UserError(f"{path}:{error}" if str(error)[:1].isdigit() else f"{path}: {_reason(error)}") from error
        return cls(str(path), _spelled_out(values), lines)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ConfigValues:
        """The values of nested dicts; UserError where they are none."""
        if not isinstance(values, Mapping):
            raise UserError(f"a config is a path, or sections with keys, not a {type(values).__name__}")
        copied: dict[str, Any] = {}
        for section, keys in values.items():
            is_section = isinstance(keys, Mapping)
            copied[str(section)] = {str(key): _plain(value) for key, value in keys.items()} if is_section else keys
        return cls("the config", _spelled_out(copied), {})

    def where(self, key: str) -> str:
        """What set a key: the option, else `file:line` of the key or of the nearest section around it."""
        parts = key.split(".")
        for depth in range(len(parts), 0, -1):  # an option that gave the key, or what it stands in
            if (around := ".".join(parts[:depth])) in self.overridden:
                return f"--{around}"
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

    def lacks(self, key: str, what_to_give: str) -> UserError:
        """A UserError that says that a key is required, where it was looked for, and what to give."""
        return UserError(f"{self.where(key)}: {key} is required: {what_to_give}")

    def override(self, overrides: Iterable[Override]) -> None:
        """Sets values; the last one wins, and takes the place of what the file says of keys that exclude it."""
        for key, value in overrides:
            *parents, last = key.split(".")
            target: Any = self.values
            for depth, parent in enumerate(parents):
                place = _place(target, parent, f"--{key}", parents[:depth])
                if isinstance(target, dict) and not isinstance(target.get(place), dict | list):
                    target[place] = {}
                target = target[place]
            last = _place(target, last, f"--{key}", parents)
            if (isinstance(target, list) or last in target) and key not in self.overridden:
                self.before[key] = target[last]
            target[last] = value
            self.overridden.add(key)
        given = {key: self.get(key) for key in self.overridden}
        for key, by in displaced(given).items():
            if self.get(key) not in (None, False):  # what is off (mesh.auto: false) stands in nobody's way
                self.displace(key, f"--{by} {'null' if given[by] is None else given[by]} is given")

    def get(self, key: str) -> Any:
        """The value of a dotted key; None where there is none."""
        value: Any = self.values
        for part in key.split("."):
            if isinstance(value, list):
                value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
            else:
                value = value.get(part) if isinstance(value, dict) else None
        return value

    def displace(self, key: str, reason: str) -> None:
        """Takes a key of the file out, and notes why."""
        section, _, last = key.rpartition(".")
        value = self.get(section).pop(last)
        self.notes.append(f"{self.where(key)}: {key}: {value} no longer holds, since {reason}")

    def note(self, key: str, message: str) -> None:
        """Notes a line about a key, once, with its place."""
        line = str(self.error(key, message))
        if line not in self.notes:
            self.notes.append(line)

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
        except (RecursionError, ValueError) as error:
            raise UserError(f"{self.name}: values cannot be resolved: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return "they stand too deep in one another" if isinstance(error, RecursionError) else str(error).partition("\n")[0]


def _spelled_out(values: dict[str, Any]) -> dict[str, Any]:
    """`mesh: auto` as the key that it stands for."""
    return values | {"mesh": {"auto": True}} if values.get("mesh") == "auto" else values


def _place(target: Any, part: str, option: str, parents: Sequence[str]) -> Any:
    """A part of a dotted key as the key of a mapping, or as the number of an item of a list."""
    key = ".".join(parents)
    if isinstance(target, list):
        if not part.isdecimal() or int(part) >= len(target):
            raise UserError(f"{option}: {key} is a list of {len(target)}, numbered from 0; {part!r} is none of them")
        return int(part)
    if not isinstance(target, dict):
        raise UserError(f"{option}: {key} is {target!r}, which has no key {part!r}; in the file, write it with its keys")
    return part


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _key_lines(node: yaml.Node | None, name: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, line) of every key of a YAML mapping; UserError for a key written twice."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield f"{prefix}{i}", item.start_mark.line + 1
            yield from _key_lines(item, name, f"{prefix}{i}.")
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


def escaped(value: Any) -> Any:
    """Resolved text that holds `${` must not be interpolated again; a text of a type of its own (rows) stays what it is."""
    if isinstance(value, str):
        return value.replace("${", "\\${") if type(value) is str else value
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, (list, tuple)) else value


def dump(values: Mapping[str, Any]) -> str:
    """YAML that `ConfigValues.read` and `resolve` turn into the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(_texts(escaped(dict(values)))))


def _texts(value: Any) -> Any:
    """Rows given in Python by the name that stands for them."""
    if isinstance(value, list):
        return [_texts(item) for item in value]
    if isinstance(value, dict):
        return {key: _texts(item) for key, item in value.items()}
    return str(value) if isinstance(value, str) else value
