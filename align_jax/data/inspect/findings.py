"""What is found in data, by how bad it is."""

from __future__ import annotations

import dataclasses
from typing import Any

SEVERITIES = ("problem", "warning", "note")
LISTED = 20  # places that a finding names


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing to know of the data.

    Attributes:
      severity: `problem` (training on it would go wrong), `warning` (it may), `note`.
      code: a short name that stays the same, for programs.
      text: a sentence for people.
      details: lines below it: places with what stands there.
      count: how many rows, answers or prompts it is about; `details` may list fewer.
      responses: numbers of the answers that it is about, for pictures.
    """

    severity: str
    code: str
    text: str
    details: tuple[str, ...] = ()
    count: int = 1
    responses: tuple[int, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "severity": self.severity,
            "code": self.code,
            "text": self.text,
            "count": self.count,
            "details": list(self.details),
        }


def percent(part: float, whole: float = 1.0) -> str:
    """`12%`, `0.4%`, and `0%` only where it is none."""
    value = 100 * part / whole if whole else 0.0
    return f"{value:.0f}%" if value >= 9.95 or value == 0 else (f"{value:.1f}%" if value >= 0.1 else "under 0.1%")
