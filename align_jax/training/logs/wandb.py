"""Weights & Biases; a resumed run continues its page."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from typing import ClassVar

from align_jax.errors import UserError
from align_jax.training.logs.sink import Context, Sink


class WeightsAndBiases(Sink):
    """Logs to a project.

    Args:
      project, name: of the page; by default `log.wandb_project` and `log.wandb_name`, or what wandb itself is set to.

    Raises:
      UserError: wandb is not installed.
    """

    name: ClassVar[str] = "wandb"

    def __init__(self, context: Context, project: str | None = None, name: str | None = None):
        super().__init__(context)
        section = context.config.get("log") or {}
        project, name = project or section.get("wandb_project"), name or section.get("wandb_name")
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            asked = f"log.wandb_project is {project!r}" if project else "log.sinks has 'wandb'"
            raise UserError(
                f"{asked}, but wandb cannot be imported ({error}); pip install wandb, or remove "
                + ("log.wandb_project" if project else "it")
            ) from error
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

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run's page."""
        self._run.finish()
