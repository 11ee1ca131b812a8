"""What is found in data, by how bad it is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from align_jax.terminal import plural

SEVERITIES = ("problem", "warning", "note")
LISTED = 20  # malformed or refused rows that stand in the text
_DETAILS = 8  # lines below another finding


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing to know of the data.

    Attributes:
      severity: `problem` (training on it would go wrong), `warning` (it may), `note`.
      code: a short name that stays the same, for programs.
      text: a sentence for people.
      details: lines below it: all places with what stands there.
      count: how many rows, answers or prompts it is about.
      shown: how many of the details stand in the text.
      responses: numbers of the answers that it is about, for pictures.
    """

    severity: str
    code: str
    text: str
    details: tuple[str, ...] = ()
    count: int = 1
    shown: int = _DETAILS
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


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Problems, then warnings, then notes."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def percent(part: float, whole: float = 1.0) -> str:
    """`12%`, `0.4%`, and `0%` only where it is none."""
    value = 100 * part / whole if whole else 0.0
    return f"{value:.0f}%" if value >= 9.95 or value == 0 else (f"{value:.1f}%" if value >= 0.1 else "under 0.1%")


def number(value: float) -> str:
    """Three digits that count; large ones whole."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def of_all(count: int, whole: int, noun: str, verb: str = "") -> str:
    """`1 of 40 prompts has`, `2 of 40 prompts have`, `1 of 1 prompt has`.

    Args:
      verb: that of several; `are`, `have` and regular ones.
    """
    one = {"are": "is", "have": "has"}.get(verb, f"{verb}s" if verb else "")
    first, space, rest = noun.partition(" ")
    nouns = plural(whole, noun, f"{first}s{space}{rest}")
    return f"{count} of {nouns}" + (f" {one if count == 1 else verb}" if verb else "")


def named(names: Iterable[str], most: int | None = None) -> str:
    """Names with commas; quoted where they are empty or could be taken for something else."""
    said = [name if re.fullmatch(r"\w[\w.\-/:]*( [\w.\-/:]+)*", name) else repr(name) for name in names]
    return ", ".join(said if most is None or len(said) <= most else [*said[:most], f"and {len(said) - most} more"])
