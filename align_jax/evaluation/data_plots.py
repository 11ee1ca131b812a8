"""A picture of data before training on it: one page of small panels."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from align_jax.data.inspect.findings import percent
from align_jax.data.inspect.report import DataPart, DataReport
from align_jax.data.inspect.texts import shortened
from align_jax.errors import UserError
from align_jax.terminal import plural

_POINTS, _BINS, _MODELS, _BELIEFS = 3000, 40, 12, 6
_SUSPICIOUS = "#d62728"
Draw = Callable[[Axes, list[DataPart]], None]


def draw_data(report: DataReport, path: Path) -> None:
    """Draws what `align-jax data check` found.

    Args:
      report: of one or several data sets, which share the panels. path: the picture, .png, .pdf or .svg.

    Raises:
      UserError: a file that cannot be written, or another ending.
    """
    panels = [(title, draw, parts) for title, draw, there in _PANELS if (parts := [p for p in report.parts if there(p)])]
    columns = 2 if len(panels) in (2, 4) else min(3, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(4.3 * columns, 3.1 * lines + 0.7), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for unused in axes.flat[len(panels) :]:
        unused.set_visible(False)
    for (title, draw, parts), axis in zip(panels, axes.flat, strict=False):
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7.5)
        axis.grid(alpha=0.25)
        draw(axis, parts)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            axis.legend(fontsize=7)
    names = ", ".join(map(_called, report.parts))
    figure.suptitle("\n".join(textwrap.wrap(names, 45 * columns, max_lines=4)), fontsize=10)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the picture cannot be written: {error}") from error


def _called(part: DataPart) -> str:
    file, rows = Path(str(part.gathered.path)).name, plural(part.gathered.rows, "row")
    return f"{file} ({rows})" if part.label == file else f"{part.label} ({file}, {rows})"


def _color(part: DataPart) -> str:
    return f"C{part.number}"


def _hist(axis: Axes, part: DataPart, values: np.ndarray, bins: np.ndarray) -> None:
    weights = np.full(len(values), 1 / max(len(values), 1))
    how = {"histtype": "step", "linewidth": 1.4} if part.number else {"alpha": 0.6}
    axis.hist(values, bins, weights=weights, color=_color(part), label=part.label, **how)


def _scores(axis: Axes, parts: list[DataPart]) -> None:
    values = [part.gathered.score[np.isfinite(part.gathered.score)] for part in parts]
    every = np.concatenate(values)
    low, high = float(every.min()), float(every.max())
    bins = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for part, found in zip(parts, values, strict=True):
        _hist(axis, part, found, bins)
    axis.set_xlabel("score", fontsize=8)
    axis.set_ylabel("share of answers", fontsize=8)


def _lengths_and_scores(axis: Axes, parts: list[DataPart]) -> None:
    rng, shown, every = np.random.default_rng(0), 0, 0
    for part in parts:
        gathered = part.gathered
        known = np.flatnonzero(np.isfinite(gathered.score))
        drawn = rng.permutation(known)[:_POINTS]
        shown, every = shown + len(drawn), every + len(known)
        axis.scatter(
            gathered.characters[drawn] + 1,
            gathered.score[drawn],
            s=5,
            alpha=0.25,
            linewidths=0,
            color=_color(part),
            label=part.label,
        )
        marked = sorted({i for f in part.findings if f.severity == "problem" for i in f.responses})
        if marked:
            axis.scatter(
                gathered.characters[marked] + 1, gathered.score[marked], s=22, marker="x", color=_SUSPICIOUS, label="suspicious"
            )
    low, high = axis.get_xlim()
    if high > 10 * max(low, 1):  # of less, a logarithmic axis has no round numbers
        axis.set_xscale("log")
    of = f" ({shown} of {every} answers shown)" if shown < every else ""
    axis.set_xlabel(f"characters of the answer{of}", fontsize=8)
    axis.set_ylabel("score", fontsize=8)


def _models(axis: Axes, parts: list[DataPart]) -> None:
    part = parts[0]
    gathered, found = part.gathered, part.tables["scores"]["by_model"]
    every = sorted((n for n in found if found[n]["count"]), key=lambda name: -(found[name]["standing"] or 0))
    order = every[:_MODELS]
    if len(order) < len(every) or len(parts) > 1:
        of = f" of {part.label}" if len(parts) > 1 else ""
        axis.set_title(f"{axis.get_title()}: {len(order)} of {len(every)}{of} shown", fontsize=9)
    numbers = [gathered.models.index(name) for name in order]
    scores = [gathered.score[(gathered.model == i) & np.isfinite(gathered.score)] for i in numbers]
    accused = {i for f in part.findings if f.severity == "problem" for i in f.responses}
    places = np.arange(1, len(order) + 1)
    low, quarter, middle, three, high = np.asarray([np.percentile(found, (5, 25, 50, 75, 95)) for found in scores]).T
    axis.hlines(places, low, high, color=_color(part), linewidth=1)
    axis.hlines(places, quarter, three, color=_color(part), linewidth=6, alpha=0.6)
    axis.plot(middle, places, "|", color="black", markersize=9, markeredgewidth=1.5)
    axis.set_yticks(places, [name if len(name) <= 24 else name[:21] + "..." for name in order], fontsize=6.5)
    for label, number in zip(axis.get_yticklabels(), numbers, strict=True):
        members = np.flatnonzero(gathered.model == number).tolist()
        if len(accused.intersection(members)) > len(members) / 2:
            label.set_color(_SUSPICIOUS)
    axis.invert_yaxis()
    axis.set_xlabel("score (median; middle half; 5% to 95%)", fontsize=8)


def _sizes(axis: Axes, parts: list[DataPart]) -> None:
    for i, part in enumerate(parts):
        values, counts = np.unique(part.gathered.size, return_counts=True)
        each = 0.8 / len(parts)
        axis.bar(values + each * i, counts / counts.sum(), each, color=_color(part), label=part.label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("answers in a row", fontsize=8)
    axis.set_ylabel("share of rows", fontsize=8)


def _tokens(what: str) -> Draw:
    def draw(axis: Axes, parts: list[DataPart]) -> None:
        lengths = [getattr(part.measured, what) for part in parts]
        limit = parts[0].measured.max_prompt if what == "prompts" else parts[0].measured.max_answer
        most = max(int(found.max()) for found in lengths)
        shown = max(most, 1) if most < 4 * limit else max(int(np.percentile(np.concatenate(lengths), 99.5)), limit)
        bins = np.linspace(0, max(shown, 1) * 1.02, _BINS + 1)
        for part, found in zip(parts, lengths, strict=True):
            _hist(axis, part, np.minimum(found, shown), bins)
        said = [f"longest: {most}"] if most > shown else []
        cut = sum((found > limit).sum() for found in lengths) / sum(map(len, lengths))
        if limit <= 1.3 * shown:
            axis.axvline(limit, color="black", linestyle="--", linewidth=1)
            axis.annotate(
                f"cut at {limit}: {percent(cut)}", (limit, 0.97), xycoords=("data", "axes fraction"), fontsize=7,
                xytext=(-3, 0), textcoords="offset points", ha="right", va="top", rotation=90,
            )  # fmt: skip
        else:
            said.append(f"none is cut at {limit}")
        axis.set_xlabel(f"tokens ({', '.join(said)})" if said else "tokens", fontsize=8)
        axis.set_ylabel(f"share of {what}", fontsize=8)

    return draw


def _stated(axis: Axes, parts: list[DataPart]) -> None:
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.9, linestyle="--")
    for part in parts:
        units = [unit for unit in part.tables["beliefs"]["units"] if "stated" in unit]
        x = [p for unit in units for p in unit["stated"]]
        found = [p for unit in units for p in unit["posterior"]]
        y = np.asarray([p["mean"] for p in found])
        sides = np.abs(np.asarray([[p["low"], p["high"]] for p in found]).T - y)
        axis.errorbar(x, y, sides, fmt="o", ms=2.5, elinewidth=0.6, alpha=0.7, color=_color(part), label=part.label)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.set_xlabel("stated probability of a belief", fontsize=8)
    axis.set_ylabel("share of rows that accept it (95%)", fontsize=8)


def _shares(axis: Axes, parts: list[DataPart]) -> None:
    part = parts[0]
    by_group = part.tables["beliefs"]["by_group"]
    beliefs = list(by_group["all"])[:_BELIEFS]
    who = list(by_group)[:8]
    for i, belief in enumerate(beliefs):
        found = [by_group[name].get(belief, {"share": 0.0, "low": 0.0, "high": 0.0}) for name in who]
        x = np.asarray([f["share"] for f in found])
        sides = np.abs(np.asarray([[f["low"], f["high"]] for f in found]).T - x)
        y = np.arange(len(who)) + 0.12 * (i - (len(beliefs) - 1) / 2)
        axis.errorbar(x, y, xerr=sides, fmt="o", ms=4, color=f"C{i}", label=shortened(belief, 18).strip("'\""))
    axis.set_yticks(range(len(who)), who)
    sides = ((beliefs, by_group["all"], "beliefs"), (who, by_group, "groups"))
    left = [f"{len(drawn)} of {len(every)} {what}" for drawn, every, what in sides if len(drawn) < len(every)]
    if left or len(parts) > 1:
        of = [f"of {part.label}"] if len(parts) > 1 else []
        axis.set_title(f"{axis.get_title()}: {', '.join([*left, *of])} shown", fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, None)
    axis.set_xlabel("share of rows that accept the belief (95%)", fontsize=8)


def _has_scores(part: DataPart) -> bool:
    return part.gathered.has_scores


def _has_models(part: DataPart) -> bool:
    return part.gathered.has_scores and len(part.gathered.models) > 1


def _has_sizes(part: DataPart) -> bool:
    return len(part.gathered.of) > 0 and len(set(part.gathered.size.tolist())) > 1


def _has_tokens(what: str) -> Callable[[DataPart], bool]:
    return lambda part: part.measured is not None and len(getattr(part.measured, what)) > 0


def _has_beliefs(part: DataPart) -> bool:
    return part.tables.get("beliefs") is not None


def _states(part: DataPart) -> bool:
    return _has_beliefs(part) and any("stated" in unit for unit in part.tables["beliefs"]["units"])


_PANELS: tuple[tuple[str, Draw, Callable[[DataPart], bool]], ...] = (
    ("Scores", _scores, _has_scores),
    ("Are longer answers scored higher?", _lengths_and_scores, _has_scores),
    ("Scores by who wrote the answer", _models, _has_models),
    ("How many answers a row has", _sizes, _has_sizes),
    ("Length of prompts", _tokens("prompts"), _has_tokens("prompts")),
    ("Length of answers", _tokens("answers"), _has_tokens("answers")),
    ("Do the rows agree with the stated beliefs?", _stated, _states),
    ("What is accepted, by group", _shares, _has_beliefs),
)
