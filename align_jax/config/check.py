"""What a config may say: keys that are known, values of their types, nothing required left out; all mistakes of a kind at once.

The same functions check against the dataclasses of the code (`config.load`) and, before JAX is imported, against those that
keys.json describes (`config.early`).
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align_jax import ranges
from align_jax.config import words
from align_jax.config.keys import known
from align_jax.config.source import ConfigValues, escaped
from align_jax.errors import UserError
from align_jax.parsing import broken
from align_jax.registry import suggest

T = TypeVar("T")
WEIGHT = "weight"  # the key that a term of a list has beside its own
_SHOWN = 30  # mistakes of a config
_TERMS = "[{name: dpo, weight: 1}, {name: sft, weight: 0.1}]"
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "keys with values"}
# What to give for what a job requires
_GIVE = {
    "model": "give model.path, a Hugging Face folder or hub id, or model.config for a fresh one",
    "model.path": "a Hugging Face folder or hub id",
    "run.dir": "the folder that the run is kept in",
    "data": "the section of the rows, with data.train",
    "data.train": "the rows to train on: a JSONL or Parquet file, or a hub id",
    "data.eval": "the rows to evaluate on, a file like data.train",
    "objective": "what is minimized; give objective.name, such as dpo",
    "generate.prompts": "a JSONL file with a `prompt` per line; or write --prompt TEXT",
    "generate.output": "the JSONL file to write",
    "score.input": "the file with the rows to score",
    "score.output": "the JSONL file to write",
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A section whose `name` chooses a dataclass.

    Attributes:
      names: that there are. default: the name where none is given, if there is one.
      find: name -> dataclass; None where that is not known yet. Raises UserError for what cannot be found.
      own: whether `package.module:Class` is a name, too.
      many: whether the section may be a list of such, each with its keys and a `weight`.
    """

    names: tuple[str, ...]
    find: Callable[[str], type | None]
    default: str | None = None
    own: bool = False
    many: bool = False

    def has(self, name: Any) -> bool:
        """Whether there can be something of this name."""
        return name in self.names or (self.own and isinstance(name, str) and ":" in name)


@dataclasses.dataclass(frozen=True)
class Schema:
    """Section -> dataclass; sections whose `name` chooses one; keys whose values are the fields of one."""

    sections: Mapping[str, type]
    choices: Mapping[str, Choice]
    nested: Mapping[str, type] = dataclasses.field(default_factory=dict)


def check(source: ConfigValues, schema: Schema) -> None:
    """UserError for unknown sections, names and keys, and values of wrong types: all of them; else for what is missing."""
    there = {*schema.sections, *schema.choices}  # a section without keys, such as one whose lines are all comments, is none
    source.values = {name: keys for name, keys in source.values.items() if keys is not None or name not in there}
    for section, choice in schema.choices.items():
        if choice.default is not None and isinstance(source.values.setdefault(section, {}), dict):
            source.values[section].setdefault("name", choice.default)
    refuse(list(_problems(source, schema)))
    missing = [f"{prefix}{key}" for prefix, cls in _classes(source, schema) for key in _missing(cls, source.get(prefix[:-1]))]
    if missing:
        raise required(source, missing)


def refuse(problems: list[UserError]) -> None:
    """Raises the problems, if there are any, as one error."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UserError("\n  ".join([f"{len(problems)} mistakes:", *map(str, problems[:_SHOWN]), *more]))


def required(source: ConfigValues, missing: list[str]) -> UserError:
    """An error that names all keys that are missing, and says what to give."""
    meanings = {key.name: key.meaning.rstrip(".") for key in known().keys}
    give = {key: _GIVE.get(key) or meanings.get(key) or "give it a value" for key in missing}
    if len(missing) == 1:
        return source.lacks(missing[0], give[missing[0]])
    lines = ["these are required:", *(f"{key}: {text}" for key, text in give.items())]
    places = {source.where(key.rpartition(".")[0] or key) for key in missing}
    return UserError(f"{places.pop() if len(places) == 1 else source.name}: " + "\n  ".join(lines))


def require(source: ConfigValues, values: Mapping[str, Any], keys: Iterable[str]) -> None:
    """UserError naming all sections and dotted keys among these that the values lack, and what to give."""
    missing = [key for key in keys if _lacks(values, key)]
    if missing:
        raise required(source, missing)


def _lacks(values: Mapping[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    inside = values.get(section)
    if key == "model":
        return not isinstance(inside, Mapping) or (inside.get("path") is None and inside.get("config") is None)
    return inside is None or bool(name) and inside.get(name) is None


def _problems(source: ConfigValues, schema: Schema) -> Iterator[UserError]:
    values = source.values
    yield from _broken(source, values)
    yield from _unknown(source, values, [*schema.sections, *schema.choices], "", "a config")
    for section in [name for name in values if name in schema.sections or name in schema.choices]:
        if section in schema.choices and schema.choices[section].many and isinstance(values[section], list):
            yield from _of_terms(source, schema.choices[section], section)
        elif not isinstance(values[section], dict):
            value = values[section]
            near = f"; write {section}: {{name: {value}}}" if section in schema.choices and isinstance(value, str) else ""
            yield source.error(section, f"expected keys and values, got {shown(value)}{near}")
        elif section in schema.sections:
            yield from _of_class(source, schema.sections[section], section, section)
        else:
            yield from _of_choice(source, schema.choices[section], section, section)
    for key, cls in schema.nested.items():
        for place in _nested_places(source, key, cls):
            yield from _of_class(source, cls, place, place)


def _broken(source: ConfigValues, values: Any, place: str = "") -> Iterator[UserError]:
    """Texts and keys that no path and no file can hold."""
    if isinstance(values, str) and (why := broken(values)):
        yield source.error(place, f"{shown(values)} {why}")
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list | tuple) else ()
    for key, value in pairs:
        if isinstance(key, str) and (why := broken(key)):
            yield source.error(place, f"the key {shown(key)} {why}")
        yield from _broken(source, value, f"{place}.{key}".lstrip("."))


def shown(value: Any) -> str:
    """A value for an error, not all of a long one."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _nested_places(source: ConfigValues, key: str, cls: type | None = None) -> list[str]:
    """Where the keys of a dataclass stand: at a key, or at the items of its list."""
    return [place for place in places(source, key, cls) if isinstance(source.get(place), dict)]


def places(source: ConfigValues, key: str, cls: type | None) -> list[str]:
    """Where the values of a key stand: at it, at the items of its list, or for `data.eval` at its sets by name.

    Args:
      cls: whose keys one value of `data.eval` may have; a dict with none of them is one of sets by name.
    """
    value = source.get(key)
    if isinstance(value, list):
        return [f"{key}.{i}" for i in range(len(value))]
    if key != "data.eval" or not isinstance(value, dict) or not value:
        return [key]
    if {field.name for field in dataclasses.fields(cls)} & value.keys():
        return [key]
    return [place for name in value for place in places(source, f"{key}.{name}", cls)]


def _of_terms(source: ConfigValues, choice: Choice, section: str) -> Iterator[UserError]:
    """What is wrong with a list of choices."""
    terms = source.values[section]
    if not terms:
        yield source.error(section, f"an empty list; give its terms, such as {_TERMS}")
    for place, term in ((f"{section}.{i}", term) for i, term in enumerate(terms)):
        if not isinstance(term, dict):
            near = f"; write {{name: {term}}}" if isinstance(term, str) else ""
            yield source.error(place, f"expected keys and values, got {term!r}{near}")
            continue
        weight = term.get(WEIGHT, 1.0)
        if not _is_number(weight):
            yield source.error(f"{place}.weight", _is_not(f"{place}.weight", weight, float))
        elif why := ranges.refusal(f"{place}.weight", weight):
            yield source.error(f"{place}.weight", why)
        yield from _of_choice(source, choice, section, place, (WEIGHT,))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_choice(
    source: ConfigValues, choice: Choice, section: str, place: str, beside: tuple[str, ...] = ()
) -> Iterator[UserError]:
    """What is wrong with the keys of a choice, which stands at a section or as an item of its list."""
    key, values = f"{place}.name", source.get(place)
    name = values.get("name")
    if name is None or not choice.has(name):
        foreign = {word: value for word, value in values.items() if words.answer(str(word), value)}
        yield from _unknown(source, foreign, (), f"{place}.", section)
    if name is None:
        yield source.lacks(key, f"choose one of {', '.join(sorted(choice.names))}")
        return
    if isinstance(name, list | dict):
        yield source.error(key, f"{shown(name)} is not text; choose one of {', '.join(sorted(choice.names))}")
        return
    if not choice.has(name):
        here = words.name_here(f"{section}.name", name)
        absent = f"{name} is not there yet; " if section == "objective" and name in words.ABSENT else ""
        near = f"that is {here} here; " if here else absent or suggest(str(name), choice.names)
        end = ", or write package.module:Class" if choice.own else ""
        yield source.error(key, f"{name!r} is unknown; {near}choose one of {', '.join(sorted(choice.names))}{end}")
        return
    try:
        cls = choice.find(name)
    except UserError as error:
        yield source.error(key, str(error).removeprefix(f"{section}.name: "))
        return
    if cls is not None:
        _drop_options_of_another(source, choice, place, cls)
        yield from _of_class(source, cls, place, f"{section} {name}", ("name", *beside))


def _drop_options_of_another(source: ConfigValues, choice: Choice, place: str, cls: type) -> None:
    """An option that chooses another objective or optimizer displaces the file's keys that only the former one has."""
    before, values = source.before.get(f"{place}.name"), source.get(place)
    chosen = values["name"]
    former = choice.find(before) if isinstance(before, str) and before in choice.names and before != chosen else None
    if former is None:
        return
    only_former = {field.name for field in dataclasses.fields(former)} - {field.name for field in dataclasses.fields(cls)}
    for name in [name for name in values if name in only_former]:
        if f"{place}.{name}" not in source.overridden:
            source.displace(f"{place}.{name}", f"--{place}.name {chosen} is given, which has no such key")


def _of_class(source: ConfigValues, cls: type, path: str, what: str, beside: tuple[str, ...] = ()) -> Iterator[UserError]:
    """What is wrong with the values of a dataclass, nested ones too; `beside` are keys that are no fields of it."""
    own_ranges = ":" not in what  # `package.module:Class` means by its keys what it likes
    values, prefix = source.get(path), f"{path}."
    hints = typing.get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    for key in [key for key, value in values.items() if key not in fields and value is None]:
        if f"{prefix}{key}" in source.before:
            del values[key]
    own = {key: value for key, value in values.items() if key not in beside}
    yield from _unknown(source, own, fields, prefix, what)
    schema = OmegaConf.structured(cls)
    for key, value in ((key, value) for key, value in values.items() if key in fields):
        nested = _nested_class(fields[key])
        if nested is not None and isinstance(value, dict):
            yield from _of_class(source, nested, f"{prefix}{key}", f"{prefix}{key}")
        elif not (found := _converted(schema, key, value)):
            yield source.error(f"{prefix}{key}", _is_not(f"{prefix}{key}", value, fields[key]))
        elif why := own_ranges and ranges.refusal(f"{prefix}{key}", found[0]):
            yield source.error(f"{prefix}{key}", why)
        elif why := own_ranges and ranges.doubt(f"{prefix}{key}", found[0]):
            source.note(f"{prefix}{key}", why)


def _unknown(
    source: ConfigValues, values: Mapping[str, Any], accepted: Iterable[str], prefix: str, what: str
) -> Iterator[UserError]:
    """An error for every key that is not accepted, with what it may have meant."""
    accepted = sorted(accepted)
    for key in [key for key in values if key not in accepted]:
        value = values[key]
        is_section = isinstance(value, Mapping) and not prefix
        said = f"{what} has no section {key!r}" if is_section else f"{what} has no key {key!r} (value {value!r})"
        end = instead(str(key), value, prefix)
        end = end or f"{suggest(str(key), accepted)}{what} accepts {', '.join(accepted) or 'no keys'}"
        yield source.error(f"{prefix}{key}", f"{said}; {end}")


def instead(word: str, value: Any = None, prefix: str = "") -> str:
    """What an unknown key may have meant, other than by spelling: another trainer's word, or a key of another section."""
    if said := words.answer(word, value):
        return said
    if prefix == "objective." and (word == WEIGHT or word.isdecimal()):
        return f"there is one objective, whose keys are objective.KEY; a mixture is a list: --objective '{_TERMS}'"
    elsewhere = [name for name in known().named(word) if name != f"{prefix}{word}" and name.count(".") == 1]
    if prefix == "objective.":  # whose alpha, say, is nothing that an adapter has
        elsewhere = [name for name in elsewhere if not name.startswith("lora.")]
    if not elsewhere or isinstance(value, Mapping):
        return ""
    return f"did you mean {' or '.join(elsewhere)}?"


def _nested_class(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`, or None."""
    return next((option for option in _alternatives(hint) if dataclasses.is_dataclass(option)), None)


def _alternatives(hint: Any) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _converted(schema: Any, key: str, value: Any) -> tuple[Any] | tuple[()]:
    """The value as the type of its field has it; empty where it is none of that type."""
    try:
        converted = OmegaConf.to_container(OmegaConf.merge(schema, {key: escaped(value)}), resolve=True)[key]
    # a TypeError: a list where keys are wanted; a ValueError: an integer of thousands of digits; an OverflowError: infinity
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError):
        return ()
    # OmegaConf turns 1 into True and True into 'True'
    fits = isinstance(value, bool) == isinstance(converted, bool) or isinstance(value, str)
    return (converted,) if fits else ()


def _is_not(key: str, value: Any, hint: Any) -> str:
    """`'abc' is not a whole number (or null)`."""
    options = _alternatives(hint)
    wanted = " or ".join(_phrase(option) for option in options if option is not type(None))
    here = words.name_here(key, value)
    near = f"; that is {here} here" if here else ""
    word = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    return f"{word or shown(value)} is not {wanted}{' (or null)' if type(None) in options else ''}{near}"


def _phrase(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list:
        return f"a list of {_plural(inner[0])}"
    if dataclasses.is_dataclass(hint) or origin is dict:
        return _TYPES[dict] if origin is None or inner[1] is Any else f"keys with {_plural(inner[1])}"
    return _TYPES.get(hint) or getattr(hint, "__name__", str(hint))


def _plural(hint: Any) -> str:
    return {str: "texts", int: "whole numbers", float: "numbers"}.get(hint, "values")


def _classes(source: ConfigValues, schema: Schema) -> Iterator[tuple[str, type]]:
    """(prefix, dataclass) of everything that values were given for."""
    for section in source.values:
        if section in schema.sections:
            yield f"{section}.", schema.sections[section]
        else:
            for place in _nested_places(source, section):
                if cls := schema.choices[section].find(source.get(f"{place}.name")):
                    yield f"{place}.", cls
    for key, cls in schema.nested.items():
        if key == "model.config" and source.get("model.path") is not None:  # with both, ModelSection says so
            continue
        for place in _nested_places(source, key, cls):
            yield f"{place}.", cls


def _missing(cls: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Fields without a default that were not given, in the dataclasses in it, too."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        nested, value = _nested_class(hints[field.name]), values.get(field.name)
        if nested is not None and isinstance(value, dict):
            yield from _missing(nested, value, f"{prefix}{field.name}.")
        elif field.default is field.default_factory is dataclasses.MISSING and field.name not in values:
            yield f"{prefix}{field.name}"


def build(source: ConfigValues, cls: type[T], values: Any, prefix: str, place: str | None = None) -> T:
    """An instance of a dataclass from values that were checked.

    Args:
      prefix: with which the dataclass begins the keys that it refuses. place: where they stand instead, of an item of a list.

    Raises:
      UserError: what the dataclass itself refuses, with its place.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), escaped(values)))
    except ValueError as error:
        message = str(error)
        named = re.match(rf"{re.escape(prefix)}\w+(\.\w+)*", message)
        key = named[0] if named else prefix.rstrip(".")
        where = key if place is None else place + key.removeprefix(prefix.rstrip("."))
        raise source.error(where, message.removeprefix(key).lstrip(":= ")) from error
