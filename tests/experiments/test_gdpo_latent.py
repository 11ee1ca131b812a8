"""What is concluded of beliefs without labels, and what training is shown of the rows."""

import numpy as np
import pytest

from align_jax.experiments import world
from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.gdpo import latent
from tests.experiments.made_up import readable

pytest.importorskip("matplotlib")
OPTIONS = Options(quick=True)


def measured(options, gap, collapsed=()):
    """Distances: labels 0.05, at random 0.4, the others `gap` above labels, or those of chance where they collapsed."""
    found = []
    for cell in latent.EXPERIMENT.cells(options):
        arm, eps, noise = cell.settings["arm"], cell.settings["mixed"], cell.settings["seed"] / 1000
        away = {latent.LABELLED: 0.05, latent.RANDOM: 0.4, "dpo": 0.4}.get(arm, 0.05 + gap + noise)
        if arm in collapsed and eps:
            away = 0.41 + noise
        found.append(Measurement(cell, {"distance": away, "consistency": 0.9, "mass": 1.0, "agreement": 0.9}))
    return found


@pytest.mark.parametrize(("gap", "word"), [(0.01, "holds"), (0.2, "fails"), (0.049, "unclear")])
def test_verdicts(gap, word):
    found = measured(OPTIONS, gap, collapsed=("latent",))
    verdict = latent.EXPERIMENT.conclude(found, OPTIONS)
    assert verdict.word == word
    assert "latent, by the reference from 50%" in verdict.line and "stance, by the model nowhere up to 50%" in verdict.line
    assert "right for 90%" in verdict.line and "learned labelled statements" in verdict.line
    readable(latent.EXPERIMENT.draw(found, OPTIONS))


def test_one_seed_is_unclear():
    assert latent.EXPERIMENT.conclude(measured(Options(seeds=1), 0.01), Options(seeds=1)).word == "unclear"


def test_texts_are_of_another_belief_as_often_as_asked():
    topics = world.topics(latent.TARGETS, 4, 0)
    for eps in (0.0, 0.5):
        rows = latent.mixed_rows(topics, 200, 0, eps)
        off = [world.belief_of(row[f"{s}_response"]) != row[f"{s}_choice_id"] for row in rows for s in ("accept", "reject")]
        assert np.mean(off) == pytest.approx(eps, abs=0.05)


def test_perfect_labels_of_mixed_texts_are_those_of_other_beliefs():
    assert latent.perfect(0, 0.0) < 0.12 < 0.2 < latent.perfect(0, 0.5) < 0.4


def test_labels_are_not_shown_to_those_who_do_without():
    rows = latent.mixed_rows(world.topics(latent.TARGETS, 3, 0), 50, 0, 0.0)
    for row in latent._shown("latent", rows, 0):
        assert not {"accept_choice_id", "accept_choice", "reject_choice_id", "probabilities"} & row.keys()
    labelled, drawn = latent._shown(latent.LABELLED, rows, 0), latent._shown(latent.RANDOM, rows, 0)
    assert [r["accept_choice_id"] for r in labelled] == [r["accept_choice_id"] for r in rows]
    assert "probabilities" not in labelled[0] and all(r["accept_choice_id"] != r["reject_choice_id"] for r in drawn)
    same = np.mean([a["accept_choice_id"] == b["accept_choice_id"] for a, b in zip(rows, drawn, strict=True)])
    assert same == pytest.approx(0.25, abs=0.12)
