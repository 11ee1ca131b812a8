"""What makes two configs the same run: every key but those that decide where and how fast it runs, or how it is watched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FREE = (
    *("mesh", "log", "checkpoint", "generate", "score", "evaluate", "bench", "reference.cache_dir", "run.dir"),
    *("train.steps", "train.epochs"),
    *("model.remat", "model.rows_per_chunk", "model.head_chunk", "model.attention", "train.accumulation_steps"),
    *("train.eval_every", "train.patience", "data.eval", "data.eval_split", "data.workers", "data.prefetch"),
)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict with dotted keys."""
    result = {}
    for name, value in tree.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def difference(before: Mapping[str, Any], after: Mapping[str, Any], free: tuple[str, ...] = FREE) -> tuple | None:
    """The first dotted key outside `free` on which two configs (as nested dicts) differ, with both values; or None."""
    old, new = flat(before), flat(after)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not _is_free(key, free):
            return key, old.get(key), new.get(key)
    return None


def identity(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that two configs share where they are the same run."""
    decides = {key: value for key, value in flat(values).items() if not _is_free(key, FREE)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _is_free(key: str, free: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)
