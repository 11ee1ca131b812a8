"""Preference optimization of LLaMA, Mistral and Qwen models for groups of people, in JAX.

    from align_jax import losses          # pure functions on arrays

    model = align_jax.load_model(path)    # an nnx.Module; model(tokens) -> logits
    batch = align_jax.make_groups(prompts, responses, scores)
    align_jax.response_logps(model, batch)    # or texts: response_logps(model, prompts, responses, tokenizer=tokenizer)
    align_jax.save_model(model, out_dir)
    align_jax.load_model(path, adapter=folder)    # one of PEFT's; add_adapter(model) is a fresh one, save_adapter writes it

    config = align_jax.Config.of({"model": {"path": path}, "data": {"train": rows}, "objective": {"name": "mpo"}})
    run = align_jax.train(config)         # resumes; run.folder, run.history
    align_jax.evaluate(config)            # the table, as a list of dicts
    align_jax.export(run.folder, "out")
    align_jax.check_data("train.jsonl")   # what the data are like: prints as text
    align_jax.convert_data("pairs.jsonl", "groups.parquet", join=True)
    align_jax.label_beliefs("answers.jsonl", "beliefs.jsonl", by="model", model=path, options=["support", "oppose"])
    align_jax.generate(model, prompts, tokenizer=tokenizer, samples=8)

    align_jax.set_gpu_flags()             # in a notebook or script on NVIDIA GPUs, before JAX computes anything

    state, history = align_jax.fit(state, batches, step, steps=100)    # the loop alone
    reward = align_jax.RewardModel.load(path)                          # reward.score(prompts, responses)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from align_jax.version import __version__

if TYPE_CHECKING:
    from align_jax import losses
    from align_jax.config import Config
    from align_jax.data import make_groups
    from align_jax.errors import UserError
    from align_jax.hf import load_model, save_adapter, save_model
    from align_jax.models.adapting import add_adapter
    from align_jax.parallel.gpu_flags import set_gpu_flags
    from align_jax.recipes.beliefs import label_beliefs
    from align_jax.recipes.convert import convert_data
    from align_jax.recipes.data_check import check_data
    from align_jax.recipes.jobs import Run, evaluate, export, generate, score, train
    from align_jax.scoring.reward_model import RewardModel
    from align_jax.scoring.scores import response_scores
    from align_jax.scoring.texts import response_logps
    from align_jax.training.fit import fit

# Imported on first use: the losses alone need neither transformers nor grain.
_HOMES = {
    "Config": "align_jax.config",
    "add_adapter": "align_jax.models.adapting",
    "RewardModel": "align_jax.scoring.reward_model",
    "Run": "align_jax.recipes.jobs",
    "UserError": "align_jax.errors",
    "check_data": "align_jax.recipes.data_check",
    "convert_data": "align_jax.recipes.convert",
    "evaluate": "align_jax.recipes.jobs",
    "export": "align_jax.recipes.jobs",
    "fit": "align_jax.training.fit",
    "generate": "align_jax.recipes.jobs",
    "label_beliefs": "align_jax.recipes.beliefs",
    "load_model": "align_jax.hf",
    "make_groups": "align_jax.data",
    "response_logps": "align_jax.scoring.texts",
    "response_scores": "align_jax.scoring.scores",
    "save_adapter": "align_jax.hf",
    "save_model": "align_jax.hf",
    "score": "align_jax.recipes.jobs",
    "set_gpu_flags": "align_jax.parallel.gpu_flags",
    "train": "align_jax.recipes.jobs",
}

__all__ = [
    "Config",
    "RewardModel",
    "Run",
    "UserError",
    "__version__",
    "add_adapter",
    "check_data",
    "convert_data",
    "evaluate",
    "export",
    "fit",
    "generate",
    "label_beliefs",
    "load_model",
    "losses",
    "make_groups",
    "response_logps",
    "response_scores",
    "save_adapter",
    "save_model",
    "score",
    "set_gpu_flags",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("align_jax.losses")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'align_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
