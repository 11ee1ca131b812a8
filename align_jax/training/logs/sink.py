"""What a sink is: metrics go in, one call per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True)
class Context:
    """What a sink knows of the run.

    Attributes:
      run_dir: the run's folder, which exists.
      total_steps: the last step of the run.
      resume_step: the step that a resumed run goes on from: what was written of later ones is void; None for a fresh run.
      config: all sections of the run's config.
    """

    run_dir: Path
    total_steps: int
    resume_step: int | None
    config: Mapping[str, Any]


class Sink:
    """Base of all sinks; made once per run, on the first process.

    A subclass in a module of this folder is known by its `name`; one elsewhere is named `package.module:Class` in `log.sinks`.

    Class attributes:
      name: for a sink of this folder.
      every_step: also gets the steps that `log.every` skips.
    """

    name: ClassVar[str]
    every_step: ClassVar[bool] = False

    def __init__(self, context: Context):
        self.context = context

    @classmethod
    def check(cls) -> None:
        """UserError, before the run has cost anything, where what the sink needs is not installed."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step, floats that may be NaN or infinite; an OSError is told to the user."""
        raise TypeError(f"{type(self).__name__} does not define `write`")

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes samples of a step, each with `prompt` and `response`; a sink that shows no texts leaves them."""

    def close(self) -> None:
        """Ends it; nothing is written afterwards."""
