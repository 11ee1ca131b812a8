"""Weights & Biases; a resumed run continues its page."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

from align_jax.errors import optional
from align_jax.training.logs.sink import Context, Sink


class WeightsAndBiases(Sink):
    """Logs to a project.

    Args:
      project, name: of the page; by default `log.wandb_project` and `log.wandb_name`, or what wandb itself is set to.

    Raises:
      MissingPackage: wandb is not installed.
    """

    name: ClassVar[str] = "wandb"

    def __init__(self, context: Context, project: str | None = None, name: str | None = None):
        super().__init__(context)
        section = context.config.get("log") or {}
        project, name = project or section.get("wandb_project"), name or section.get("wandb_name")
        wandb = _package()
        identity = context.run_dir / "wandb_run_id"
        if context.resume_step is None or not identity.exists():
            identity.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=project,
            name=name,
            config=dict(context.config),
            dir=str(context.run_dir),
            id=identity.read_text().strip(),
            resume="allow",
        )

    @classmethod
    def check(cls) -> None:
        """MissingPackage without wandb."""
        _package()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs a step."""
        self._run.log(dict(metrics), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table."""
        table = _package().Table(columns=["prompt", "response"], data=[[row["prompt"], row["response"]] for row in rows])
        self._run.log({"samples": table}, step=step)

    def close(self) -> None:
        """Ends the run's page."""
        self._run.finish()


def _package() -> ModuleType:
    return optional("wandb", "wandb", "log.wandb_project")
