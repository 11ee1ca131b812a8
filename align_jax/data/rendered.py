"""Every conversation of a data set rendered once, before anyone pays for a step: none is refused in the middle of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from align_jax.data.encode import Encoder
from align_jax.data.formats.example import Example
from align_jax.data.sources import RowError
from align_jax.files import write_whole
from align_jax.parsing import json_of
from align_jax.terminal import plural


class Rendered:
    """Which rows of a data set cannot become tokens: most of all those that the chat template refuses.

    What was found is kept in a folder, so that the next start on the same rows renders none.

    Args:
      encoder: whose template renders.
      digest: of the rows, and of all else that decides which texts they are.
      folder: where the result is kept; None keeps nothing.
    """

    def __init__(self, encoder: Encoder, digest: str, folder: Path | None):
        self._encoder, self._refused, self._changed = encoder, {}, 0
        key = hashlib.sha256(f"{digest} {encoder.key()}".encode()).hexdigest()[:24]
        self._file = folder / f"rendered-{key}.json" if encoder.renders and folder is not None else None
        # Without a template there is little to check, and nothing to keep.
        self._known = self._load()

    def check(self, number: int, example: Example) -> None:
        """RowError where row `number` cannot become tokens."""
        if self._known is not None:
            if (reason := self._known["refused"].get(str(number))) is not None:
                raise RowError(reason)
            return
        try:
            self._changed += self._encoder.check(example)
        except RowError as error:
            self._refused[str(number)] = str(error)
            raise

    def keep(self) -> None:
        """Writes down which rows are refused; for when all were checked."""
        if self._file is not None and self._known is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps({"refused": self._refused, "changed": self._changed}, ensure_ascii=False))

    def notes(self) -> list[str]:
        """What is to be said of the rows that are not refused."""
        changed = self._changed if self._known is None else self._known["changed"]
        if not changed:
            return []
        return [
            f"the chat template renders {plural(changed, 'prompt')} otherwise when an answer follows (as where it opens a "
            "thought that the answer does not have): what both have in common is the prompt"
        ]

    def _load(self) -> dict[str, Any] | None:
        try:
            found = json_of(self._file.read_bytes()) if self._file is not None else None
            whole = isinstance(found, dict) and found.keys() == {"refused", "changed"} and isinstance(found["refused"], dict)
            return found if whole and isinstance(found["changed"], int) else None
        except (OSError, ValueError):
            return None  # not there yet, or cut short: all are rendered again
