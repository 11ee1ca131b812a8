"""How an experiment is run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
      quick: fewer steps and smaller data, for a first look; its verdict is of that, and is shown as such.
      seeds: how many. model: `tiny`, `smollm2`, or the folder of a model.
    """

    quick: bool = False
    seeds: int = 3
    model: str = "tiny"

    @property
    def model_name(self) -> str:
        """The model as folders and titles have it; of a folder its name and a hash of where it lies."""
        if self.model in ("tiny", "smollm2"):
            return self.model
        folder = Path(self.model).expanduser().resolve()
        return f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"

    @property
    def usual_seeds(self) -> int:
        """Seeds where nobody says how many: a large model takes minutes to an hour for each."""
        return SEEDS if self.model == "tiny" else 1
