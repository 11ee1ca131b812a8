"""What is concluded of the whole pipeline, on made-up measurements."""

import pytest

from align_jax.experiments.claim import Options
from align_jax.experiments.gdpo import pipeline
from tests.experiments.made_up import judged, measurements

pytest.importorskip("matplotlib")


def measured(stated: float, said: float, fits: float, seeds: int = 3, slow: float = 0.3):
    """GDPO's values; DPO is at a distance of 0.3 in both, and of `slow` in what texts say at the slower rate."""

    def values(cell):
        own, noise = cell.settings["arm"].startswith("gdpo"), 0.01 * cell.settings["seed"]
        distance = stated + noise if own else 0.3
        return {
            "steps_measured": [0, 10],
            "curve": [0.32, distance],
            "distance": distance,
            "text_distance": said + noise if own else slow if cell.settings["arm"] == "dpo-slow" else 0.3,
            "consistency": fits - noise,
            "readable": 0.9,
        }

    return measurements(pipeline.EXPERIMENT, values, seeds)


@pytest.mark.parametrize(
    "stated, said, fits, seeds, word",
    [
        (0.1, 0.1, 0.9, 3, "holds"),
        (0.1, 0.5, 0.9, 3, "fails"),  # texts do not follow the beliefs
        (0.5, 0.1, 0.9, 3, "fails"),
        (0.1, 0.1, 0.2, 3, "fails"),  # texts do not fit what they were given
        (0.1, 0.29, 0.9, 3, "unclear"),
        (0.1, 0.1, 0.9, 1, "unclear"),
    ],
)
def test_beliefs_texts_and_their_fit_decide(stated, said, fits, seeds, word):
    assert judged(pipeline.EXPERIMENT, measured(stated, said, fits, seeds), seeds) == word


def test_the_nearer_of_both_dpo_decides():
    assert judged(pipeline.EXPERIMENT, measured(0.1, 0.1, 0.9, slow=0.05)) == "fails"


def test_the_line_says_how_well_texts_of_the_others_fit():
    line = pipeline.EXPERIMENT.conclude(measured(0.1, 0.1, 0.9), Options()).line
    assert "DPO 0.89, slower 0.89, SFT 0.89, GDPO with an SFT term 0.89, chance 0.25" in line
