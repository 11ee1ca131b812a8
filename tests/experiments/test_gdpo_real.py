"""What is concluded of real opinions, on made-up measurements; how questions are held out, and what a text is judged by."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from align_jax.experiments import survey
from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.gdpo.real import ARMS, BEST, EXPERIMENT
from align_jax.experiments.options import Options as Given
from align_jax.experiments.work import Workplace, write_rows
from tests.experiments.made_up import readable

pytest.importorskip("matplotlib")


def measured(best: float, unseen: float, seeds: int = 1) -> list[Measurement]:
    """Twenty questions, every second one unseen; the mean predictor is 0.12 away from each."""
    seen, found = np.arange(20) % 2 == 0, []
    for cell in EXPERIMENT.cells(Options(seeds=seeds)):
        noise = np.random.default_rng(0).normal(0, 0.005, 20)
        if cell.settings["arm"] == "judge":
            values = {
                "questions": ["?"] * 20, "groups": ["a", "b", "c", "c"] * 5, "seen": seen.tolist(),
                "targets": [[0.5, 0.5]] * 20,
                "mean_distances": [0.12] * 20, "judge": {"accuracy": 0.7}, "judge_on_people": {"seen": 0.7, "unseen": 0.7},
            }  # fmt: skip
        else:
            own = np.where(seen, best, unseen) if cell.settings["arm"] == BEST else 0.3
            values = {"distances": (own + noise).tolist(), "mass": 0.9, "consistency": 0.4, "repeats": 0.1, "surprise": 3.0}
        found.append(Measurement(cell, values))
    return found


@pytest.mark.parametrize("best, unseen, word", [(0.05, 0.08, "holds"), (0.05, 0.2, "fails"), (0.05, 0.12, "unclear")])
def test_verdicts(best, unseen, word):
    found = EXPERIMENT.conclude(measured(best, unseen), Options(seeds=1))
    assert found.word == word and found.figures["worst round"].value >= found.figures[f"{BEST}, round a"].value
    readable(EXPERIMENT.draw(measured(best, unseen), Options(seeds=1)))


def test_the_start_is_measured_once_for_all_seeds():
    names = [cell.name for cell in EXPERIMENT.cells(Options(seeds=2))]
    assert names.count("judge") == 1 and names.count("start-0") == 1 and "start-1" not in names
    assert len(names) == 1 + 2 * len(ARMS) - 1


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_JAX_DATA", str(tmp_path / "data"))
    (tmp_path / "data/opinions").mkdir(parents=True)
    for name, count in (("train", 60), ("eval", 12)):
        write_rows(tmp_path / f"data/opinions/{name}.jsonl", [
            {"prompt": f"question {i % 6}?", "group": f"g{i % 2}", "options": ["No", "Yes"], "probabilities": [0.2, 0.8],
             "accept_response": "yes please" if i % 3 else "no thanks", "accept_choice": "Yes" if i % 3 else "No"}
            for i in range(count)
        ])  # fmt: skip
    places = [tmp_path / name for name in ("cell", "shared", "common")]
    for place in places:
        place.mkdir()
    return Workplace(*places, Given())


def test_unseen_questions_are_in_no_row_of_training(work):
    train, held = survey.split(work)
    seen = {json.loads(line)["prompt"] for line in train.read_text().splitlines()}
    rows = [json.loads(line) for line in held.read_text().splitlines()]
    assert len(seen) == 4 and len(rows) == 12
    assert {row["prompt"] for row in rows if row["seen"]} == seen
    assert {row["prompt"] for row in rows if not row["seen"]}.isdisjoint(seen)
    assert len(survey.questions(held)) == 6 and survey.split(work) == (train, held)
    np.testing.assert_allclose(survey.mean_prediction(train), [0.2, 0.8])
    assert survey.distance([0.2, 0.8], [0.5, 0.5]) == pytest.approx(jensenshannon([0.2, 0.8], [0.5, 0.5]))


def test_texts_are_judged_by_the_belief_that_they_were_given():
    asked = [survey.Asked("?", "g", ("No", "Yes"), (0.5, 0.5), True)]
    spoken = [{"belief": 0, "texts": ["no", "(Yes) yes"]}, {"belief": 1, "texts": ["yes", "no"]}]

    class Judge:
        def __call__(self, questions):
            answers = [int("yes" in question.text) for question in questions]
            return type("Found", (), {"answers": answers})

    assert survey.consistency(Judge(), asked, spoken) == 0.5
    assert survey.repeats(asked, spoken, "({belief}) ") == 0.25
