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


# key, which of its values have no use for others, and these others
NO_USE = (
    ("optimizer.schedule", lambda value: value == "constant", ("optimizer.final_ratio",)),
    ("evaluate.judge", _is_no_url, ("evaluate.judge_model", "evaluate.judge_key_variable")),
    ("model.path", lambda value: True, ("model.revision",)),
    ("data.train", lambda value: True, ("data.subset", "data.revision")),
    ("log.wandb_project", lambda value: value is None, ("log.wandb_name",)),
    ("generate.beliefs", lambda value: value is False, ("generate.belief_temperature",)),
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
