"""The tables of a report as text, in as many columns as there is room for."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from align_jax.data.inspect.findings import number, percent
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import shortened
from align_jax.data.inspect.tokens import Measured, token_table

_UNITS, _MODELS, _SIZES = 12, 20, 12  # lines of tables in text; JSON has all
_QUANTILES = {"least": "0", "5%": "5", "25%": "25", "median": "50", "75%": "75", "95%": "95", "most": "100"}
_DROPPED = (("least", "most"), ("5%", "95%"), ("distinct",), ("25%", "75%"), ("mean",))  # one after the other, for want of room
_NAME = 16  # columns of a name, at least


def tables_of(gathered: Gathered, measured: Measured | None, tables: dict[str, Any], width: int) -> Iterator[tuple[str, str]]:
    """Titles and texts of all tables.

    Args:
      tables: of scores and of beliefs, where there are any. width: columns that lines may have.
    """
    sizes = sizes_of(gathered)
    if len(sizes) > 1:
        yield "answers of a row", _table(["answers", "rows"], _with_rest(list(sizes.items()), _SIZES))
    if tables.get("scores") is not None:
        yield from _score_tables(tables["scores"], width)
    if tables.get("beliefs") is not None:
        yield from _belief_tables(tables["beliefs"], width)
    rows = _token_rows(token_table(measured)) if measured is not None else []
    if rows:
        headers = ["", "texts", "least", "median", "95%", "99%", "most", "limit", "cut", "tokens lost"]
        yield "tokens", _fitted(headers, rows, width, (("99%",), ("least",), ("95%",)))


def sizes_of(gathered: Gathered) -> dict[int, int]:
    """How many rows have how many answers."""
    values, counts = np.unique(gathered.size, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _with_rest(rows: list, most: int) -> list:
    return rows if len(rows) <= most else [*rows[:most], [f"... {len(rows) - most} more", *[""] * (len(rows[0]) - 1)]]


def _table(headers: list[str], rows: list) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    # As a row, since headers are given two columns more.
    return textwrap.indent(tabulate([headers, *rows], tablefmt="plain", disable_numparse=True, colalign=align), "  ")


def _width(table: str) -> int:
    return max(map(len, table.splitlines()), default=0)


def _fitted(headers: list[str], rows: list[list[str]], width: int, dropped: Sequence[tuple[str, ...]] = _DROPPED) -> str:
    """A table without the columns for which there is no room, and at last with shorter names."""
    for names in ((), *dropped):
        kept = [i for i, header in enumerate(headers) if header not in names]
        headers, rows = [headers[i] for i in kept], [[row[i] for i in kept] for row in rows]
        table = _table(headers, rows)
        if _width(table) <= width:
            return table
    longest = max(len(row[0]) for row in rows)
    most = max(_NAME, longest - (_width(table) - width))
    return _table(headers, [[_short(row[0], most), *row[1:]] for row in rows])


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def _score_tables(scores: dict[str, Any], width: int) -> Iterator[tuple[str, str]]:
    headers = ["", "answers", "mean", *_QUANTILES, "distinct"]

    def row(name: str, found: dict[str, Any]) -> list[str]:
        quantiles = [_number(found["quantiles"][column]) for column in _QUANTILES.values()]
        return [name, str(found["count"]), _number(found["mean"]), *quantiles, str(found["distinct"])]

    rows = [row("all", scores["overall"])]
    if scores["pairs"]:
        yield from _length_table(scores["length"])
        return
    rows += [row(f"group {name}", found) for name, found in scores["by_group"].items() if found["count"]]
    yield "scores", _fitted(headers, _with_rest(rows, _MODELS), width)
    values = scores["overall"].get("values")
    if values and len(values) > 1:
        most = max(values.values())
        lines = [[f"{float(value):g}", str(count), "#" * max(1, round(40 * count / most))] for value, count in values.items()]
        yield "how often each score occurs", _table(["score", "answers", ""], lines)
    models = {name: found for name, found in scores["by_model"].items() if found["count"]}
    if models:
        order = sorted(models, key=lambda name: -(models[name]["standing"] or 0))
        rows = [[*row(name, models[name]), _number(models[name]["standing"])] for name in order]
        yield "scores by who wrote the answer", _fitted([*headers, "standing"], _with_rest(rows, _MODELS), width)
    yield from _length_table(scores["length"])


def _length_table(length: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if length is not None:
        low, high = length["interval"]
        rows = [["within groups", f"{length['within']:.2f}", f"{low:.2f} to {high:.2f}", f"{length['prompts']} prompts"]]
        rows.append(["over all answers", f"{length['overall']:.2f}", "", ""])
        yield "rank correlation of score and length", _table(["", "", "95% interval", ""], rows)


def _belief_tables(beliefs: dict[str, Any], width: int) -> Iterator[tuple[str, str]]:
    names = list(beliefs["by_group"]["all"])
    if len(names) <= 8:
        yield "accepted beliefs (share, 95% interval)", _by_group(beliefs["by_group"], names, width)
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
    rows = _with_rest(rows, _UNITS)
    headers = ["prompt", "group", "rows", "beliefs"]
    taken = sum(max(map(len, (header, *(row[i] for row in rows)))) + 2 for i, header in enumerate(headers[:3])) + 2
    rows = [[*row[:3], textwrap.fill(row[3], max(30, width - taken), break_on_hyphens=False)] for row in rows]
    title = "beliefs of each prompt (posterior mean and 95% interval), those that agree least with what is stated first"
    yield title, textwrap.indent(tabulate([headers, *rows], tablefmt="plain", disable_numparse=True), "  ")


def _by_group(by_group: dict[str, Any], names: list[str], width: int) -> str:
    """Groups and beliefs, in a table of both or, where that is too wide, one below the other."""
    totals = {who: str(sum(f["count"] for f in found.values())) for who, found in by_group.items()}
    rows = [[who, totals[who], *(_share(found.get(name)) for name in names)] for who, found in by_group.items()]
    table = _table(["", "rows", *map(_short, names)], rows)
    if _width(table) <= width:
        return table
    rows = [[who, totals[who], _short(name, 40), _share(found.get(name))] for who, found in by_group.items() for name in names]
    return _table(["", "rows", "belief", "share"], rows)


def _short(text: str, most: int = 16) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _share(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['share']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _token_rows(table: dict[str, Any]) -> list[list[str]]:
    rows = []
    for what in ("prompts", "answers"):
        found = table[what]
        if found["count"]:
            lengths = [f"{value:.0f}" for value in found["quantiles"].values()]
            cut = f"{found['cut']} ({percent(found['cut'], found['count'])})"
            rows.append([what, str(found["count"]), *lengths, str(found["limit"]), cut, percent(found["lost"])])
    return rows
