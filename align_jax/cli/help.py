"""What `--help` and `--version` print."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import textwrap

from align_jax.cli.commands import COMMANDS
from align_jax.cli.invocation import Command
from align_jax.config import describe
from align_jax.config.jobs import JOBS
from align_jax.config.keys import known
from align_jax.version import __version__

_OF_CONFIGS = """\
Configs that come with align_jax: `align-jax configs` lists them, `align-jax configs NAME` copies one to configs/NAME.yaml.
Every key below stands in such a file (`section:`, then `  key: value`), or is given as an option, which wins over the file."""


def version() -> str:
    """`align-jax X (jax Y, python Z)`."""
    try:
        jax = importlib.metadata.version("jax")
    except importlib.metadata.PackageNotFoundError:
        jax = "is not installed"
    return f"align-jax {__version__} (jax {jax}, python {platform.python_version()})"


def usage() -> str:
    """All commands, a line each."""
    lines = [f"  {name:<12} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: align-jax COMMAND ...",
            "",
            "Preference optimization of language models in JAX.",
            "",
            *lines,
            "",
            "align-jax COMMAND --help says all of a command; align-jax --version says which version this is.",
        ]
    )


def help_of_several(names: list[str]) -> str:
    """The usage of commands that begin with the same word."""
    lines = [f"  align-jax {name:<14} {COMMANDS[name].about}" for name in names]
    return "\n".join(["usage:", *lines, "", f"`align-jax {names[0]} --help` says all of the first."])


def help_of(name: str) -> str:
    """All of a command: usage, arguments, an example, and the keys of the config that it reads."""
    command, width = COMMANDS[name], max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
    job = JOBS.get(name)
    usage_line = textwrap.fill(f"usage: {command.usage(name)}", width, subsequent_indent="  ", break_on_hyphens=False)
    parts = [usage_line, _filled(command.long, width)]
    if command.arguments:
        entries = [describe.entry(f"{a.name} {a.metavar}".strip(), a.help, width) for a in command.arguments]
        parts.append("\n".join(["arguments:", *(line for entry in entries for line in entry)]))
    parts.append("\n".join(["example:", *(f"  {line}" for line in command.example.splitlines())]))
    if job is not None:
        parts.append(_filled(_OF_CONFIGS, width))
        parts += [_required(command, job.requires, width)] if job.requires else []
        parts += [describe.options(job.own, width)] if job.own else []
        parts += [_also(job.reads, width)] if job.reads else []
    return "\n\n".join(parts)


def _required(command: Command, requires: tuple[str, ...], width: int) -> str:
    beside = f" ({command.unless})" if command.unless else ""
    return _filled(f"Required are {', '.join(requires)}{beside}; everything else has a default.", width)


def _also(sections: tuple[str, ...], width: int) -> str:
    lines = [_filled("Further sections that it reads (`align-jax config --explain SECTION` has their keys):", width)]
    for name in sections:
        lines += describe.entry(name, known().section(name).about, width)
    return "\n".join(lines)


def _filled(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())
