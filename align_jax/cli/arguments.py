"""One parser for all commands: options by argparse, keys of the config as `--section.key value` anywhere among them."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from align_jax.config import words
from align_jax.config.keys import known
from align_jax.config.source import WHOLE, Override, parse_overrides
from align_jax.errors import UserError
from align_jax.registry import suggest

_KEY = rf"--(\w+(\.\w+)+|{'|'.join(WHOLE)})"
_HELP = ("-h", "--help")


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument of a command.

    Attributes:
      name: `--option`, or what stands for a positional argument, such as RUN_DIR.
      help: what it means.
      metavar: what stands for an option's value; empty for a switch.
      type: of the value. many: it may be given several times. optional: a positional one that may be left out.
      required: an option that may not.
    """

    name: str
    help: str
    metavar: str = ""
    type: Any = str
    many: bool = False
    optional: bool = False
    required: bool = False

    @property
    def is_option(self) -> bool:
        return self.name.startswith("-")

    @property
    def dest(self) -> str:
        """The name under which its value is found."""
        return self.name.lstrip("-").replace("-", "_").lower()

    @property
    def spelled(self) -> str:
        """As it stands in a usage line."""
        text = f"{self.name} {self.metavar}".strip()
        if not self.is_option:
            text += f" [{text} ...]" if self.many else ""
            return f"[{text}]" if self.optional else text
        return text if self.required else f"[{text}]{' ...' if self.many else ''}"


@dataclasses.dataclass(frozen=True)
class Given:
    """The arguments of a command as they were given: values by the name of each, and what overrides the config."""

    values: dict[str, Any]
    overrides: list[Override]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def whole_number(text: str) -> int:
    """The number that a text says, for `Argument.type`."""
    if not re.fullmatch(r"[+-]?\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether help is asked for anywhere; `-h` may also be the value of a key."""
    keys = [False, *(re.fullmatch(_KEY, word) is not None for word in argv)]
    return any(word == "--help" or (word == "-h" and not after) for word, after in zip(argv, keys, strict=False))


def parse(argv: Sequence[str], arguments: Sequence[Argument], usage: str, config: bool) -> Given:
    """The arguments of a command.

    Args:
      argv: what was written behind the command. arguments: that it has. usage: how it is written, for errors.
      config: whether it takes `--section.key value`.

    Raises:
      UserError: an unknown option, with the nearest and all that are accepted; arguments that are missing or too many.
    """
    options = [argument for argument in arguments if argument.is_option]
    keys, rest = _split(argv) if config else ([], list(argv))
    parser = _Parser(add_help=False, allow_abbrev=False)
    for option in options:
        kind: dict[str, Any] = {"action": "store_true"}
        if option.metavar:
            kind = {"type": option.type, "metavar": option.metavar, "action": "append" if option.many else "store"}
        parser.add_argument(option.name, dest=option.dest, **kind)
    values, others = parser.parse_known_args(rest)
    for word in others:
        if word.startswith("-") and word != "-":
            raise UserError(_unknown(word, options, config, usage))
    found = vars(values) | _positional([a for a in arguments if not a.is_option], others, usage, config)
    overrides = parse_overrides(keys)
    missing = [option for option in options if option.required and found[option.dest] is None]
    if missing:
        raise UserError(f"{missing[0].name} is required, {missing[0].help}: {usage}")
    return Given(found, overrides)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Keys of the config with their values, and everything else."""
    keys: list[str] = []
    others: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--mesh=auto" or (word == "--mesh" and words[:1] == ["auto"]):
            keys.append("--mesh.auto=true")
            del words[: "=" not in word]
            continue
        is_key = re.fullmatch(_KEY, word.partition("=")[0]) is not None
        (keys if is_key else others).append(word)
        if is_key and "=" not in word and words and not words[0].startswith("--"):
            keys.append(words.pop(0))
    return keys, others


def _positional(arguments: Sequence[Argument], words: list[str], usage: str, config: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    left = list(words)
    for argument in arguments:
        if argument.many:
            found[argument.dest], left = left, []
        else:
            found[argument.dest] = left.pop(0) if left else None
    missing = [a.name for a in arguments if not found[a.dest] and not a.optional]
    if missing:
        what = "a config" if missing[0] == "CONFIG.yaml" else " and ".join(missing)
        raise UserError(f"give {what}: {usage}")
    if left:
        hint = "; keys of the config are written --section.key value" if config else f": {usage}"
        raise UserError(f"unexpected argument {left[0]!r}{hint}")
    return found


def _unknown(word: str, options: Sequence[Argument], config: bool, usage: str) -> str:
    """What to say of an option that there is not."""
    option = word.partition("=")[0]
    name = option.lstrip("-").replace("-", "_")
    own = [o.name for o in options]
    near = suggest(option, [*own, "--help"])
    if config and (said := words.answer(name)):
        near = f"{said}; "
    elif config and name in {section.name for section in known().sections}:
        near = f"{_of_section(name)}; "
    elif config and not near:
        same = [f"--{key}" for key in known().named(name)]
        near = (
            f"did you mean {' or '.join(same)}? " if same else suggest(f"--{name}", [f"--{key.name}" for key in known().keys])
        )
    accepted = ", ".join([*own, "--help"]) + (", and every key of the config as --section.key VALUE" if config else "")
    return f"unknown option {option}; {near}accepted are {accepted}: {usage}"


def _of_section(name: str) -> str:
    """How the keys of a section are written, for who wrote the section alone."""
    keys = list(dict.fromkeys(f"--{key.name}" for key in known().inside(name)))
    first = "--mesh auto" if name == "mesh" else f"{keys[0]} VALUE"
    return f"{name} is a section of the config: write {first} (`align-jax config --explain {name}` has all of its keys)"
