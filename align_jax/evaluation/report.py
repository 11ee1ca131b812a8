"""The results of an evaluation as a text table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tabulate import tabulate

from align_jax.evaluation.curves import evaluation_sets
from align_jax.evaluation.intervals import Estimate

Columns = Mapping[str, Mapping[str, Estimate]]  # model -> metric -> estimate
_SECTIONS = ("loss", "sets", "rewards", "length", "kl", "drift", "beliefs", "latent", "consistency", "logps", "text")


def metric_names(columns: Columns) -> list[str]:
    """Every metric of any model: set by set, section by section, in a section the order in which they came up."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    sets = evaluation_sets([{f"eval/{name}": None for name in names}])

    def of_set(name: str) -> int:
        first = name.split("/")[0]
        return len(sets) if first == "text" else sets.index(first) if first in sets else -1

    def section(name: str) -> int:
        first = name.split("/")[of_set(name) in range(len(sets))]
        return _SECTIONS.index(first) if first in _SECTIONS else len(_SECTIONS)

    parents = {name: names.index(name) for name in names}
    for name in names:  # a part (`x/gd1`) stands below its whole (`x`)
        whole = name.rpartition("/")[0]
        parents[name] = parents.get(whole, parents[name])
    return sorted(names, key=lambda name: (of_set(name), section(name), parents[name], names.index(name)))


def text_table(columns: Columns) -> str:
    """One column per model: the value, and its interval where there is one; `-` where a model has no such metric."""
    return _tabulate(_rows(columns, list(columns)), list(columns))


def joint_table(tables: Mapping[str, Columns]) -> str:
    """Several `text_table`s as one, each below a line with its name; models of one name share a column."""
    models = list(dict.fromkeys(name for columns in tables.values() for name in columns))
    rows = []
    for name, columns in tables.items():
        rows += [[f"-- {name}", *("" for _ in models)], *_rows(columns, models)]
    return _tabulate(rows, models)


def _rows(columns: Columns, models: list[str]) -> list[list[str]]:
    return [[name, *(_cell(columns.get(model, {}).get(name)) for model in models)] for name in metric_names(columns)]


def _tabulate(rows: list[list[str]], models: list[str]) -> str:
    return tabulate(rows, headers=["", *models], disable_numparse=True)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float) -> str:
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return text.removeprefix("-") if float(text) == 0 else text


def target_lines(columns: Columns) -> list[str]:
    """In words, for each model: whether its beliefs can be told from p* by the answers that p* was counted from."""
    lines = []
    for model, column in columns.items():
        names = ("js_distance", "js_distance_of_target", "js_distance_of_target_q95", "within_target")
        found = [column.get(f"beliefs/{name}") for name in names]
        if None not in found:
            distance, mean, top, within = (_number(estimate.value) for estimate in found)
            lines.append(
                f"{model}: beliefs are {distance} from p*, which is itself known to about {mean} (95%: {top}); "
                f"within what it is known to: {float(within):.0%} of the rows"
            )
    return lines


def as_json(columns: Columns) -> dict:
    """model -> metric -> `{"value", "low", "high"}`."""
    return {model: {name: dataclasses.asdict(e) for name, e in column.items()} for model, column in columns.items()}
