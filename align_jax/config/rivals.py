"""Keys that exclude one another: what is given later, as an option, takes the file's out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# One of each pair may have a value.
PAIRS = (
    ("train.steps", "train.epochs"),
    ("optimizer.warmup_steps", "optimizer.warmup_ratio"),
    ("model.path", "model.config"),
)


def _is_no_url(value: Any) -> bool:
    return not str(value).startswith(("http://", "https://"))


def _is_off(value: Any) -> bool:
    return value in (None, False, 0)


# key, which of its values have no use for others, and these others
NO_USE = (
    ("optimizer.schedule", lambda value: value == "constant", ("optimizer.final_ratio",)),
    ("evaluate.judge", _is_no_url, ("evaluate.judge_model", "evaluate.judge_key_variable")),
    ("model.path", lambda value: True, ("model.revision",)),
    ("data.train", lambda value: True, ("data.subset", "data.revision")),
    ("log.wandb_project", _is_off, ("log.wandb_name",)),
    ("log.samples_every", _is_off, ("log.samples_prompts", "log.samples_tokens")),
    ("reference.live", _is_off, ("reference.sync_every", "reference.mix")),
    ("reference.sync_every", _is_off, ("reference.mix",)),
    ("checkpoint.best_metric", _is_off, ("train.patience",)),
    ("train.eval_every", _is_off, ("train.patience",)),
    ("data.target", lambda value: value == "given", ("data.target_shrink",)),
    ("objective.calibration_weight", _is_off, ("objective.divergence", "objective.renormalize", "objective.calibrate")),
    ("objective.belief_weight", _is_off, ("objective.statement",)),
    ("objective.preference", lambda value: value != "mpo", ("objective.alpha",)),
    ("objective.preference", lambda value: value != "kto", ("objective.desirable_weight", "objective.undesirable_weight")),
    ("objective.latent_beliefs", lambda value: value is True, ("objective.condition",)),
    ("objective.latent_beliefs", _is_off, ("objective.posterior",)),
    ("generate.beliefs", _is_off, ("generate.belief_temperature",)),
    *(
        (f"bench.{key}", lambda value: value is not None, others)
        for key, others in (
            ("lengths", tuple(f"bench.{other}" for other in ("prompt_tokens", "response_tokens", "responses", "groups"))),
            ("prompt_tokens", ("bench.lengths",)),
        )
    ),
    ("mesh.auto", lambda value: value is True, ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence", "mesh.expert")),
    *((f"mesh.{axis}", lambda value: True, ("mesh.auto",)) for axis in ("data", "fsdp", "tensor", "sequence", "expert")),
)


def displaced(given: Mapping[str, Any]) -> dict[str, str]:
    """Keys that cannot hold beside what was given -> the given key that takes their place."""
    found = {}
    for first, second in PAIRS:
        for key, other in ((first, second), (second, first)):
            if given.get(key) is not None:
                found[other] = key
    for key, without_use, others in NO_USE:
        if key in given and without_use(given[key]):
            found |= dict.fromkeys(others, key)
    return {key: by for key, by in found.items() if key not in given}
