"""Which files of a folder are which split: by their names, as the hub has it, or by the header of its README.md."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

import yaml

from align_jax.data.sources.base import Part
from align_jax.errors import UserError
from align_jax.parsing import broken, check_yaml

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BETWEEN = r"[-._ 0-9]"  # what may stand beside such a word
_SHARD = re.compile(r"data/([^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_PATTERNS = {
    split: re.compile(rf"(?:.*{_BETWEEN})?(?:{'|'.join(words)})(?:{_BETWEEN}.*)?", re.DOTALL) for split, words in _WORDS.items()
}


def splits_of(files: Iterable[str], capitals: bool = False) -> dict[str, list[str]]:
    """Split -> files, by the rules that `datasets` has for repositories of the hub; `{}` where no name tells of a split.

    The first that holds of any file decides: `data/NAME-00000-of-00005.*`; a folder that is called `train`, `validation` (or
    `valid`, `dev`, `val`) or `test` (or `eval`); a file that is. Beside these words stand only `-._`, spaces and digits.

    Args:
      files: paths relative to the folder, with `/`. One that belongs to no split is in none.
      capitals: whether `Train` and `TEST` count as the words, which the hub does not know.
    """
    files = sorted(files)
    found: dict[str, list[str]] = {}
    for file in files:
        if shard := _SHARD.fullmatch(file):
            found.setdefault(shard[1], []).append(file)
    if found:
        usual = [split for split in _WORDS if split in found]
        return {split: found[split] for split in (*usual, *sorted(found.keys() - _WORDS.keys()))}
    spelled = str.lower if capitals else str
    for parts_of in (lambda file: PurePath(file).parts[:-1], lambda file: PurePath(file).parts[-1:]):
        for split, pattern in _PATTERNS.items():
            named = [file for file in files if any(pattern.fullmatch(spelled(part)) for part in parts_of(file))]
            if named:
                found[split] = named
        if found:
            return found
    return {}


class Configuration(NamedTuple):
    """What a README.md says of the files of one configuration: its name, its folder, and split -> patterns (None: by names)."""

    name: str
    data_dir: str
    patterns: dict[str, list[str]] | None
    default: bool


def configurations(folder: Path) -> list[Configuration]:
    """The `configs` of the YAML header of a folder's README.md.

    Raises:
      UserError: a header that is not YAML, or `configs` that are not what the hub takes.
    """
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8-sig", errors="replace") if readme.is_file() else ""
    header = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if not header:
        return []
    try:
        check_yaml(header[1])
        values = yaml.safe_load(header[1])
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{readme}: its header is not YAML: {str(error).splitlines()[0]}") from error
    given = values.get("configs") or [] if isinstance(values, dict) else []
    if not isinstance(given, list) or not all(isinstance(one, dict) and "config_name" in one for one in given):
        raise UserError(f"{readme}: configs must be a list of entries with config_name and data_files, got {given!r}")
    return [_configuration(readme, one) for one in given]


def _configuration(readme: Path, given: dict) -> Configuration:
    name, files = str(given["config_name"]), given.get("data_files")
    patterns: dict[str, list[str]] | None = None if files is None else {}
    for item in [files] if isinstance(files, str | dict) else files or []:
        entry = {"split": "train", "path": item} if isinstance(item, str) else item
        path = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(path, str | list) or "split" not in entry:
            raise UserError(f"{readme}: data_files of configuration {name!r}: expected split and path, got {item!r}")
        patterns.setdefault(str(entry["split"]), []).extend([path] if isinstance(path, str) else map(str, path))
    data_dir = str(given.get("data_dir") or "")
    for path in [data_dir, *(path for paths in (patterns or {}).values() for path in paths)]:
        if PurePath(path).is_absolute() or ".." in PurePath(path).parts or broken(path):
            raise UserError(f"{readme}: configuration {name!r} names {path!r:.80}, which is not in the folder of this file")
    return Configuration(name, data_dir, patterns, bool(given.get("default")))


def chosen_configuration(folder: Path, part: Part) -> Configuration | None:
    """The configuration that is read; None where the folder's README.md tells of none.

    Raises:
      UserError: several, of which none was chosen; one that is not there.
    """
    there = configurations(folder)
    if not there:
        return None
    names = ", ".join(one.name for one in there)
    if part.subset is not None:
        found = [one for one in there if one.name == part.subset]
        if not found:
            raise UserError(f"{folder} has no configuration {part.subset!r}; data.subset may be {names}")
        return found[0]
    usual = [one for one in there if one.default] or [one for one in there if one.name == "default"] or there
    if len(usual) > 1:
        raise UserError(f"{folder} has {len(there)} configurations: {names}; set data.subset to one of them")
    return usual[0]


def matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    """The files that match any of a README's patterns, relative to the folder."""
    found: set[str] = set()
    for pattern in patterns:
        pattern = re.sub(r"(?<=[^/])\*\*(?=[^/]|$)|\*\*(?=[^/])", "*", pattern)  # as fsspec takes it: only whole parts are deep
        for match in glob.glob(pattern, root_dir=folder, recursive=True):
            if (folder / match).is_file():
                found.add(PurePath(match).as_posix())
    return sorted(found)
