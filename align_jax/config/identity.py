"""What makes two configs the same run: every key but those that decide where and how fast it runs, or how it is watched."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from align_jax.data.config import LATER as LATER_OF_DATA
from align_jax.data.formats import AUTO
from align_jax.data.members import KEYS

FREE = (
    *("mesh", "log", "checkpoint", "generate", "score", "evaluate", "bench", "reference.cache_dir", "run.dir"),
    *("run.wait_s", "run.stopped_status"),
    "reference.live",  # the same reference, scored at another time
    *("train.steps", "train.epochs"),
    *("model.remat", "model.rows_per_chunk", "model.head_chunk", "model.attention", "train.accumulation_steps"),
    *(
        "train.eval_every",
        "train.eval_first",
        "train.patience",
        "train.max_skipped",
        "data.eval",
        "data.eval_text",
        "data.eval_split",
        "data.workers",
        "data.prefetch",
    ),
    "optimizer.schedule_steps",
    "data.date",  # where a template prints it, the rows become other tokens, and a run knows its rows
)

# Keys that each of several processes may have its own value of: what is shown, how it reads, where it keeps what follows.
_OWN = ("log", "data.workers", "data.prefetch", "reference.cache_dir", "run.wait_s")

# Keys that came later, at the value that means what was there before: no run is another one for them.
LATER: dict[str, Any] = {
    "model.chat_template": None,
    "reference.sync_every": None,
    "reference.mix": 1.0,
    "model.revision": None,
    "model.quantize": None,
    "model.router_aux_weight": 0.0,
    "reference.adapter": None,
    "reference.quantize": None,
    "optimizer.decayed": None,
    "objective.sft_weight": 0.0,
    "objective.divergence": "kl",
    "objective.calibrate": "statement",
    "objective.statement": "whole",
    "objective.condition": "accepted",
    "objective.latent_beliefs": False,
    "objective.posterior": "reference",
    "objective.levels_by": "range",
    "objective.thresholds": [],
    "rounds.gold_model": None,
    "rounds.kl_stop": None,
    "rounds.best": "last",
    "rounds.beliefs": "model",
    "rounds.beliefs_per_prompt": 1,
} | {f"data.{key}": value for key, value in LATER_OF_DATA.items()}
# The same of one objective's keys, whose name other objectives have for something else.
_DIVERGENCE = {"objective.divergence": "reverse_kl", "objective.divergence_alpha": 0.5}
_LATER_OF: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("dpo", "robust_dpo", "hinge", "ipo", "exo_pair", "discopop", "dpo_norm", "r_dpo"), _DIVERGENCE),
    "wpo": {"objective.alignment": None},
    "simpo": {"objective.label_smoothing": 0.0},
    "gdpo": {"objective.desirable_weight": 1.0, "objective.undesirable_weight": 1.0},
}
# Keys whose default is written in another way now, as it was before.
_BEFORE: dict[str, Any] = {"data.split": "train"}
# Keys that a run decides when it begins, as one without them began before there was a choice.
_BEGUN: dict[str, Any] = _BEFORE | {"optimizer.decayed": "embeddings"}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict with dotted keys."""
    result = {}
    for name, value in tree.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result if prefix else dict(_held_out(result))


def _held_out(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values, where a fraction of `data.train` counts as `data.eval` whatever name the set has."""
    for key, value in values.items():
        named = key.startswith("data.eval.") and key.rpartition(".")[2] not in KEYS and isinstance(value, float)
        yield "data.eval" if named else key, value


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`flat`, with the keys of the terms of a mixture as `objective.0.beta`."""
    terms = values.get("objective")
    if not isinstance(terms, list):
        return flat(values)
    return flat({**values, "objective": {str(i): term for i, term in enumerate(terms)}})


def is_own(key: str) -> bool:
    """Whether the processes of one job may have different values of a key."""
    return _is_free(key, _OWN)


def difference(before: Mapping[str, Any], after: Mapping[str, Any], free: tuple[str, ...] = FREE) -> tuple | None:
    """The first dotted key outside `free` on which two configs (as nested dicts) differ, with both values; or None."""
    old, new = _flat(before), _flat(after)
    for key in sorted(old.keys() | new.keys()):
        values = tuple(_BEGUN.get(key) if side.get(key) is None else side[key] for side in (old, new))
        if values[0] != values[1] and not _is_free(key, free, *values) and not (key == "data.format" and AUTO in values):
            return key, *values
    return None


def identity(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that two configs share where they are the same run."""
    decides = {key: value for key, value in _as_before(_flat(values)).items() if not _is_free(key, FREE, value)}
    decides = {key: value for key, value in decides.items() if not _came_later(key, value, decides)}
    if decides.get("data.format") == AUTO:
        decides["data.format"] = "groups"  # as the default was called before; the rows tell other formats apart
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _came_later(key: str, value: Any, values: Mapping[str, Any]) -> bool:
    """Whether a key came later, and has the value that means what was there before; `objective.0.beta` is one of a term."""
    plain = re.sub(r"^objective\.\d+\.", "objective.", key)
    objective = values.get(f"{key.rpartition('.')[0]}.name" if plain != key else "objective.name")
    later = LATER | _LATER_OF.get(objective, {})
    return plain in later and value == later[plain]


def _as_before(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _BEFORE[key] if value is None and key in _BEFORE else value for key, value in values.items()}


def _is_free(key: str, free: tuple[str, ...], *values: Any) -> bool:
    if key == "data.eval" and any(isinstance(value, float | int) for value in values):
        return False  # a fraction of `data.train`, which is then not trained on
    return any(key == name or key.startswith(f"{name}.") for name in free)
