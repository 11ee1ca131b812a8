"""Preference optimization of LLaMA and Mistral models for groups of people, in JAX.

    from align_jax import losses          # pure functions on arrays
    model = align_jax.load_model(path)    # an nnx.Module; model(tokens) -> logits
    batch = align_jax.make_groups(prompts, responses, scores)
    align_jax.response_logps(model, batch)
    align_jax.save_model(model, out_dir)

    reward = align_jax.load_model(path, head="score")
    align_jax.response_scores(reward, align_jax.make_groups(prompts, responses, ends=True))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align_jax import losses
    from align_jax.data import make_groups
    from align_jax.hf import load_model, save_model
    from align_jax.scoring.logps import response_logps
    from align_jax.scoring.scores import response_scores
    from align_jax.training.fit import fit

__all__ = ["fit", "load_model", "losses", "make_groups", "response_logps", "response_scores", "save_model"]

# Imported on first use: the losses alone need neither transformers nor grain.
_HOMES = {
    "fit": "align_jax.training.fit",
    "load_model": "align_jax.hf",
    "make_groups": "align_jax.data",
    "response_logps": "align_jax.scoring.logps",
    "response_scores": "align_jax.scoring.scores",
    "save_model": "align_jax.hf",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("align_jax.losses")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'align_jax' has no attribute {name!r}")
