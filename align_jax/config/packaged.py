"""The configs that come with the package."""

from __future__ import annotations

from pathlib import Path

from align_jax.errors import UserError

FOLDER = Path(__file__).parent.parent / "configs"


def packaged_configs() -> dict[str, Path]:
    """Name -> file of every config that comes with the package."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def packaged_config(name: str) -> Path:
    """The file of a packaged config.

    Raises:
      UserError: there is none of this name.
    """
    known = packaged_configs()
    if name.removesuffix(".yaml") not in known:
        raise UserError(f"{name!r} is none of the configs that come with align_jax: {', '.join(known)}")
    return known[name.removesuffix(".yaml")]
