"""Every key of a config with type, default and meaning, as text: `align-jax config`, `--help`, and docs/config.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from align_jax.config import words
from align_jax.config.keys import REQUIRED, Key, KnownKeys, known
from align_jax.errors import UserError
from align_jax.ranges import spelled
from align_jax.registry import suggest

_WIDTH = 120
_COLUMN = 26  # of the options in `--help`
_PAGE = """\
# Every key of a config

Written from the code by `python -m align_jax.config.collect`: do not edit. `align-jax train --help` and `align-jax config`
print all keys in a terminal, `align-jax config --explain train.eval_every` one of them. What is `eval_every: 100` in the
section `train` of a file is `--train.eval_every 100` on the command line and `"train.eval_every=100"` for `Config.of`. An
option wins over the file, also over keys of it that cannot hold beside it (`--train.epochs 1` over a file with
`train.steps`); a line says so. A number beyond the most that its type names is refused; one that is 1,000 times beyond what
anyone uses is taken, with a line. A text is as it was typed (quotes around it are YAML's), without
spaces around it but for `prompt_template` and `belief_template`.
"""


def keys() -> tuple[Key, ...]:
    """Every key, section by section; a key of several objectives is one where they agree about it."""
    return known().keys


def sections() -> list[str]:
    """The sections of a config, in their order."""
    return [section.name for section in known().sections]


def table() -> str:
    """All keys for a terminal: a line for each, with long meanings shortened."""
    lines = []
    for section in known().sections:
        lines += ["", textwrap.shorten(f"{section.name}: {section.about}", _WIDTH, placeholder=" ...")]
        rows = [_row(key) for key in keys() if key.section == section.name]
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
        said = words.answer(word.rpartition(".")[2])
        near = f"{said}; " if said else _near(word)
        raise UserError(f"--explain {word}: there is no such section or key; {near}`align-jax config` prints them all")
    parts = []
    if word in sections():
        section = known().section(word)
        parts += [section.about, *(_wrapped(f"{name}: {text}") for name, text in section.choices.items())]
    for key in chosen:
        of = f", of {', '.join(key.of)}" if key.of else ""
        default = key.default if key.default == REQUIRED else f"default {key.default}"
        parts.append(f"{key.name}: {_bounded(key)}, {default}{of}\n{_wrapped(key.meaning)}")
    return "\n\n".join(parts)


def markdown(found: KnownKeys | None = None) -> str:
    """All keys as a page of documentation; `found` takes the place of those in keys.json."""
    found, parts = found or known(), [_PAGE.rstrip()]
    for section in found.sections:
        bullets = [f"- `{name}`: {text}" for name, text in section.choices.items()]
        columns = ["key", *(["of"] if bullets else []), "type", "default", "meaning"]
        parts += ["", f"## {section.name}", "", section.about, *([""] if bullets else []), *bullets, ""]
        parts += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for key in (key for key in found.keys if key.section == section.name):
            of = [", ".join(key.of) or "all"] if bullets else []
            default = key.default if key.default == REQUIRED else f"`{key.default}`"
            cells = [f"`{key.short}`", *of, _bounded(key), default, key.meaning]
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def _bounded(key: Key) -> str:
    """What its values may be, with the largest number."""
    most = spelled(key.name)
    return f"{key.type} ({most})" if most else key.type


def options(names: Iterable[str], width: int) -> str:
    """Every key of some sections as an option of the command line; those of objectives and optimizers, by their owner."""
    lines: list[str] = []
    for section in (known().section(name) for name in names):
        lines += ["", *textwrap.wrap(f"{section.name}: {section.about}", width, subsequent_indent="  ")]
        mine = [key for key in keys() if key.section == section.name]
        for key in (key for key in mine if not key.of):
            lines += _option(key, width)
        for choice, about in section.choices.items():
            lines += textwrap.wrap(
                f"{section.name}.name: {choice}. {about}", width, initial_indent=" ", subsequent_indent="   "
            )
            for key in (key for key in mine if choice in key.of):
                lines += _option(key, width)
    return "\n".join(lines[1:])


def entry(name: str, text: str, width: int) -> list[str]:
    """An option and its meaning in two columns."""
    indent = " " * (_COLUMN + 2)
    body = textwrap.wrap(text, max(width, 40), initial_indent=indent, subsequent_indent=indent)
    if len(name) + 3 > _COLUMN:
        return [f"  {name}", *body]
    return [f"  {name:<{_COLUMN}}{body[0].strip()}", *body[1:]]


def _option(key: Key, width: int) -> list[str]:
    parent, _, name = key.name.rpartition(".")
    required = REQUIRED if name == "name" else f"{REQUIRED} where {parent} is given"
    default = required if key.default == REQUIRED else f"default {key.default}"
    return entry(f"--{key.name}", f"{key.meaning.rstrip('.')} ({key.type}; {default})", width)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _near(word: str) -> str:
    """`did you mean train.steps or bench.steps? ` for `steps`, else the nearest key or section."""
    names = list(dict.fromkeys(key.name for key in keys()))
    same = known().named(word.rpartition(".")[2])
    return f"did you mean {' or '.join(same)}? " if same else suggest(word, [*names, *sections()])
