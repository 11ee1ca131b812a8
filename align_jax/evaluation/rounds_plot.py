"""The picture of on-policy rounds: what the judges say of held-out samples, against how far the model went from its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align_jax.errors import MissingPackage, optional

# name in rounds.jsonl -> (title, colour); colours that the colour-blind tell apart
_JUDGES = {
    "reward": ("The reward model that was trained on", "#0072B2"),
    "gold": ("The gold reward model, never trained on", "#D55E00"),
}
Line = Mapping[str, Any]


def draw_rounds(lines: Sequence[Line], path: Path, best: tuple[str, int] | None = None, kl_stop: float | None = None) -> str:
    """Draws rounds to a PNG file, whatever happens: a run does not fail for its picture.

    Args:
      lines: of rounds.jsonl. best: the judge by whom a round is taken, and which one; None where it is the last.
      kl_stop: `rounds.kl_stop`.

    Returns:
      A line for the user: where the picture is, or why there is none.
    """
    try:
        rounds_figure(lines, best, kl_stop).savefig(path, dpi=130)
    except MissingPackage as error:
        return f"picture  none: {error}"
    except Exception as error:  # matplotlib fails in ways of its own, and the models are what was wanted
        return f"picture  none: {type(error).__name__}: {error}"
    return f"picture  {path}"


def rounds_figure(lines: Sequence[Line], best: tuple[str, int] | None = None, kl_stop: float | None = None) -> Any:
    """The figure: a panel a judge, a point a round, with 95% intervals of reward and KL.

    Raises:
      MissingPackage: matplotlib is not installed.
    """
    optional("matplotlib", "plots", "a picture")
    from matplotlib.figure import Figure

    judges = [name for name in _JUDGES if all(f"eval/{name}" in line for line in lines)]
    figure = Figure(figsize=(6.4, 2.9 * len(judges) + 0.9), layout="constrained")
    panels = figure.subplots(len(judges), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, judges, strict=True):
        _draw(panel, lines, name)
        if best is not None and best[0] == name:
            _mark(panel, lines[best[1]], name)
        if kl_stop is not None:
            panel.axvline(kl_stop, color="0.3", linewidth=1, linestyle="--", label="rounds.kl_stop")
        panel.legend(fontsize=8, framealpha=0.7)
    panels[-1].set_xlabel("KL divergence to the model at the start (nats per response)", fontsize=9)
    figure.suptitle(
        f"Reward on {lines[0]['eval/prompts']} held-out prompts, round by round (0: before training)\n"
        "bars: 95% intervals over prompts",
        fontsize=10,
    )
    return figure


def _draw(panel: Any, lines: Sequence[Line], name: str) -> None:
    title, colour = _JUDGES[name]
    (x, across), (y, upward) = _with_bars(lines, "kl"), _with_bars(lines, name)
    bars = {"elinewidth": 0.8, "capsize": 2, "xerr": across, "yerr": upward}
    panel.errorbar(x, y, color=colour, marker="o", markersize=5, linewidth=1.2, **bars)
    panel.axhline(y[0], color="black", linewidth=0.8, linestyle=":", label="at the start")
    for line, at, value in zip(lines, x, y, strict=True):
        text = {"xytext": (6, 5), "textcoords": "offset points", "fontsize": 9, "fontweight": "bold"}
        panel.annotate(str(line["round"]), (at, value), **text)
    panel.set_title(title, fontsize=10)
    panel.set_ylabel("mean score\n(this judge's points)", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.margins(0.08)


def _mark(panel: Any, line: Line, name: str) -> None:
    marker = {"marker": "*", "markersize": 15, "color": "#009E73", "markeredgecolor": "black", "linestyle": "", "zorder": 4}
    panel.plot([line["eval/kl"]], [line[f"eval/{name}"]], label=f"round {line['round']}, which is taken", **marker)


def _with_bars(lines: Sequence[Line], name: str) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals go down and up."""
    values = [line[f"eval/{name}"] for line in lines]
    down = [max(line[f"eval/{name}"] - line[f"eval/{name}_low"], 0.0) for line in lines]
    up = [max(line[f"eval/{name}_high"] - line[f"eval/{name}"], 0.0) for line in lines]
    return values, [down, up]
