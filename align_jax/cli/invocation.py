"""A command of the command line, and one with what it was given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from align_jax.cli.arguments import Argument, Given
from align_jax.config.early import check_early
from align_jax.config.given import config_of, data_of
from align_jax.config.jobs import JOBS
from align_jax.config.source import ConfigValues, Override

_OVERRIDES = "[--section.key value ...]"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      run: what it does with its arguments and configs; returns the exit status.
      about: a line. more: what else there is to say of it. example: that works, given the files in it.
      arguments: its own; where one is CONFIG.yaml, keys of the config may be given, too.
      takes_folders: in place of a config: the folder of a run or a model, or a hub id.
      takes_data: the argument that is data, or a config that names some; else empty.
      unless: what makes some required keys superfluous.
      computes: whether it needs the devices, and so JAX. compiles: whether for TPUs that are not there.
      passes_on: what stands behind its first argument is another program's.
    """

    run: Callable[[Invocation], int]
    about: str
    example: str
    arguments: tuple[Argument, ...] = ()
    more: str = ""
    takes_folders: bool = False
    takes_data: str = ""
    unless: str = ""
    computes: bool = True
    compiles: bool = False
    passes_on: bool = False

    @property
    def reads_config(self) -> bool:
        return bool(self.takes_data) or any(argument.name == "CONFIG.yaml" for argument in self.arguments)

    @property
    def long(self) -> str:
        return f"{self.about[0].upper()}{self.about[1:]}.{' ' if self.more else ''}{self.more}"

    def usage(self, name: str) -> str:
        words = ["align-jax", name, *(argument.spelled for argument in self.arguments)]
        return " ".join([*words, *([_OVERRIDES] if self.reads_config or self.passes_on else [])])


@dataclasses.dataclass(frozen=True)
class Invocation:
    """A command with what it was given.

    Attributes:
      given: its arguments. read: what was read for each config, with what follows from a folder in a config's place.
    """

    given: Given
    read: list[tuple[ConfigValues, list[Override]]]

    @classmethod
    def of(cls, name: str, command: Command, given: Given) -> Invocation:
        """Reads the configs and checks them, before anything heavy is imported.

        Raises:
          UserError: see `config.early.check_early`.
        """
        if not command.reads_config:
            return cls(given, [])
        words = given[command.takes_data.lower() or "config.yaml"]
        if command.takes_data:
            read = [data_of(words, name)]
        else:
            read = [config_of(word, name, command.takes_folders) for word in (words if isinstance(words, list) else [words])]
        requires, files = (JOBS[name].requires, JOBS[name].files) if not given.values.get("prompt") else (("model",), ())
        if given.values.get("model"):  # in place of the config's
            requires = tuple(key for key in requires if key != "model")
        for source, follows in read:
            check_early(source, [*follows, *given.overrides], requires, files)
        return cls(given, read)

    def configs(self) -> list[Any]:
        """The typed configs; says what of their files the options displaced."""
        from align_jax.config import load_config
        from align_jax.recipes.say import say, speaking

        found = []
        for source, follows in self.read:
            found.append(load_config(copy.deepcopy(source), [*follows, *self.given.overrides]))
            with speaking(found[-1].log.quiet):
                for note in found[-1].source.notes:
                    say(note)
        return found

    def config(self) -> Any:
        """The typed config of a command that takes one."""
        return self.configs()[0]
