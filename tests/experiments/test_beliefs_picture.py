"""The quick start's picture: what is drawn is what people and models believe, and its title is true."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from align_jax.experiments import beliefs_picture, opinions
from align_jax.experiments.beliefs_picture import picture

ROOT = Path(__file__).parents[2]


def test_people_are_bars_and_models_are_marks():
    topics, group = opinions.TOPICS[:4], opinions.distributions(0)[:4]
    before = np.full_like(group, 0.25)
    after = 0.9 * group + 0.1 * before
    figure = picture(topics, group, before, after)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == list(topics)
    for axis, people, was, now in zip(panels, group, before, after, strict=True):
        np.testing.assert_allclose([bar.get_height() for bar in axis.patches], 100 * people)
        drawn = {line.get_label(): line.get_ydata() for line in axis.lines}
        np.testing.assert_allclose(drawn["model before GDPO"], 100 * was)
        np.testing.assert_allclose(drawn["model after GDPO"], 100 * now)
        assert [label.get_text() for label in axis.get_xticklabels()] == list(opinions.BELIEFS)
    assert "(%)" in panels[0].get_ylabel()
    assert figure.get_suptitle().startswith("GDPO brings the model to the group's beliefs: mean distance 0.")
    assert picture(topics, group, after, before).get_suptitle().startswith("GDPO does not bring the model to")


def test_an_imbalanced_topic_is_among_those_drawn():
    drawn = opinions.distributions(0)[: beliefs_picture.TOPICS]
    assert np.isclose(drawn.max(-1), 0.94).any() and len(opinions.questions(beliefs_picture.TOPICS)) == len(drawn) == 6


def test_without_matplotlib_a_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = beliefs_picture.draw(None, tmp_path, tmp_path, tmp_path / "beliefs.png")
    assert line == "no picture was drawn: the picture of the beliefs needs matplotlib: pip install 'align-jax[plots]'"


def test_the_readmes_first_command_installs_what_draws_it():
    first = (ROOT / "README.md").read_text().split("```bash")[1].split("```")[0]
    assert 'pip install -e ".[plots]" && align-jax experiment quickstart' in first
