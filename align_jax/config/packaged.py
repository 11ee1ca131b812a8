"""The configs that come with the package: listed, found by name and copied."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from align_jax.errors import UserError
from align_jax.registry import suggest

FOLDER = Path(__file__).parent.parent / "configs"


def packaged_configs() -> dict[str, Path]:
    """Name -> file of every config that comes with the package."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"), key=lambda file: file.stem)}


def packaged_config(name: str) -> Path:
    """The file of a packaged config.

    Raises:
      UserError: there is none of this name.
    """
    known = packaged_configs()
    if name.removesuffix(".yaml") not in known:
        near = suggest(name.removesuffix(".yaml"), known)
        raise UserError(f"{name!r} is none of the configs that come with align_jax; {near}there are {', '.join(known)}")
    return known[name.removesuffix(".yaml")]


def purpose(file: Path) -> str:
    """What a config is for: the first paragraph of the comment that it opens with."""
    lines = (line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines())
    return " ".join(itertools.takewhile(bool, lines))


def destination(name: str, dest: str | os.PathLike | None = None) -> Path:
    """Where `copy_config` writes a packaged config: `dest`, in it where it is a folder or ends with a slash."""
    file = packaged_config(name)
    is_folder = dest is None or os.fspath(dest).endswith(("/", os.sep)) or Path(dest).is_dir()
    return Path("configs" if dest is None else dest) / (file.name if is_folder else "")


def copy_config(name: str, dest: str | os.PathLike | None = None) -> Path:
    """Copies a packaged config to where it can be edited.

    Args:
      name: of the config.
      dest: file, or folder (one that is there, or with a slash at its end); None is `configs/NAME.yaml`, as which configs
        speak of one another.

    Returns:
      The file; one that holds the same text already is left as it is.

    Raises:
      UserError: an unknown name, or a destination that holds another text.
    """
    file, target = packaged_config(name), destination(name, dest)
    text = file.read_text(encoding="utf-8")
    if target.exists():
        if target.read_text(encoding="utf-8") != text:
            raise UserError(f"{target} holds another text and is kept; choose another file: align-jax configs {file.stem} FILE")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "x", encoding="utf-8") as out:
        out.write(text)
    return target


def how_to_copy(path: str | os.PathLike) -> str:
    """For the end of an error: how to get a config that is not there but comes with the package; else nothing."""
    given = Path(path)
    named = str(given.parent) in (".", "configs") and given.suffix in ("", ".yaml") and given.stem in packaged_configs()
    if given.exists() or not named:
        return ""
    return f"; align_jax comes with it: `align-jax configs {given.stem}` copies it to configs/{given.stem}.yaml"
