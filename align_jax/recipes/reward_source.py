"""Where a reward model comes from: a folder in Hugging Face format, or the run folder of objective `reward`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from align_jax import hf
from align_jax.config import Config, load_config
from align_jax.errors import UserError
from align_jax.files import fingerprint_files
from align_jax.models import ModelConfig, weight_shardings
from align_jax.recipes.export import trained_config, trained_weights
from align_jax.recipes.folder import fingerprint_checkpoint, has_checkpoints, say


@dataclasses.dataclass(frozen=True)
class RewardSource:
    """A reward model that was found, before its weights are loaded.

    Attributes:
      folder: in Hugging Face format, or the run folder of a reward model. run: the latter's config, else None.
      shape: of the model. tokenizer: its folder.
    """

    folder: Path
    run: Config | None
    shape: ModelConfig
    tokenizer: Path

    def fingerprint(self) -> Any:
        """What tells its weights from others."""
        return fingerprint_files(self.folder.glob("*.safetensors")) if self.run is None else fingerprint_checkpoint(self.folder)

    def weights(self, mesh: Mesh, param_dtype: str) -> dict:
        where = weight_shardings(self.shape, mesh)
        if self.run is None:
            return hf.load_weights(self.folder, self.shape, where, param_dtype)
        params, step = trained_weights(self.folder, self.run, self.shape, None, where)
        say(f"the reward model is that of step {step} in {self.folder}")
        return params


def reward_source(given: str, key: str = "score.reward_model") -> RewardSource:
    """Finds a reward model: a Hugging Face folder or hub id, or the run folder of a reward model.

    Args:
      key: what the config calls it, for errors.

    Raises:
      UserError: a language model, several labels, a run without a checkpoint, or neither of the two.
    """
    folder = Path(given)
    if not (folder / "config.yaml").exists():
        try:
            folder = Path(hf.resolve_folder(given))
            shape, _ = hf.load_config(folder, "score")
            hf.check_weights(folder, shape)
            return RewardSource(folder, None, shape, folder)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    run = load_config(folder / "config.yaml")
    if run.head != "score":
        raise UserError(f"{key}: {given} is the run of a language model (objective.name is not reward)")
    if not has_checkpoints(folder):
        raise UserError(f"{key}: {given} is a run without a checkpoint yet")
    return RewardSource(folder, run, trained_config(folder, run)[0], folder / "tokenizer")
