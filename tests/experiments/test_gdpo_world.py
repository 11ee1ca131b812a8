"""What is concluded of the pipeline, factorised generation, imbalance and groups, on made-up measurements."""

import numpy as np
import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.gdpo import factorized, groups, imbalance, pipeline

pytest.importorskip("matplotlib")


def made(module, values, seeds=3):
    """Measurements of every cell: `values(settings, small number of the seed)`."""
    cells = module.EXPERIMENT.cells(Options(seeds=seeds))
    return [Measurement(cell, values(cell.settings, cell.settings["seed"] / 1000)) for cell in cells]


def judged(module, values, seeds=3):
    """The verdict; and the picture can be drawn."""
    measured, options = made(module, values, seeds), Options(seeds=seeds)
    module.EXPERIMENT.draw(measured, options).savefig("/dev/null", format="png", dpi=20)
    return module.EXPERIMENT.conclude(measured, options)


def of_minority(gdpo, dpo):
    def values(settings, small):
        error = {"gdpo": gdpo, "dpo": dpo, "sft": 0.03}[settings["arm"]] + small
        keys = ("predicted", "written", "error")
        return {f"{key}/{split}": error for key in keys for split in imbalance.SPLITS}

    return values


@pytest.mark.parametrize(
    "gdpo, dpo, word", [(0.005, 0.1, "holds"), (0.05, 0.1, "fails"), (0.005, 0.001, "fails"), (0.019, 0.1, "unclear")]
)
def test_a_minority_is_judged_at_95_5(gdpo, dpo, word):
    assert judged(imbalance, of_minority(gdpo, dpo)).word == word


@pytest.mark.parametrize("distance, texts, fits, word", [
    (0.1, 0.1, 0.9, "holds"), (0.4, 0.1, 0.9, "fails"), (0.1, 0.4, 0.9, "fails"), (0.1, 0.1, 0.4, "fails"),
])  # fmt: skip
def test_the_pipeline_is_judged_by_beliefs_and_texts(distance, texts, fits, word):
    def values(settings, small):
        gdpo = settings["arm"].startswith("gdpo")
        return {
            "steps_measured": [0, 10], "distances": [0.3, 0.2], "distance": (distance if gdpo else 0.3) + small * gdpo,
            "text_distance": (texts if gdpo else 0.3) + small * gdpo, "consistency": fits + small,
        }  # fmt: skip

    assert judged(pipeline, values).word == word


@pytest.mark.parametrize("best, word, seeds", [(0.1, "holds", 3), (0.3, "fails", 3), (0.2, "unclear", 3), (0.1, "unclear", 1)])
def test_factorised_is_judged_against_text_alone(best, word, seeds):
    def values(settings, small):
        own = best + small * (-1) ** settings["seed"] if settings["arm"] == factorized.BEST else 0.2
        return {"text_distance": own, "readable": 1.0}

    assert judged(factorized, values, seeds).word == word


def test_all_arms_train_on_about_as_many_tokens():
    whole = 600 * factorized.TOKENS["direct-sft"]
    objective = {"sft": "sft", "dpo": "dpo", "gdpo": "gdpo"}
    for arm in factorized.ARMS:
        way, tokens = arm.split("-")[0], 0
        for name, steps in factorized.stages(arm, 600):
            tokens += steps * factorized.TOKENS[f"{way}-{objective[name]}"]
        assert whole * 0.98 <= tokens <= whole


def test_texts_alone_are_those_of_the_same_people():
    rows = [{"prompt": "?", "accept_response": "yes", "reject_response": "no", "options": ["a", "b"]}]
    assert factorized.without_beliefs(rows, False) == [{"prompt": "?", "completion": "yes"}]
    assert factorized.without_beliefs(rows, True) == [{"prompt": "?", "chosen": "yes", "rejected": "no"}]


@pytest.mark.parametrize(
    "own, mixture, word", [(0.02, 0.01, "holds"), (0.2, 0.01, "fails"), (0.02, 0.2, "fails"), (0.0495, 0.01, "unclear")]
)
def test_groups_are_judged_by_their_own_beliefs_and_their_mixture(own, mixture, word):
    def values(settings, small):
        return {"named": [own + small, 0.3, 0.3, own + small], "mixed": [own, mixture, mixture + small, own]}

    assert judged(groups, values).word == word


def test_an_audience_is_the_mixture_of_the_groups():
    first, other, both = (groups.topics(5, parts) for parts in (groups.PARTS, 0, 1))
    for a, b, mixed in zip(first, other, both, strict=True):
        assert a.prompt == b.prompt == mixed.prompt and mixed.group == "city 1 street 2"
        np.testing.assert_allclose(mixed.probs, np.asarray(a.probs) / 3 + 2 * np.asarray(b.probs) / 3)
        assert int(np.argmax(a.probs)) == int(np.argmin(b.probs))
