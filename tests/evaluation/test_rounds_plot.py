"""The picture of rounds: a panel a judge, a numbered point a round with its intervals, and the round that is taken."""

from __future__ import annotations

import pytest

from align_jax.errors import MissingPackage
from align_jax.evaluation import rounds_plot
from align_jax.evaluation.rounds_plot import draw_rounds, rounds_figure


def line(number, **values):
    bounds = {f"eval/{name}{end}": value + by for name, value in values.items() for end, by in (("_low", -0.1), ("_high", 0.2))}
    return {"round": number, "eval/prompts": 7} | {f"eval/{name}": value for name, value in values.items()} | bounds


LINES = [line(n, kl=float(n * n), reward=1.0 + n, gold=gold) for n, gold in enumerate((0.5, 0.9, 0.2))]


def test_every_round_is_a_numbered_point_with_its_intervals():
    figure = rounds_figure(LINES, ("gold", 1), kl_stop=3.0)
    reward, gold = figure.axes
    assert "7 held-out prompts" in figure.get_suptitle() and "nats per response" in gold.get_xlabel()
    for panel, values in ((reward, [1, 2, 3]), (gold, [0.5, 0.9, 0.2])):
        assert panel.containers[0][0].get_xydata().tolist() == [[n * n, pytest.approx(v)] for n, v in enumerate(values)]
        assert [text.get_text() for text in panel.texts] == ["0", "1", "2"] and "points" in panel.get_ylabel()
        across, upward = (bars.get_segments()[1] for bars in panel.containers[0][2])
        assert across[:, 0] == pytest.approx([0.9, 1.2]) and upward[:, 1] == pytest.approx([values[1] - 0.1, values[1] + 0.2])
        assert "rounds.kl_stop" in legend(panel)
    assert "round 1, which is taken" in legend(gold) and len(legend(reward)) == 2
    (star,) = [drawn for drawn in gold.lines if drawn.get_marker() == "*"]
    assert star.get_xydata().tolist() == [[1, 0.9]]


def legend(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_without_a_gold_model_there_is_one_panel(tmp_path):
    plain = [{name: value for name, value in of.items() if "gold" not in name} for of in LINES]
    (panel,) = rounds_figure(plain).axes
    assert legend(panel) == ["at the start"]
    assert draw_rounds(plain, tmp_path / "rounds.png") == f"picture  {tmp_path / 'rounds.png'}"


def test_a_run_does_not_fail_for_its_picture(tmp_path, monkeypatch):
    assert draw_rounds(LINES, tmp_path / "none" / "rounds.png").startswith("picture  none: FileNotFoundError: ")

    def missing(*_):
        raise MissingPackage("a picture needs matplotlib")

    monkeypatch.setattr(rounds_plot, "optional", missing)
    assert draw_rounds(LINES, tmp_path / "rounds.png") == "picture  none: a picture needs matplotlib"
