"""How well p* is known, beside the distance to it: against simulation, and what an evaluation makes of it."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import jensenshannon

from align_jax.data.targets import posterior
from align_jax.evaluation import Responses, estimates, measure, target_lines
from align_jax.evaluation.metrics.targets import target_knowledge
from align_jax.objectives import GDPO


def responses(predicted, alpha, targets=None) -> Responses:
    """Rows whose beliefs have these probabilities, up to a factor; two texts follow."""
    predicted, alpha = np.asarray(predicted, np.float64), np.asarray(alpha, np.float32)
    n, count = predicted.shape
    mask = np.concatenate([predicted > 0, np.ones((n, 2), bool)], axis=1)
    logps = np.concatenate([np.log(np.where(predicted > 0, predicted, 1.0)) - 1.0, np.full((n, 2), -7.0)], axis=1)
    if targets is None:
        targets = alpha / np.maximum(alpha.sum(1, keepdims=True), 1e-9)
    labels = {"target_probs": np.asarray(targets, np.float32), "target_alpha": alpha}
    labels |= {"chosen_belief": np.zeros(n, np.int32), "ref_logps": np.zeros((n, count + 2), np.float32)}
    return Responses(np.arange(n), np.where(mask, logps, 0).astype(np.float32), mask, np.full(mask.shape, 3), labels)


def means(found):
    return {name.removeprefix("beliefs/"): float(s.sum() / w.sum()) for name, (s, w) in found.items()}


def test_a_model_that_is_the_truth_is_within_what_the_target_is_known_to():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet([1, 1, 1], 1000)
    known = posterior(rng.multinomial(25, truth), 1.0)
    found = means(target_knowledge(responses(truth, known.alpha)))
    assert abs(found["within_target"] - 0.95) < 0.025
    distance = jensenshannon(truth, known.mean, axis=1).mean()
    assert abs(found["js_distance_of_target"] - distance) < 0.05 * distance
    assert found["js_distance_of_target_q95"] > 1.5 * found["js_distance_of_target"]


def test_more_answers_know_the_target_better_and_what_is_far_is_not_within():
    far, near = [[0.1, 0.9]], [[0.52, 0.48]]
    few, many = means(target_knowledge(responses(near, [[3, 3]]))), means(target_knowledge(responses(near, [[300, 300]])))
    assert many["js_distance_of_target"] < few["js_distance_of_target"] / 8
    assert few["within_target"] == many["within_target"] == 1
    assert means(target_knowledge(responses(far, [[300, 300]])))["within_target"] == 0


def test_rows_that_do_not_know_do_not_count_and_beliefs_that_are_not_there_change_nothing():
    alpha = [[0, 0, 0], [4, 2, 0], [4, 2, 0]]
    found = target_knowledge(
        responses([[0.3, 0.3, 0.4], [0.6, 0.4, 0], [0.01, 0.99, 0]], alpha, [[1, 0, 0], *[[2 / 3, 1 / 3, 0]] * 2])
    )
    assert found["beliefs/within_target"][1].tolist() == [0, 1, 1] and found["beliefs/within_target"][0].tolist() == [0, 1, 0]
    values = found["beliefs/js_distance_of_target"][0]
    wanted = target_knowledge(responses([[0.6, 0.4]], [[4, 2]]))["beliefs/js_distance_of_target"][0]
    assert values[1] == values[2] == wanted[0] > 0
    assert target_knowledge(responses([[0.5, 0.5]], [[0, 0]], [[0.5, 0.5]])) == {}


def test_an_evaluation_measures_it_where_the_labels_are_there_by_group_too():
    given = responses([[0.6, 0.4], [0.1, 0.9]], [[40, 20], [400, 200]])
    given.labels["group_id"] = np.array([0, 1])
    whole = measure(given, GDPO(), np.arange(2), ("north", "south"))
    table = whole.means()
    assert table["beliefs/within_target"] == 0.5 and table["beliefs/within_target/worst_group"] == 0
    assert 0 < table["beliefs/js_distance_of_target"] < table["beliefs/js_distance"]
    (line,) = target_lines({"run": estimates(whole, 0, 0)})
    distance, known = (f"{table[f'beliefs/{name}']:.3f}" for name in ("js_distance", "js_distance_of_target"))
    assert line.startswith(f"run: beliefs are {distance} from p*, which is itself known to about {known} (95%: 0.")
    assert line.endswith("within what it is known to: 50% of the rows")
    assert target_lines({"run": {}}) == []
