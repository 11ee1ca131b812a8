"""The picture of a run: which panels there are, what stands in them, and that it never fails a run."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from align_jax.evaluation import curves
from align_jax.evaluation.curves import PANELS, draw_curves, points, running_mean


def history(steps: int, **metrics: float) -> list[dict[str, float]]:
    """A line per step, and an evaluation of the same metrics before the first and after the last one."""
    lines = [{"step": step, "learning_rate": 1e-3, **{k: v + step for k, v in metrics.items()}} for step in range(steps + 1)]
    del lines[0]["learning_rate"]
    for name in metrics:
        lines[0][f"eval/{name}"] = lines[-1][f"eval/{name}"] = 0.25
        del lines[0][name]
    return lines


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_visible()]


def axes_of(figure, title: str):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def test_every_metric_has_its_panel_and_every_panel_says_what_its_axes_are():
    pairs = {"loss": 0.7, "rewards/chosen": 1.0, "rewards/rejected": 0.5, "rewards/margins": 0.5, "rewards/accuracies": 0.5}
    beliefs = {"beliefs/js_distance": 0.4, "loss/calibration": 3.0, "loss/belief": 2.0, "loss/preference": 0.7}
    figure = curves.curves(history(8, **pairs), "my run")
    assert titles(figure) == ["Loss", "Rewards", "Margin of rewards", "Accuracy", "Learning rate"]
    assert figure.get_suptitle() == "my run\nlines: each step's batch; dots: evaluation on data.eval"
    both = curves.curves(history(8, **pairs, **beliefs))
    assert {"Parts of the loss", "Beliefs: distance to the target"} < set(titles(both))
    assert all(axes.get_ylabel() for axes in both.axes if axes.get_visible())
    bottom = [axes.get_title() for axes in both.axes if axes.get_xlabel() == "optimizer step"]
    assert len(bottom) == 4 and bottom == titles(both)[-4:]
    assert len(PANELS) > len(titles(both))


def test_what_stands_in_a_panel():
    metrics = {"loss": 1.0, "rewards/accuracies": 0.5, "rewards/chosen": 2.0, "rewards/rejected": 1.0}
    figure = curves.curves(history(40, **metrics))
    thin, thick, dots = axes_of(figure, "Loss").lines
    assert thin.get_xydata().tolist() == [[step, 1.0 + step] for step in range(1, 41)]
    assert thick.get_ydata()[20] == thin.get_ydata()[20] and thick.get_linewidth() > thin.get_linewidth()
    assert (dots.get_marker(), dots.get_xydata().tolist()) == ("o", [[0, 0.25], [40, 0.25]])
    chance = axes_of(figure, "Accuracy").lines[-1]
    assert chance.get_label() == "chance" and list(chance.get_ydata()) == [0.5, 0.5]
    legend = [text.get_text() for text in axes_of(figure, "Rewards").get_legend().get_texts()]
    assert legend == ["chosen", "rejected"] and axes_of(figure, "Loss").get_legend() is None
    assert "thick lines: mean of 5 steps" in figure.get_suptitle()


def test_values_that_are_missing_or_not_finite_are_left_out():
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3}, {"step": 4, "loss": np.inf}]
    steps, values = points(lines, "loss")
    assert (steps.tolist(), values.tolist()) == ([1], [1.0])


def test_the_running_mean_is_around_each_value():
    assert running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist() == [0.0, 3.0, 3.0, 0.0]
    trend = np.arange(9.0)
    np.testing.assert_allclose(running_mean(trend, 5), trend)  # at the ends, too
    assert running_mean(np.array([5.0]), 3).tolist() == [5.0]


def test_a_picture_is_written(tmp_path):
    assert draw_curves(history(3, loss=1.0), tmp_path / "curves.png") == f"picture  {tmp_path / 'curves.png'}"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("lines", [[], [{"step": 0, "time/compile_seconds": 1.0}]])
def test_nothing_to_draw(tmp_path, lines):
    assert draw_curves(lines, tmp_path / "curves.png") == "picture  none: no step was logged"
    assert not (tmp_path / "curves.png").exists()


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, name, None)
    said = draw_curves(history(3, loss=1.0), tmp_path / "curves.png")
    assert said == "picture  none: a picture needs matplotlib: pip install 'align-jax[plots]'"


def test_a_picture_that_cannot_be_drawn_is_no_reason_to_fail(tmp_path):
    assert draw_curves(history(3, loss=1.0), tmp_path / "no folder" / "c.png").startswith("picture  none: FileNotFoundError")


def test_several_sets_have_dots_of_their_own_with_their_names():
    lines = history(3, **{"loss": 0.7, "rewards/chosen": 1.0, "rewards/rejected": 0.5})
    for line in (lines[0], lines[-1]):
        for name in [name for name in line if name.startswith("eval/")]:
            value = line.pop(name)
            line |= {f"eval/{of}/{name.removeprefix('eval/')}": value for of in ("near", "far")}
        line["eval/text/loss"] = 2.0
    assert curves.evaluation_sets(lines) == ["near", "far"] and curves.evaluation_sets(history(2, loss=1.0)) == []
    figure = curves.curves(lines)
    assert titles(figure) == ["Loss", "Rewards", "Loss on texts (data.eval_text)", "Learning rate"]
    labels = lambda title: axes_of(figure, title).get_legend_handles_labels()[1]  # noqa: E731
    assert labels("Loss") == ["near", "far"]
    assert labels("Rewards") == ["chosen", "near, chosen", "far, chosen", "rejected", "near, rejected", "far, rejected"]
