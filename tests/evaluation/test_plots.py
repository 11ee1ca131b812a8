"""What pictures show: chance, names, zeros and intervals, in words."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.evaluation import Estimate, Responses, plots

pytest.importorskip("matplotlib")
SCORES = np.array([[9.0, 4.0, 1.0, 1.0], [5.0, 5.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0]])


def responses(**labels) -> Responses:
    """Three groups of four; the second has three."""
    mask = np.ones((3, 4), bool)
    mask[1, 3] = False
    known = {"scores": SCORES, "characters": (SCORES * 10).astype(int), "ref_logps": np.full((3, 4), -9.0)} | labels
    return Responses(np.arange(3), np.full((3, 4), -9.0), mask, np.full((3, 4), 5), known)


def shown(**models):
    return {name: (responses(), {metric: Estimate(*e) for metric, e in known.items()}) for name, known in models.items()}


ACCURACY, ORDER = "rewards/accuracies", "rewards/rank_correlation"
MODELS = {"base": {ACCURACY: (0.5, 0.5, 0.5), ORDER: (0.0, None, None)}, "mine": {ACCURACY: (0.8, 0.7, 0.85)}}


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_models_are_named_and_a_zero_is_seen():
    figure = plots._agreement(shown(**MODELS), "x")
    accuracy, order = figure.axes  # only what was measured
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["base", "mine"]
    assert accuracy.get_title() == "Prefers the better answer" and accuracy.get_xlabel() == "share of pairs of answers"
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in order.lines if line.get_marker() == "o"]
    assert dots == [(0.0, 0)] and texts(order) == ["no relation", "0.00", "not measured"]


def test_chance_and_intervals_are_lines():
    accuracy = plots._agreement(shown(**MODELS), "x").axes[0]
    dashed = [line for line in accuracy.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[0.5, 0.5]] and texts(accuracy) == ["chance", "0.50", "0.80"]
    assert [0.7, 0.85] in [list(line.get_xdata()) for line in accuracy.lines]


def test_chance_of_the_best_answer():
    assert plots._chance_of_best(responses()) == pytest.approx((1 / 4 + 2 / 3) / 2)  # equal scores have no best one


def test_all_beliefs_alike():
    targets = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    mask = np.ones((3, 4), bool)
    mask[:2, 2] = False  # the first two rows have two beliefs
    given = Responses(np.arange(3), np.zeros((3, 4)), mask, np.ones((3, 4), int), {"target_probs": targets})
    assert plots._equal_guess(given, plots._options(given)) == pytest.approx(0.4645 / 3, abs=1e-4)


def test_files_are_written_for_what_there_is(tmp_path):
    sets = {path.name for path in plots.write_plots(shown(**MODELS), 0.1, tmp_path)}
    assert sets == {"agreement.png", "reward_and_length.png", "reward_and_score.png"}
    targets = np.full((3, 4), 0.25)
    beliefs = responses(target_probs=targets)
    del beliefs.labels["scores"]
    known = {"beliefs/js_distance": Estimate(0.0, 0.0, 0.0), "beliefs/js_distance/north": Estimate(0.2, 0.1, 0.3)}
    names = {path.name for path in plots.write_plots({"start": (beliefs, known)}, 0.1, tmp_path)}
    assert names == {"belief_distance.png", "belief_reliability.png"}
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in sets | names)


def test_beliefs_whose_shares_nobody_knows_have_no_picture(tmp_path):
    some = responses(target_probs=np.array([[0.25] * 4, [np.nan] * 4, [np.nan] * 4]))
    assert plots._equal_guess(some, plots._options(some)) == pytest.approx(0.0, abs=1e-6)
    (dots,) = plots._reliability({"start": (some, {})}).axes[0].collections
    assert dots.get_offsets().tolist() == [[0.25, 0.25]]
    unknown = responses(target_probs=np.full((3, 4), np.nan))
    del unknown.labels["scores"]
    assert not list(plots.write_plots({"start": (unknown, {})}, 0.1, tmp_path))


def test_axes_of_single_answers_say_what_they_are():
    models = {f"m{i}": values for i, values in enumerate([MODELS["base"]] * 5)}
    figure = plots._against(shown(**models), 0.1, "y", plots._Axis("scores", "better scored", "score", "points"))
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == list(models)
    named = [axis.get_title() for axis in figure.axes if axis.get_xlabel().startswith("score (points)")]
    assert named == ["m2", "m3", "m4"]  # those with numbers below them
    assert figure.legends[0].get_title().get_text() == "A preference is y."
