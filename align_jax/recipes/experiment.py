"""`align-jax experiment NAME [--section.key value ...]`."""

from __future__ import annotations

import importlib

from align_jax.errors import UserError

EXPERIMENTS = {"quickstart": "align_jax.experiments.quickstart"}


def main(argv: list[str]) -> int:
    """Runs a named experiment."""
    if not argv or argv[0] not in EXPERIMENTS:
        raise UserError(f"experiment: {argv[0] if argv else 'no name'!r} is not one of {', '.join(EXPERIMENTS)}")
    return importlib.import_module(EXPERIMENTS[argv[0]]).main(argv[1:])
