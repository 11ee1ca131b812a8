"""What `align-jax data check` found: findings first, then tables; as text, as JSON, as an exit status."""

from __future__ import annotations

import collections
import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
from tabulate import tabulate

from align_jax.data.inspect.findings import LISTED, SEVERITIES, Finding, percent
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import shortened
from align_jax.data.inspect.tokens import Measured, token_table
from align_jax.terminal import plural

_COLORS = {"problem": "\x1b[1;31m", "warning": "\x1b[33m", "note": "\x1b[36m"}
_BOLD, _END = "\x1b[1m", "\x1b[0m"
_DETAILS = 8  # lines below a finding
_UNITS, _MODELS, _SIZES = 12, 20, 12  # lines of tables in text; JSON has all


@dataclasses.dataclass
class DataPart:
    """One data set of a report.

    Attributes:
      name: what it is, such as `data.train`. gathered, measured: its rows in numbers; without a tokenizer no tokens.
      tables: scores, beliefs, tokens, as JSON values. findings: what is to say, worst first.
      batch: the first batch as text, once with colours and once without.
    """

    name: str
    gathered: Gathered
    measured: Measured | None
    tables: dict[str, Any]
    findings: list[Finding]
    batch: tuple[list[str], list[str]] = ((), ())

    def __post_init__(self):
        self.findings = sorted(self.findings, key=lambda finding: SEVERITIES.index(finding.severity))

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
            "sizes": {str(size): count for size, count in _sizes(gathered).items()},
            "sources": gathered.sources,
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
      parts: each of them. lines: what else there is to say, such as what was not checked.
    """

    parts: list[DataPart]
    lines: list[str]

    @property
    def findings(self) -> list[Finding]:
        """Those of all parts, worst first."""
        found = [finding for part in self.parts for finding in part.findings]
        return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

    def status(self, strict: bool = False) -> int:
        """An exit status: 1 where there are problems (or with `strict` warnings), else 0."""
        bad = ("problem", "warning") if strict else ("problem",)
        return int(any(finding.severity in bad for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        counts = collections.Counter(finding.severity for finding in self.findings)
        numbers = {f"{severity}s": counts[severity] for severity in SEVERITIES}
        return numbers | {"not_checked": self.lines, "data": {part.name: part.to_json() for part in self.parts}}

    def text(self, width: int = 100, color: bool = False) -> str:
        """Everything for people, in lines of a width where texts allow it."""
        return "\n".join(line for part in self.parts for line in _part(part, width, color)) + "\n" + self._last(width)

    def _last(self, width: int) -> str:
        counts = collections.Counter(finding.severity for finding in self.findings)
        numbers = [plural(counts[severity], severity) for severity in SEVERITIES]
        return "\n".join([*(textwrap.fill(line, width) for line in self.lines), ", ".join(numbers)])

    def __repr__(self) -> str:
        return self.text()


def _part(part: DataPart, width: int, color: bool) -> Iterator[str]:
    gathered = part.gathered
    yield _heading(f"{part.name}: {gathered.path}", color)
    yield textwrap.fill(_summary(gathered), width)
    yield ""
    for finding in part.findings:
        yield from _finding(finding, width, color)
    if part.findings:
        yield ""
    for title, table in _tables(part):
        yield _heading(title, color)
        yield table
        yield ""
    if part.batch[0]:
        note = "scored tokens green, each in its shade; EOS marked" if color else "scored tokens in [], EOS marked"
        yield _heading(f"the first batch ({note})", color)
        yield from part.batch[0 if color else 1]
        yield ""


def _heading(text: str, color: bool) -> str:
    return f"{_BOLD}{text}{_END}" if color else text


def _summary(gathered: Gathered) -> str:
    prompts = plural(len(gathered.prompt_texts), "different prompt")
    parts = [f"format {gathered.format}: {plural(gathered.rows, 'row')}", prompts]
    if len(gathered.of):
        low, high = int(gathered.size.min()), int(gathered.size.max())
        parts.append(f"{plural(len(gathered.of), 'answer')}, {low if low == high else f'{low} to {high}'} in each row")
    if gathered.sources:
        parts.append("rows of " + ", ".join(f"{name}: {count}" for name, count in gathered.sources.items()))
    if gathered.left_out:
        parts.append(f"{plural(gathered.left_out, 'row')} left out for empty answers (data.on_empty: drop)")
    if gathered.groups:
        names = ", ".join([*sorted(map(str, gathered.groups))[:8], *(["..."] if len(gathered.groups) > 8 else [])])
        parts.append(f"{plural(len(gathered.groups), 'group')} of people ({names})")
    return "; ".join(parts)


def _finding(finding: Finding, width: int, color: bool) -> Iterator[str]:
    label = f"{finding.severity:<8}"
    lines = textwrap.wrap(finding.text, max(20, width - 9), break_on_hyphens=False)
    yield f"{_COLORS[finding.severity]}{label}{_END} {lines[0]}" if color else f"{label} {lines[0]}"
    yield from (f"{'':<9}{line}" for line in lines[1:])
    most = LISTED if finding.code in ("bad_rows", "refused") else _DETAILS
    for detail in finding.details[:most]:
        yield textwrap.fill(detail, width, initial_indent=" " * 11, subsequent_indent=" " * 13, break_on_hyphens=False)
    if len(finding.details) > most:
        yield f"{'':<11}... (--json has more)"


def _tables(part: DataPart) -> Iterator[tuple[str, str]]:
    gathered, tables = part.gathered, part.tables
    sizes = _sizes(gathered)
    if len(sizes) > 1:
        shown = list(sizes.items())
        yield "answers of a row", _table(["answers", "rows"], _with_rest(shown, _SIZES))
    if tables.get("scores") is not None:
        yield from _score_tables(tables["scores"])
    if tables.get("beliefs") is not None:
        yield from _belief_tables(tables["beliefs"])
    if part.measured is not None:
        yield "tokens", _token_rows(token_table(part.measured))


def _with_rest(rows: list, most: int) -> list:
    return rows if len(rows) <= most else [*rows[:most], [f"... {len(rows) - most} more", *[""] * (len(rows[0]) - 1)]]


def _sizes(gathered: Gathered) -> dict[int, int]:
    values, counts = np.unique(gathered.size, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _table(headers: list[str], rows: list) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return textwrap.indent(tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=align), "  ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _score_tables(scores: dict[str, Any]) -> Iterator[tuple[str, str]]:
    columns = ("0", "5", "25", "50", "75", "95", "100")
    headers = ["", "answers", "mean", "least", "5%", "25%", "median", "75%", "95%", "most", "distinct"]

    def row(name: str, found: dict[str, Any]) -> list[str]:
        quantiles = [_number(found["quantiles"][column]) for column in columns]
        return [name, str(found["count"]), _number(found["mean"]), *quantiles, str(found["distinct"])]

    rows = [row("all", scores["overall"])]
    if scores["pairs"]:
        yield from _length_table(scores["length"])
        return
    rows += [row(f"group {name}", found) for name, found in scores["by_group"].items() if found["count"]]
    yield "scores", _table(headers, _with_rest(rows, _MODELS))
    values = scores["overall"].get("values")
    if values and len(values) > 1:
        most = max(values.values())
        lines = [[f"{float(value):g}", str(count), "#" * max(1, round(40 * count / most))] for value, count in values.items()]
        yield "how often each score occurs", _table(["score", "answers", ""], lines)
    models = {name: found for name, found in scores["by_model"].items() if found["count"]}
    if models:
        order = sorted(models, key=lambda name: -(models[name]["standing"] or 0))
        rows = [[*row(name, models[name]), _number(models[name]["standing"])] for name in order]
        yield "scores by who wrote the answer", _table([*headers, "standing"], _with_rest(rows, _MODELS))
    yield from _length_table(scores["length"])


def _length_table(length: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if length is not None:
        low, high = length["interval"]
        rows = [["within groups", f"{length['within']:.2f}", f"{low:.2f} to {high:.2f}", f"{length['prompts']} prompts"]]
        rows.append(["over all answers", f"{length['overall']:.2f}", "", ""])
        yield "rank correlation of score and length", _table(["", "", "95% interval", ""], rows)


def _belief_tables(beliefs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    names = list(beliefs["by_group"]["all"])
    if len(names) <= 8:
        rows = [
            [who, str(sum(f["count"] for f in found.values())), *(_share(found.get(name)) for name in names)]
            for who, found in beliefs["by_group"].items()
        ]
        yield "accepted beliefs (share, 95% interval)", _table(["", "rows", *map(_short, names)], rows)
    order = sorted(beliefs["units"], key=lambda unit: (unit.get("p_value", 1.0), sum(unit["counts"])))
    rows = []
    for unit in order:
        stated = unit.get("stated") or [None] * len(unit["options"])
        shares = "; ".join(
            f"{_short(option)} {p['mean']:.2f} ({p['low']:.2f} to {p['high']:.2f}"
            + (")" if q is None else f", stated {q:.2f})")
            for option, p, q in zip(unit["options"], unit["posterior"], stated, strict=True)
        )
        rows.append([shortened(unit["prompt"], 34), str(unit["group"]), str(sum(unit["counts"])), shares])
    title = "beliefs of each prompt (posterior mean and 95% interval), those that agree least with what is stated first"
    table = tabulate(_with_rest(rows, _UNITS), ["prompt", "group", "rows", "beliefs"], tablefmt="plain", disable_numparse=True)
    yield title, textwrap.indent(table, "  ")


def _short(text: str) -> str:
    return text if len(text) <= 16 else text[:13] + "..."


def _share(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['share']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _token_rows(table: dict[str, Any]) -> str:
    headers = ["", "texts", "least", "median", "95%", "99%", "most", "limit", "cut", "tokens lost"]
    rows = []
    for what in ("prompts", "answers"):
        found = table[what]
        if found["count"]:
            lengths = [f"{value:.0f}" for value in found["quantiles"].values()]
            cut = f"{found['cut']} ({percent(found['cut'], found['count'])})"
            rows.append([what, str(found["count"]), *lengths, str(found["limit"]), cut, percent(found["lost"])])
    return _table(headers, rows)
