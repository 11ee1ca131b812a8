"""What a model of the world says, counted."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from align_jax.experiments import spoken, world


def test_a_statement_in_front_is_no_part_of_the_text():
    texts = ["1 : oppose : i am all for zoo visits because they help everyone .", "we have enough of zoo visits", "so", ""]
    assert spoken.counted(texts).tolist() == [1, 1, 0, 0]


def test_the_distance_is_the_mean_over_topics():
    topics = [world.Topic("zoo visits", (0.5, 0.5)), world.Topic("bike lanes", (1.0, 0.0))]
    found = spoken.mean_distance([(0.5, 0.5), (0.5, 0.5)], topics)
    assert found == pytest.approx(jensenshannon([0.5, 0.5], [1, 0]) / 2)


def test_the_first_step_below_a_limit():
    assert spoken.first_below([10, 20, 30], [0.3, 0.1, 0.05], 0.2) == 20
    assert spoken.first_below([10], [0.3], 0.2) is None


def test_the_distance_of_perfect_draws_falls_with_their_number():
    topics = [world.Topic("zoo visits", (0.5, 0.5)), world.Topic("bike lanes", (0.9, 0.1))]
    few, many = spoken.floor(topics, 5), spoken.floor(topics, 500)
    assert 0 < many < few / 5
    assert spoken.floor([world.Topic("zoo visits", (1.0, 0.0))], 3) == 0


def test_texts_of_no_belief_are_no_beliefs_of_people():
    (topic,) = [world.Topic("zoo visits", (0.5, 0.5))]
    said = ["we need more zoo visits", "i am against zoo visits", "zoo zoo", ""]
    assert spoken.shares(said).tolist() == [0.25, 0.25, 0, 0, 0.5]
    silent = spoken.mean_distance([spoken.shares(["zoo", ""])], [topic])
    assert silent == pytest.approx(np.sqrt(np.log(2)))
    assert spoken.mean_distance([spoken.shares(said)], [topic]) < silent
