"""TensorBoard's event files, in `run.dir/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

from align_jax.errors import optional
from align_jax.training.logs.sink import Context, Sink


class TensorBoard(Sink):
    """Every metric a scalar.

    Raises:
      MissingPackage: tensorboardX is not installed.
    """

    name: ClassVar[str] = "tensorboard"

    def __init__(self, context: Context):
        super().__init__(context)
        writer = _package().SummaryWriter
        purge = None if context.resume_step is None else context.resume_step + 1
        self._writer = writer(logdir=str(context.run_dir / "tensorboard"), purge_step=purge)

    @classmethod
    def check(cls) -> None:
        """MissingPackage without tensorboardX."""
        _package()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the scalars of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds a text a prompt."""
        for number, row in enumerate(rows):
            self._writer.add_text(f"samples/{number}", f"**{row['prompt']}**\n\n{row['response']}", step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def _package() -> ModuleType:
    return optional("tensorboardX", "tensorboard", "log.tensorboard")
