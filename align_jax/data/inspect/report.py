"""What `align-jax data check` found: findings first, then tables; as text, as JSON, as an exit status."""

from __future__ import annotations

import collections
import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align_jax.data.inspect.findings import SEVERITIES, Finding, named, worst_first
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.tables import sizes_of, tables_of
from align_jax.data.inspect.tokens import Measured, token_table
from align_jax.terminal import plural

_COLORS = {"problem": "\x1b[1;31m", "warning": "\x1b[33m", "note": "\x1b[36m"}
_BOLD, _END = "\x1b[1m", "\x1b[0m"
_TEXT, _TABLE = 100, 120  # columns of texts and of tables where no terminal says


@dataclasses.dataclass
class DataPart:
    """One data set of a report.

    Attributes:
      name: what it is, such as `data.train`. gathered, measured: its rows in numbers; without a tokenizer no tokens.
      tables: scores, beliefs, tokens, as JSON values. findings: what is to say, worst first.
      batch: the first batch as text, once with colours and once without.
      number, label: which part of its report it is, and what it is called in pictures; the report sets them.
    """

    name: str
    gathered: Gathered
    measured: Measured | None
    tables: dict[str, Any]
    findings: list[Finding]
    batch: tuple[list[str], list[str]] = ((), ())
    number: int = 0
    label: str = ""

    def __post_init__(self):
        self.findings = worst_first(self.findings)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with all bad rows."""
        gathered = self.gathered
        return {
            "path": str(gathered.path),
            "format": gathered.format,
            "rows": gathered.rows,
            "bad_rows": gathered.bad,
            "prompts": len(gathered.prompt_texts),
            "responses": len(gathered.of),
            "sizes": {str(size): count for size, count in sizes_of(gathered).items()},
            "rows_left_out": gathered.left_out,
            "columns": gathered.columns,
            "columns_not_read": gathered.unread,
            **self.tables,
            "tokens": None if self.measured is None else token_table(self.measured),
            "refused_rows": [] if self.measured is None else self.measured.refused,
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclasses.dataclass(repr=False)
class DataReport:
    """What was found in one or several data sets.

    Attributes:
      parts: each of them; of a mixture, each of its data sets.
      lines: what was not checked, and why.
      mixtures: `data.train` or `data.eval` -> a line of what an epoch of that mixture has of its data sets.
      texts: a line of the texts of `data.eval_text`; None where there are none.
    """

    parts: list[DataPart]
    lines: list[str]
    mixtures: dict[str, str] = dataclasses.field(default_factory=dict)
    texts: str | None = None

    def __post_init__(self):
        for number, part in enumerate(self.parts):
            part.number, part.label = number, Path(str(part.gathered.path)).name if self._is_alone else part.name

    @property
    def _is_alone(self) -> bool:
        return len(self.parts) == 1 and self.parts[0].name == "data.train"

    @property
    def findings(self) -> list[Finding]:
        """Those of all parts, worst first."""
        return worst_first(finding for part in self.parts for finding in part.findings)

    def status(self, strict: bool = False) -> int:
        """An exit status: 1 where there are problems (or with `strict` warnings), else 0."""
        bad = ("problem", "warning") if strict else ("problem",)
        return int(any(finding.severity in bad for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        counts = collections.Counter(finding.severity for finding in self.findings)
        numbers = {f"{severity}s": counts[severity] for severity in SEVERITIES}
        return numbers | {
            "not_checked": self.lines,
            "mixtures": self.mixtures,
            "eval_text": self.texts,
            "data": {part.name: part.to_json() for part in self.parts},
        }

    def text(self, width: int | None = None, color: bool = False) -> str:
        """Everything for people.

        Args:
          width: columns that lines may have, where texts allow it; None: 100, and 120 of tables.
        """
        widths = (width or _TEXT, width or _TABLE)
        lines = [line for part in self.parts for line in _part(part, self._title(part), widths, color)]
        return "\n".join(lines) + "\n" + self._last(widths[0])

    def _title(self, part: DataPart) -> str:
        """The path; of several data sets also which of them it is."""
        return str(part.gathered.path) if self._is_alone else f"{part.name}: {part.gathered.path}"

    def _last(self, width: int) -> str:
        counts = collections.Counter(finding.severity for finding in self.findings)
        numbers = [plural(counts[severity], severity) for severity in SEVERITIES]
        said = (*self.mixtures.values(), *([] if self.texts is None else [self.texts]), *self.lines)
        lines = [textwrap.fill(line, width, break_on_hyphens=False) for line in said]
        return "\n".join([*lines, ", ".join(numbers)])

    def __repr__(self) -> str:
        return self.text()


def _part(part: DataPart, title: str, widths: tuple[int, int], color: bool) -> Iterator[str]:
    gathered, width = part.gathered, widths[0]
    yield from _heading(title, len(title), color)
    yield textwrap.fill(_summary(gathered), width, break_on_hyphens=False)
    yield ""
    for finding in part.findings:
        yield from _finding(finding, width, color)
    if part.findings:
        yield ""
    for title, table in tables_of(gathered, part.measured, part.tables, widths[1]):
        yield from _heading(title, width, color)
        yield table
        yield ""
    if part.batch[0]:
        how, lines = "green, each in its shade" if color else "in []", part.batch[0 if color else 1]
        yield from _heading(f"the first batch (number of the answer: its score; scored tokens {how}; EOS marked)", width, color)
        yield from lines if len(lines) > 1 else textwrap.wrap(lines[0], width, initial_indent="  ", subsequent_indent="  ")
        yield ""


def _heading(text: str, width: int, color: bool) -> Iterator[str]:
    for line in textwrap.wrap(text, max(1, width)):
        yield f"{_BOLD}{line}{_END}" if color else line


def _summary(gathered: Gathered) -> str:
    prompts = plural(len(gathered.prompt_texts), "different prompt")
    parts = [f"format {gathered.format}: {plural(gathered.rows, 'row')}", prompts]
    if len(gathered.of):
        low, high = int(gathered.size.min()), int(gathered.size.max())
        parts.append(f"{plural(len(gathered.of), 'answer')}, {low if low == high else f'{low} to {high}'} in each row")
    if gathered.left_out:
        parts.append(f"{plural(gathered.left_out, 'row')} left out for empty answers (data.on_empty: drop)")
    if gathered.groups:
        names = named(sorted(map(str, gathered.groups)), 8)
        parts.append(f"{plural(len(gathered.groups), 'group')} of people ({names})")
    return "; ".join(parts)


def _finding(finding: Finding, width: int, color: bool) -> Iterator[str]:
    label = f"{finding.severity:<8}"
    lines = textwrap.wrap(finding.text, max(20, width - 9), break_on_hyphens=False)
    yield f"{_COLORS[finding.severity]}{label}{_END} {lines[0]}" if color else f"{label} {lines[0]}"
    yield from (f"{'':<9}{line}" for line in lines[1:])
    for detail in finding.details[: finding.shown]:
        yield textwrap.fill(detail, width, initial_indent=" " * 11, subsequent_indent=" " * 13, break_on_hyphens=False)
    if len(finding.details) > finding.shown:
        yield f"{'':<11}... {len(finding.details) - finding.shown} more (--json has all)"
